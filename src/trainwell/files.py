"""Writes that either happen whole or not at all."""

import contextlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_WINDOWS = os.name == "nt"
_PAUSES = (0.01, 0.05, 0.2, 1.0)  # seconds


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Lets an `OSError` that does not name its file, as one of `write` or `fsync`, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    """Asks the system to put a file or a folder's entries on the disk."""
    if _WINDOWS and path.is_dir():  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def _patiently(move: Callable[[Path], object], path: Path) -> None:
    """Moves to a path; on Windows again if a virus scanner or an indexer has the new file open for a moment."""
    for pause in _PAUSES if _WINDOWS else ():
        try:
            move(path)
            return
        except PermissionError:
            time.sleep(pause)
    move(path)


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Puts `content` at `path`; at every instant the file is either the old one or the whole new one.

    Text is written as UTF-8. The content is written beside its final name, synced, and renamed.
    """
    path = Path(path)
    partial = _sibling(path)
    with naming(path):
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            _sync(partial)
            _patiently(partial.replace, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_json(path: Path | str, content: Any) -> None:
    """Writes what JSON can say; numbers that are not finite become `null`, for which alone it has a word."""
    write_atomically(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path | str, tensors: "Mapping[str, torch.Tensor]", about: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors, contiguous and from the CPU, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
        about: what else the file says.
    """
    import torch
    from safetensors.torch import save

    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(path, save(whole, about))


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
    with naming(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                _sync(file)
            _sync(partial)
            _patiently(partial.rename, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(path.parent)


def remove(path: Path | str) -> None:
    """Removes a file, or a folder with all in it, if it is there; an `OSError` names what could not be removed."""
    path = Path(path)
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        if not Path(error.filename or "").is_relative_to(path):  # before Python 3.12 rmtree gives the last part alone
            error.filename = str(path)
        raise


def remove_partials(folder: Path | str) -> None:
    """Removes what writes that were killed left in `folder`, as far as the system lets it.

    Call it only while holding the folder's lock.
    """
    for entry in Path(folder).glob(".*.partial"):
        with contextlib.suppress(OSError):
            remove(entry)


def cache_folder() -> Path:
    """Returns where decoded images and compiled kernels are: `TRAINWELL_CACHE`, or else the user's cache folder."""
    chosen = os.environ.get("TRAINWELL_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("trainwell"))
