"""The one exception that means "the input is wrong", not "the program is"."""

import difflib
import errno
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do, in one line.

    The command line prints it without a traceback and leaves with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known name closest to a mistyped one, or nothing.

    >>> nearest("epoch", ["epochs", "lr"])
    " (did you mean 'epochs'?)"
    >>> nearest("zebra", ["epochs", "lr"])
    ''
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


class DivergedError(RuntimeError):
    """Loss or gradient stopped being finite; the message names the step, the rate and what to try."""


def in_one_line(error: BaseException, most: int = 200) -> str:
    """Returns an error of a library as part of a line of ours, white space folded.

    >>> in_one_line(ValueError("bad   shape"))
    'ValueError: bad shape'
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that memory, of the machine or of a device, is used up.

    Torch raises a plain `RuntimeError` for the machine's own, which only its text tells from others.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    return told or isinstance(error, MemoryError)
