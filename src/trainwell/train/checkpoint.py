"""Checkpoints: the whole state of a run in a folder that is there whole or not at all."""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from trainwell.errors import InputError
from trainwell.files import new_directory, remove_partials

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_TENSORS, _REST, _DIGESTS = "tensors.safetensors", "state.json", "sha256.json"


class Checkpoints:
    """The checkpoints of a run, named by their step; the newest two are kept.

    A checkpoint holds any nest of dicts, lists and tuples of tensors, numbers, strings, booleans and `None`, such as
    the `state_dict()` of a model or an optimizer: tensors as safetensors, the rest as JSON, and nothing is pickled.
    It is written beside its final name, synced and renamed, so that a kill at any instant leaves the ones before it.

    Args:
        folder: where they are; made if need be.
        keep: how many of the newest are kept.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(7, {"model": {"weight": torch.ones(2)}, "epoch": 1})
        >>> checkpoints.load()
        {'model': {'weight': tensor([1., 1.])}, 'epoch': 1}
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Returns the steps there are checkpoints of, oldest first."""
        return sorted({step for step, _ in self._all()})

    def save(self, step: int, state: dict[str, Any], pinned: int | None = None) -> None:
        """Writes a checkpoint and removes those that are no longer needed.

        Args:
            step: names it; one of the same step is replaced, once the new one is whole.
            state: what to save.
            pinned: the step of a checkpoint that is kept besides the newest.
        """
        from safetensors.torch import save as to_bytes

        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partials(self.folder)
        tensors: dict[str, torch.Tensor] = {}
        rest = _pack(state, tensors)
        old = self._all()
        version = max((version + 1 for of, version in old if of == step), default=0)
        with new_directory(self._path(step, version)) as folder:
            (folder / _TENSORS).write_bytes(to_bytes(tensors))
            (folder / _REST).write_text(json.dumps(rest), encoding="utf-8")
            digests = {name: _digest(folder / name) for name in (_TENSORS, _REST)}
            (folder / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        kept = {*self.steps()[-self.keep :], pinned}
        for of, version in old:
            if of not in kept or of == step:
                shutil.rmtree(self._path(of, version))

    def load(self, step: int | None = None) -> dict[str, Any]:
        """Returns the state of a step, or else of the newest checkpoint that is whole; a damaged one is named.

        Raises:
            InputError: there is none, or none that is whole.
        """
        for of, version in reversed(self._all()):
            if step is None or of == step:
                try:
                    return self._read(self._path(of, version))
                except (OSError, ValueError, KeyError) as error:
                    warnings.warn(f"the checkpoint {self._path(of, version)} is damaged ({error})", stacklevel=2)
        raise InputError(f"{self.folder} holds no checkpoint that is whole, so there is nothing to resume")

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, as when a run goes back."""
        for later, version in self._all():
            if later > step:
                shutil.rmtree(self._path(later, version))

    def _all(self) -> list[tuple[int, int]]:
        """Returns step and version of every checkpoint, oldest first; whatever else is in the folder is let be."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted((int(match[1]), int(match[2] or 0)) for match in found if match)

    def _path(self, step: int, version: int) -> Path:
        return self.folder / (f"step-{step:08d}" + (f".{version}" if version else ""))

    def _read(self, folder: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        for name, digest in json.loads((folder / _DIGESTS).read_text(encoding="utf-8")).items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        state: dict[str, Any] = _unpack(
            json.loads((folder / _REST).read_text(encoding="utf-8")), load_file(folder / _TENSORS)
        )
        return state


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Turns a nest into JSON: tensors are moved into `tensors`; keys keep their type."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}; turn it into tensors, numbers or strings")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    return (tuple if kind == "tuple" else list)(_unpack(item, tensors) for item in content)
