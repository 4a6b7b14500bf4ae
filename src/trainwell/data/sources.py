"""From whatever holds the samples to `Data`: three parts, checked."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainwell.data import arrays, folder
from trainwell.data.dataset import Data, Part, Samples, Skipped
from trainwell.data.split import split
from trainwell.errors import InputError, nearest

_FOLDER_SHORT_SIDE = 256  # near what training at 224 needs


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
            - a folder of class folders (`photos/cat/1.jpg`), or one with those inside of `train/` (`training/`) and any
              of `val/` (`valid/`, `validation/`) and `test/` (`testing/`). The images are decoded once and kept in the
              user's cache;
            - an `.npz` file with `x` and `y` (or `X` and `y`, `images` and `labels`, `data` and `target`), or with
              those of each part: `x_train` and `y_train`, or `train_images` and `train_labels`, and so on;
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
    name = "arrays"
    if isinstance(source, str) and source == "digits":
        name, samples = source, arrays.samples({"train": _digits()}, source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source).expanduser().absolute()
        name = str(path)
        if path.is_dir():
            options["short_side"] = _FOLDER_SHORT_SIDE if short_side is None else short_side
            samples = _from_folder(path, options["short_side"], strict, quiet)
        elif path.exists():
            samples = arrays.samples(arrays.read_npz(path), name)
        else:
            raise InputError(f"there is no file or folder {path}{nearest(str(source), ['digits'])}")
    elif isinstance(source, Mapping):
        samples = arrays.samples(arrays.named_parts(source), name)
    elif isinstance(source, tuple | list) and len(source) == 2:
        pair = arrays.array(source[0], "x"), arrays.array(source[1], "y")
        samples = arrays.samples({"train": pair}, name)
    else:
        raise InputError(
            f"cannot load a {type(source).__name__}: give a folder, an .npz file, arrays (x, y), "
            '{"train": (x, y), …} or "digits"'
        )
    return _split(samples, name, options)


def _digits() -> tuple[arrays.Array, arrays.Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _from_folder(root: Path, short_side: int, strict: bool, quiet: bool) -> Samples:
    from trainwell.data.store import open_store

    if short_side < 1:
        raise InputError(f"short_side must be a number of pixels, at least 1, not {short_side}")
    try:
        files, part_of_file, skipped, classes = _scanned(root)
    except OSError as error:
        raise InputError(f"the folder {root} cannot be read: {error.strerror}") from error
    if strict:
        _refuse(root, skipped)  # before the long work
    stored = open_store(files, root, short_side, quiet)
    skipped = sorted([*skipped, *stored.skipped], key=lambda one: one.path)
    if strict:
        _refuse(root, skipped)

    number = {name: position for position, name in enumerate(classes)}
    targets = np.array([number[files[row].label] for row in stored.rows], np.int64)
    part_of_row = part_of_file[stored.rows]
    rows = {str(part): np.flatnonzero(part_of_row == part) for part in np.unique(part_of_file)}
    counts = np.bincount(targets[rows["train"]], minlength=len(classes))
    if not counts.all():
        name = classes[int(counts.argmin())]
        raise InputError(f"class {name!r} in {root} has no image that can be read: add some or remove its folder")
    if len(classes) < 2:
        raise InputError(f"{root} has one class, {classes[0]!r}: at least two are needed")
    names = tuple(files[row].path for row in stored.rows)
    return Samples(stored.images, targets, rows, "classification", tuple(classes), stored.digest, names, tuple(skipped))


def _scanned(root: Path) -> tuple[list[folder.File], arrays.Array, list[Skipped], list[str]]:
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


def _split(samples: Samples, source: str, options: dict[str, Any]) -> Data:
    """Splits off the parts that are not given."""
    rows, train = dict(samples.rows), samples.rows["train"]
    for part in ("val", "test"):
        if part not in rows and options[part] == 0:
            raise InputError(f"{part} must not be 0, as {source} holds no {part} part: give a fraction or a count")
        if part in rows and len(rows[part]) == 0:
            raise InputError(f"the {part} part of {source} holds no samples that can be read: add some or remove it")
    val, test = (0 if part in rows else options[part] for part in ("val", "test"))
    strata = samples.targets[train] if samples.classes else np.zeros(len(train), np.int64)
    chosen = split(strata, val=val, test=test, seed=options["split_seed"])
    rows["train"] = train[chosen[0]]
    for part, own in zip(("val", "test"), chosen[1:], strict=True):
        rows.setdefault(part, train[own])

    fingerprint = hashlib.blake2b(samples.digest, digest_size=16)
    for known in (samples.task, samples.classes, samples.targets.shape):
        fingerprint.update(repr(known).encode())
    fingerprint.update(np.ascontiguousarray(samples.targets).reshape(-1).data)
    for part in ("train", "val", "test"):
        fingerprint.update(repr((part, len(rows[part]))).encode() + rows[part].astype(np.int64).tobytes())
    return Data(
        **{
            part: Part(samples.inputs, samples.targets, rows[part].astype(np.int64))
            for part in ("train", "val", "test")
        },
        task=samples.task,
        classes=samples.classes,
        names=samples.names,
        skipped=samples.skipped,
        source=source,
        options=options,
        fingerprint=fingerprint.hexdigest(),
    )
