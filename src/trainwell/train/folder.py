"""The run directory: whose it is, and what it says about the run."""

import contextlib
import dataclasses
import io
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import trainwell
from trainwell.augment import pictures
from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.data.sources import absolute
from trainwell.errors import InputError
from trainwell.files import remove, remove_partials, write_atomically, write_json
from trainwell.images import Images
from trainwell.train import hardware, pretrained
from trainwell.train.custom import Custom
from trainwell.train.interrupt import Work, explained
from trainwell.train.loop import Trainer
from trainwell.train.prepare import dimensions, model_name
from trainwell.train.recipe import Recipe

_LOCK = ".lock"
# What a run consists of. Until run.json is there, which is written last, it is none and cannot be resumed.
_FIRST = "checkpoints"  # which a run begins with
_BEFORE = (pretrained.FILE, "recipe.toml", "split.safetensors", "augmentation.png")
_AFTER = ("folds", "snapshots", "ensemble.html", "members", "history.jsonl", "result.json",
          "model.safetensors", "evaluation.safetensors", "mistakes.json", "mistakes.safetensors",
          "feature_map.safetensors", "transfer.json", "report.html")  # fmt: skip


def folder_of(out: Path | str | None, source: Any) -> Path:
    """Returns the folder that is meant, or one that is not there yet.

    Raises:
        InputError: it lies among the images, of which it would be a class.
    """
    folder = absolute(out) if out is not None and str(out).startswith("~") else Path(out or unused_folder(source))
    if isinstance(source, str | Path) and (data := absolute(source)).is_dir() and data in folder.absolute().parents:
        raise InputError(f"{folder} lies in the folder of the images, {data}: choose an --out elsewhere")
    return folder


@contextlib.contextmanager
def at_work_in(folder: Path) -> Iterator[Work]:
    """Makes the folder and holds its lock, so that two runs cannot mix; removes what it made and nothing fills.

    Yields:
        What is to be kept up to date, so that whatever ends the work from outside is told in one line
            (see `trainwell.train.interrupt.explained`).

    Raises:
        InputError: another run holds the folder, it cannot be written, or memory is used up.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    made, locked_before = _missing(folder), (folder / _LOCK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another run is at work in {folder}; choose another --out") from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is a file, or below one; choose another --out") from None
    except (OSError, NotImplementedError) as error:  # filelock's, where the file system has no locks
        _remove_empty(made)
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{folder} cannot be written ({reason}); choose another --out") from None
    work = Work(folder)
    try:
        with explained(work):
            remove_partials(folder)
            yield work
    finally:
        with contextlib.suppress(OSError):  # the error that ended the work is the one to tell
            if not (locked_before or (folder / "run.json").exists()):
                (folder / _LOCK).unlink()
        lock.release()
        _remove_empty(made)


def _missing(folder: Path) -> list[Path]:
    """Returns which of the folder and those above it are still to be made; the innermost first."""
    return list(itertools.takewhile(lambda path: not path.exists(), [folder, *folder.parents]))


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # one that holds something stays, and so do those above it
        for folder in folders:
            folder.rmdir()


def refuse_used(folder: Path, overwrite: bool) -> None:
    """Raises `InputError` if a run cannot start in the folder; call it only while holding its lock.

    A run can start in an empty folder, over what a run left that was killed before it could be resumed, and, with
    `overwrite`, over a run.
    """
    if (folder / "run.json").exists() or (folder / "ensemble.json").exists():
        if not overwrite:
            raise InputError(
                f"{folder} holds a run; go on with it (--resume, resume=True), replace it (--overwrite, "
                "overwrite=True), or choose another --out"
            )
        return
    first = folder / _FIRST
    begun = first.is_dir() and all(
        entry.name.startswith(("step-00000000", ".step-00000000")) for entry in first.iterdir()
    )
    killed = (_FIRST, *_BEFORE) if begun else ()  # without it a recipe.toml could be anybody's
    for entry in folder.iterdir():
        if entry.name not in (_LOCK, *killed):
            raise InputError(f"{folder} is not empty and holds no run ({entry.name}); choose another --out")


def remove_run(folder: Path) -> None:
    """Removes a run, or what is left of one; a kill half-way leaves what can be removed again."""
    for name in (*_AFTER, *_BEFORE, _FIRST, "run.json", "ensemble.json"):  # the last say that the others are a run's
        remove(folder / name)


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[None]:
    """Removes the run that is there; where the block fails before there is a new one, what it wrote is removed too."""
    remove_run(folder)
    try:
        yield
    except BaseException:
        if not (folder / "run.json").exists():
            with contextlib.suppress(OSError):
                remove_run(folder)
        raise


def start_run(folder: Path, data: Data, given: Recipe, asked: dict[str, Any], custom: Custom, trainer: Trainer) -> None:
    """Makes a run of a trainer that is ready, in place of what is in the folder; the arguments are `describe`'s."""
    with new_run(folder):
        trainer.keep_in(folder)
        trainer.save()  # before the folder is a run, so that a run can always be resumed
        describe(folder, data, given, asked, custom, trainer)


def describe(folder: Path, data: Data, given: Recipe, asked: dict[str, Any], custom: Custom, trainer: Trainer) -> None:
    """Writes down what the run is; from here on it can be resumed.

    Args:
        folder: the run directory.
        data: what it is trained on.
        given: the recipe before its choices were made.
        asked: the options of loading that were given.
        custom: the user's own code.
        trainer: ready to run.
    """
    from safetensors.torch import save

    info = {
        "trainwell": trainwell.__version__,
        "source": data.source,
        "task": data.task,
        "classes": data.classes,
        "sizes": data.sizes,
        "skipped": [dataclasses.asdict(item) for item in data.skipped],
        "notices": [dataclasses.asdict(item) for item in data.notices],
        "data_options": data.options,
        "fingerprint": data.fingerprint,
        "model": {
            "name": model_name(trainer.recipe, custom),
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            **dimensions(data, trainer.train.size),
            "size": trainer.train.size,
            "sample_shape": None if data.images is not None else data.train.inputs[0].shape,
        },
        "backbone": pretrained.about(trainer.backbone, trainer.choice.cut if trainer.choice else None),
        "choice": dataclasses.asdict(trainer.choice) if trainer.choice else None,
        "mean": trainer.train.mean.tolist(),
        "std": trainer.train.std.tolist(),
        "environment": hardware.environment(trainer.hardware),
        "given": {
            "recipe": given.changes(),
            "data": asked,
            "model": custom.model is not None,
            "loss": custom.loss is not None,
            "metrics": sorted(custom.metrics),
        },
        "command": _command(data, given, asked, custom, trainer.recipe.steps),
    }
    rows = {name: torch.from_numpy(part.indices) for name, part in data.parts.items()}
    write_atomically(folder / "split.safetensors", save(rows))
    trainer.recipe.save(folder / "recipe.toml")
    if trainer.recipe.augment != "none":
        write_atomically(folder / "augmentation.png", _pictures(trainer.train))
    if trainer.backbone is not None:
        pretrained.keep(folder, trainer.backbone)
    write_json(folder / "run.json", info)


def _pictures(batches: Batches) -> bytes:
    """Returns a sheet, as PNG, of what augmentation does to the first image of the training part and to another."""
    assert isinstance(batches.part.inputs, Images)
    rows = batches.part.indices[[0, len(batches.part) // 2]]
    buffer = io.BytesIO()
    pictures(batches.augment, batches.part.inputs, rows, batches.seed).save(buffer, "PNG")
    return buffer.getvalue()


def how_to_resume(folder: Path, source: str, model: str, custom: Custom) -> str:
    """Returns the command, or the line of Python where a command cannot say it, that goes on with a run.

    Args:
        folder: the run directory.
        source: where the data come from, as `Data.source` says.
        model: the recipe's.
        custom: the user's own code.
    """
    yours = [name for name in ("model", "loss", "metrics") if getattr(custom, name) not in (None, {})]
    if source == "arrays" or yours:
        words = ["data=…"] * (source == "arrays") + [f"{name}=…" for name in yours]
        return f"tw.resume({', '.join([repr(str(folder)), *words])})"
    code = ["--model", model] if ":" in model else []
    return shlex.join(["trainwell", "fit", "--resume", "--out", str(folder), *code])


def _command(data: Data, given: Recipe, asked: dict[str, Any], custom: Custom, steps: int | None) -> str:
    """Returns how to make the run again from a shell, or in Python where a shell cannot say it."""
    changes = asked | given.changes()
    if changes.pop("minutes", None) is not None:  # the clock gives another number each time
        changes["steps"] = steps
    yours = [name for name in ("model", "loss", "metrics") if getattr(custom, name) not in (None, {})]
    if data.source == "arrays" or yours:
        first = "data" if data.source == "arrays" else repr(data.source)
        words = [f"{name}={name}" for name in yours] + [f"{name}={value!r}" for name, value in changes.items()]
        return f"tw.fit({', '.join([first, *words])})"
    words = ["trainwell", "fit", data.source]
    for name, value in changes.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def unused_folder(source: Any) -> Path:
    """Returns a folder for a run of which nobody said where it is to be."""
    name = Path(source).stem if isinstance(source, str | Path) else "run"
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{name or 'run'}-{n}").exists())
