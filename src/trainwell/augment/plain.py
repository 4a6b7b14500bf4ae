"""Numbers of any kind as Python's own, and rows of them as tuples: what can be hashed, and printed as it is read."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from trainwell.errors import InputError


def plain(given: Any) -> Any:
    """Returns numbers of NumPy, of torch or of another kind as Python's own, rows as tuples; all else as it is.

    >>> plain(np.float64(0.5)), plain([np.int64(3), 4]), plain("a")
    (0.5, (3, 4), 'a')
    """
    given = given.tolist() if isinstance(given, np.ndarray | np.generic | Tensor) else given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(plain(value) for value in given)
    if isinstance(given, bool) or not isinstance(given, Real):
        return given
    return int(given) if isinstance(given, Integral) else float(given)


def are_numbers(values: Any) -> bool:
    """Says whether all are numbers, as `plain` returns them."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def per_channel(name: str, given: Any) -> tuple[float, ...]:
    """Returns a mean or standard deviation, a number or a row of them of any kind.

    Args:
        name: "mean", or "std", which is above 0.
        given: what the user gave.

    Raises:
        InputError: it is none.

    >>> per_channel("std", np.full((3, 1, 1), 0.5))
    (0.5, 0.5, 0.5)
    """
    values = plain(given.reshape(-1) if isinstance(given, np.ndarray | Tensor) else given)
    values = values if isinstance(values, tuple) else (values,)
    if not (values and are_numbers(values) and all(math.isfinite(value) for value in values)):
        raise InputError(f"{name} is a finite number, or one a channel; it is {values!r}")
    if name == "std" and min(values) <= 0:
        raise InputError(f"std must be above 0, because it is divided by; it is {values!r}")
    return tuple(float(value) for value in values)
