"""The order of a `DataLoader`, which knows where it stands."""

import hashlib
from collections.abc import Iterator, Sized
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from trainwell import random
from trainwell.data.order import Rows, balanced, classes, shuffled
from trainwell.errors import InputError


class Place(int):
    """The number of a sample that carries its epoch along, into any worker process.

    >>> place = Place(7, epoch=2)
    >>> place + 1, place.epoch
    (8, 2)
    """

    epoch: int

    def __new__(cls, row: int, epoch: int) -> "Place":
        """Makes a number of its number and its epoch."""
        place = int.__new__(cls, row)
        place.epoch = epoch
        return place

    def __reduce__(self) -> tuple[type["Place"], tuple[int, int]]:
        return Place, (int(self), self.epoch)


class KeyedSampler(Sampler[Place]):
    """A sampler for any `DataLoader` whose order is a function of seed and epoch, and that can go on at any batch.

    The position is the epoch and how many of its samples were taken *by all replicas together*. So a run that is
    resumed with another number of devices goes on at the same sample, if the global batch stays the same.

    Replicas take turns in the order: replica `rank` has its samples number `rank`, `rank + num_replicas`, ….

    Args:
        data: what is sampled: a dataset with a length, or that length.
        seed: of the order.
        shuffle: in a new order each epoch, else from the first to the last.
        labels: the class of each sample, shape `(len(data),)`; with them every class is equally often in an epoch
            (see `trainwell.data.order.balanced`).
        num_replicas: how many processes share an epoch; by default as many as `torch.distributed` has, else 1.
        rank: which of them this one is. Where something else shares the samples out, as Accelerate and the Hugging
            Face Trainer do, `num_replicas=1, rank=0`; in Lightning say `use_distributed_sampler=False`.
        uneven: what is done with samples that cannot be shared evenly: "drop" leaves them out of this epoch (none
            is seen twice), "pad" gives samples of the order's start again, as `DistributedSampler` does, "keep"
            lets some replicas have one more (to evaluate: each sample exactly once).

    Attributes:
        epoch: the current epoch, from 0.
        taken: how many of its samples were taken, by all replicas together.

    Raises:
        InputError: an argument makes no sense.

    Example:
        A batch counts as taken once the loop has it, so save the state at the end of the loop's body. At the
        end of the inner loop the position is the next epoch's start.

        >>> data = torch.arange(10)
        >>> sampler = KeyedSampler(data, seed=1)
        >>> loader = DataLoader(data, batch_size=4, sampler=sampler)
        >>> for epoch in sampler.epochs(2):
        ...     for batch in sampler.batches(loader):
        ...         print(epoch, sampler.taken, len(batch))
        0 4 4
        0 8 4
        0 10 2
        1 4 4
        1 8 4
        1 10 2
    """

    def __init__(
        self,
        data: Sized | int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        labels: npt.ArrayLike | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        uneven: Literal["drop", "pad", "keep"] = "drop",
    ) -> None:
        if isinstance(data, IterableDataset) or not (isinstance(data, int) or hasattr(data, "__len__")):
            raise InputError(f"KeyedSampler needs a dataset of numbered samples with a length, not {_a(data)}")
        if uneven not in ("drop", "pad", "keep"):
            raise InputError(f"uneven must be 'drop', 'pad' or 'keep', not {uneven!r}")
        if (num_replicas is None) != (rank is None):
            raise InputError("give both num_replicas and rank, or neither: then torch.distributed says them")
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise InputError(f"rank {rank} is not one of {num_replicas} replicas, which count from 0")
        self.size, self.seed, self.uneven = data if isinstance(data, int) else len(data), seed, uneven
        self.epoch = self.taken = 0
        self._num_replicas, self._rank = num_replicas, rank
        self._order_is = "balanced" if labels is not None else "shuffled" if shuffle else "sequential"
        self._labels_digest = 0
        if labels is not None:
            self._labels, _ = classes(labels)
            self._labels_digest = int(hashlib.blake2b(self._labels.tobytes(), digest_size=6).hexdigest(), 16)
            if len(self._labels) != self.size:
                raise InputError(f"there are {self.size} samples and {len(self._labels)} labels; give one for each")
            if not shuffle:
                raise InputError("a balanced order is a random one: leave out labels, or shuffle=False")

    def __len__(self) -> int:
        """How many samples of a whole epoch this replica has."""
        return self._share(0)

    def __iter__(self) -> Iterator[Place]:
        """Yields the numbers of the current epoch's samples from the position on, for this replica."""
        epoch = self.epoch  # workers fetch ahead: what is asked for now is of this epoch
        return (Place(row, epoch) for row in self._rows(epoch, self.taken).tolist())

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Goes to an epoch, to where `start` of its samples were taken by all replicas together.

        Without `start` that is its beginning, or, if it is the current epoch already, where it stands: frameworks call
        this at the start of an epoch, be it one that goes on.
        """
        if start is None:
            start = self.taken if epoch == self.epoch else 0
        if epoch < 0 or start < 0:
            raise InputError(f"epochs and samples count from 0; there is no epoch {epoch}, start {start}")
        self.epoch, self.taken = int(epoch), int(start)

    def epochs(self, count: int) -> Iterator[int]:
        """Yields the numbers of the epochs that are left of `count`, the current one first.

        What the body does before `batches` is done again when a run is resumed in the middle of an epoch.
        """
        while self.epoch < count:
            epoch = self.epoch
            yield epoch
            if self.epoch == epoch:  # the inner loop was left before its end
                self.set_epoch(epoch + 1)

    def batches(self, loader: "DataLoader[Any]") -> Iterator[Any]:
        """Yields the batches that are left of the current epoch, and then goes to the start of the next.

        Whatever the global generators are, they are afterwards what they were: a loader draws from torch's once each
        time it is started, which a resumed run does once more.

        Args:
            loader: a `DataLoader` over the data with this sampler; any `batch_size`, `drop_last`, `collate_fn`
                and kind of workers.

        Raises:
            InputError: the loader takes its samples from elsewhere.
        """
        self._check(loader)
        assert loader.batch_size is not None
        epoch, start, (replicas, rank) = self.epoch, self.taken, self._replicas()
        share = self._share(start)
        generator, place = torch.default_generator, random.key(self.seed, "workers", epoch, start, rank)
        before = generator.get_state()
        generator.manual_seed(place >> 1)  # else workers would have the same noise each time torch's is put back
        try:
            iterator = iter(loader)
        finally:
            generator.set_state(before)
        for number, batch in enumerate(iterator, start=1):
            self.taken = start + min(number * loader.batch_size, share) * replicas
            yield batch
        self.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, and what it is a position in; the same on every replica."""
        return {"epoch": self.epoch, "taken": self.taken, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            InputError: it is a position in another order.
        """
        for name, now in self._identity().items():
            then = state.get(name)
            if then != now:
                was = "the labels are other ones" if name == "labels" else f"{name} was {then!r} and is {now!r} now"
                raise InputError(f"the sampler's position is one in another order: {was}; resume with what was saved")
        self.set_epoch(state["epoch"], state["taken"])

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "size": self.size, "order": self._order_is, "labels": self._labels_digest}

    def _replicas(self) -> tuple[int, int]:
        """Returns how many replicas there are and which this is; asked late, as a sampler may be made before them."""
        if self._num_replicas is not None and self._rank is not None:
            return self._num_replicas, self._rank
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
        return 1, 0

    def _share(self, start: int) -> int:
        """Returns how many samples of an epoch this replica has from a position on."""
        replicas, rank = self._replicas()
        rest = max(0, self.size - start)
        if self.uneven == "keep":
            return len(range(rank, rest, replicas))
        return rest // replicas if self.uneven == "drop" else -(-rest // replicas)

    def _rows(self, epoch: int, start: int) -> Rows:
        replicas, rank = self._replicas()
        order = self._order(epoch)
        rest = order[start:]
        surplus = len(rest) % replicas
        if self.uneven == "drop":
            rest = rest[: len(rest) - surplus]
        elif self.uneven == "pad" and surplus:
            rest = np.concatenate([rest, np.resize(order, replicas - surplus)])
        return rest[rank::replicas]

    def _order(self, epoch: int) -> Rows:
        if self._order_is == "balanced":
            return balanced(self._labels, self.seed, epoch)
        return shuffled(self.size, self.seed, epoch) if self._order_is == "shuffled" else np.arange(self.size)

    def _check(self, loader: Any) -> None:
        """Raises `InputError` unless the loader's batches are this sampler's samples, one after the other."""
        if not isinstance(loader, DataLoader):
            wrong = f"is {_a(loader)}, not a torch DataLoader"
        elif isinstance(loader.dataset, IterableDataset):
            wrong = "goes through an IterableDataset, which has no numbered samples; give a dataset with __getitem__"
        elif type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
            wrong = "has a batch_sampler of its own or batch_size=None; give batch_size and sampler"
        elif loader.sampler is not self:
            wrong = f"has {_a(loader.sampler)} as its sampler; give sampler=sampler, and neither shuffle nor another"
        elif len(loader.dataset) != self.size:  # type: ignore[arg-type]
            wrong = f"has {len(loader.dataset)} samples and the sampler {self.size}; make both of the same dataset"  # type: ignore[arg-type]
        elif not getattr(loader, "in_order", True):
            wrong = "has in_order=False, so that nobody knows which batches were taken; leave it out"
        else:
            return
        raise InputError(f"the loader {wrong}")


def _a(thing: object) -> str:
    name = type(thing).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"
