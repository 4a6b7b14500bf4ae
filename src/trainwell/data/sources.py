"""From whatever holds the samples to `Data`: three parts, checked."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainwell.data import arrays, folder, table
from trainwell.data.dataset import Data, Notice, Samples, Skipped
from trainwell.data.divide import divide
from trainwell.data.inspect import Seen, look
from trainwell.errors import InputError, nearest

if TYPE_CHECKING:
    from trainwell.data.store import Stored

_OF_TABLES = ("images", "file_column", "label_column", "label_separator", "task")
_FOLDER_SHORT_SIDE = 256  # near what training at 224 needs


def load(
    source: Any,
    *,
    val: float = 0.15,
    test: float = 0.15,
    split_seed: int = 0,
    folds: int = 1,
    fold: int | None = None,
    group_by: str | None = None,
    short_side: int | None = None,
    strict: bool = False,
    images: Path | str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    task: str | None = None,
    quiet: bool = False,
) -> Data:
    """Loads samples and splits off what is not given; all that can be wrong with them is found here.

    Args:
        source: one of

            - `"digits"`: the 1797 handwritten digits of scikit-learn, 8×8 pixels;
            - a folder of class folders (`photos/cat/1.jpg`), or one with those inside of `train/` (`training/`) and any
              of `val/` (`valid/`, `validation/`) and `test/` (`testing/`). The images are decoded once and kept in the
              user's cache;
            - a table of files and labels: `.csv`, `.tsv`, or JSON lines (`.jsonl`, `.ndjson`). A column called `split`
              may say train, val or test;
            - an `.npz` file with `x` and `y` (or `X` and `y`, `images` and `labels`, `data` and `target`), or with
              those of each part: `x_train` and `y_train`, or `train_images` and `train_labels`, and so on;
            - arrays or tensors `(x, y)`, `(x, y, groups)`, or `{"train": (x, y), "val": …, "test": …}`;
            - a `Data`, which is returned as it is.

            `x` of type uint8 and shape `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)` are images, all other numbers
            become float32 features. `y` of whole numbers, strings or booleans `(n,)` are classes; floats `(n,)` are
            targets of a regression; `(n, k)` are several labels a sample if all are 0 or 1, else a regression.
        val: size of the validation part where none is given: a fraction of the training samples or a count.
        test: size of the test part, likewise.
        split_seed: chooses which samples those are, and nothing else.
        folds: into how many folds to divide for cross-validation; 1 for a single split.
        fold: which of them (1, 2, …) is the test part; `None` for none of them.
        group_by: what keeps samples of one animal, patient or day on one side of a split: a column of the table, or a
            regular expression that finds the group in a file's path (its groups in brackets, or else the whole match).
        short_side: images in files are shrunk to a short side of so many pixels; `None` for 256.
        strict: refuse a folder or table in which any file cannot be used, rather than leave it out.
        images: the folder from which the file names in a table start; by default the table's own.
        file_column: the column of the table that names the files; by default one called file, filename, path, image, …
        label_column: the column that holds the label; by default one called label, class, target, …; several,
            separated by commas, each hold 0 or 1, or a number.
        label_separator: what stands between several labels of one file; by default `|` or `;`.
        task: "classification", "multilabel" or "regression", where the labels in a table do not tell.
        quiet: show no progress.

    Raises:
        InputError: the source cannot be used; the message says why.

    Example:
        >>> load("digits").sizes
        {'train': 1257, 'val': 270, 'test': 270}
        >>> load("digits", folds=5, fold=1).sizes
        {'train': 1222, 'val': 216, 'test': 359}
    """
    if isinstance(source, Data):
        return source
    options = {name: value for name, value in locals().items() if name not in ("source", "quiet")}
    samples, options = read(source, options, quiet)
    return divide(samples, options)


def read(source: Any, options: dict[str, Any], quiet: bool = False) -> tuple[Samples, dict[str, Any]]:
    """Returns what a source holds, undivided, and the options with those filled in that decide what is read.

    Args:
        source: as in `load`.
        options: the arguments of `load`.
        quiet: show no progress.
    """
    _check(options)
    if isinstance(source, str) and source == "digits":
        return _plain(arrays.samples({"train": _digits()}, source), options, source), options
    if isinstance(source, str | os.PathLike):
        path = absolute(source)
        if not path.exists():
            raise InputError(f"there is no file or folder {path}{nearest(str(source), ['digits'])}")
        if path.is_dir() or path.suffix.lower() in table.SUFFIXES:
            short_side = _FOLDER_SHORT_SIDE if options["short_side"] is None else options["short_side"]
            images = options["images"] and str(absolute(options["images"]))
            options = options | {"short_side": short_side, "images": images}
            return (_from_folder if path.is_dir() else _from_table)(path, options, quiet), options
        if path.suffix.lower() not in (".npz", ".npy"):
            raise InputError(
                f"{path} is no folder, no table ({', '.join(table.SUFFIXES)}) and no .npz file of arrays: unpack an "
                "archive first, and save a table as CSV"
            )
        return _plain(arrays.samples(arrays.read_npz(path), str(path)), options, str(path)), options
    if isinstance(source, Mapping):
        given = arrays.named_parts(source)
    elif isinstance(source, tuple | list) and len(source) in (2, 3):
        names = ("x", "y", "groups")
        given = {"train": tuple(arrays.array(values, name) for values, name in zip(source, names, strict=False))}
    else:
        raise InputError(
            f"cannot load a {type(source).__name__}: give a folder, a table (.csv, .jsonl), an .npz file, "
            'arrays (x, y), {"train": (x, y), …} or "digits"'
        )
    return _plain(arrays.samples(given, "arrays"), options, "arrays"), options


def absolute(path: "os.PathLike[str] | str") -> Path:
    """Returns a path from the root, where `~` is the user's home.

    Raises:
        InputError: nobody is called as after `~`.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"{path}: nobody of that name has a home here; write the path out") from None


def _check(options: dict[str, Any]) -> None:
    if not isinstance(options["folds"], int) or options["folds"] < 1:
        raise InputError(f"folds must be a whole number, at least 1 (a single split), not {options['folds']!r}")
    if options["task"] not in (None, *table.TASKS):
        hint = nearest(str(options["task"]), table.TASKS)
        raise InputError(f"task must be one of {', '.join(table.TASKS)}; it is {options['task']!r}{hint}")
    short_side = options["short_side"]
    if short_side is not None and not (isinstance(short_side, int) and short_side >= 1):
        raise InputError(f"short_side must be a number of pixels, at least 1, not {short_side!r}")
    if not isinstance(options["group_by"], str | None):
        raise InputError(f"group_by must be a column's name or a regular expression, not {options['group_by']!r}")


def _refuse_options(options: dict[str, Any], names: tuple[str, ...], source: str, kind: str) -> None:
    for name in names:
        if options[name] is not None:
            raise InputError(f"{name} is for {kind}, and {source} is none")


def _plain(samples: Samples, options: dict[str, Any], source: str) -> Samples:
    """Names the source of arrays, for which most options mean nothing."""
    _refuse_options(options, _OF_TABLES, source, "a table of files and labels (.csv, .jsonl)")
    if options["group_by"] is not None:
        raise InputError(f"group_by finds groups in a table or in file names; give {source} as (x, y, groups)")
    return dataclasses.replace(samples, source=source)


def _digits() -> tuple[arrays.Array, arrays.Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _from_folder(root: Path, options: dict[str, Any], quiet: bool) -> Samples:
    _refuse_options(options, _OF_TABLES, str(root), "a table of files and labels (.csv, .jsonl)")
    try:
        files, part_of_file, skipped, classes = _scanned(root)
    except OSError as error:
        raise InputError(f"the folder {root} cannot be read: {error.strerror}") from error
    stored, skipped = _stored(files, root, skipped, options, quiet)

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
    seen = look(stored.images, stored.folder, quiet)
    return Samples(
        stored.images, targets, rows, "classification", tuple(classes), stored.digest, str(root), names, tuple(skipped),
        _told(seen, names, targets, tuple(classes)), _groups_in_paths(options["group_by"], names), seen.pairs,
    )  # fmt: skip


def _from_table(path: Path, options: dict[str, Any], quiet: bool) -> Samples:
    group_by = options["group_by"]
    column = group_by if group_by is not None and re.fullmatch(r"[\w .-]*", group_by) else None  # else a pattern
    listed = table.read(
        path, images=Path(options["images"]) if options["images"] else None, group_by=column,
        **{name: options[name] for name in ("file_column", "label_column", "label_separator", "task")},
    )  # fmt: skip
    stored, skipped = _stored(listed.files, listed.root, listed.skipped, options, quiet)
    parts, targets = listed.parts[stored.rows], listed.targets[stored.rows]
    rows = {str(part): np.flatnonzero(parts == part) for part in np.unique(listed.parts)}
    if not len(rows["train"]):
        raise InputError(f"no image to train on that {path} lists can be read")
    names = tuple(listed.files[row].path for row in stored.rows)
    task, targets, classes = arrays.targets_of(targets, rows["train"], str(path), options["task"], names)
    seen = look(stored.images, stored.folder, quiet)
    notices = (*listed.notices, *_told(seen, names, targets, classes))
    if listed.groups is None:
        groups = _groups_in_paths(group_by, names)
    else:
        own = [listed.groups[row] for row in stored.rows]
        groups, lonely = _numbered(own, names)
        notices += lonely
    return Samples(
        stored.images, targets, rows, task, classes or listed.labels, stored.digest, str(path), names, tuple(skipped),
        notices, groups, seen.pairs,
    )  # fmt: skip


def _stored(
    files: list[folder.File], root: Path, skipped: list[Skipped], options: dict[str, Any], quiet: bool
) -> tuple["Stored", list[Skipped]]:
    """Returns the decoded images, and all files that are left out; `strict` allows none."""
    from trainwell.data.store import open_store

    if options["strict"]:
        _refuse(root, skipped)  # before the long work
    stored = open_store(files, root, options["short_side"], quiet)
    skipped = sorted([*skipped, *stored.skipped], key=lambda one: one.path)
    if options["strict"]:
        _refuse(root, skipped)
    return stored, skipped


def _told(seen: Seen, names: tuple[str, ...], targets: arrays.Array, classes: tuple[str, ...]) -> tuple[Notice, ...]:
    """Puts what a look at the images shows into words."""
    notices = [Notice("odd", f"{names[row]} {reason}", (names[row],)) for row, reason in seen.odd]
    if len(seen.pairs):
        rows = np.unique(seen.pairs)
        first = " and ".join(names[row] for row in seen.pairs[0])
        text = f"{len(rows)} images show the same as others, or nearly ({first}); a split keeps those together"
        notices.append(Notice("duplicates", text, tuple(names[row] for row in rows)))
    same = seen.pairs[seen.exact]
    torn = [pair for pair in same if (targets[pair[0]] != targets[pair[1]]).any()]
    if torn:
        first, second = torn[0]
        labels = [classes[int(targets[row])] if targets.ndim == 1 and classes else "another label" for row in torn[0]]
        text = (
            f"{len(torn)} pairs of equal images have different labels: {names[first]} ({labels[0]}) and "
            f"{names[second]} ({labels[1]})"
        )
        notices.append(Notice("labels", text, tuple(names[row] for row in np.unique(torn))))
    return tuple(notices)


def _groups_in_paths(pattern: str | None, names: tuple[str, ...]) -> arrays.Array | None:
    """Returns the number of the group that a pattern finds in each path."""
    if pattern is None:
        return None
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"group_by={pattern!r} is no regular expression ({error})") from None
    found = [search(name) for name in names]
    if missed := [name for name, match in zip(names, found, strict=True) if match is None]:
        others = f" and {len(missed) - 1} other paths" if len(missed) > 1 else ""
        raise InputError(f"group_by={pattern!r} finds nothing in {missed[0]!r}{others}: every file needs a group")
    groups = ["\0".join(part or "" for part in match.groups()) or match[0] for match in found if match]
    numbers: arrays.Array = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    if numbers.max() == 0:
        raise InputError(f"group_by={pattern!r} finds one group, {groups[0]!r}, in all paths")
    return numbers


def _numbered(groups: list[str], names: tuple[str, ...]) -> tuple[arrays.Array, tuple[Notice, ...]]:
    """Returns groups as numbers; a sample whose group nobody knows is one of its own, and told."""
    own = [group or f"\0{name}" for group, name in zip(groups, names, strict=True)]
    alone = tuple(name for group, name in zip(groups, names, strict=True) if not group)
    told = (Notice("groups", f"{len(alone)} files have no group and stand alone: {alone[0]}", alone),) if alone else ()
    return np.unique(own, return_inverse=True)[1].astype(np.int64), told


def _scanned(root: Path) -> tuple[list[folder.File], arrays.Array, list[Skipped], list[str]]:
    """Returns the files with paths from `root`, the part of each, what is left out, and the classes."""
    divided = folder.parts(root)
    if not divided:
        files, skipped, classes = folder.scan(root)
        _refuse_empty(root, classes, {file.label for file in files}, skipped)
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
            _refuse_empty(root / name, classes, labels, skipped)
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


def _refuse_empty(root: Path, classes: list[str], filled: set[str], skipped: list[Skipped]) -> None:
    if empty := [name for name in classes if name not in filled]:
        inside = [one for one in skipped if one.path.startswith(f"{empty[0]}/")]
        first = f" ({inside[0].path}: {inside[0].reason})" if inside else ""
        raise InputError(f"the class folder {root / empty[0]} holds no images{first}: add some or remove it")


def _refuse(root: Path, skipped: list[Skipped]) -> None:
    if skipped:
        named = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise InputError(f"{len(skipped)} files in {root} cannot be used, which strict forbids ({named}{more})")
