"""States on disk, each in a folder that is there whole or not at all."""

import hashlib
import json
import re
import warnings
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.files import new_directory, remove, remove_partials

_TENSORS, _REST, _DIGESTS = "tensors.safetensors", "state.json", "sha256.json"


class CheckpointFolder:
    """The checkpoints of a run, named by their step; the newest two are kept.

    A checkpoint holds any nest of dicts, lists, tuples and sets of tensors, NumPy arrays, numbers, strings, bytes,
    booleans, `None`, paths, torch's devices, dtypes and sizes, such as the `state_dict()` of a model or an optimizer,
    and gives it back with the types it had; tensors on the CPU. They are safetensors, the rest is JSON, and nothing
    is pickled. It is written beside its final name, synced and renamed, so that a kill at any instant leaves the
    ones before it.

    Args:
        folder: where they are; made if need be.
        keep: how many of the newest are kept.
        prefix: what their names begin with; what is called otherwise is let be.

    Example:
        >>> import tempfile
        >>> checkpoints = CheckpointFolder(tempfile.mkdtemp())
        >>> checkpoints.save(7, {"model": {"weight": torch.ones(2)}, "epoch": 1})
        >>> checkpoints.load()
        {'model': {'weight': tensor([1., 1.])}, 'epoch': 1}
    """

    def __init__(self, folder: Path | str, keep: int = 2, prefix: str = "step") -> None:
        self.folder, self.keep, self.prefix = Path(folder), keep, prefix

    def steps(self) -> list[int]:
        """Returns the steps there are checkpoints of, oldest first."""
        return sorted({step for step, _ in self._all()})

    def save(self, step: int, state: dict[str, Any], pinned: int | None = None) -> None:
        """Writes a checkpoint and removes those that are no longer needed.

        Args:
            step: names it; one of the same step is replaced, once the new one is whole.
            state: what to save.
            pinned: the step of a checkpoint that is kept besides the newest.

        Raises:
            InputError: the state holds something that would have to be pickled.
        """
        from safetensors.torch import save as to_bytes

        tensors: dict[str, torch.Tensor] = {}
        rest = _pack(state, tensors, "")
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partials(self.folder)
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
                remove(self._path(of, version))

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
                remove(self._path(later, version))

    def _all(self) -> list[tuple[int, int]]:
        """Returns step and version of every checkpoint, oldest first; whatever else is in the folder is let be."""
        name = re.compile(rf"{re.escape(self.prefix)}-(\d{{8,}})(?:\.(\d+))?")
        found = (name.fullmatch(path.name) for path in self.folder.glob(f"{self.prefix}-*"))
        return sorted((int(match[1]), int(match[2] or 0)) for match in found if match)

    def _path(self, step: int, version: int) -> Path:
        return self.folder / (f"{self.prefix}-{step:08d}" + (f".{version}" if version else ""))

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


_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}
_MAPPINGS: dict[str, Any] = {"dict": dict, "Counter": Counter}
_FACTORIES = {factory.__name__: factory for factory in (int, float, str, list, dict, set)}


def _pack(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    """Turns a nest into JSON, in which {kind: content} is what JSON has no word for; moves tensors into `tensors`."""

    def put(tensor: torch.Tensor) -> str:
        name = str(len(tensors))
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name

    def inner(items: Any) -> list[Any]:
        return [_pack(item, tensors, f"{where}[{number}]") for number, item in enumerate(items)]

    def pairs() -> list[list[Any]]:
        path = f"{where}." if where else ""
        return [
            [_pack(key, tensors, f"a key of {where}"), _pack(item, tensors, f"{path}{key}")]
            for key, item in value.items()
        ]

    kind = type(value)
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.floating)):
        return value
    if kind in (torch.Tensor, nn.Parameter) and _is_plain(value):
        return {"tensor": put(value)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 8:
        array = np.array(value, value.dtype.newbyteorder("="), order="C")
        return {"array" if isinstance(value, np.ndarray) else "scalar": put(torch.from_numpy(array))}
    if kind.__name__ in _SEQUENCES and kind is _SEQUENCES[kind.__name__]:
        return {kind.__name__: inner(value)}
    if kind.__name__ in _MAPPINGS and kind is _MAPPINGS[kind.__name__]:
        return {kind.__name__: pairs()}
    if kind is OrderedDict:  # that of a module's state has the versions of the layers' formats as an attribute
        return {"OrderedDict": [pairs(), _pack(getattr(value, "_metadata", None), tensors, f"{where}._metadata")]}
    if kind is defaultdict and value.default_factory in _FACTORIES.values():
        return {"defaultdict": [value.default_factory.__name__, pairs()]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    if kind is torch.device:
        return {"device": str(value)}
    if isinstance(value, Path):
        return {"Path": str(value)}
    what = kind.__name__ + (f" of {value.dtype}" if hasattr(value, "dtype") else "")
    raise InputError(f"a checkpoint cannot hold {where}, of type {what}; turn it into tensors, numbers or strings")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Says whether a tensor is no more than its shape, its dtype and its bits."""
    strange = tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized
    return not strange and tensor.dtype is not torch.complex128  # for which safetensors has no word


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()

    def pairs(items: list[list[Any]]) -> Any:
        return ((_unpack(key, tensors), _unpack(item, tensors)) for key, item in items)

    if kind == "tensor":
        return tensors[content]
    if kind in ("array", "scalar"):
        array = tensors[content].numpy()
        return array if kind == "array" else array[()]
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_unpack(item, tensors) for item in content)
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](dict(pairs(content)))
    if kind == "OrderedDict":
        ordered = OrderedDict(pairs(content[0]))
        if content[1] is not None:
            ordered._metadata = _unpack(content[1], tensors)  # type: ignore[attr-defined]
        return ordered
    if kind == "defaultdict":
        return defaultdict(_FACTORIES[content[0]], pairs(content[1]))
    return {"bytes": bytes.fromhex, "dtype": _DTYPES.__getitem__, "device": torch.device, "Path": Path}[kind](content)
