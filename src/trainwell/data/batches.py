"""Batches as a function of where they stand: seed, epoch, number."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainwell import random
from trainwell.augment.augment import Augment, Params
from trainwell.augment.warp import Views, warp
from trainwell.data import order
from trainwell.data.dataset import Part
from trainwell.errors import InputError
from trainwell.images import Images

_PIECE = 4_096  # samples looked at in one go


def statistics(part: Part, most: int = 2_000) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns mean and standard deviation, by which a part's inputs are normalised.

    Images: of each channel on the scale [0, 1], over at most `most` images spread evenly over the part. Features:
    of each column (of each channel, axis 1, where samples have more axes than one), over the whole part.
    A deviation of zero is returned as 1, so that dividing by it is safe.

    Args:
        part: the training part; the other parts must be normalised by the same figures.
        most: how many images to look at.

    Returns:
        Two arrays of shape `(channels,)` or `(columns,)`.
    """
    if isinstance(part.inputs, Images):
        rows = part.indices[np.linspace(0, len(part) - 1, min(len(part), most)).astype(np.int64)]
        histogram = np.zeros((part.inputs.channels, 256), np.int64)
        for row in rows:
            image = part.inputs[int(row)]
            for channel in range(len(histogram)):
                band = image[..., min(channel, image.shape[2] - 1)]
                histogram[channel] += np.bincount(band.reshape(-1), minlength=256)
        share = histogram / histogram.sum(axis=1, keepdims=True)
        level = np.arange(256) / 255
        mean = share @ level
        deviation = np.sqrt((share * (level - mean[:, None]) ** 2).sum(axis=1))
    else:
        pieces = np.array_split(part.indices, -(-len(part) // _PIECE))  # a copy of everything would be large
        axes = tuple(axis for axis in range(part.inputs.ndim) if axis != 1)
        spread = _along_columns(part.inputs.ndim)
        mean = sum(part.inputs[rows].mean(axes, np.float64) * len(rows) for rows in pieces) / len(part)
        squares = ((part.inputs[rows] - mean.reshape(spread)) ** 2 for rows in pieces)
        deviation = np.sqrt(sum(piece.mean(axes) * len(piece) for piece in squares) / len(part))
    rounding = 10 * np.finfo(np.float64).eps * np.abs(mean) * math.sqrt(len(part))  # of what is constant
    return mean, np.where(deviation > rounding, deviation, 1.0)


def _along_columns(ndim: int) -> tuple[int, ...]:
    """Returns the shape in which one figure a column (or channel) is applied to samples."""
    return (1, -1) + (1,) * (ndim - 2)


class Batches:
    """The batches of a part, any of which can be had at any time: `batch(epoch, number)`.

    The order of the samples is a function of the seed and the epoch, and what is done to a sample a function of the
    seed, the epoch and the sample. So neither the size of the batches nor threads nor a restart changes a sample.

    Args:
        part: the samples.
        batch_size: how many a batch.
        size: height and width of the images in the batch; by default the images' own, which must then agree.
        mean: what is subtracted (see `statistics`, which also is the default).
        std: what it is then divided by.
        shuffle: in a new order each epoch, else in the order of the part.
        balanced: shuffled so that each class comes equally often, samples of small classes several times an epoch.
        drop_last: leave out what does not fill a batch (unless it is all there is).
        seed: of the order, and of what is done to the samples.
        augment: how images are changed, each in each epoch differently; by default their centre is taken as it is. Its
            own size and normalisation count nothing here.
        channels_last: lay image batches out in memory as NHWC.
        device: where the batches are put.

    Example:
        >>> part = Part(np.zeros((10, 4), np.float32), np.zeros(10, np.int64), np.arange(10))
        >>> batches = Batches(part, batch_size=4, shuffle=True, seed=1)
        >>> [len(x) for x, y in batches.epoch(0)]
        [4, 4, 2]
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        size: tuple[int, int] | None = None,
        mean: npt.ArrayLike | None = None,
        std: npt.ArrayLike | None = None,
        shuffle: bool = False,
        balanced: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if balanced and (part.targets.ndim != 1 or part.targets.dtype.kind != "i"):
            raise InputError("only samples of one class each can be balanced")
        self.part, self.shuffle, self.seed = part, shuffle or balanced, seed
        self._labels = part.targets[part.indices] if balanced else None
        self._shuffled: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None  # seed and epoch, and their order
        # The last order of that kind, and how often each sample came before.
        self._balanced: tuple[tuple[int, int], npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self.batch_size = min(batch_size, len(part))
        self.drop_last = drop_last
        self.channels_last, self.device = channels_last, torch.device(device)
        if mean is None or std is None:
            mean, std = statistics(part)
        self.mean, self.std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        normalised: dict[str, Any] = {"mean": tuple(self.mean.tolist()), "std": tuple(self.std.tolist())}
        self.augment = dataclasses.replace(augment or Augment(padding_mode="border"), **normalised)
        self.size = None
        self._plain: dict[int, Views] = {}  # by how many images; for validation there is but one
        self._unchanged = False
        if isinstance(part.inputs, Images):
            self._unchanged = part.inputs.size is not None and self.augment == self.augment.off()
            self.size = size or part.inputs.size
            if self.size is None:
                raise InputError("the images differ in size; say size=(height, width) of the batch")

    def plain(self, part: Part, batch_size: int | None = None) -> "Batches":
        """Returns batches of a part, in its order, prepared as these are but for augmentation.

        Args:
            part: the samples.
            batch_size: by default that of these batches.
        """
        return Batches(
            part, batch_size or self.batch_size, size=self.size, mean=self.mean, std=self.std,
            channels_last=self.channels_last, device=self.device,
        )  # fmt: skip

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.part), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields all batches, where there is but one order of them.

        Raises:
            TypeError: the order depends on the epoch; say `epoch(n)`.
        """
        if self.shuffle:
            raise TypeError("the order of the batches depends on the epoch: go through batches.epoch(n)")
        return self.epoch(0)

    def rows(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Returns which samples a batch holds, as rows of the part's inputs."""
        chosen = slice(number * self.batch_size, (number + 1) * self.batch_size)
        if self._labels is not None:
            place = (self.seed, epoch)
            if self._balanced is None or self._balanced[0] != place:
                rows = order.balanced(self._labels, *place)
                self._balanced = place, rows, order.occurrences(rows)
            return self.part.indices[self._balanced[1][chosen]]
        if self.shuffle:
            if self._shuffled is None or self._shuffled[0] != (self.seed, epoch):
                self._shuffled = (self.seed, epoch), order.shuffled(len(self.part), self.seed, epoch)
            return self.part.indices[self._shuffled[1][chosen]]
        return self.part.indices[chosen]

    def batch(self, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs (float32) and targets of batch `number` of an epoch; both count from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"an epoch has {len(self)} batches; there is no number {number}")
        rows = self.rows(epoch, number)
        inputs = self._inputs(rows, epoch, number)
        targets = torch.from_numpy(self.part.targets[rows])
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _keys(self, rows: npt.NDArray[np.int64], epoch: int, number: int) -> npt.NDArray[np.uint64]:
        """Returns what the draws of a batch belong to: each sample's, and another each time that it comes again."""
        keys = random.keys(random.key(self.seed, "augment", epoch), rows)
        if self._balanced is None:
            return keys
        before = self._balanced[2][number * self.batch_size : (number + 1) * self.batch_size]
        return np.where(before > 0, random.splitmix64(keys ^ before.astype(np.uint64)), keys)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the batches of an epoch, from number `start` on."""
        for number in range(start, len(self)):
            yield self.batch(epoch, number)

    def _inputs(self, rows: npt.NDArray[np.int64], epoch: int, number: int) -> torch.Tensor:
        if isinstance(self.part.inputs, Images):
            if self._unchanged:
                return self._made(rows, self._plain_views(len(rows)))
            return self.changed(rows, self.augment.params(self._keys(rows, epoch, number), self.size))
        values: npt.NDArray[Any] = self.part.inputs[rows]
        spread = _along_columns(values.ndim)
        return torch.from_numpy(
            ((values - self.mean.reshape(spread)) / self.std.reshape(spread)).astype(np.float32, copy=False)
        )

    def changed(self, rows: npt.NDArray[np.int64], params: Params) -> torch.Tensor:
        """Returns images as they are batched, with something done to each; on the CPU.

        Args:
            rows: which of the part's inputs.
            params: what is done to them.
        """
        assert isinstance(self.part.inputs, Images)
        return self._made(rows, self._views(self.part.inputs.shapes[rows], params))

    def _views(self, shapes: npt.NDArray[np.int32], params: Params) -> Views:
        assert self.size is not None
        return self.augment.views(params, shapes, self.size, len(self.mean), 1 / 255)

    def _plain_views(self, count: int) -> Views:
        """Returns how images are batched that are all of one size, with nothing done to them."""
        if count not in self._plain:
            assert isinstance(self.part.inputs, Images)
            self._plain[count] = self._views(self.part.inputs.shapes[:1], Params()).checked(count)
        return self._plain[count]

    def _made(self, rows: npt.NDArray[np.int64], views: Views) -> torch.Tensor:
        images, size, padding = self.part.inputs, self.size, self.augment.padding_mode
        assert isinstance(images, Images)
        assert size is not None
        return warp(images, views, size, rows=rows, padding_mode=padding, channels_last=self.channels_last)
