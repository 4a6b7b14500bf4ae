"""The user's cache, of decoded images and of features: where it is, how large, and how it is cleared."""

import contextlib
import json
import re
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from trainwell.files import cache_folder, remove

_KEY = re.compile("[0-9a-f]{32}")  # how the store calls the folder of one set of images
_OURS = re.compile(r"store|\.store\.[0-9a-f]{8}\.partial")  # what it puts there, besides the lock
_DAY = 86400.0  # seconds


class Entry(NamedTuple):
    """The decoded images of one folder at one size, or the features of a pretrained model.

    Attributes:
        path: where they are kept.
        bytes: how much room they take, with what killed processes left there.
        images: how many there are; `None` if that is not known, or they were never finished.
        source: the folder that they came from, if it is known.
        used: when they were last used, in seconds since 1970; no earlier than when they were made.
    """

    path: Path
    bytes: int
    images: int | None
    source: str | None
    used: float


class Cleared(NamedTuple):
    """How many bytes were freed, and what stays with the reason why."""

    bytes: int
    kept: tuple[tuple[Entry, str], ...]


def entries() -> list[Entry]:
    """Lists what the cache holds, the largest first; anything there that is not ours is passed over."""
    found = []
    with contextlib.suppress(OSError):
        for path in (cache_folder() / "features").glob("*.safetensors"):
            if _KEY.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
                found.append(Entry(path, path.stat().st_size, None, "features", path.stat().st_mtime))
    with contextlib.suppress(OSError):  # no cache yet
        for home in sorted((cache_folder() / "images").iterdir()):
            if _KEY.fullmatch(home.name) and home.is_dir() and not home.is_symlink():
                with contextlib.suppress(OSError):  # cleared by another process just now, or another user's
                    if ours := _ours(home):
                        found.append(_entry(home, ours))
    return sorted(found, key=lambda entry: -entry.bytes)


def clear(older_than_days: float = 0.0) -> Cleared:
    """Removes decoded images and features, and what killed processes left; they are made anew when they are needed.

    Images that another process decodes at this moment stay. One that trains on stored images goes on: the system keeps
    what is open, or, on Windows, does not let go of it; then it stays. Nothing is removed that we did not write.

    Args:
        older_than_days: spare what was used within so many days.

    Returns:
        How many bytes were freed, and what could not be removed.
    """
    from filelock import FileLock, Timeout

    freed, kept = 0, []
    latest = time.time() - older_than_days * _DAY
    for entry in entries():
        if older_than_days and entry.used > latest:
            continue
        if entry.path.is_file():
            try:
                entry.path.unlink()
                freed += entry.bytes
            except OSError as error:
                kept.append((entry, f"it cannot be removed: {error.strerror or error}"))
            continue
        try:
            with FileLock(entry.path / "lock", timeout=0):
                for path in _ours(entry.path):
                    # A process that opens it now finds all of it or nothing; and Windows refuses if it is in use.
                    gone = entry.path / f".store.{uuid.uuid4().hex[:8]}.partial"
                    remove(path.rename(gone))
        except Timeout:
            kept.append((entry, "another process works on it"))
        except OSError as error:
            kept.append((entry, f"it cannot be removed: {error.strerror or error}"))
        with contextlib.suppress(OSError):  # the folder of another user, closed meanwhile
            freed += entry.bytes - sum(map(_size, _ours(entry.path)))
        # The lock stays, empty as it is: who waits for it would else hold another one than who comes later.
    return Cleared(freed, tuple(kept))


def describe(found: list[Entry]) -> str:
    """Returns what to print about the cache: one line an entry, and the sum."""
    lines = [f"{cache_folder()}: {_in_words(sum(entry.bytes for entry in found))}"]
    for entry in found:
        images = "unfinished" if entry.images is None else f"{entry.images:,} images"
        if entry.source == "features":
            images = ""
        day = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
        lines.append(f"{_in_words(entry.bytes):>12}  {images:>18}  {day}  {entry.source or entry.path.name}")
    return "\n".join(lines)


def describe_cleared(cleared: Cleared) -> str:
    """Returns what to print after the cache was cleared."""
    lines = [f"{_in_words(cleared.bytes)} freed in {cache_folder()}"]
    lines += [f"kept {entry.source or entry.path.name}: {reason}" for entry, reason in cleared.kept]
    return "\n".join(lines)


def _ours(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if _OURS.fullmatch(path.name) and not path.is_symlink() and _is_store(path)]


def _is_store(path: Path) -> bool:
    names = {inside.name for inside in path.iterdir()} if path.is_dir() else {"a file"}
    return not names or bool(names & {"pixels.bin", "index.safetensors"})


def _entry(home: Path, ours: list[Path]) -> Entry:
    store = home / "store"
    images, source = None, None
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):  # a damaged store is listed too
        about = json.loads((store / "about.json").read_text("utf-8"))
        images, source = int(about["images"]), str(about["source"])
    times = [path.stat().st_mtime for path in (*ours, store / "about.json") if path.exists()]
    return Entry(home, sum(map(_size, ours)), images, source, max(times))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            total += path.lstat().st_size
    return total


def _in_words(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
