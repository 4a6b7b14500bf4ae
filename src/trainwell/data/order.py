"""In which order samples are seen: a function of the seed and the epoch."""

import numpy as np
import numpy.typing as npt

from trainwell import random
from trainwell.errors import InputError

Rows = npt.NDArray[np.int64]


def shuffled(count: int, seed: int, epoch: int) -> Rows:
    """Returns the rows 0 to `count - 1` in the random order of an epoch; read-only, since orders are kept.

    >>> shuffled(5, 0, 1).tolist() == random.permutation(5, 0, "order", 1).tolist()
    True
    """
    rows = random.permutation(count, seed, "order", epoch)
    rows.setflags(write=False)
    return rows


def balanced(labels: npt.ArrayLike, seed: int, epoch: int) -> Rows:
    """Returns as many rows as there are labels, in random order, in which all classes are equally often (±1).

    Within a class all samples are equally often (±1): some of a large class are left out of an epoch, those of a
    small one come several times. Which, and which classes have the one more, is drawn anew each epoch.

    Args:
        labels: the class of each row, shape `(n,)`.
        seed: chooses the order, together with the epoch.
        epoch: counts from 0.

    Raises:
        InputError: the labels have more axes than one.

    >>> labels = np.array(["common"] * 9 + ["rare"])
    >>> np.unique(labels[balanced(labels, seed=0, epoch=0)], return_counts=True)[1].tolist()
    [5, 5]
    """
    class_of, sizes = classes(labels)
    total = len(class_of)
    quotas = np.full(len(sizes), total // max(1, len(sizes)))
    quotas[random.permutation(len(sizes), seed, "balanced classes", epoch)[: total - quotas.sum()]] += 1

    # Class by class, each in random order; a quota goes round its class as often as it takes.
    rows = random.permutation(total, seed, "balanced rows", epoch)
    rows = rows[np.argsort(class_of[rows], kind="stable")]
    places = np.arange(total) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    taken = np.repeat(np.cumsum(sizes) - sizes, quotas) + places % np.repeat(sizes, quotas)
    chosen: Rows = rows[taken]
    return chosen[random.permutation(total, seed, "balanced order", epoch)]


def occurrences(rows: Rows) -> Rows:
    """Returns how often each row came before, at each place of an order.

    >>> occurrences(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    by_row = np.argsort(rows, kind="stable")
    new = np.r_[True, np.diff(rows[by_row]) != 0] if len(rows) else np.zeros(0, bool)
    places = np.arange(len(rows))
    before = np.empty_like(rows)
    before[by_row] = places - np.maximum.accumulate(np.where(new, places, 0))
    return before


def classes(labels: npt.ArrayLike) -> tuple[Rows, Rows]:
    """Returns the number of each row's class, from 0 in the order of the labels, and how many rows each class has.

    >>> [part.tolist() for part in classes(["b", "a", "b"])]
    [[1, 0, 1], [1, 2]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise InputError(f"labels must be one class a sample, of shape (n,), not {labels.shape}")
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return class_of.astype(np.int64), sizes.astype(np.int64)
