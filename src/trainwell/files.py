"""Writes that either happen whole or not at all."""

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _sync(path: Path) -> None:
    """Asks the system to put a file or a folder's entries on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Puts `content` at `path`; at every instant the file is either the old one or the whole new one.

    Text is written as UTF-8. The content is written beside its final name, synced, and renamed.
    """
    path = Path(path)
    partial = _sibling(path)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path | str, content: Any) -> None:
    """Writes what JSON can say; numbers that are not finite become `null`, for which alone it has a word."""
    write_atomically(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """Returns a nest of dicts and lists with `None` for every float that is not finite.

    >>> finite({"loss": float("nan"), "interval": (0.5, float("inf"))})
    {'loss': None, 'interval': [0.5, None]}
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextlib.contextmanager
def new_directory(path: Path | str) -> Iterator[Path]:
    """Yields an empty folder to fill; when the block ends well it is synced and renamed to `path`.

    `path` must not exist. When the block fails, nothing is left behind. A killed process can leave a folder
    whose name ends in `.partial`; `remove_partials` clears those.
    """
    path = Path(path)
    partial = _sibling(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


def remove_partials(folder: Path | str) -> None:
    """Removes what writes that were killed left in `folder`. Call it only while holding the folder's lock."""
    for entry in Path(folder).glob(".*.partial"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
