"""From whatever holds the samples to `Data`: three parts, checked."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.data import folder
from trainwell.data.dataset import Data, Part, Skipped
from trainwell.data.images import Images
from trainwell.data.split import split
from trainwell.errors import InputError, nearest

Array = npt.NDArray[Any]
Inputs = Images | npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_FOLDER_SHORT_SIDE = 256  # near what training at 224 needs
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"))  # names of arrays in .npz files


def load(
    source: Any,
    *,
    val: float = 0.15,
    test: float = 0.15,
    split_seed: int = 0,
    short_side: int | None = None,
    strict: bool = False,
    quiet: bool = False,
) -> Data:
    """Loads samples and splits off what is not given; all that can be wrong with them is found here.

    Args:
        source: one of

            - `"digits"`: the 1797 handwritten digits of scikit-learn, 8×8 pixels;
            - a folder of class folders (`photos/cat/1.jpg`), or one with those inside of `train/` and any of `val/`
              (`valid/`, `validation/`) and `test/`. The images are decoded once and kept in the user's cache;
            - an `.npz` file with `x` and `y` (or `X` and `y`, `images` and `labels`, `data` and `target`), or with
              `x_train`, `y_train` and any of `x_val` (`x_valid`), `y_val`, `x_test`, `y_test`;
            - arrays or tensors `(x, y)`, or `{"train": (x, y), "val": …, "test": …}`;
            - a `Data`, which is returned as it is.

            `x` of type uint8 and shape `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)` are images, all other numbers
            become float32 features. `y` of whole numbers, strings or booleans `(n,)` are classes; floats `(n,)` are
            targets of a regression; `(n, k)` are several labels a sample if all are 0 or 1, else a regression.
        val: size of the validation part where none is given: a fraction of the training samples or a count.
        test: size of the test part, likewise.
        split_seed: chooses which samples those are, and nothing else.
        short_side: images in folders are shrunk to a short side of so many pixels; `None` for 256.
        strict: refuse a folder in which anything cannot be used, rather than leave it out.
        quiet: show no progress.

    Raises:
        InputError: the source cannot be used; the message says why.

    Example:
        >>> load("digits").sizes
        {'train': 1257, 'val': 270, 'test': 270}
    """
    if isinstance(source, Data):
        return source
    options: dict[str, Any] = {
        "val": val,
        "test": test,
        "split_seed": split_seed,
        "short_side": short_side,
        "strict": strict,
    }
    if isinstance(source, str | os.PathLike) and str(source) != "digits":
        path = Path(source).expanduser().absolute()
        if path.is_dir():
            return _from_folder(path, options, quiet)
        given, name = _read_npz(path, str(source)), str(path)
    elif isinstance(source, str | os.PathLike):
        given, name = {"train": _digits()}, "digits"
    elif isinstance(source, Mapping):
        given, name = _named_parts(source), "arrays"
    elif isinstance(source, tuple | list) and len(source) == 2:
        given, name = {"train": (_array(source[0], "x"), _array(source[1], "y"))}, "arrays"
    else:
        raise InputError(
            f"cannot load a {type(source).__name__}: give a folder, an .npz file, arrays (x, y), "
            '{"train": (x, y), …} or "digits"'
        )
    return _from_arrays(given, name, options)


# Folders ------------------------------------------------------------------------------------------------------------


def _from_folder(root: Path, options: dict[str, Any], quiet: bool) -> Data:
    from trainwell.data.store import open_store

    short_side = options["short_side"] = options["short_side"] or _FOLDER_SHORT_SIDE
    if short_side < 1:
        raise InputError(f"short_side must be a number of pixels, at least 1, not {short_side}")
    try:
        files, part_of_file, skipped, classes = _scanned(root)
    except OSError as error:
        raise InputError(f"the folder {root} cannot be read: {error.strerror}") from error
    if options["strict"]:
        _refuse(root, skipped)  # before the long work
    images, kept, unreadable = open_store(files, root, short_side, quiet)
    if options["strict"]:
        _refuse(root, [*skipped, *unreadable])

    number = {name: position for position, name in enumerate(classes)}
    targets = np.array([number[files[row].label] for row in kept], np.int64)
    part_of_row = part_of_file[kept]
    rows = {str(part): np.flatnonzero(part_of_row == part) for part in np.unique(part_of_file)}
    for position, name in enumerate(classes):
        if not (targets[rows.get("train", [])] == position).any():
            raise InputError(f"class {name!r} in {root} has no image that can be read: add some or remove its folder")
    digest = hashlib.blake2b(repr(short_side).encode(), digest_size=16)
    for file in files:
        digest.update(os.fsencode(f"{file.path}\0{file.size}\0{file.mtime_ns}\0"))
    return _assembled(
        images,
        targets,
        rows,
        task="classification",
        classes=tuple(classes),
        names=tuple(files[row].path for row in kept),
        skipped=tuple(sorted([*skipped, *unreadable], key=lambda one: one.path)),
        source=str(root),
        options=options,
        digest=digest,
    )


def _scanned(root: Path) -> tuple[list[folder.File], Array, list[Skipped], list[str]]:
    """Returns the files with paths from `root`, the part of each, what is left out, and the classes."""
    divided = folder.parts(root)
    if not divided:
        files, skipped, classes = folder.scan(root)
        _refuse_empty(root, classes, {file.label for file in files})
        return files, np.full(len(files), "train"), skipped, classes

    every: list[folder.File] = []
    part_of_file: list[str] = []
    left_out = [Skipped(name, f"not in {', '.join(divided.values())}") for name in folder.others(root, divided)]
    classes = []
    for part in ("train", "val", "test"):
        if part not in divided:
            continue
        name = divided[part]
        files, skipped, found = folder.scan(root / name)
        labels = {file.label for file in files}
        if part == "train":
            classes = found
            _refuse_empty(root / name, classes, labels)
        elif not files:
            raise InputError(f"{root / name} holds no images: add some or remove it")
        if unknown := sorted(labels - set(classes), key=folder.class_order):
            raise InputError(
                f"{root / name} has the class {unknown[0]!r}, which {root / divided['train']} lacks"
                f"{nearest(unknown[0], classes)}: remove it, or add images of it to train on"
            )
        every += [file._replace(path=f"{name}/{file.path}") for file in files]
        part_of_file += [part] * len(files)
        left_out += [Skipped(f"{name}/{one.path}", one.reason) for one in skipped]
    return every, np.array(part_of_file), left_out, classes


def _refuse_empty(root: Path, classes: list[str], filled: set[str]) -> None:
    if empty := [name for name in classes if name not in filled]:
        raise InputError(f"the class folder {root / empty[0]} holds no images: add some or remove it")


def _refuse(root: Path, skipped: list[Skipped]) -> None:
    if skipped:
        named = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise InputError(f"{len(skipped)} files in {root} cannot be used, which strict forbids ({named}{more})")


# Arrays -------------------------------------------------------------------------------------------------------------


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _read_npz(path: Path, asked: str) -> dict[str, tuple[Array, Array]]:
    if not path.exists():
        raise InputError(f"there is no file or folder {path}{nearest(asked, ['digits'])}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one array without targets: save x and y with numpy.savez")
        with archive:
            held = set(archive.files)
            names = _names_in_npz(path, held)
            return {part: (archive[x], archive[y]) for part, (x, y) in names.items()}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if "pickle" in str(error):
            raise InputError(
                f"{path} is no .npz file of plain arrays (Python objects are not read, as they can run programs): "
                "save numbers or strings with numpy.savez"
            ) from error
        raise InputError(f"{path} cannot be read as an .npz file: {str(error).partition(chr(10))[0]}") from error


def _names_in_npz(path: Path, held: set[str]) -> dict[str, tuple[str, str]]:
    for x, y in _PAIRS:
        if x in held and y in held:
            return {"train": (x, y)}
    names = {}
    for alias, part in _PARTS.items():
        for x in (f"x_{alias}", f"X_{alias}"):
            y = f"y_{alias}"
            if x in held and y not in held:
                raise InputError(f"{path} holds {x} but not {y}")
            if x in held:
                names[part] = (x, y)
    if "train" not in names:
        raise InputError(
            f"{path} holds {', '.join(sorted(held)) or 'nothing'}; expected are x and y, or x_train and y_train"
        )
    return names


def _named_parts(source: Mapping[Any, Any]) -> dict[str, tuple[Array, Array]]:
    given = {}
    for name, pair in source.items():
        if name not in _PARTS:
            raise InputError(f"unknown part {name!r}{nearest(str(name), _PARTS)}: known are train, val and test")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"part {name!r} must be a pair (x, y), not a {type(pair).__name__}")
        if _PARTS[name] in given:
            raise InputError(f"the part {_PARTS[name]!r} is given twice")
        given[_PARTS[name]] = (_array(pair[0], f"x of {name}"), _array(pair[1], f"y of {name}"))
    if "train" not in given:
        raise InputError('the part "train" is missing')
    return given


def _array(values: Any, what: str) -> Array:
    if hasattr(values, "detach"):  # a tensor, wherever it lives
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.asarray(values.numpy())
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what} is no array: its rows differ in length") from error


def _from_arrays(given: dict[str, tuple[Array, Array]], source: str, options: dict[str, Any]) -> Data:
    for part, (x, y) in given.items():
        if x.ndim == 0 or y.ndim == 0 or x.size == 0 or y.size == 0:
            raise InputError(f"the {part} part of {source} is empty")
        if len(x) != len(y):
            raise InputError(f"the {part} part of {source} has {len(x)} samples but {len(y)} targets")
    ends = np.cumsum([len(x) for x, _ in given.values()])
    rows = {part: np.arange(end - len(given[part][0]), end) for part, end in zip(given, ends, strict=True)}
    x = _joined([x for x, _ in given.values()], "x", source)
    y = _joined([y for _, y in given.values()], "y", source)
    task, targets, classes = _targets(y, rows["train"], source)

    digest = hashlib.blake2b(digest_size=16)
    for array in (x, y if y.dtype != object else y.astype(str)):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _assembled(
        _inputs(x, source),
        targets,
        rows,
        task=task,
        classes=classes,
        names=(),
        skipped=(),
        source=source,
        options=options,
        digest=digest,
    )


def _joined(arrays: list[Array], name: str, source: str) -> Array:
    first = arrays[0]
    for other in arrays[1:]:
        if other.shape[1:] != first.shape[1:] or other.dtype.kind != first.dtype.kind:
            raise InputError(
                f"the parts of {source} differ: {name} is {first.dtype} of shape {first.shape} in one "
                f"and {other.dtype} of shape {other.shape} in another"
            )
    return first if len(arrays) == 1 else np.concatenate(arrays)


def _inputs(x: Array, source: str) -> Inputs:
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return Images.from_array(x)
    return _finite(x.reshape(len(x), -1) if x.ndim == 1 else x, "x", source)


def _finite(values: Array, name: str, source: str) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "biuf":
        raise InputError(f"{name} of {source} must be numbers, not {values.dtype}")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1))
    if len(bad):
        raise InputError(
            f"{name} of {source} has NaN or infinite values in {len(bad)} of {len(numbers)} rows, "
            f"the first is row {bad[0]}: remove or replace them"
        )
    return numbers


def _targets(y: Array, train: Rows, source: str) -> tuple[str, Array, tuple[str, ...]]:
    """Returns the task, the targets as `Part` holds them, and the names of the classes."""
    if y.dtype == object and all(isinstance(label, str) for label in y.flat):
        y = y.astype(str)
    if y.dtype.kind not in "biufUS":
        raise InputError(f"y of {source} must be numbers or strings, not {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind != "f":
        y = y[:, 0]  # a column of labels, as some data sets are distributed
    if y.dtype.kind == "f" or y.ndim > 1:
        targets = _finite(y, "y", source)
        if y.ndim > 2:
            raise InputError(f"y of {source} must have one or two dimensions, not the shape {y.shape}")
        binary = y.ndim == 2 and bool(np.isin(targets, (0, 1)).all())
        return "multilabel" if binary else "regression", targets, ()
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind == "i" and y.min() < 0:
        raise InputError(
            f"y of {source} has the label {y.min()} (row {int(y.argmin())}): labels must not be negative; "
            "leave out samples without a label, or give y as floats for a regression"
        )
    labels = np.unique(y[train])
    if len(labels) < 2:
        raise InputError(f"all samples to train on in {source} have the label {labels[0]}: at least two are needed")
    positions = np.minimum(np.searchsorted(labels, y), len(labels) - 1)
    if (unknown := labels[positions] != y).any():
        raise InputError(f"the label {y[unknown][0]} of {source} is in no sample to train on: remove it or add some")
    return "classification", positions.astype(np.int64), tuple(str(label) for label in labels)


# Both ---------------------------------------------------------------------------------------------------------------


def _assembled(
    inputs: Inputs,
    targets: Array,
    given: dict[str, Rows],
    *,
    task: str,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    skipped: tuple[Skipped, ...],
    source: str,
    options: dict[str, Any],
    digest: Any,
) -> Data:
    if task == "classification" and len(classes) < 2:
        raise InputError(f"{source} has one class, {classes[0]!r}: at least two are needed")
    rows = dict(given)
    train = given.get("train", np.empty(0, np.int64))
    missing = {part: 0 if part in given else options[part] for part in ("val", "test")}
    for part, size in missing.items():
        if part not in given and size == 0:
            raise InputError(f"{part} must not be 0, as {source} holds no {part} part: give a fraction or a count")
        if part in given and len(given[part]) == 0:
            raise InputError(f"the {part} part of {source} holds no samples that can be read: add some or remove it")
    strata = targets[train] if task == "classification" else np.zeros(len(train), np.int64)
    chosen = split(strata, val=missing["val"], test=missing["test"], seed=options["split_seed"])
    rows["train"] = train[chosen[0]]
    for part, own in zip(("val", "test"), chosen[1:], strict=True):
        rows.setdefault(part, train[own])

    for part in ("train", "val", "test"):
        digest.update(repr((part, len(rows[part]))).encode() + rows[part].tobytes())
    digest.update(repr(classes).encode())
    parts = {part: Part(inputs, targets, rows[part].astype(np.int64)) for part in ("train", "val", "test")}
    return Data(
        **parts,
        task=task,
        classes=classes,
        names=names,
        skipped=skipped,
        source=source,
        options=options,
        fingerprint=digest.hexdigest(),
    )
