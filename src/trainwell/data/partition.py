"""Puts whole groups of samples into parts, so that sizes and classes come near to their shares.

The best assignment is a hard problem (it contains bin packing). Here groups are placed one by one, large ones first,
where they do least harm; as long as there are few, that is then improved by moving one group or exchanging two, until
nothing of that kind helps.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FEW = 300  # groups; among more of them small ones even out what large ones have left
_FORBIDDEN = 1e12  # far above any deviation


class Partition:
    """An assignment of groups to parts in the making, and what it would cost to change it.

    The cost is Pearson's chi-squared distance of the class counts from their shares, `Σ (count - share)² / share` over
    parts and classes. The size of a part counts like one more class, in which every sample is and which weighs as much
    as all others together. Leaving a class nowhere to train on costs more than all of that.

    Args:
        stratum_of: the class of each sample, 0 to K - 1, shape `(n,)`.
        group_of: the group of each sample, 0 to G - 1, shape `(n,)`.
        shares: what fraction of the samples each part should hold, above 0, shape `(P,)`.
        sides: parts of the same side, a number from 0 on, are kept from training together; -1 is trained on always.

    Attributes:
        part: the part of each group, -1 as long as it has none, shape `(G,)`.
        size: the number of samples of each group, shape `(G,)`.
        group, stratum, count: one entry for each class of each group, in the order of the groups.
        groups_with: how many groups have the class, shape `(K + 1,)`, as of all of the following.
        excess: samples of each class in each part, less the share of the part, shape `(P, K + 1)`.
        held: how many groups with the class are on a side; the last row is for what is trained on always.
    """

    def __init__(self, stratum_of: Ints, group_of: Ints, shares: Floats, sides: Ints) -> None:
        classes = int(stratum_of.max()) + 2  # the last of them is the size
        code = group_of * classes + np.stack([stratum_of, np.full_like(stratum_of, classes - 1)])
        code, self.count = np.unique(code, return_counts=True)
        self.group, self.stratum = np.divmod(code, classes)
        self.size = np.bincount(group_of)
        self.groups_with = np.bincount(self.stratum)
        self.part = np.full(len(self.size), -1)
        self._entries = np.searchsorted(self.group, np.arange(len(self.size) + 1)).tolist()  # where each group begins

        of_class = np.append(np.bincount(stratum_of), len(stratum_of))
        self._weight = 1 / of_class
        self._weight[-1] = np.add.accumulate(self._weight[:-1])[-1]
        self._price, self._sides = 1 / shares, sides
        self.excess = -shares[:, None] * of_class
        self.held = np.zeros((int(sides.max()) + 2, classes), np.int64)

    def place(self, group: int, part: int) -> None:
        """Puts a group into a part, out of the one that it may be in."""
        entries = slice(self._entries[group], self._entries[group + 1])
        strata, count = self.stratum[entries], self.count[entries]
        if self.part[group] >= 0:
            self.excess[self.part[group], strata] -= count
            self.held[self._sides[self.part[group]], strata] -= 1
        self.excess[part, strata] += count
        self.held[self._sides[part], strata] += 1
        self.part[group] = part

    def fill(self, order: Ints) -> None:
        """Places all groups that are in no part yet, the large ones first, where they cost least.

        Among groups of about the same size (within a factor of 2) the order is the given one, so that it matters.
        """
        order = order[self.part[order] < 0]
        order = order[np.argsort(-np.frexp(self.size[order])[1], kind="stable")]
        single = self.size[order] == 1
        self._place_each(order[~single], int(single.sum()))
        self._place_each(self._dealt(order[single]), 0)

    def _place_each(self, order: Ints, later: int) -> None:
        empty = np.bincount(self.part[self.part >= 0], minlength=len(self._price)) == 0
        for left, group in zip(range(len(order) + later, later, -1), order.tolist(), strict=True):
            entries = slice(self._entries[group], self._entries[group + 1])
            strata, count = self.stratum[entries], self.count[entries]
            excess = 2 * self.excess[:, strata] + count
            cost = self._price * (excess * (self._weight[strata] * count)).sum(axis=1)
            last = (self.held[:, strata] == self.groups_with[strata] - 1).sum(axis=1)
            last[-1] = 0
            cost += _FORBIDDEN * last[self._sides]
            if left <= empty.sum():
                cost[~empty] = np.inf
            part = int(cost.argmin())
            empty[part] = False
            self.place(group, part)

    def _dealt(self, singles: Ints) -> Ints:
        """Places groups of one sample, of which there may be very many, by their number; returns those left over.

        Each part gets what it lacks of a class, rounded down.
        """
        if not len(singles):
            return singles
        stratum = self.stratum[np.array(self._entries)[singles]]
        order = np.argsort(stratum, kind="stable")
        left = []
        for own in np.split(singles[order], np.flatnonzero(np.diff(stratum[order])) + 1):
            strata = self.stratum[self._entries[own[0]] : self._entries[own[0] + 1]]  # the class, and the size
            lacks = np.maximum(-self.excess[:, strata[0]], 0)  # together at least as much as there is
            given = np.floor(lacks * (len(own) / lacks.sum())).astype(np.int64)
            for part, some in enumerate(np.split(own, given.cumsum())[:-1]):
                self.part[some] = part
                self.excess[part, strata] += len(some)
                self.held[self._sides[part], strata] += len(some)
            left.append(own[given.sum() :])
        return np.concatenate(left)

    def improve(self) -> None:
        """Moves and exchanges groups as long as that makes the assignment better, if there are few."""
        groups = len(self.size)
        if groups > _FEW:
            return
        counts = np.zeros((groups, len(self.groups_with)))
        counts[self.group, self.stratum] = self.count
        has = (counts > 0).astype(np.float64)
        alike = np.zeros((groups, groups))
        for weight, column in zip(self._weight, counts.T, strict=True):  # `@` rounds differently on other machines
            alike += weight * np.outer(column, column)

        for _ in range(10 * groups):  # a bound in case of rounding; it ends long before
            moved, last = self._moved()
            side, price = self._sides[self.part], self._price[self.part]
            to = moved[:, self.part]  # what it costs to move a group (row) into the part of another (column)
            both = has @ (has * last[self.part]).T  # classes that the other group, coming in return, leaves to train on
            both[side[:, None] == side] = 0
            swapped = to + to.T - _FORBIDDEN * (both + both.T)
            swapped -= 2 * (price[:, None] + price) * alike
            swapped[self.part[:, None] == self.part] = np.inf
            moved[np.bincount(self.part, minlength=len(self._price))[self.part] == 1] = np.inf  # it would leave none
            moved[np.arange(groups), self.part] = np.inf
            if min(moved.min(), swapped.min()) > -1e-9:
                return
            if moved.min() <= swapped.min():
                self.place(*divmod(int(moved.argmin()), len(self._price)))
            else:
                one, other = divmod(int(swapped.argmin()), groups)
                parts = int(self.part[one]), int(self.part[other])
                self.place(one, parts[1])
                self.place(other, parts[0])

    def _moved(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Returns what moving each group into each part costs, and whether that part would then hold all of a class."""
        here = self.part[self.group]
        side = self._sides[here]
        last = self.held == self.groups_with - 1
        last[-1] = False
        last = last[self._sides]
        freed = (side >= 0) & (self.held[side, self.stratum] == self.groups_with[self.stratum])
        weight = self._weight[self.stratum] * self.count

        def summed(entries: npt.NDArray[np.generic]) -> Floats:
            return np.bincount(self.group, entries).astype(np.float64)

        left = self._price[self.part] * summed(weight * (self.count - 2 * self.excess[here, self.stratum]))
        cost = np.empty((len(self.size), len(self._price)))
        for part, price in enumerate(self._price):
            taken = (last[part, self.stratum].astype(np.int64) - freed) * (side != self._sides[part])
            joined = price * summed(weight * (self.count + 2 * self.excess[part, self.stratum]))
            cost[:, part] = (left + joined) + _FORBIDDEN * summed(taken)
        return cost, last
