"""Random masks as a function of keys, and the pass that drops by them.

Each unit has a number within its row, in the order of the tensor's shape, however it lies in memory. Its random word is
a hash of the number under the row's key: two rounds of the 32-bit mixer `lowbias32` (Wellons, *Prospecting for hash
functions*, 2018), one for each half of the key. A unit is dropped if its word is below `p * 2**32`.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainwell import jit
from trainwell.regularize.noise import splitmix64
from trainwell.threads import share

_LOW = 0xFFFF_FFFF


def words(keys: Tensor, count: int) -> Tensor:
    """Returns `count` random 32-bit words for each of `n` keys: an int64 tensor `(n, count)` of numbers from 0.

    >>> words(torch.tensor([1, 2]), 3).shape
    torch.Size([2, 3])
    """
    numbers = torch.arange(count, device=keys.device)
    x = _lowbias32(numbers ^ (keys[:, None] & _LOW))
    return _lowbias32(x ^ ((keys[:, None] >> 32) & _LOW))


def _lowbias32(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def kept(keys: Tensor, count: int, p: float) -> Tensor:
    """Returns which of `count` units of each row are kept: a bool tensor `(n, count)`."""
    return words(keys, count) >= threshold(p)


def gaussian(keys: Tensor, count: int) -> Tensor:
    """Returns `count` independent standard normal numbers for each key, float32 `(n, count)`: Box and Muller's.

    >>> gaussian(torch.arange(100), 100).std().round(decimals=1)
    tensor(1.)
    """
    first, second = (words(keys, 2 * count) + 0.5).double().mul(2.0**-32).view(len(keys), count, 2).unbind(2)
    return ((-2 * first.log()).sqrt() * (2 * math.pi * second).cos()).float()


def threshold(p: float) -> int:
    """Returns the word below which a unit is dropped."""
    return min(round(p * 2**32), 2**32 - 1)


def drop(x: Tensor, keys: Tensor, p: float, scale: float, *, maps: bool = False, kernel: str = "auto") -> Tensor:
    """Returns `scale * x` where a unit is kept, and 0 elsewhere.

    Args:
        x: of floats, shape `(n, ...)`; for maps `(n, c, ...)`.
        keys: of its rows, int64, shape `(n,)`.
        p: the fraction that is dropped, from 0 to below 1.
        scale: what the rest is multiplied by.
        maps: a unit is a whole feature map, all of `x[i, j]`, and not a number.
        kernel: "auto" for the compiled pass where there is one, "reference" for tensor operations.
    """
    channels = x.shape[1] if x.ndim > 2 or maps else 1
    inner = x[0].numel() // channels if x.numel() else 0
    passes = _passes(x) if kernel == "auto" and 0 < inner < 2**32 else None
    if maps:
        mask = kept(keys, channels, p)
        if passes:
            return _drop_maps(passes, x, mask.numpy(), scale)
        return torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x * scale, 0)
    groups = splitmix64(keys[:, None] ^ torch.arange(channels, device=keys.device)).reshape(-1)
    if passes:
        return _drop_units(passes, x, groups.numpy(), threshold(p), scale)
    mask = kept(groups, inner, p).view(x.shape)
    if not x.is_contiguous():  # the result lies in memory as the mask does
        mask = torch.ones_like(x, dtype=torch.bool) & mask
    return torch.where(mask, x * scale, 0)


# ---------------------------------------------------------------------- the compiled passes

FEW = 1 << 15  # elements that one thread is faster with
_TILE = 1 << 9  # elements of some places of all channels, at least


def _passes(x: Tensor) -> dict[str, Callable[..., None]] | None:
    """Returns the compiled passes, by their names, if there are any for such a tensor."""
    return _compiled().get(x.dtype) if jit.reads(x) and sys.byteorder == "little" else None


@functools.cache
def _compiled() -> dict[torch.dtype, dict[str, Callable[..., None]]]:
    try:
        from trainwell.regularize import compiled_masks
    except ImportError:
        return {}
    floats, bfloat16s = compiled_masks.of_floats, compiled_masks.of_bfloat16s
    return {torch.float32: floats, torch.float64: floats, torch.bfloat16: bfloat16s}


def _drop_units(passes: dict[str, Callable[..., None]], x: Tensor, keys: Any, below: int, scale: float) -> Tensor:
    """Drops units by the keys of all channels of all rows, int64."""
    lows, highs = keys.view(np.uint32).reshape(-1, 2).T  # the lower half is first
    if not _is_channels_last(x):
        contiguous = np.ascontiguousarray(lows), np.ascontiguousarray(highs)
        return _run(passes["units"], x, (*contiguous, np.uint32(below)), scale, x.numel() // len(keys))
    places = np.repeat(np.arange(_places(x), dtype=np.uint32), x.shape[1])
    tiles = _tiles(lows, x), _tiles(highs, x)
    return _run(passes["units_channels_last"], x, (*tiles, places, np.uint32(below)), scale, x[0].numel())


def _drop_maps(passes: dict[str, Callable[..., None]], x: Tensor, kept: Any, scale: float) -> Tensor:
    """Drops the feature maps that are not kept, `(n, c)`."""
    if not _is_channels_last(x):
        return _run(passes["maps"], x, (kept.reshape(-1),), scale, x.numel() // kept.size)
    return _run(passes["maps_channels_last"], x, (_tiles(kept, x),), scale, x[0].numel())


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _places(x: Tensor) -> int:
    """Returns how many places of a channels_last tensor make a tile."""
    return -(-_TILE // x.shape[1])


def _tiles(of_channels: Any, x: Tensor) -> Any:
    """Repeats what belongs to the channels of each row for the places of a tile: `(n, places * c)`."""
    return np.tile(of_channels.reshape(len(x), -1), _places(x))


def _run(run: Callable[..., None], x: Tensor, by: tuple[Any, ...], scale: float, inner: int) -> Tensor:
    """Calls a pass on all of a tensor, in threads; the result lies in memory as the tensor does."""
    source = x.detach() if _is_channels_last(x) else x.detach().contiguous()
    out = torch.empty_like(source)
    number: Any = np.float64 if x.dtype == torch.float64 else np.float32
    nothing = np.uint16(0) if x.dtype == torch.bfloat16 else number(0)
    how = _memory(source), _memory(out), *by, number(scale), nothing, inner
    share(run, how, x.numel(), torch.get_num_threads() if x.numel() > FEW else 1)
    return out


def _memory(x: Tensor) -> Any:
    """Returns a tensor's memory as a NumPy array; bfloat16, which NumPy lacks, as uint16."""
    flat = torch.as_strided(x, (x.numel(),), (1,))
    return flat.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else flat.numpy()
