"""`fit` and `resume`: from a source of data to a run on disk."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.data.sources import load
from trainwell.errors import InputError, nearest
from trainwell.run import Run
from trainwell.train import hardware, losses
from trainwell.train.display import Display, duration
from trainwell.train.dry_run import DryRun, learn_one_batch
from trainwell.train.folder import at_work_in, describe, how_to_resume, refuse_used, remove_run
from trainwell.train.history import Row
from trainwell.train.loop import Metric, Trainer
from trainwell.train.prepare import Custom, prepared
from trainwell.train.recipe import Recipe
from trainwell.train.result import write_result

OnEpochEnd = Callable[[Trainer, Row], object]


def fit(
    source: Any,
    *,
    out: Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    model: nn.Module | str | None = None,
    loss: losses.Loss | None = None,
    metrics: dict[str, Metric] | None = None,
    on_epoch_end: OnEpochEnd | None = None,
    val: float = 0.15,
    test: float = 0.15,
    split_seed: int = 0,
    short_side: int | None = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 60.0,
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Trains a model on a folder of images, on arrays, or on the embedded digits, and keeps everything on disk.

    Args:
        source: whatever `trainwell.load` takes: a folder of class folders, an `.npz` file, arrays, "digits", `Data`.
            With `resume`, `None` stands for what the run was started on.
        out: the run directory; by default a new one below `runs/`.
        recipe: how to train, or a TOML file that says so; by default `Recipe()`.
        model: a module to train, from the weights it has; or the name of one, as in the recipe.
        loss: a function of outputs and targets in place of the task's own (cross-entropy, or mean squared error).
        metrics: further figures: name to function of all outputs and targets.
        on_epoch_end: called with the trainer and the epoch's row; may call `trainer.stop("why")`.
        val: size of the validation part where the source has none: a fraction or a count.
        test: size of the test part, likewise.
        split_seed: chooses the split; apart from the recipe's seed, so that runs can be compared.
        short_side: stored images are shrunk until their short side has so many pixels (folders; by default 256).
        strict: refuse a folder with files that cannot be read, instead of leaving them out.
        resume: go on with the run in `out` if there is one.
        overwrite: remove the run in `out` if there is one.
        save_seconds: how often the state is saved; it changes nothing in the result.
        quiet: show nothing.
        **fields: fields of the recipe, in place of the recipe's own: `epochs=5`.

    Returns:
        The run.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        DivergedError: loss or gradient were not finite.

    Example:
        >>> import tempfile
        >>> run = fit("digits", out=tempfile.mkdtemp() + "/run", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        ...           epochs=20, quiet=True)
        >>> run.result["test_accuracy"] > 0.85
        True
    """
    if isinstance(model, str):
        fields["model"], model = model, None
    given = _recipe(recipe, fields)
    custom = Custom(model, loss, metrics or {})
    options: dict[str, Any] = {"val": val, "test": test, "split_seed": split_seed}
    options |= {"short_side": short_side, "strict": strict}
    asked = {name: value for name, value in options.items() if value != _defaults()[name]}
    if isinstance(source, Data) and asked:
        raise InputError(
            f"{' and '.join(asked)} cannot change data that are loaded already; give them to trainwell.load"
        )
    folder = Path(out) if out is not None else _unused_folder(source)
    if resume and (folder / "run.json").exists():
        _refuse_other(folder, given.changes() | asked)
        return _resume(folder, source, custom, given.model, on_epoch_end, save_seconds, quiet)
    if source is None:
        raise InputError(f"{folder} holds no run to go on with; give the data to start one")
    with at_work_in(folder), Display(quiet) as display:
        refuse_used(folder, overwrite)
        data = load(source, **options, quiet=quiet)
        with prepared(data, given, custom, display) as trainer:
            remove_run(folder)  # only now, when all that was given has proved usable
            trainer.keep_in(folder)
            trainer.save()  # before the folder is a run, so that a run can always be resumed
            describe(folder, data, given, asked, custom, trainer)
            return _train(folder, data, custom, trainer, on_epoch_end, save_seconds, display)


def resume(
    path: Path | str,
    *,
    data: Any = None,
    model: nn.Module | str | None = None,
    loss: losses.Loss | None = None,
    metrics: dict[str, Metric] | None = None,
    on_epoch_end: OnEpochEnd | None = None,
    save_seconds: float = 60.0,
    quiet: bool = False,
) -> Run:
    """Goes on with a run that was interrupted, to the same bits as if it never had been.

    Args:
        path: the run directory.
        data: the data again, where the run was given arrays; folders, files and digits are found by themselves.
        model: the module again, where the run was given one (its weights do not matter); or its name again, where
            that is "package.module:function": no code is run because a file names it.
        loss: the loss again, where the run was given one.
        metrics: the metrics again, likewise.
        on_epoch_end: as in `fit`.
        save_seconds: as in `fit`.
        quiet: show nothing.

    Returns:
        The run, finished. A run that already was is returned as it is.

    Raises:
        InputError: the data are no longer the same, or something is missing that the run was given.
    """
    module, name = (None, model) if isinstance(model, str) else (model, "auto")
    custom = Custom(module, loss, metrics or {})
    return _resume(Path(path), data, custom, name, on_epoch_end, save_seconds, quiet)


def dry_run(
    source: Any,
    *,
    recipe: Recipe | Path | str | None = None,
    model: nn.Module | str | None = None,
    loss: losses.Loss | None = None,
    quiet: bool = False,
    val: float = 0.15,
    test: float = 0.15,
    split_seed: int = 0,
    short_side: int | None = None,
    strict: bool = False,
    **fields: Any,
) -> DryRun:
    """Builds everything that `fit` would, learns one batch by heart, and leaves nothing on disk.

    The arguments are those of `fit`. A model that is given is left as it is.

    Returns:
        The first loss, beside what chance gives, and how far the loss on one batch fell.
    """
    if isinstance(model, str):
        fields["model"], model = model, None
    given = _recipe(recipe, fields)
    options: dict[str, Any] = {"val": val, "test": test, "split_seed": split_seed}
    options |= {"short_side": short_side, "strict": strict}
    with Display(quiet) as display:
        data = load(source, **options, quiet=quiet)
        with prepared(data, given, Custom(model, loss), display) as trainer:
            display.say("learning one batch by heart …")
            return learn_one_batch(trainer, len(data.classes))


def _train(
    folder: Path,
    data: Data,
    custom: Custom,
    trainer: Trainer,
    on_epoch_end: OnEpochEnd | None,
    save_seconds: float,
    display: Display,
) -> Run:
    """Trains to the end and leaves the result and the report."""

    def epoch_ended(trainer: Trainer, row: Row) -> None:
        if on_epoch_end is not None:
            on_epoch_end(trainer, row)
        display.epoch(trainer, row)

    trainer.save_seconds, trainer.on_epoch_end, trainer.on_step = save_seconds, epoch_ended, display.step
    try:
        trainer.run()
        display.end_of_training()
        display.say(f"{trainer.stop_reason}, in {duration(trainer.seconds)}; testing …")
        result = write_result(folder, trainer, data, _test_batches(data, trainer))
        run = Run(folder, trainer.model)
        report = run.report()
    except KeyboardInterrupt as interrupt:
        how = how_to_resume(folder, data, trainer.recipe, custom)
        raise KeyboardInterrupt(f"{interrupt or 'interrupted'}; go on with: {how}") from None
    display.say(f"the model and its history are in {folder}; the report: {report}")
    display.say(sentence(result, len(data.test)))
    return run


def _test_batches(data: Data, trainer: Trainer) -> Batches:
    val = trainer.val
    return Batches(
        data.test, val.batch_size, size=val.size, mean=val.mean, std=val.std,
        channels_last=val.channels_last, device=val.device,
    )  # fmt: skip


def sentence(result: dict[str, Any], size: int) -> str:
    """Returns the result in a sentence."""
    low, high = result["test_interval"]
    if "test_accuracy" not in result:
        figure = f"{result['test_loss']:.4g} (95 % interval {low:.4g} to {high:.4g})"
        return f"test loss {figure} on {size:,} samples never seen"
    return (
        f"{result['test_accuracy']:.1%} right on {size:,} samples never seen (95 % interval {low:.1%} to {high:.1%}); "
        f"validation {result['val_accuracy']:.1%}, at epoch {result['kept_epoch']}"
    )


def _unused_folder(source: Any) -> Path:
    name = Path(source).stem if isinstance(source, str | Path) else "run"
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{name or 'run'}-{n}").exists())


def _refuse_other(folder: Path, asked: dict[str, Any]) -> None:
    """Refuses to resume a run as something else than it is; what is left at its default asks for nothing."""
    info = Run(folder).info
    then = {**dataclasses.asdict(Recipe()), **_defaults(), **info["given"]["recipe"], **info["given"]["data"]}
    for name, value in asked.items():
        if then[name] != value:
            raise InputError(
                f"{folder} was started with {name}={then[name]!r}, not {value!r}; "
                "resume it as it is, or choose another --out"
            )


def _defaults() -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(load).parameters.items()}


def _recipe(given: Recipe | Path | str | None, fields: dict[str, Any]) -> Recipe:
    """Returns the recipe with some fields changed; a length among them takes the place of the recipe's own."""
    recipe = Recipe.load(given) if isinstance(given, Path | str) else given or Recipe()
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe must be a Recipe or the path of one, not a {type(given).__name__}")
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in fields:
        if name not in known:
            hint = nearest(name, [*known, *inspect.signature(fit).parameters])
            raise InputError(f"neither fit nor a recipe has {name!r}{hint}")
    lengths = {"epochs": None, "steps": None, "minutes": None}
    return dataclasses.replace(recipe, **{**(lengths if fields.keys() & lengths else {}), **fields})


def _resume(
    folder: Path,
    data: Any,
    custom: Custom,
    name: str,
    on_epoch_end: OnEpochEnd | None,
    save_seconds: float,
    quiet: bool,
) -> Run:
    run = Run(folder, custom.model)
    if ":" in run.recipe.model and custom.model is None and name != run.recipe.model:
        raise InputError(
            f"the model of {folder} is code, {run.recipe.model!r}, which is not run because a file names it; "
            f"if you trust it, name it again: --model {run.recipe.model}"
        )
    if run.result:
        with at_work_in(folder), Display(quiet) as display:
            display.say(f"{folder} is done already")
            if not (folder / "report.html").exists():  # a kill came just before it
                run.report()
            return run
    needs = run.info["given"]
    for name in ("model", "loss"):
        if needs[name] and getattr(custom, name) is None:
            raise InputError(f"{folder} was given a {name} of yours; resume(path, {name}=…) needs it again")
    missing = set(needs["metrics"]) - set(custom.metrics)
    if missing:
        raise InputError(f"{folder} was given metrics of yours; resume(path, metrics=…) lacks {', '.join(missing)}")
    if data is None and run.info["source"] == "arrays":
        raise InputError(f"{folder} was trained on arrays, which are not kept; give them again: resume(path, data=…)")
    with at_work_in(folder), Display(quiet) as display:
        data = load(run.info["source"] if data is None else data, **run.info["data_options"], quiet=quiet)
        if data.fingerprint != run.info["fingerprint"]:
            raise InputError(f"the data in {run.info['source']} are not what {folder} was trained on; start a new run")
        with prepared(data, run.recipe, custom, display) as trainer:
            trainer.keep_in(folder)
            for difference in hardware.differences(run.info["environment"], hardware.environment(trainer.hardware)):
                display.warn(f"the same bits are not to be expected: {difference}")
            trainer.resume()
            display.say(f"going on after step {trainer.step} of {trainer.total_steps}")
            return _train(folder, data, custom, trainer, on_epoch_end, save_seconds, display)
