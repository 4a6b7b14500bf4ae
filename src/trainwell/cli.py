"""The command line: `trainwell fit`, `lr-range`, `predict`, `report`, `cache`."""

import csv
import dataclasses
import functools
import io
import itertools
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

import trainwell
from trainwell import command_errors, progress
from trainwell.errors import DivergedError, InputError, is_out_of_memory
from trainwell.train.recipe import Recipe

if TYPE_CHECKING:
    from trainwell.run import Predictions

_GIVE_DATA = 'give a folder of class folders, a table, an .npz file, or "digits": trainwell {} photos/'


@dataclass
class Loading:
    """What to load, and how to divide it."""

    val: float | None = None
    """fraction (below 1) or number of samples to choose on, where the source has no val/; by default 0.15"""

    test: float | None = None
    """fraction or number of samples to judge by, once, at the end, where the source has no test/; by default 0.15"""

    split_seed: int = 0
    """chooses which samples those are"""

    folds: int | None = None
    """train so many more models, each judged on a fold that it has not seen; 1 for a single split; by default 5 below
    2,000 samples without a test/"""

    group_by: str | None = None
    """keep each animal, patient or day on one side of a split: a column, or a regular expression on the file's path"""

    images: str | None = None
    """the folder from which the file names in a table start; by default the table's own"""

    file_column: str | None = None
    """the table's column of files; by default one called file, filename, path, image, ..."""

    label_column: str | None = None
    """the table's column of labels; by default one called label, class, target, ...; several with commas between"""

    label_separator: str | None = None
    """what stands between several labels of one file; by default | or ;"""

    task: Literal["classification", "multilabel", "regression"] | None = None
    """what the labels of a table are, where they do not tell"""

    short_side: int | None = None
    """images are stored with a short side of at most so many pixels; by default 256"""

    strict: bool = False
    """refuse a folder with files that cannot be read"""

    def options(self) -> dict[str, Any]:
        """Returns the options as `trainwell.fit` takes them."""
        sizes = {name: _size(size) for name in ("val", "test") if (size := getattr(self, name)) is not None}
        return {name: value for name, value in vars(self).items() if name not in ("val", "test")} | sizes


@dataclass
class Fit:
    """Train a model on images, a table of them, an .npz file, or "digits"; keep the model, its history and a report."""

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None
    """a folder of class folders (or with train/, val/, test/ in it), a .csv or .jsonl of files and labels, an .npz
    file, or digits"""

    out: Path | None = None
    """the folder of the run; by default a new one below runs/"""

    resume: bool = False
    """go on with the run in --out, to the same bits as if it had not been interrupted"""

    overwrite: bool = False
    """remove the run in --out first"""

    dry_run: bool = False
    """build everything, learn one batch by heart, check the first loss, and keep nothing"""

    recipe_file: Path | None = None
    """a TOML file with fields of the recipe, which flags override"""

    data: Annotated[Loading, tyro.conf.arg(name="")] = field(default_factory=Loading)

    save_seconds: float = 60.0
    """how often the state is saved; changes nothing in the result"""

    members: int | None = None
    """train so many models, which differ by their seeds, and keep the ensemble of those that help"""

    engine: Literal["auto", "loop", "processes", "stacked"] = "auto"
    """how members are trained: one after the other, each in a process, or all at once as one program; auto tries"""

    jobs: int | None = None
    """how many members are trained at once, in processes; by default as many as the CPU has cores"""

    backend: Literal["ray", "dask"] | None = None
    """train members on this cluster"""

    quiet: bool = False
    """show warnings alone"""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)

    def __call__(self) -> None:
        """Trains, resumes or checks."""
        from trainwell import api

        if self.resume and self.overwrite:
            raise InputError("--resume goes on with a run, and --overwrite removes it: give one of them")
        if self.resume and self.out is None:
            raise InputError("--resume needs --out, the folder of the run to go on with")
        if self.source is None and not self.resume:
            raise InputError(_GIVE_DATA.format("fit"))
        several = self.members is not None or (self.resume and self.out and (self.out / "ensemble.json").exists()
                                               and not (self.out / "run.json").exists())  # fmt: skip
        if not several and (self.engine != "auto" or self.jobs is not None or self.backend is not None):
            raise InputError("--engine, --jobs and --backend are for members: say how many, as in --members 5")
        if self.dry_run:
            self._check()
        elif several:
            self._fit_members()
        else:
            run = api.fit(
                self.source, out=self.out, recipe=self.recipe, resume=self.resume, overwrite=self.overwrite,
                save_seconds=self.save_seconds, quiet=self.quiet, **self.data.options(),
            )  # fmt: skip
            print(run.path)

    def _fit_members(self) -> None:
        from trainwell.members import fit_members

        made = fit_members(
            self.source, members=self.members, out=self.out, recipe=self.recipe, engine=self.engine, jobs=self.jobs,
            backend=self.backend, resume=self.resume, overwrite=self.overwrite, save_seconds=self.save_seconds,
            quiet=self.quiet, **self.data.options(),
        )  # fmt: skip
        print(made.path)

    def _check(self) -> None:
        from trainwell import api

        found = api.dry_run(self.source, recipe=self.recipe, quiet=self.quiet, **self.data.options())
        if found.chance_loss is not None:
            verdict = "near" if found.starts_at_chance else "far from"
            print(f"first loss {found.first_loss:.3f}, {verdict} ln(classes) = {found.chance_loss:.3f}")
        learnt = "learnt by heart" if found.learns else "NOT learnt"
        print(f"one batch {learnt}: loss {found.first_loss:.3f} to {found.last_loss:.3f} in {found.steps} steps")
        if not (found.learns and found.starts_at_chance):
            raise DivergedError("the dry run found something odd: check labels, scale of the inputs, and the rate")


@dataclass
class LrRange:
    """Look for the learning rate: raise it step by step, then try the likely ones. Nothing is trained or changed."""

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None
    """a folder of class folders, a .csv or .jsonl, an .npz file, or digits, as for fit"""

    out: Path | None = None
    """an .html file for the picture; by default lr-range.html in the current folder"""

    low: float = 1e-7
    """the first rate"""

    high: float = 10.0
    """the last rate, if the loss does not diverge before"""

    sweep_steps: int = 100
    """how many steps the rate takes from one to the other"""

    trial_steps: int = 100
    """how many steps each likely rate is tried for; 0 is quick, and often far off"""

    recipe_file: Path | None = None
    """a TOML file with fields of the recipe, which flags override"""

    data: Annotated[Loading, tyro.conf.arg(name="")] = field(default_factory=Loading)

    quiet: bool = False
    """show warnings alone"""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)

    def __call__(self) -> None:
        """Looks, writes the picture, and prints what to do."""
        from trainwell import api

        if self.source is None:
            raise InputError(_GIVE_DATA.format("lr-range"))
        out = self.out or Path("lr-range.html")
        found = api.lr_range(
            self.source, out=out, recipe=self.recipe, low=self.low, high=self.high, sweep_steps=self.sweep_steps,
            trial_steps=self.trial_steps, quiet=self.quiet, **self.data.options(),
        )  # fmt: skip
        if not self.quiet:
            progress.say(f"the picture: {out}")
        if found.suggestion is None:
            raise DivergedError(f"{found}; check labels and inputs, or try other --low and --high")
        print(f"{found}: --lr {found.suggestion:.2g}")


@dataclass
class Predict:
    """Say what is on images, with the model of a run."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """the folder of the run"""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """image files, or folders of them"""

    format: Literal["table", "csv", "json"] = "table"
    """how to print it"""

    probabilities: bool = False
    """print the probability of every class"""

    average: str = ""
    """views of each image that probabilities are averaged over: flips, shifts, ten-crop, multi-scale, samples:8 (draws
    of the training's augmentation), or several of them, as in ten-crop,samples:8"""

    model: str | None = None
    """the run's package.module:function again, where its model is code of yours"""

    def __call__(self) -> None:
        """Predicts and prints."""
        from trainwell.run_ensemble import opened

        if not self.images:
            raise InputError("give image files or folders: trainwell predict runs/first new/*.jpg")
        predictions = opened(self.run, self.model).predict(list(self.images), average=self.average)
        if self.format == "json":
            print(json.dumps(_rows(predictions, self.probabilities), indent=2, ensure_ascii=False))
        else:
            rows = [_flat(row) for row in _rows(predictions, self.probabilities)]
            (_print_csv if self.format == "csv" else _print_table)(rows)
        for item in predictions.skipped:
            print(f"left out {item.path}: {item.reason}", file=sys.stderr)


@dataclass
class Report:
    """Write a run's report.html anew, and ensemble.html, if it is one with snapshots."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """the folder of the run"""

    def __call__(self) -> None:
        """Writes and says where."""
        from trainwell.run import Run
        from trainwell.run_ensemble import opened

        made = opened(self.run)
        if made.path.joinpath("ensemble.json").exists() and made.path.joinpath("run.json").exists():
            print(Run(self.run).report())  # of the run beside its snapshots
        print(made.report())


@dataclass
class Cache:
    """Say how large the cache of decoded images is, or clear it."""

    clear: bool = False
    """remove the decoded images; they are decoded anew when they are needed"""

    older_than_days: float = 0.0
    """spare what was used within so many days"""

    def __call__(self) -> None:
        """Prints what is there, or how much was freed."""
        from trainwell.data import cache

        if self.older_than_days and not self.clear:
            raise InputError("--older-than-days says what --clear spares: give both")
        if not (0 <= self.older_than_days < float("inf")):
            raise InputError(f"older_than_days must be at least 0; it is {self.older_than_days}")
        if self.clear:
            print(cache.describe_cleared(cache.clear(self.older_than_days)))
        else:
            print(cache.describe(cache.entries()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; leaves with 0, 1 (training diverged), 2 (bad input) or 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *_, **__: f"trainwell: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack a letter of a file's name
    try:
        _parsed(words)()
        if sys.stdout is not None:
            sys.stdout.flush()  # while it can still be told that the disk is full
    except InputError as error:
        _leave(str(error), 2)
    except DivergedError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt as interrupt:
        _leave(str(interrupt) or "interrupted", 130)
    except OSError as error:
        command_errors.discard_output()
        if not isinstance(error, BrokenPipeError):  # who reads our output, such as head, has seen enough
            _leave(command_errors.not_written(error), 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _leave("out of memory: close other programs, or give less at once", 2)


def _parsed(words: list[str]) -> Fit | LrRange | Predict | Report | Cache:
    if words == ["--version"]:
        print(f"trainwell {trainwell.__version__}")
        sys.exit()
    recipe = _recipe_in(words)
    commands = (
        Annotated[Fit, tyro.conf.subcommand("fit", default=Fit(recipe=recipe), description=Fit.__doc__)]
        | Annotated[
            LrRange, tyro.conf.subcommand("lr-range", default=LrRange(recipe=recipe), description=LrRange.__doc__)
        ]
        | Annotated[Predict, tyro.conf.subcommand("predict", description=Predict.__doc__)]
        | Annotated[Report, tyro.conf.subcommand("report", description=Report.__doc__)]
        | Annotated[Cache, tyro.conf.subcommand("cache", description=Cache.__doc__)]
    )
    parse = functools.partial(
        tyro.cli, commands, args=words, prog="trainwell", description=trainwell.__doc__, registry=_registry(),
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    command: Fit | LrRange | Predict | Report | Cache = command_errors.parsed(
        parse, words, {"fit": Fit, "lr-range": LrRange, "predict": Predict, "report": Report, "cache": Cache}
    )
    return command


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Shows a field that may be None as one that may be "none"."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or kinds == list(get_args(info.type)) or kinds[0] not in (int, float, str, Path):
            return None
        kind = kinds[0]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: None if words[0] == "none" else kind(words[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    return registry


def _recipe_in(words: list[str]) -> Recipe:
    """Returns the recipe that the flags start from: the file's, if one is named."""
    recipe = Recipe()
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        value = value or (words[place + 1] if place + 1 < len(words) else "")
        if name in ("--recipe-file", "--recipe_file") and value:
            recipe = Recipe.load(value)
    if any(word.partition("=")[0] in ("--epochs", "--steps", "--minutes") for word in words):
        return dataclasses.replace(recipe, epochs=None, steps=None, minutes=None)
    return recipe


def _size(given: float) -> float:
    """Returns a size of a part as `load` takes it: a fraction below 1, or a whole count."""
    return int(given) if given >= 1 and math.isfinite(given) and given == int(given) else given


def _rows(predictions: "Predictions", probabilities: bool) -> list[dict[str, Any]]:
    """Returns one row an image: its file, the class and its probability, or what else the model puts out."""
    rows: list[dict[str, Any]] = []
    several = predictions.classes and predictions.task == "multilabel"
    values = predictions.task == "regression"
    told = predictions.label_sets if several else [] if values else predictions.labels
    if values and probabilities:
        raise InputError("the model's answers are numbers, which have no probabilities: leave out --probabilities")
    for number, (name, output) in enumerate(zip(predictions.names, predictions.outputs.tolist(), strict=True)):
        row: dict[str, Any] = {"file": name}
        if several:
            row["labels"] = "|".join(told[number])
        elif not values:
            row |= {"class": told[number], "probability": round(max(output), 4)}
        else:
            numbers = output if isinstance(output, list) else [output]
            row |= dict(zip(predictions.classes or (f"output {k}" for k in itertools.count()), numbers, strict=False))
        if probabilities:
            chances = zip(predictions.classes, output, strict=False)
            row["probabilities"] = {label: round(value, 4) for label, value in chances}
        rows.append(row)
    return rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with a column for each class, where it holds the probabilities of all."""
    return {name: value for name, value in row.items() if name != "probabilities"} | {
        f"p({label})": value for label, value in row.get("probabilities", {}).items()
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name, value in rows[0].items():
        table.add_column(Text(name), justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(value if isinstance(value, str) else f"{value:.4f}") for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _leave(message: str, code: int) -> None:
    progress.say(f"trainwell: {' '.join(message.split())}")
    sys.exit(code)
