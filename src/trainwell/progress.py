"""Progress of anything that takes more than two seconds, on standard error."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def say(line: str) -> None:
    """Shows a line; where it cannot be shown, as when the terminal is gone, nothing ends for that."""
    if sys.stderr is not None:  # as in a program without a console
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed file
            print(line, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Says whether standard error is a terminal."""
    with contextlib.suppress(ValueError):
        return sys.stderr is not None and sys.stderr.isatty()
    return False


def track(items: Iterable[T], total: int, what: str, quiet: bool = False) -> Iterator[T]:
    """Yields `items`, showing how far it is: a bar on a terminal, else a line every ten seconds.

    Args:
        items: what is gone through; each counts as one.
        total: how many there will be.
        what: what is being done, as in "decoding images".
        quiet: show nothing.
    """
    if quiet:
        yield from items
    elif on_terminal():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=what, total=total, console=Console(stderr=True), transient=True)
    else:
        shown = time.monotonic() - 8.0  # the first line after two seconds
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - shown > 10.0:
                shown = time.monotonic()
                say(f"{what}: {done} of {total}")
