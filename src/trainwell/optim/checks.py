"""Hyper-parameters are checked: each function returns what it was given, or raises `InputError` in a line."""

import math
import operator
from typing import Any

from trainwell.errors import InputError


def as_number(value: Any, name: str) -> float:
    """Returns a finite number as a float.

    >>> as_number(1, "lr")
    1.0
    """
    try:
        # NumPy's and torch's numbers are welcome; a text or a truth value is a slip, though Python would convert it.
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}: it must be a finite number")
    return number


def as_count(value: Any, name: str, least: int = 1) -> int:
    """Returns a whole number that is at least so much."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise InputError(f"{name} is {value!r}: it must be a whole number, at least {least}")
    return operator.index(value)


def one_of(choices: tuple[str, ...], value: Any, name: str) -> str:
    """Returns a text that is one of those that it may be."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}: it must be {' or '.join(map(repr, choices))}")
    return str(value)
