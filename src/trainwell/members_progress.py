"""How far members are that are trained in other processes: by what is in their folders."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from trainwell.run import Run
from trainwell.train.display import Display, duration
from trainwell.train.figures import short


@contextlib.contextmanager
def watched(folders: list[Path], epochs: int, display: Display) -> Iterator[None]:
    """Shows within the block how far members are.

    Args:
        folders: theirs.
        epochs: how many each has, its folds included.
        display: where.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folders, epochs, display, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(folders: list[Path], epochs: int, display: Display, ended: threading.Event) -> None:
    began, told, at_start, shown = time.monotonic(), set[Path](), _epochs_of(folders), time.monotonic()
    last = False
    while not last:
        last = ended.wait(1.0)
        epochs_done = _epochs_of(folders)
        share = (epochs_done - at_start) / max(1, epochs * len(folders) - at_start)
        left = (time.monotonic() - began) * (1 / share - 1) if share > 0 else math.inf
        about = f"; about {duration(left)} left" if 0 < left < math.inf else ""
        for folder in folders:
            if folder not in told and (folder / "result.json").exists():
                told.add(folder)
                shown = time.monotonic()
                display.say(f"member {folder.name} is done, {short(Run(folder).result)}{about}")
        if time.monotonic() - shown > 10 and epochs_done > at_start and not last:
            shown = time.monotonic()
            display.say(f"{epochs_done:,} of {epochs * len(folders):,} epochs{about}")


def _epochs_of(folders: list[Path]) -> int:
    """Returns how many epochs members and their folds have gone through."""
    count = 0
    for folder in folders:
        for history in (folder / "history.jsonl", *folder.glob("folds/*/history.jsonl")):
            with contextlib.suppress(OSError):
                count += history.read_bytes().count(b"\n")
    return count
