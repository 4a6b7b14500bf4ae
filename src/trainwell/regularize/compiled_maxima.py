"""The maxima of fractional pooling, and the way of gradients back to them, compiled by numba.

Images are `(n, h, w, c)`: the innermost loops run over channels, of which a core does eight or more at once.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from trainwell import jit
from trainwell.fork_join import fork_join


@register_jitable
def _take_larger(numbers: Any, places: Any, best: Any, best_places: Any) -> None:
    for k in range(len(best)):
        larger = ((numbers[k] > best[k]) | (numbers[k] != numbers[k])) & (best[k] == best[k])  # NaN is the largest
        best[k] = numbers[k] if larger else best[k]
        best_places[k] = places[k] if larger else best_places[k]


@register_jitable
def _find(x: Any, rows: Any, columns: Any, more: int, best: Any, places: Any, start: int, stop: int) -> None:
    """Writes the maxima over regions, and at which of the `h * w` places each is, of images from `start` to `stop`.

    First within columns, for all of a line at once, and then along the line. Of equal numbers it is the first.
    """
    height, width, chans = x.shape[1:]
    numbers = np.arange(height * width).repeat(chans).astype(np.int32).reshape(height, width * chans)
    line, line_places = np.empty(width * chans, x.dtype), np.empty(width * chans, np.int32)
    for n in range(start, stop):
        lines = x[n].reshape(height, width * chans)
        for i in range(best.shape[1]):
            top, bottom = rows[n, i], rows[n, i + 1] + more
            line[:], line_places[:] = lines[top], numbers[top]
            for row in range(top + 1, bottom):
                _take_larger(lines[row], numbers[row], line, line_places)
            for j in range(best.shape[2]):
                left, right = columns[n, j], columns[n, j + 1] + more
                begin = left * chans
                best[n, i, j], places[n, i, j] = line[begin : begin + chans], line_places[begin : begin + chans]
                for column in range(left + 1, right):
                    begin, end = column * chans, (column + 1) * chans
                    _take_larger(line[begin:end], line_places[begin:end], best[n, i, j], places[n, i, j])


@register_jitable
def _add_at(g: Any, places: Any, total: Any, start: int, stop: int) -> None:
    """Adds what belongs to the maxima at their places, to `(n, h * w, c)`."""
    for n in range(start, stop):
        for i in range(g.shape[1]):
            for j in range(g.shape[2]):
                for k in range(g.shape[3]):
                    total[n, places[n, i, j, k], k] += g[n, i, j, k]


def _find_in_threads(team: Any, start: int, stop: int, *given: Any) -> None:
    fork_join(team, start, stop, _find, given)


def _add_in_threads(team: Any, start: int, stop: int, *given: Any) -> None:
    fork_join(team, start, stop, _add_at, given)


find, add_at = jit.compiled(_find_in_threads), jit.compiled(_add_in_threads)
