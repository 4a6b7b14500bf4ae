"""Noise that belongs to a sample, whoever fetches it and when."""

import contextlib
import functools
import operator
import random as _python_random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from trainwell import random
from trainwell.errors import InputError

_OWN = ("dataset", "seed", "_epoch")


class Keyed(Dataset[Any]):
    """A dataset whose random transforms are functions of seed, epoch and sample.

    Fetching sample `i` first sets the global CPU generators of torch, NumPy (`np.random.rand` and the like) and Python
    to the key of `(seed, "sample", epoch, i)`. So the sample is the same whichever worker fetches it, in whatever
    order and batch, before or after a restart. In the main process the generators are put back afterwards. In a
    worker they are not: there `collate_fn` goes on with the numbers of the batch's last sample.

    The epoch comes with the number (see `KeyedSampler`); for a plain number it is that of `set_epoch`, and 0 at first,
    which suits a validation part. It reaches the workers that start afterwards, so not persistent ones.

    Wrap outermost, `Keyed(Subset(data, rows))`: `Subset` and `ConcatDataset` hand on plain numbers, without the epoch.

    Out of reach are transforms with generators of their own, such as `np.random.default_rng()`, `torch.Generator`,
    `random.Random` or those of Albumentations. Such a transform is keyed if it is made, or seeded, where the sample
    is fetched: `np.random.default_rng(np.random.randint(2**31))`.

    Args:
        dataset: anything with `__getitem__` for whole numbers, and a length. Its other attributes are read and set
            through the wrapper.
        seed: of the noise.

    Raises:
        InputError: the dataset is one that is only iterated over.

    Example:
        >>> from trainwell.data.sampler import Place
        >>> class Noise(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         return torch.rand(()).item()
        >>> data = Keyed(Noise(), seed=1)
        >>> first = data[0]
        >>> data[1] != first, data[0] == first, data[Place(0, epoch=1)] != first
        (True, True, True)
    """

    dataset: Any
    seed: int

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise InputError(
                f"Keyed needs a dataset with numbered samples, not {type(dataset).__name__}, which has no __getitem__"
            )
        self.dataset, self.seed, self._epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of samples that are asked for by a plain number; tells the dataset, if it wants to know."""
        self._epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Returns a sample, with the noise of its place."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Returns the samples of a batch, each with its own noise; what a `DataLoader` calls."""
        rows = [operator.index(index) for index in indices]
        places = [row if row >= 0 else row + len(self) for row in rows]
        bases = [_base(self.seed, getattr(index, "epoch", self._epoch)) for index in indices]
        keys = random.splitmix64(np.array(places, np.uint64) ^ np.array(bases, np.uint64))  # random.key of all at once
        samples = []
        with contextlib.nullcontext() if get_worker_info() else _put_back():
            for index, key in zip(indices, keys.tolist(), strict=True):
                _seed(key)
                samples.append(self.dataset[index])
        return samples

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or (name.startswith("__") and name.endswith("__")):  # also while being unpickled
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


@functools.lru_cache(maxsize=16)
def _base(seed: int, epoch: int) -> int:
    return random.key(seed, "sample", epoch)


def _seed(key: int) -> None:
    """Sets the global CPU generators. Torch and NumPy get different halves: from the same word they draw the same."""
    torch.default_generator.manual_seed(key & 0xFFFF_FFFF)
    np.random.seed(key >> 32)
    _python_random.seed(key)


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """As `trainwell.random.preserved`, without the generators of devices, which it would cost much to ask."""
    before = torch.default_generator.get_state(), np.random.get_state(), _python_random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])
        _python_random.setstate(before[2])
