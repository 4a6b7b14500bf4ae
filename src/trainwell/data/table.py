"""A table of files and labels: CSV, TSV or JSON lines."""

import csv
import io
import json
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainwell.data import folder
from trainwell.data.dataset import Notice, Skipped
from trainwell.data.folder import EXTENSIONS, PARTS, File, is_image_name
from trainwell.errors import InputError, nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""How the names of tables end."""

TASKS = ("classification", "multilabel", "regression")

_FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_file", "image_name",
                 "image_path", "img", "img_path", "image_id", "id")  # fmt: skip
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "targets", "category", "categories", "tag", "tags",
                  "y", "species", "diagnosis")  # fmt: skip
_PART_COLUMNS = ("split", "part", "set", "subset", "fold")
_MOST_DIGITS = 18  # of whole numbers; longer ones are names
_SEPARATORS = ("|", ";")  # of several labels in one cell, where nobody says another
_Row = tuple[int, dict[str, Any]]  # the line's number, and its cells


class Listed(NamedTuple):
    """What a table says of the files that are there.

    Attributes:
        root: the folder that the files' paths start from.
        files: the files, sorted by path.
        targets: one a file: text or whole numbers `(n,)`, floats `(n,)` or `(n, k)`, or 0 and 1 `(n, k)`.
        labels: the names of the columns of targets `(n, k)`; else empty.
        parts: the part of each file ("train", "val" or "test"); "train" for all where the table does not say.
        groups: the group of each file, if a column of groups was asked for.
        skipped: the files that are left out, with the reasons.
        notices: what a person should know besides.
    """

    root: Path
    files: list[File]
    targets: npt.NDArray[Any]
    labels: tuple[str, ...]
    parts: npt.NDArray[Any]
    groups: list[str] | None
    skipped: list[Skipped]
    notices: list[Notice]


def read(
    path: Path,
    *,
    images: Path | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    task: str | None = None,
    group_by: str | None = None,
) -> Listed:
    """Reads a table with a row for each file.

    Args:
        path: the table. Its first line names the columns; without one, a table of two columns holds file and label.
        images: the folder that the files' names start from; by default the table's own.
        file_column: which column names the files; by default one called file, filename, path, image …
        label_column: which one holds the label; by default one called label, class, target …, or the only other one.
            Several, separated by commas, hold 0 or 1 for each label, or a number each.
        label_separator: what stands between several labels of one file; by default `|` or `;`.
        task: "classification", "multilabel" or "regression", where the labels do not tell.
        group_by: a column that says which animal, patient or day a file belongs to.

    Raises:
        InputError: the table cannot be read, a column is missing, or a file is listed with two labels.
    """
    rows = _rows(path)
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    file_in = _file_column(path, rows, columns, file_column)
    part_in = _part_column(path, rows, columns)
    taken = {file_in, part_in, group_by}
    labels_in = _label_columns(path, rows, [name for name in columns if name not in taken], label_column)
    for name in labels_in:
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}{nearest(name, columns)}: it has {', '.join(columns)}")
    if group_by is not None and group_by not in columns:
        raise InputError(f"{path} has no column {group_by!r}{nearest(group_by, columns)}: it has {', '.join(columns)}")

    root = (images or path.parent).expanduser().absolute()
    found, skipped = _found(root, rows, file_in)
    if not found:
        first = skipped[0] if skipped else Skipped("", "the table is empty")
        raise InputError(
            f"no file that {path} lists is in {root} (the first: {first.path!r}: {first.reason}): say with images= "
            "(--images) which folder the names start from, or with file_column= (--file-column) which column they are"
        )
    labelled, unlabelled = _labelled(path, found, labels_in, label_separator, task)
    skipped += unlabelled
    if not labelled:
        raise InputError(f"{path} gives none of its files a label in {', '.join(labels_in)}")
    once, repeated = _once(path, labelled, task)
    skipped += repeated
    targets, names = _targets(path, [label for _, _, label in once], labels_in, task)
    cells = [cells for _, (_, cells), _ in once]
    groups = None if group_by is None else [_text(row.get(group_by)) for row in cells]
    parts = [PARTS[_text(row[part_in]).lower()] if part_in else "train" for row in cells]
    files = [file for file, _, _ in once]
    notices = _unlisted(root, {file.path for file in files} | {one.path for one in skipped})
    return Listed(root, files, targets, names, np.array(parts), groups, skipped, notices)


# ------------------------------------------------------------------ lines and columns


def _rows(path: Path) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8 (byte {error.start}): save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    lines = _json_rows(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(path, text)
    rows = list(lines)
    if not rows:
        raise InputError(f"{path} lists no files")
    return rows


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):  # and not at other signs, which a text may hold
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}, is not JSON ({error})") from None
        if not isinstance(cells, dict):
            raise InputError(
                f'{path}, line {number}: expected is an object such as {{"file": "a.jpg", "label": "cat"}}'
            )
        yield number, cells


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    try:
        lines = [(reader.line_num, cells) for reader in [csv.reader(io.StringIO(text, newline=""), delimiter=delimiter,
                 strict=True)] for cells in reader if any(cell.strip() for cell in cells)]  # fmt: skip
    except csv.Error as error:
        raise InputError(f"{path} is no table with {delimiter!r} between its columns ({error})") from None
    if not lines:
        return
    names = [name.strip() for name in lines[0][1]]
    if any(name.lower().endswith(EXTENSIONS) for name in names):  # no line of names, but a file's at once
        if len(names) != 2:
            raise InputError(f"{path} needs a first line that names its {len(names)} columns, such as file,label")
        names = ["file", "label"]
    else:
        del lines[0]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has two columns called {twice!r}: rename one")
    for number, cells in lines:
        if len(cells) > len(names):
            raise InputError(f"{path}, line {number}, has {len(cells)} cells, but there are {len(names)} columns")
        yield number, dict(zip(names, (cell.strip() for cell in cells), strict=False))


def _file_column(path: Path, rows: list[_Row], columns: list[str], given: str | None) -> str:
    if given is not None:
        if given not in columns:
            raise InputError(f"{path} has no column {given!r}{nearest(given, columns)}: it has {', '.join(columns)}")
        return given
    lower = {name.lower(): name for name in reversed(columns)}
    for name in _FILE_COLUMNS:
        if name in lower:
            return lower[name]
    looking = [name for name in columns if all(is_image_name(_text(cells.get(name))) for _, cells in rows)]
    if len(looking) != 1:
        raise InputError(
            f"which column of {path} names the files? It has {', '.join(columns)}: say it with file_column= "
            "(--file-column)"
        )
    return looking[0]


def _label_columns(path: Path, rows: list[_Row], columns: list[str], given: str | None) -> list[str]:
    if given is not None:
        return [given] if given in columns else [name.strip() for name in given.split(",")]
    lower = {name.lower(): name for name in reversed(columns)}
    for name in _LABEL_COLUMNS:
        if name in lower:
            return [lower[name]]
    if len(columns) == 1:
        return columns
    if len(columns) > 1 and all(_text(cells.get(name)) in ("0", "1") for _, cells in rows for name in columns):
        return columns
    raise InputError(
        f"which column of {path} holds the labels? It has {', '.join(columns) or 'no other than that of the files'}: "
        "say it with label_column= (--label-column)"
    )


def _part_column(path: Path, rows: list[_Row], columns: list[str]) -> str | None:
    """Returns the column that says which part a file belongs to; one that never says so means something else."""
    for name in columns:
        if name.lower() not in _PART_COLUMNS:
            continue
        values = {_text(cells.get(name)).lower(): number for number, cells in rows}
        known = values.keys() & PARTS.keys()
        if known and (other := sorted(values.keys() - known)):
            raise InputError(
                f"{path}, line {values[other[0]]}: {name} is {other[0]!r}; known are train, val and test, in every line"
            )
        if known and not any(PARTS[value] == "train" for value in known):
            raise InputError(f"{path} has no file to train on: none of its lines has {name} = train")
        if known:
            return name
    return None


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


# ------------------------------------------------------------------ files


def _found(root: Path, rows: list[_Row], file_in: str) -> tuple[list[tuple[File, _Row]], list[Skipped]]:
    """Returns the files that are there, each with its row, and the others with the reasons."""
    found: list[tuple[File, _Row]] = []
    skipped: list[Skipped] = []
    for number, cells in rows:
        name = _text(cells.get(file_in))
        if not name:
            skipped.append(Skipped(f"line {number}", "it names no file"))
            continue
        try:
            path, info = _located(root, name)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            gone = isinstance(error, FileNotFoundError)
            skipped.append(Skipped(name, "no such file" if gone else f"cannot be opened: {_why(error)}"))
            continue
        if not stat.S_ISREG(info.st_mode):
            skipped.append(Skipped(name, "not a regular file"))
        else:
            found.append((File(path, "", info.st_size, info.st_mtime_ns), (number, cells)))
    return found, skipped


def _located(root: Path, name: str) -> tuple[str, os.stat_result]:
    """Returns the path inside `root`, and what the system knows of it; the name may lack its ending."""
    for path in dict.fromkeys((name, name.replace("\\", "/"))):
        path = posixpath.normpath(PurePath(path).as_posix())
        endings = [ending for known in EXTENSIONS for ending in (known, known.upper())]
        first: tuple[str, os.stat_result] | None = None
        for ending in ("", *endings) if not path.lower().endswith(EXTENSIONS) else ("",):
            try:
                found = path + ending, (root / (path + ending)).stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found[1].st_mode):
                return found
            first = first or found  # a folder beside a file of its name, perhaps
        if first:
            return first
    raise FileNotFoundError(name)


def _why(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def _unlisted(root: Path, listed: set[str]) -> list[Notice]:
    """Tells of images that lie beside those listed, and are not listed themselves."""
    beside: list[str] = []
    for parent in sorted({str(PurePath(path).parent) for path in listed}):
        try:
            names = sorted(entry.name for entry in (root / parent).iterdir())
        except OSError:
            continue
        paths = (name if parent == "." else f"{parent}/{name}" for name in names if is_image_name(name))
        beside += [path for path in paths if path not in listed]
    if not beside:
        return []
    many = f"{len(beside)} images beside them are" if len(beside) > 1 else "1 image beside them is"
    return [Notice("unlisted", f"{many} not in the table, and not used: {beside[0]}", tuple(beside))]


# ------------------------------------------------------------------ labels

_Labelled = tuple[File, _Row, Any]  # with its label: text, a number, or a list of them


def _labelled(
    path: Path, found: list[tuple[File, _Row]], labels_in: list[str], separator: str | None, task: str | None
) -> tuple[list[_Labelled], list[Skipped]]:
    """Returns the files with their labels, and those that have none."""
    if len(labels_in) > 1:
        several = [(file, row, [row[1].get(name) for name in labels_in]) for file, row in found]
        whole = [one for one in several if all(map(_text, one[2]))]
        lacking = [one for one in several if not all(map(_text, one[2]))]
        return whole, [Skipped(file.path, f"no label in a column (line {row[0]})") for file, row, _ in lacking]
    [name] = labels_in
    cells = [row[1].get(name) for _, row in found]
    between = separator or next((mark for mark in _SEPARATORS if any(mark in _text(cell) for cell in cells)), None)
    if (task == "regression" and any(isinstance(cell, list) for cell in cells)) or any(map(_has_decimals, cells)):
        if len({len(cell) if isinstance(cell, list) else 0 for cell in cells}) > 1:
            raise InputError(f"{path}: {name} holds lists of numbers, but not in every line as many: complete them")
        return [(file, row, cell) for (file, row), cell in zip(found, cells, strict=True)], []
    several_in_one = (
        task == "multilabel"
        or any(isinstance(cell, list) for cell in cells)
        or (task is None and between is not None and any(between in cell for cell in cells if isinstance(cell, str)))
    )
    labelled: list[_Labelled] = []
    skipped = []
    for (file, row), cell in zip(found, cells, strict=True):
        if several_in_one:
            labelled.append((file, row, _several(cell, between)))
        elif isinstance(cell, dict):
            raise InputError(f"{path}, line {row[0]}: the label {_text(cell)} is neither text, a number nor a list")
        elif _text(cell):
            labelled.append((file, row, cell))
        else:
            skipped.append(Skipped(file.path, f"no label (line {row[0]})"))
    return labelled, skipped


def _has_decimals(cell: Any) -> bool:
    """Says whether a cell is a list with a decimal in it: of several targets, where whole numbers may be labels."""
    return isinstance(cell, list) and any(type(part) is float for part in cell)


def _several(cell: Any, between: str | None) -> list[str]:
    """Returns the labels in a cell; none if it is empty."""
    parts = cell if isinstance(cell, list) else _text(cell).split(between) if between else [_text(cell)]
    return sorted({text for part in parts if (text := _text(part).strip())})


def _once(path: Path, labelled: list[_Labelled], task: str | None) -> tuple[list[_Labelled], list[Skipped]]:
    """Returns each file once, sorted by path; a file in several lines must have the same label in all of them."""
    first: dict[str, _Labelled] = {}
    skipped = []
    for file, row, label in labelled:
        before = first.setdefault(file.path, (file, row, label))
        if before[1][0] == row[0]:
            continue
        if before[2] != label and not (task == "multilabel" and isinstance(label, list)):
            raise InputError(
                f"{path} lists {file.path} as {_text(before[2])} (line {before[1][0]}) and as {_text(label)} "
                f"(line {row[0]}): remove one, or say task='multilabel' (--task multilabel)"
            )
        if before[2] != label:  # one label a line
            first[file.path] = (file, before[1], sorted({*before[2], *label}))
        else:
            skipped.append(Skipped(file.path, f"listed again (line {row[0]})"))
    return [first[name] for name in sorted(first)], skipped


def _targets(
    path: Path, labels: list[Any], labels_in: list[str], task: str | None
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Returns targets as `trainwell.load` takes them, and the names of their columns where there are several."""
    if isinstance(labels[0], list):
        if len(labels_in) > 1 or task == "regression" or any(map(_has_decimals, labels)):
            values = np.array([[_number(path, cell) for cell in row] for row in labels], np.float32)
            columns = tuple(labels_in) if len(labels_in) > 1 else ()
            binary = bool(np.isin(values, (0, 1)).all())
            if task == "classification" and columns and binary and (values.sum(axis=1) == 1).all():
                return np.array(columns)[values.argmax(axis=1)], ()
            if task in ("regression", None) or (task == "multilabel" and binary):
                return values, columns
            why = (
                "do not hold one 1 a line, and else 0"
                if task == "classification"
                else "hold other numbers than 0 and 1"
            )
            raise InputError(f"the columns {', '.join(labels_in)} of {path} {why}, as {task} needs")
        names = sorted({name for row in labels for name in row}, key=folder.class_order)
        if not names:
            raise InputError(f"{path} gives no file any label")
        return np.array([[name in row for name in names] for row in labels], np.float32), tuple(names)
    if task == "regression":
        return np.array([_number(path, cell) for cell in labels], np.float32), ()
    texts = [_text(cell) for cell in labels]
    if task == "classification":
        return _whole(texts) if all(map(_is_whole, texts)) else np.array(texts), ()
    if all(map(_is_whole, texts)):
        return _whole(texts), ()
    if all(map(_is_number, texts)) and any("." in text for text in texts):  # "007" is a name, and so is "1E5"
        return np.array([float(text) for text in texts], np.float32), ()
    return np.array(texts), ()


def _whole(texts: list[str]) -> npt.NDArray[np.int64]:
    return np.array([int(text) for text in texts], np.int64)


def _is_digits(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _is_whole(text: str) -> bool:
    return _is_digits(text) and len(text) <= _MOST_DIGITS and str(int(text)) == text


def _is_number(text: str) -> bool:
    """Says whether a text is a number: not `3_1` or `nan`, which `float` takes and people call things by."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) is not None


def _number(path: Path, cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise InputError(f"{path}: {_text(cell)!r} is no number") from None
