"""What ends a run from outside: Ctrl-C and requests to end, a disk or a memory that is full."""

import contextlib
import errno
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from trainwell.errors import InputError, is_out_of_memory
from trainwell.train.recipe import Recipe

# Ctrl-C, a request to end, and a terminal that is closed; what is ignored, as by nohup, stays so.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)
Handler = Callable[[int, FrameType | None], None]
READING = "reading the data"


@dataclass
class Work:
    """What a run is doing, for the line that says what ended it.

    Attributes:
        folder: the run directory; `None` if nothing is kept.
        doing: what is being done, as in "training".
        how: how to go on with the run, once there is one.
        recipe: the recipe, which says how much memory is needed.
    """

    folder: Path | None
    doing: str = READING
    how: str = ""
    recipe: Recipe | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a run that can be gone on with."""
        told = [] if self.folder is None else [self.folder / name for name in ("run.json", "ensemble.json")]
        return bool(self.how) and any(path.exists() for path in told)


@contextlib.contextmanager
def explained(work: Work) -> Iterator[None]:
    """Turns what ends a run from outside into one line that says what, where, and how to go on.

    Raises:
        InputError: a file of the run could not be written, or the memory was used up.
        KeyboardInterrupt: Ctrl-C, or a request to end.
    """
    with _handled(_raise, instead_of=_default):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            what = str(interrupt) or f"interrupted while {work.doing}"
            then = f"go on with: {work.how}" if work.begun else "nothing was started"
            raise KeyboardInterrupt(f"{what}; {then}") from None
        except Exception as error:
            if is_out_of_memory(error):
                raise InputError(_no_memory(work)) from error
            if isinstance(error, OSError) and _is_of(work.folder, error):
                raise InputError(_not_written(work, error)) from error
            raise


def _no_memory(work: Work) -> str:
    batch_size = work.recipe.batch_size if work.recipe else None
    at = f" at batch_size {batch_size}" if batch_size else ""
    if work.doing == READING:
        smaller = "fewer or smaller samples (--short-side 128)"
    elif work.recipe is None or batch_size is None or batch_size == 1:
        smaller = "a smaller --batch-size, --img-size or --model"
    else:
        pieces = 2 * work.recipe.grad_accum_steps
        smaller = f"--batch-size {batch_size // 2} --grad-accum-steps {pieces} (each step in smaller pieces)"
    if work.begun:
        then = f"close other programs, then go on with: {work.how}; or start anew with {smaller}"
        return f"out of memory{at} while {work.doing}; what was saved before is whole: {then}"
    return f"out of memory{at} while {work.doing}; nothing was started: try {smaller}, or close other programs"


def _is_of(folder: Path | None, error: OSError) -> bool:
    """Says whether an error of the system is about a file of the run, not one of the user's own code."""
    return folder is not None and error.filename is not None and Path(str(error.filename)).is_relative_to(folder)


def _not_written(work: Work, error: OSError) -> str:
    if error.errno in _FULL:
        remedy = "make room"
    elif error.errno in _LOCKED:
        remedy = "make it writable"
    else:
        remedy = "see whether the disk is well"
    what = f"{error.filename}: {error.strerror}, while {work.doing}"
    if work.begun:
        return f"{what}; what was saved before is whole: {remedy}, then go on with: {work.how}"
    return f"{what}; nothing was started: {remedy}, or choose another --out"


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Holds back the first request to end; yields a function that says whether one came.

    A second one acts at once. Outside the main thread, where Python takes no signals, nothing is held back.
    """
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    with _handled(note, instead_of=_not_ignored):
        yield lambda: bool(came)


def _default(was: object) -> bool:
    return was is signal.SIG_DFL  # SIGINT raises KeyboardInterrupt without us


def _not_ignored(was: object) -> bool:
    return was not in (signal.SIG_IGN, None)  # None: set by something else than Python


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler: Handler, instead_of: Callable[[object], bool]) -> Iterator[None]:
    """Handles requests to end in a way of ours, where Python takes signals."""
    numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: was for number in numbers if instead_of(was := signal.getsignal(number))}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
