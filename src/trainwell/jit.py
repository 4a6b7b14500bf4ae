"""Numba's compiler, with its cache where there is one, and what its code can read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


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


def reads(x: Tensor) -> bool:
    """Returns whether compiled code can read a tensor's memory: a plain one on the CPU that nothing traces."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and not is_traced()


def is_traced() -> bool:
    """Returns whether torch follows what is computed, to compile or record it, or for `torch.func`: let it see all."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or get_proxy_mode() is not None
    )
