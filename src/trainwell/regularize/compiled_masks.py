"""Dropping in one pass over memory, compiled by numba; imported by `masks` where it is there.

The words are those of `masks.words`. All of it is 32-bit arithmetic, of which a core does eight or more at once; for
that the number that is hashed must count up by one, or stay.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from trainwell import jit
from trainwell.fork_join import fork_join

_16, _15 = np.uint32(16), np.uint32(15)
_M1, _M2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@register_jitable
def _lowbias32(x: Any) -> Any:
    x = np.uint32(x ^ (x >> _16))
    x = np.uint32(x * _M1)
    x = np.uint32(x ^ (x >> _15))
    x = np.uint32(x * _M2)
    return np.uint32(x ^ (x >> _16))


@register_jitable
def _word(number: Any, low: Any, high: Any) -> Any:
    return _lowbias32(np.uint32(_lowbias32(np.uint32(number ^ low)) ^ high))


@register_jitable
def _scaled(number: Any, scale: Any) -> Any:
    return number * scale


@register_jitable
def _scaled_bits(bits: Any, scale: Any) -> Any:
    """Scales a bfloat16, to the nearest, ties to even; NaN stays one by its highest bit below the exponent."""
    number = np.uint32(np.uint32(bits) << _16).view(np.float32)
    wide = np.float32(number * scale).view(np.uint32)
    nearest = np.uint32(wide + np.uint32(np.uint32(0x7FFF) + np.uint32(np.uint32(wide >> _16) & np.uint32(1))))
    quiet = np.uint32(wide | np.uint32(0x400000))
    is_nan = np.uint32(wide & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded = quiet if is_nan else nearest
    return np.uint16(rounded >> _16)


def _passes(scaled: Callable[..., Any]) -> dict[str, Callable[..., None]]:
    """Makes the passes over units and over feature maps, for one way to scale a number, in either layout.

    They work on memory from `at` to `stop`. What is contiguous is `(groups, inner)`; a group is a channel of a row, and
    has a key, or is kept as a whole. What is channels_last is `(rows, inner)`, and a row is tiles of some places of all
    channels, for which keys, or what is kept, are repeated: a loop over few channels would hardly begin before it ends.
    Loops run from 0: from an offset they would not be done eight at once.
    """

    @register_jitable
    def group(source: Any, out: Any, low: Any, high: Any, first: Any, threshold: Any, scale: Any, nothing: Any) -> None:
        for k in range(len(source)):
            word = _word(np.uint32(first + np.uint32(k)), low, high)
            out[k] = scaled(source[k], scale) if word >= threshold else nothing

    def units(
        source: Any, out: Any, lows: Any, highs: Any, threshold: Any, scale: Any, nothing: Any,
        inner: int, at: int, stop: int,
    ) -> None:  # fmt: skip
        while at < stop:
            i, begin = at // inner, at % inner
            end = min(stop, at + inner - begin)
            group(source[at:end], out[at:end], lows[i], highs[i], np.uint32(begin), threshold, scale, nothing)
            at = end

    @register_jitable
    def unit_tile(
        source: Any, out: Any, low: Any, high: Any, places: Any, first: Any, threshold: Any, scale: Any, nothing: Any
    ) -> None:
        for k in range(len(source)):
            word = _word(np.uint32(first + places[k]), low[k], high[k])
            out[k] = scaled(source[k], scale) if word >= threshold else nothing

    def units_channels_last(
        source: Any, out: Any, lows: Any, highs: Any, places: Any, threshold: Any, scale: Any, nothing: Any,
        inner: int, at: int, stop: int,
    ) -> None:  # fmt: skip
        tile, repeats = len(places), places[-1] + 1
        while at < stop:
            i, begin = at // inner, at % inner
            end = min(stop, at + inner - begin, at + tile - begin % tile)
            first, last = begin % tile, begin % tile + end - at
            low, high, numbers = lows[i, first:last], highs[i, first:last], places[first:last]
            begins = np.uint32(begin // tile * repeats)
            unit_tile(source[at:end], out[at:end], low, high, numbers, begins, threshold, scale, nothing)
            at = end

    @register_jitable
    def whole(source: Any, out: Any, scale: Any) -> None:
        for k in range(len(source)):
            out[k] = scaled(source[k], scale)

    def maps(source: Any, out: Any, kept: Any, scale: Any, nothing: Any, inner: int, at: int, stop: int) -> None:
        while at < stop:
            end = min(stop, at + inner - at % inner)
            if kept[at // inner]:
                whole(source[at:end], out[at:end], scale)
            else:
                out[at:end] = nothing
            at = end

    @register_jitable
    def map_tile(source: Any, out: Any, kept: Any, scale: Any, nothing: Any) -> None:
        for k in range(len(source)):
            out[k] = scaled(source[k], scale) if kept[k] else nothing

    def maps_channels_last(
        source: Any, out: Any, kept: Any, scale: Any, nothing: Any, inner: int, at: int, stop: int
    ) -> None:
        tile = kept.shape[1]
        while at < stop:
            i, begin = at // inner, at % inner
            end = min(stop, at + inner - begin, at + tile - begin % tile)
            first, last = begin % tile, begin % tile + end - at
            map_tile(source[at:end], out[at:end], kept[i, first:last], scale, nothing)
            at = end

    parts = units, units_channels_last, maps, maps_channels_last
    return {part.__name__: _in_threads(part, scaled.__name__) for part in parts}


def _in_threads(part: Callable[..., None], way: str) -> Callable[..., None]:
    part = register_jitable(part)

    def run(team: Any, start: int, stop: int, *given: Any) -> None:
        fork_join(team, start, stop, part, given)

    # By that name numba keeps it: of two of one name that two processes compile at once it may take one for the other.
    run.__qualname__ = f"{part.__name__}.{way}"
    return jit.compiled(run)


of_floats = _passes(_scaled)
of_bfloat16s = _passes(_scaled_bits)
