"""The run directory: whose it is, and what it says about the run."""

import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import trainwell
from trainwell.data.dataset import Data
from trainwell.errors import InputError
from trainwell.files import remove_partials, write_atomically, write_json
from trainwell.train import hardware
from trainwell.train.loop import Trainer
from trainwell.train.prepare import Custom, dimensions, model_name
from trainwell.train.recipe import Recipe

_LOCK = ".lock"
# What a run consists of. Until run.json is there, which is written last, it is none and cannot be resumed.
_BEFORE = ("checkpoints", "recipe.toml", "split.safetensors")
_AFTER = ("history.jsonl", "result.json", "model.safetensors", "evaluation.safetensors", "mistakes.json",
          "mistakes.safetensors", "report.html")  # fmt: skip


@contextlib.contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, so that two runs cannot mix; a folder left empty is removed again.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another run is at work in {folder}; choose another --out") from None
    except FileExistsError:
        raise InputError(f"{folder} is a file; choose another --out") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    try:
        remove_partials(folder)
        yield
    finally:
        if [entry.name for entry in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
            lock.release()
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.release()


def refuse_used(folder: Path, overwrite: bool) -> None:
    """Raises `InputError` if a run cannot start in the folder; call it only while holding its lock.

    A run can start in an empty folder, over what a run left that was killed before it could be resumed, and, with
    `overwrite`, over a run.
    """
    if (folder / "run.json").exists():
        if not overwrite:
            raise InputError(
                f"{folder} holds a run; go on with it (--resume, resume=True), replace it (--overwrite, "
                "overwrite=True), or choose another --out"
            )
        return
    for entry in folder.iterdir():
        ours = entry.name in (_LOCK, *_BEFORE) and all(
            inner.name.startswith(("step-00000000", ".step-00000000"))
            for inner in (entry.iterdir() if entry.is_dir() else ())
        )
        if not ours:
            raise InputError(f"{folder} is not empty and holds no run ({entry.name}); choose another --out")


def remove_run(folder: Path) -> None:
    """Removes a run, or what is left of one; a kill half-way leaves what can be removed again."""
    for name in (*_AFTER, *_BEFORE, "run.json"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
        "data_options": data.options,
        "fingerprint": data.fingerprint,
        "model": {
            "name": model_name(trainer.recipe, custom),
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            **dimensions(data, trainer.train.size),
            "size": trainer.train.size,
            "sample_shape": None if data.images is not None else data.train.inputs[0].shape,
        },
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
    write_json(folder / "run.json", info)


def how_to_resume(folder: Path, data: Data, recipe: Recipe, custom: Custom) -> str:
    """Returns the command, or the line of Python where a command cannot say it, that goes on with a run."""
    yours = [name for name in ("model", "loss", "metrics") if getattr(custom, name) not in (None, {})]
    if data.source == "arrays" or yours:
        words = ["data=…"] * (data.source == "arrays") + [f"{name}=…" for name in yours]
        return f"tw.resume({', '.join([repr(str(folder)), *words])})"
    code = ["--model", recipe.model] if ":" in recipe.model else []
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
