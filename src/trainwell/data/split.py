"""Which samples are trained on, chosen by, and tested with."""

from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError
from trainwell.random import permutation

Rows = npt.NDArray[np.int64]


def split(strata: npt.ArrayLike, *, val: float, test: float, seed: int) -> tuple[Rows, Rows, Rows]:
    """Splits rows into three parts that hold every stratum in the same proportion.

    A function of the seed and the strata alone. The parts have exactly the sizes asked for. Every stratum is in the
    training part, and its count in each part is less than 1 away from, or 1 more than, its exact share, unless strata
    of one or two samples leave no room for that.

    Args:
        strata: the class of each row, shape `(n,)`, any integers; all the same where there are no classes.
        val: size of the validation part: a fraction of the rows (below 1) or a count (a whole number). 0 for none.
        test: size of the test part, likewise.
        seed: chooses the split.

    Returns:
        The rows for training, validation and test, each sorted.

    Raises:
        InputError: a size makes no sense, or there are too few rows.

    Example:
        >>> [len(part) for part in split([0] * 80 + [1] * 20, val=0.1, test=10, seed=0)]
        [80, 10, 10]
    """
    _, stratum_of, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    total = len(stratum_of)
    wanted = [0, _size("val", val, total), _size("test", test, total)]
    wanted[0] = total - wanted[1] - wanted[2]
    if wanted[0] < len(counts):
        classes = f" of which each of the {len(counts)} classes needs at least one" if len(counts) > 1 else ""
        raise InputError(
            f"{total} samples, less {wanted[1]} for validation and {wanted[2]} for test, leave {max(wanted[0], 0)} to "
            f"train on,{classes or ' which is none'}: give more samples or a smaller val= or test="
        )
    table = _proportional(counts, wanted, permutation(len(counts), seed, "split", "strata"))

    shuffled = permutation(total, seed, "split", "rows")
    shuffled = shuffled[np.argsort(stratum_of[shuffled], kind="stable")]  # stratum by stratum, each in random order
    part_of = np.repeat(np.tile([1, 2, 0], len(counts)), table[:, [1, 2, 0]].reshape(-1))
    train, validation, tests = (np.sort(shuffled[part_of == part]) for part in range(3))
    return train, validation, tests


def _size(name: str, size: float, total: int) -> int:
    if isinstance(size, Integral) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, Real) and not isinstance(size, Integral) and 0 <= size < 1:
        return max(1, int(size * total + 0.5)) if size > 0 else 0
    raise InputError(f"{name} must be a fraction from 0 up to 1 or a count of samples (1, 2, …), not {size!r}")


def _proportional(counts: Rows, wanted: list[int], order: Rows) -> Rows:
    """Returns how many samples each stratum (row) gives to each part (column), with both margins exact.

    Every entry is its exact share rounded down, plus at most 1. Giving what is left of each row to the columns that
    need most never gets stuck (Gale and Ryser, 1957).
    """
    floor = counts[:, None] * np.array(wanted, np.int64) // int(counts.sum())
    need = np.array(wanted, np.int64) - floor.sum(axis=0)
    table = floor.copy()
    for stratum in order:
        left = int(counts[stratum] - floor[stratum].sum())
        neediest = np.argsort(-need, kind="stable")[:left]  # of equal ones the first, so training
        table[stratum, neediest] += 1
        need[neediest] -= 1
    for stratum in np.flatnonzero(table[:, 0] == 0):  # it changes places with a sample of a stratum trained on more
        part = int(np.argmax(table[stratum] - floor[stratum] + (table[stratum] > 0)))
        spare = (table[:, 0] > floor[:, 0]) & (table[:, part] == floor[:, part])  # whose counts stay as near as said
        donor = int(np.argmax(np.where(table[:, 0] > 1, table[:, 0] * (1 + counts.max() * spare), 0)))
        table[stratum, [0, part]] += [1, -1]
        table[donor, [0, part]] += [-1, 1]
    return table
