"""The run directory: whose it is, and what it says about the run."""

import contextlib
import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import trainwell
from trainwell.data.dataset import Data
from trainwell.errors import InputError
from trainwell.files import remove_partials, write_atomically
from trainwell.train import hardware
from trainwell.train.loop import Trainer
from trainwell.train.prepare import Custom, dimensions
from trainwell.train.recipe import Recipe

_BEFORE_DESCRIBED = ("checkpoints", "split.safetensors", "recipe.toml")  # written before run.json makes it a run


@contextlib.contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, so that two runs cannot mix.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another run is at work in {folder}; choose another --out") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    try:
        remove_partials(folder)
        yield
    finally:
        lock.release()


def refuse_used(folder: Path) -> None:
    """Raises `InputError` if the folder holds a run, or anything but the leavings of one that was killed at once."""
    if (folder / "run.json").exists():
        raise InputError(f"{folder} holds a run; go on with it by --resume, remove it by --overwrite, or change --out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --out")
    if folder.is_dir():
        for entry in folder.iterdir():
            if not (entry.name == ".lock" or entry.name.endswith(".partial") or entry.name in _BEFORE_DESCRIBED):
                raise InputError(f"{folder} is not empty and holds no run ({entry.name}); choose another --out")


def remove_leavings(folder: Path) -> None:
    """Removes what a run wrote that was killed before it could be resumed."""
    for name in _BEFORE_DESCRIBED:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_run(folder: Path) -> None:
    """Removes a run; a folder that holds none is left alone."""
    if (folder / "run.json").exists() and (folder / "recipe.toml").exists():
        with at_work_in(folder):  # nobody is training in it
            pass
        shutil.rmtree(folder)


def describe(folder: Path, data: Data, given: Recipe, custom: Custom, trainer: Trainer) -> None:
    """Writes down what the run is; from here on it can be resumed."""
    from safetensors.torch import save

    size = trainer.train.size
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
            "name": trainer.recipe.model,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            **dimensions(data, size),
            "size": size,
            "sample_shape": None if data.images is not None else data.train.inputs[0].shape,
        },
        "mean": trainer.train.mean.tolist(),
        "std": trainer.train.std.tolist(),
        "environment": hardware.environment(trainer.hardware),
        "given": {
            "recipe": given.changes(),
            "model": custom.model is not None,
            "loss": custom.loss is not None,
            "metrics": sorted(custom.metrics),
        },
        "command": _command(data.source, folder, given, custom),
    }
    rows = {name: torch.from_numpy(part.indices) for name, part in data.parts.items()}
    write_atomically(folder / "split.safetensors", save(rows))
    write_atomically(folder / "recipe.toml", trainer.recipe.to_toml())
    write_atomically(folder / "run.json", json.dumps(info, indent=2) + "\n")


def _command(source: str, folder: Path, given: Recipe, custom: Custom) -> str:
    """Returns how to make the run again from a shell, or in Python where a shell cannot say it."""
    changes: dict[str, Any] = given.changes()
    yours = [name for name in ("model", "loss", "metrics") if getattr(custom, name) not in (None, {})]
    if source == "arrays" or yours:
        first = "data" if source == "arrays" else repr(source)
        words = [f"{name}={name}" for name in yours] + [f"{name}={value!r}" for name, value in changes.items()]
        return f"tw.fit({', '.join([first, f'out={str(folder)!r}', *words])})"
    words = ["trainwell", "fit", source, "--out", str(folder)]
    for name, value in changes.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)
