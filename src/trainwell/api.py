"""`fit` and `resume`: from a source of data to a run on disk."""

import copy
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainwell.data.dataset import Data, Samples
from trainwell.data.divide import cross_validates, divide
from trainwell.data.sources import read
from trainwell.errors import InputError, in_one_line
from trainwell.optim.range_test import RangeTest, check_range
from trainwell.run import Run
from trainwell.run_ensemble import of_snapshots
from trainwell.train import hardware, losses, pretrained
from trainwell.train.asked import changed, check_save_seconds, read_data, told_apart
from trainwell.train.choice import Choice
from trainwell.train.cross_validation import folds_done, pooled, train_folds
from trainwell.train.custom import Custom
from trainwell.train.display import Display, duration
from trainwell.train.dry_run import DryRun, learn_one_batch
from trainwell.train.ensemble_file import FILE
from trainwell.train.ensemble_file import sentence as sentence_of_ensemble
from trainwell.train.feature_map import write_feature_map
from trainwell.train.figures import sentence
from trainwell.train.folder import at_work_in, folder_of, how_to_resume, refuse_used, start_run
from trainwell.train.history import Row
from trainwell.train.interrupt import Work, explained
from trainwell.train.loop import Metric, Trainer
from trainwell.train.prepare import prepared, tell
from trainwell.train.range_test import range_test
from trainwell.train.recipe import Recipe
from trainwell.train.result import finish, keep_best
from trainwell.train.snapshots import taken

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
    folds: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 60.0,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Trains a model on images, on arrays, or on the embedded digits, and keeps everything on disk.

    Args:
        source: whatever `trainwell.load` takes: a folder of class folders, a table of files and labels (`.csv`,
            `.jsonl`), an `.npz` file, arrays, "digits", `Data`. With `resume`, `None` stands for what the run was
            started on.
        out: the run directory; by default a new one below `runs/`.
        recipe: how to train, or a TOML file that says so; by default `Recipe()`.
        model: a module to train, from the weights it has; or the name of one, as in the recipe.
        loss: a function of outputs and targets in place of the task's own (cross-entropy, or mean squared error).
        metrics: further figures: name to function of all outputs and targets.
        on_epoch_end: called with the trainer and the epoch's row; may call `trainer.stop("why")`. In cross-validation
            it is called for the trainers of all folds.
        folds: into how many folds to divide for cross-validation: so many more models are trained, each judged on
            samples that it has not seen, before the one that is kept is trained on all; 1 for a single split. By
            default 5 where there are fewer than 2,000 samples and no test part is given or asked for, else 1.
        resume: go on with the run in `out` if there is one.
        overwrite: remove the run in `out` if there is one.
        save_seconds: how often the state is saved; it changes nothing in the result.
        quiet: show nothing.
        **options: fields of the recipe, in place of the recipe's own (`epochs=5`), and what else `trainwell.load` takes
            (`val=0.2`, `group_by="patient"`).

    Returns:
        The run.

    Raises:
        InputError: something given cannot be used; the message says what to do.
        DivergedError: loss or gradient were not finite.

    Example:
        >>> import tempfile
        >>> run = fit("digits", out=tempfile.mkdtemp() + "/run", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        ...           epochs=20, folds=1, quiet=True)
        >>> run.result["test_accuracy"] > 0.7
        True
    """
    if isinstance(model, str):
        options["model"], model = model, None
    check_save_seconds(save_seconds)
    given, loading = told_apart(recipe, options, _NAMES)
    custom = Custom(model, loss, metrics or {})
    asked = changed(loading, folds)
    folder = folder_of(out, source)
    if resume and (folder / "run.json").exists():
        _refuse_other(folder, given.changes() | asked)
        return _resume(folder, source, custom, given.model, on_epoch_end, save_seconds, quiet)
    if source is None:
        raise InputError(f"{folder} holds no run to go on with; give the data to start one")
    with at_work_in(folder) as work, Display(quiet) as display:
        refuse_used(folder, overwrite)
        samples, data = read_data(source, asked, folds, quiet)
        work.doing, work.recipe = "building the model", given
        tell(data, display)
        runs = data.options["folds"] + 1 if cross_validates(data) else 1
        minutes = given.minutes and given.minutes / runs
        share = dataclasses.replace(given, minutes=minutes, transfer_minutes=given.transfer_minutes / runs)
        with prepared(data, share, custom, display) as trainer:
            work.how = how_to_resume(folder, data.source, trainer.recipe.model, custom)
            start_run(folder, data, given, asked, custom, trainer)  # only now, when all has proved usable
            return _train(work, samples, data, custom, trainer, on_epoch_end, save_seconds, display)


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
    check_save_seconds(save_seconds)
    module, name = (None, model) if isinstance(model, str) else (model, "auto")
    custom = Custom(module, loss, metrics or {})
    return _resume(Path(path), data, custom, name, on_epoch_end, save_seconds, quiet)


def dry_run(
    source: Any,
    *,
    recipe: Recipe | Path | str | None = None,
    model: nn.Module | str | None = None,
    loss: losses.Loss | None = None,
    folds: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> DryRun:
    """Builds everything that `fit` would, learns one batch by heart, and leaves nothing on disk.

    The arguments are those of `fit`. A model that is given is left as it is.

    Returns:
        The first loss, beside what chance gives, and how far the loss on one batch fell.
    """
    if isinstance(model, str):
        options["model"], model = model, None
    given, loading = told_apart(recipe, options, _NAMES)
    asked = changed(loading, folds)
    with explained(work := Work(None)), Display(quiet) as display:
        _, data = read_data(source, asked, folds, quiet)
        work.doing, work.recipe = "learning one batch", given
        tell(data, display)
        custom = Custom(copy.deepcopy(model), loss, choice=Choice.of_all(given))
        with prepared(data, given, custom, display) as trainer:
            display.say("learning one batch by heart …")
            return learn_one_batch(trainer, len(data.classes))


def lr_range(
    source: Any,
    *,
    out: Path | str | None = None,
    recipe: Recipe | Path | str | None = None,
    model: nn.Module | str | None = None,
    loss: losses.Loss | None = None,
    folds: int | None = None,
    low: float = 1e-7,
    high: float = 10.0,
    sweep_steps: int = 100,
    trial_steps: int = 100,
    quiet: bool = False,
    **options: Any,
) -> RangeTest:
    """Looks for the learning rate for `fit`, whose other arguments it takes; a model that is given is left as it is.

    Args:
        source: as in `fit`.
        out: an HTML file for the picture; by default none is written.
        recipe: as in `fit`; its own rate and schedule play no part.
        model: as in `fit`.
        loss: as in `fit`.
        folds: as in `fit`.
        low: the first rate of the sweep.
        high: its last.
        sweep_steps: how many steps it has.
        trial_steps: how many steps each trial has; 0 for no trials.
        quiet: show nothing.
        **options: as in `fit`.

    Returns:
        The test; its `suggestion` is the rate. See `trainwell.optim.range_test`.

    Raises:
        InputError: something given cannot be used; the message says what to do.
    """
    if isinstance(model, str):
        options["model"], model = model, None
    given, loading = told_apart(recipe, options, _NAMES)
    asked = changed(loading, folds)
    check_range(low, high, sweep_steps, trial_steps)
    picture = Path(out) if out is not None else None
    if picture is not None:
        _refuse_as_picture(picture)
    with explained(work := Work(None)), Display(quiet) as display:
        _, data = read_data(source, asked, folds, quiet)
        work.doing, work.recipe = "looking for a learning rate", given
        tell(data, display)
        custom = Custom(copy.deepcopy(model), loss, choice=Choice.of_all(given))
        with prepared(data, dataclasses.replace(given, minutes=None), custom, display) as trainer:
            display.end_of_training()
            found = range_test(trainer, low=low, high=high, steps=sweep_steps, trial_steps=trial_steps, quiet=quiet)
    if picture is not None:
        found.save(picture)
    return found


def _refuse_as_picture(path: Path) -> None:
    """Refuses a path at which a run or something else lies that no picture may replace."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} must end in .html, as the picture is a page; choose another --out")
    if (path.parent / "run.json").exists():
        raise InputError(f"{path.parent} holds a run, in which the picture has no place; choose another --out")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in no folder that exists"
        raise InputError(f"{path} {what}; choose another --out")


def _train(
    work: Work,
    samples: Samples | None,
    data: Data,
    custom: Custom,
    trainer: Trainer,
    on_epoch_end: OnEpochEnd | None,
    save_seconds: float,
    display: Display,
) -> Run:
    """Trains to the end, the folds first if there are any, and leaves the result and the report."""

    def epoch_ended(trainer: Trainer, row: Row) -> None:
        if on_epoch_end is not None:
            on_epoch_end(trainer, row)
        display.epoch(trainer, row)

    def prepare(trainer: Trainer) -> None:
        trainer.save_seconds, trainer.on_epoch_end, trainer.on_step = save_seconds, epoch_ended, display.step

    folder = work.folder
    assert folder is not None
    work.doing, work.recipe = "training", trainer.recipe
    if cross_validates(data) and not folds_done(folder, data):
        if samples is None:
            raise InputError(
                "folds are trained on the source itself, and these data are divided already: give the source"
            )
        if custom.model is not None and trainer.step > 0:
            raise InputError(f"a fold of {folder} is missing, and what your model began with is gone: start a new run")
        count = data.options["folds"]
        display.say(
            f"cross-validation: {count} models, each judged on a fold that it has not seen, then the one that is kept, "
            "trained on all (folds=1, --folds 1, for a single split)"
        )
        train_folds(folder, samples, data, trainer, custom, display, prepare)
    prepare(trainer)
    trainer.run()
    display.end_of_training()
    work.doing = "testing"
    display.say(f"{trainer.stop_reason}, in {duration(trainer.seconds)}; testing …")
    if trainer.backbone is not None:  # before the result, with which a run is done
        keep_best(trainer)
        write_feature_map(folder, trainer, data)
    result = finish(folder, trainer, data, pooled(folder, data) if cross_validates(data) else None)
    run = Run(folder, trainer.model)
    work.doing = "writing the report"
    report = run.report()
    display.say(f"the model and its history are in {folder}; the report: {report}")
    display.say(sentence(result))
    if trainer.recipe.l1 and "sparsity" in result:
        display.say(f"{result['sparsity']:.1%} of the weights are exactly 0")
    if trainer.recipe.snapshots:
        count = len(taken(folder, trainer.step))
        if count < trainer.recipe.snapshots:
            display.warn(f"{count} snapshots were taken, and not {trainer.recipe.snapshots}: the run had no more "
                         f"{'cycles' if trainer.recipe.schedule == 'restarts' else 'epochs'}")  # fmt: skip
        display.say(_of_snapshots(folder, trainer.model))
    return run


def _of_snapshots(folder: Path, model: nn.Module) -> str:
    """Makes the ensemble of a run's snapshots, with its report; returns it in a sentence."""
    ensemble = of_snapshots(folder, model)
    return f"of the snapshots and the weights that were kept, {sentence_of_ensemble(ensemble.about)}"


def _refuse_other(folder: Path, asked: dict[str, Any]) -> None:
    """Refuses to resume a run as something else than it is; what is left at its default asks for nothing."""
    info = Run(folder).info
    then = {**dataclasses.asdict(Recipe()), **info["data_options"], **info["given"]["recipe"], **info["given"]["data"]}
    for name, value in asked.items():
        if then[name] != value:
            raise InputError(
                f"{folder} was started with {name}={then[name]!r}, not {value!r}; "
                "resume it as it is, or choose another --out"
            )


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
    how = how_to_resume(folder, run.info["source"], run.recipe.model, custom)
    if run.result:
        with at_work_in(folder) as work, Display(quiet) as display:
            work.doing, work.how = "writing the report", how
            display.say(f"{folder} is done already")
            if not (folder / "report.html").exists():  # a kill came just before it
                run.report()
            if run.recipe.snapshots and not (folder / FILE).exists():
                display.say(_of_snapshots(folder, run.model))
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
    with at_work_in(folder) as work, Display(quiet) as display:
        work.how = how
        samples, data = _read_again(run, data, quiet)
        if data.fingerprint != run.info["fingerprint"]:
            raise InputError(f"the data in {data.source} are not what {folder} was trained on; start a new run")
        work.doing, work.recipe = "building the model", run.recipe
        custom = dataclasses.replace(
            custom, backbone=pretrained.read(folder, run.info.get("backbone"), run.info["model"]),
            choice=_choice(run),
        )  # fmt: skip
        with prepared(data, run.recipe, custom, display) as trainer:
            trainer.keep_in(folder)
            for difference in hardware.differences(run.info["environment"], hardware.environment(trainer.hardware)):
                display.warn(f"the same bits are not to be expected: {difference}")
            trainer.resume()
            display.say(f"going on after step {trainer.step} of {trainer.total_steps}")
            return _train(work, samples, data, custom, trainer, on_epoch_end, save_seconds, display)


def _choice(run: Run) -> Choice | None:
    """Returns how it was decided what of a pretrained model a run trains, if that was left open."""
    told = run.info.get("choice")
    try:
        return None if told is None else Choice(**told)
    except TypeError as error:
        raise InputError(f"{run.path / 'run.json'} is damaged ({in_one_line(error)}): start a new run") from None


def _read_again(run: Run, data: Any, quiet: bool) -> tuple[Samples | None, Data]:
    """Returns what a run was started on."""
    if isinstance(data, Data):
        return None, data
    source = run.info["source"] if data is None else data
    samples, options = read(source, run.info["data_options"], quiet)
    return samples, divide(samples, options)


_NAMES = [*inspect.signature(fit).parameters]  # of which one may have been meant
