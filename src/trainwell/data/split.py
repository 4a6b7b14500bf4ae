"""Which samples are trained on, chosen by, and tested with."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from trainwell.data.partition import Partition
from trainwell.errors import InputError
from trainwell.random import permutation

Rows = npt.NDArray[np.int64]


def split(
    strata: npt.ArrayLike, *, val: float, test: float, seed: int, groups: npt.ArrayLike | None = None
) -> tuple[Rows, Rows, Rows]:
    """Splits rows into three parts that hold every stratum in the same proportion.

    A function of the seed, the strata and the groups alone. Without groups the parts have exactly the sizes asked for.
    Every stratum is in the training part, and its count in each part is less than 1 away from, or 1 more than, its
    exact share, unless strata of one or two samples leave no room for that.

    With groups (all pictures of one patient, say) no group is in two parts. Sizes and strata are then as near to their
    shares as a search over whole groups comes, a sample too many in a part weighing as much as one of each stratum;
    every stratum is still in the training part, and no part that was asked for is empty. How the groups are numbered
    does not matter.

    Args:
        strata: the class of each row, shape `(n,)`, any integers; all the same where there are no classes.
        val: size of the validation part: a fraction of the rows (below 1) or a count (a whole number). 0 for none.
        test: size of the test part, likewise.
        seed: chooses the split.
        groups: the group of each row, shape `(n,)`, any integers; without them every row is on its own.

    Returns:
        The rows for training, validation and test, each sorted.

    Raises:
        InputError: a size makes no sense, or there are too few rows or groups.

    Example:
        >>> [len(part) for part in split([0] * 80 + [1] * 20, val=0.1, test=10, seed=0)]
        [80, 10, 10]
        >>> patients = [row // 5 for row in range(100)]
        >>> train, val, test = split([0] * 80 + [1] * 20, val=0.1, test=10, seed=0, groups=patients)
        >>> {row // 5 for row in test} & {row // 5 for row in train}
        set()
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
    group_of = _grouped(groups, total)
    if group_of is not None:
        part_of = _split_groups(stratum_of, group_of, wanted, seed)
        train, validation, tests = (np.flatnonzero(part_of == part) for part in range(3))
        return train, validation, tests
    table = _proportional(counts, wanted, permutation(len(counts), seed, "split", "strata"))

    shuffled = permutation(total, seed, "split", "rows")
    shuffled = shuffled[np.argsort(stratum_of[shuffled], kind="stable")]  # stratum by stratum, each in random order
    part_of = np.repeat(np.tile([1, 2, 0], len(counts)), table[:, [1, 2, 0]].reshape(-1))
    train, validation, tests = (np.sort(shuffled[part_of == part]) for part in range(3))
    return train, validation, tests


def folds(
    strata: npt.ArrayLike, k: int, *, seed: int, groups: npt.ArrayLike | None = None, classes: Sequence[str] = ()
) -> list[Rows]:
    """Splits rows into `k` parts, each to be tested with once while the others are trained on (cross-validation).

    A function of the seed, the strata and the groups alone. Without groups the sizes of the parts differ by at most 1,
    and so do a stratum's counts in them. With groups no group is in two parts, and sizes and strata are as even as a
    search over whole groups comes.

    Args:
        strata: the class of each row, shape `(n,)`, any integers; all the same where there are no classes.
        k: how many parts, from 2 to the number of rows (of groups, with groups).
        seed: chooses the parts.
        groups: the group of each row, shape `(n,)`, any integers; without them every row is on its own.
        classes: what the strata are called, by their numbers.

    Returns:
        The rows of each part, sorted. They are disjoint and cover all rows.

    Raises:
        InputError: `k` makes no sense, or a class would be missing from what is trained on.

    Example:
        >>> [fold.tolist() for fold in folds([0, 0, 0, 0, 1, 1], 2, seed=0)]
        [[1, 3, 4], [0, 2, 5]]
    """
    numbers, stratum_of, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    names = [repr(classes[number]) if classes else str(number) for number in numbers]
    total = len(stratum_of)
    group_of = _grouped(groups, total)
    units, unit = (total, "samples") if group_of is None else (int(group_of.max()) + 1, "groups of samples")
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 2:
        raise InputError(f"the number of folds must be a whole number from 2 on, not {k!r}")
    if k > units:
        raise InputError(f"{k} folds need at least {k} {unit}, but there are {units}: ask for at most {units} folds")
    if group_of is None:
        if counts.min() < 2:
            raise InputError(
                f"class {names[counts.argmin()]} has one sample, so that a fold would have none to train on: "
                "add samples of it or leave it out"
            )
        # Class after class is dealt out like cards, so that neither a class nor the whole is ever uneven by two.
        rank = permutation(len(counts), seed, "folds", "strata")[stratum_of]
        shuffled = permutation(total, seed, "folds", "rows")
        shuffled = shuffled[np.argsort(rank[shuffled], kind="stable")]
        return [np.sort(shuffled[fold::k]) for fold in permutation(k, seed, "folds", "order").tolist()]

    partition = Partition(stratum_of, group_of, np.full(k, 1 / k), np.arange(k))
    if partition.groups_with.min() < 2:
        raise InputError(
            f"all samples of class {names[partition.groups_with.argmin()]} are in one group, so that a fold would have "
            "none to train on: add samples of it in other groups or leave it out"
        )
    partition.fill(permutation(units, seed, "folds", "groups"))
    partition.improve()
    lacking = (partition.held == partition.groups_with).any(axis=0)
    if lacking.any():
        first = int(lacking.argmax())
        raise InputError(
            f"found no {k} folds that all leave samples of class {names[first]} to train on, as only "
            f"{partition.groups_with[first]} groups have any: add samples of it in other groups or ask for more folds"
        )
    return [np.flatnonzero(partition.part[group_of] == fold) for fold in range(k)]


def _grouped(groups: npt.ArrayLike | None, total: int) -> Rows | None:
    """Returns the group of each row, numbered from 0 in the order of their first rows, or None if no two share one."""
    if groups is None:
        return None
    _, first, group_of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if np.shape(groups) != (total,):
        raise InputError(f"groups must hold one number for each of the {total} samples, not be {np.shape(groups)}")
    if len(first) == total:
        return None
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[group_of]


def _split_groups(stratum_of: Rows, group_of: Rows, wanted: list[int], seed: int) -> Rows:
    """Returns the part of each row, groups kept together."""
    parts = np.flatnonzero(wanted)
    order = permutation(int(group_of.max()) + 1, seed, "split", "groups")
    if len(order) < len(parts):
        raise InputError(
            f"the samples form {len(order)} group{'s' * (len(order) > 1)}, too few for {len(parts)} parts that share "
            "none: give more groups, or val= or test= as 0"
        )
    shares = np.array(wanted)[parts] / len(stratum_of)
    partition = Partition(stratum_of, group_of, shares, np.array([-1, 0, 0])[: len(parts)])
    for part, group in enumerate(_spared(partition, order, [wanted[part] for part in parts[1:]]), 1):
        partition.place(group, part)
    partition.fill(order)
    partition.improve()
    part_of: Rows = parts[partition.part[group_of]]
    return part_of


def _spared(partition: Partition, order: Rows, wanted: list[int]) -> Rows:
    """Returns a group to begin each part with, of one or two, such that the other groups still have every class."""
    count = len(wanted)
    scarce = partition.groups_with[partition.stratum]  # in how many groups the class of an entry is
    too_large = np.maximum(partition.size[order] - min(wanted, default=0), 0)
    order = order[np.argsort(too_large, kind="stable")]
    candidates = order[~np.isin(order, partition.group[scarce == 1])]
    if count < 2 and len(candidates) >= count:
        return candidates[:count]
    for one in candidates:
        its = partition.stratum[(scarce == 2) & (partition.group == one)]
        rivals = partition.group[(scarce == 2) & np.isin(partition.stratum, its)]  # the last that have a class of it
        others = candidates[~np.isin(candidates, [one, *rivals])]
        if len(others):
            return np.array([one, others[0]])
    raise InputError(
        f"no {'two groups' if count == 2 else 'group'} can be held back, as some class would then be missing from "
        "training: add samples of the classes that only one or two groups have, or give val= or test= as 0"
    )


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
