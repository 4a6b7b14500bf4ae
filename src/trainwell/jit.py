"""Numba's compiler, with its cache where there is one."""

from collections.abc import Callable
from typing import Any


def compiled(python: Callable[..., None], **options: Any) -> Callable[..., None]:
    """Returns a function that is compiled when it is first called, and kept on disk if numba finds a folder for it.

    It holds no lock while it runs, and divides by zero as NumPy does.

    Raises:
        ImportError: there is no numba.
    """
    from numba import njit

    options = {"nogil": True, "error_model": "numpy", **options}
    made: Callable[..., None]
    try:
        made = njit(cache=True, **options)(python)
    except RuntimeError:  # no folder in which numba may keep it
        made = njit(**options)(python)
    return made
