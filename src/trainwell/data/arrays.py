"""From arrays, tensors or an .npz file to samples, checked."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.data.dataset import Notice, Samples
from trainwell.data.folder import PARTS
from trainwell.errors import InputError, nearest
from trainwell.images import Images

Array = npt.NDArray[Any]
Pairs = dict[str, tuple[Array, ...]]
"""Inputs and targets of each part that is given, and maybe the group of each sample."""

_NAMES = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"))  # of arrays in .npz files


def read_npz(path: Path) -> Pairs:
    """Reads the arrays of an .npz file; `trainwell.load` says which names they may have.

    Raises:
        InputError: the file is no such file, or holds other arrays.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one array without targets: save x and y with numpy.savez")
        with archive:
            names = _names_in_npz(path, archive.files)
            groups = (archive["groups"],) if "groups" in archive.files and len(names) == 1 else ()
            return {part: (archive[x], archive[y], *groups) for part, (x, y) in names.items()}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if "pickle" in str(error):
            raise InputError(
                f"{path} is no .npz file of plain arrays (Python objects are not read, as they can run programs): "
                "save numbers or strings with numpy.savez"
            ) from error
        raise InputError(f"{path} cannot be read as an .npz file: {str(error).partition(chr(10))[0]}") from error


def _names_in_npz(path: Path, held: list[str]) -> dict[str, tuple[str, str]]:
    spelled = dict.fromkeys(_NAMES, "train")
    for x, y in _NAMES:
        for alias, part in PARTS.items():
            spelled |= {(f"{x}_{alias}", f"{y}_{alias}"): part, (f"{alias}_{x}", f"{alias}_{y}"): part}
    names: dict[str, tuple[str, str]] = {}
    for (x, y), part in spelled.items():
        if x not in held or (y not in held and (x, y) in _NAMES):
            continue
        if y not in held:
            raise InputError(f"{path} holds {x} but not {y}")
        if part in names:
            raise InputError(f"{path} holds the part {part!r} twice: as {names[part][0]} and as {x}")
        names[part] = (x, y)
    if "train" not in names:
        listed = ", ".join(sorted(held)[:8]) + (", …" if len(held) > 8 else "") if held else "nothing"
        raise InputError(f"{path} holds {listed}; expected are x and y, or x_train and y_train")
    return names


def named_parts(source: Mapping[Any, Any]) -> Pairs:
    """Takes `{"train": (x, y), …}` apart.

    Raises:
        InputError: a part is unknown, given twice or no pair, or there is none to train on.
    """
    given: Pairs = {}
    for name, pair in source.items():
        if name not in PARTS:
            raise InputError(f"unknown part {name!r}{nearest(str(name), PARTS)}: known are train, val and test")
        if not isinstance(pair, tuple | list) or len(pair) not in (2, 3):
            raise InputError(f"part {name!r} must be (x, y) or (x, y, groups), not a {type(pair).__name__}")
        if PARTS[name] in given:
            raise InputError(f"the part {PARTS[name]!r} is given twice")
        kinds = ("x", "y", "groups")
        named = zip(kinds, pair, strict=False)
        given[PARTS[name]] = tuple(array(values, f"{kind} of {name}") for kind, values in named)
    if "train" not in given:
        raise InputError('the part "train" is missing')
    return given


def array(values: Any, what: str) -> Array:
    """Returns an array, a tensor (wherever it lives) or nested lists as an array, copied only if need be."""
    if hasattr(values, "detach"):  # asked so, as torch need not be imported to know
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.asarray(values.numpy())
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} is no array: its rows differ in length") from error


def samples(given: Pairs, source: str) -> Samples:
    """Checks inputs and targets, and tells from the targets what the task is.

    Args:
        given: inputs and targets of the parts, "train" at least.
        source: what messages call it.

    Raises:
        InputError: they cannot be used; the message says which and why.
    """
    if len({len(pair) for pair in given.values()}) > 1:
        raise InputError(f"some parts of {source} have groups and some have none: give them for all or for none")
    for part, (x, y, *_) in given.items():
        if x.ndim == 0 or y.ndim == 0:
            raise InputError(f"the {part} part of {source} must be arrays with a row for each sample")
        if len(x) != len(y):
            raise InputError(f"the {part} part of {source} has {len(x)} samples but {len(y)} targets")
        if x.size == 0 or y.size == 0:
            raise InputError(f"the {part} part of {source} is empty")
    ends = np.cumsum([len(pair[0]) for pair in given.values()])
    rows = {part: np.arange(end - len(given[part][0]), end) for part, end in zip(given, ends, strict=True)}
    inputs = _inputs(_joined([pair[0] for pair in given.values()], "x", source), source)
    task, targets, classes = targets_of(
        _joined([pair[1] for pair in given.values()], "y", source), rows["train"], source
    )
    groups = _groups([pair[2] for pair in given.values() if len(pair) == 3], len(targets), source)
    digest = hashlib.blake2b(digest_size=16)
    for values in (inputs.shapes, inputs.pixels) if isinstance(inputs, Images) else (np.array(inputs.shape), inputs):
        digest.update(np.ascontiguousarray(values).reshape(-1).data)
    twins = _copies(inputs) if isinstance(inputs, Images) else None
    notices: tuple[Notice, ...] = ()
    if twins is not None:
        count, (first, second) = len(np.unique(twins)), twins[0]
        text = f"{count} images are the same as others (rows {first} and {second}); a split keeps those together"
        notices = (Notice("duplicates", text),)
    return Samples(inputs, targets, rows, task, classes, digest.digest(), notices=notices, groups=groups, twins=twins)


def _copies(images: Images) -> npt.NDArray[np.int64] | None:
    """Returns pairs of rows of an array that hold the same image, `(m, 2)`, each with the next; `None` if none do."""
    last: dict[bytes, int] = {}
    pairs = []
    for row in range(len(images)):
        known = hashlib.blake2b(images[row].tobytes(), digest_size=16).digest()
        if known in last:
            pairs.append((last[known], row))
        last[known] = row
    return np.array(pairs, np.int64) if pairs else None


def _groups(arrays: list[Array], count: int, source: str) -> npt.NDArray[np.int64] | None:
    """Returns the groups of all parts as numbers."""
    if not arrays:
        return None
    groups = np.concatenate([values.reshape(-1) for values in arrays])
    if len(groups) != count or groups.dtype.kind not in "biuU":
        raise InputError(
            f"groups of {source} must be whole numbers or strings, one for each of the {count} samples, not "
            f"{len(groups)} of {groups.dtype}"
        )
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _joined(arrays: list[Array], name: str, source: str) -> Array:
    first = arrays[0]
    for other in arrays[1:]:
        if other.shape[1:] != first.shape[1:] or other.dtype.kind != first.dtype.kind:
            raise InputError(
                f"the parts of {source} differ: {name} is {first.dtype} of shape {first.shape} in one "
                f"and {other.dtype} of shape {other.shape} in another"
            )
    return first if len(arrays) == 1 else np.concatenate(arrays)


def _inputs(x: Array, source: str) -> Images | npt.NDArray[np.float32]:
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return Images.from_array(x)
    return _finite(x[:, None] if x.ndim == 1 else x, "x", source)


def _finite(values: Array, name: str, source: str, names: Sequence[str] = ()) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "biuf":
        raise InputError(f"{name} of {source} must be numbers, not {values.dtype}")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1))
    if len(bad):
        raise InputError(
            f"{name} of {source} has NaN or infinite values in {len(bad)} of {len(numbers)} rows, "
            f"the first is {_place(int(bad[0]), names)}: remove or replace them"
        )
    return numbers


def _place(row: int, names: Sequence[str]) -> str:
    return names[row] if names else f"row {row}"


def targets_of(
    y: Array, train: npt.NDArray[np.int64], source: str, task: str | None = None, names: Sequence[str] = ()
) -> tuple[str, Array, tuple[str, ...]]:
    """Returns the task, the targets as `Part` holds them, and the names of the classes.

    Args:
        y: the targets of all samples.
        train: the rows that are trained on, which must hold every class.
        source: what messages call it.
        task: what was asked for; by default the targets tell.
        names: of the samples, where they have some.
    """
    if y.dtype.kind == "T" or (y.dtype == object and all(isinstance(label, str) for label in y.flat)):
        y = np.array(y.tolist(), str)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "backslashreplace")
    if y.dtype.kind not in "biufU":
        raise InputError(f"y of {source} must be numbers or strings, not {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind != "f":
        y = y[:, 0]  # a column of labels, as some data sets are distributed
    if y.dtype.kind == "f" or y.ndim > 1:
        targets = _finite(y, "y", source, names)
        if y.ndim > 2:
            raise InputError(f"y of {source} must have one or two dimensions, not the shape {y.shape}")
        binary = y.ndim == 2 and bool(np.isin(targets, (0, 1)).all())
        found = "multilabel" if binary and task != "regression" else "regression"
        if task not in (None, found):
            raise InputError(f"the labels of {source} are numbers, for a {found}; {task} needs others")
        return found, targets, ()
    if y.dtype.kind == "i" and y.min() < 0:
        raise InputError(
            f"y of {source} has the label {y.min()} ({_place(int(y.argmin()), names)}): labels must not be negative; "
            "leave out samples without a label, or give y as floats for a regression"
        )
    labels = np.unique(y[train])
    if len(labels) < 2:
        raise InputError(f"all samples to train on in {source} have the label {labels[0]}: at least two are needed")
    positions = np.minimum(np.searchsorted(labels, y), len(labels) - 1)
    if (unknown := labels[positions] != y).any():
        raise InputError(f"the label {y[unknown][0]} of {source} is in no sample to train on: remove it or add some")
    return "classification", positions.astype(np.int64), tuple(str(label) for label in labels)
