"""Images of any sizes, decoded, one after the other in one flat array."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images of any sizes in one flat uint8 array, in memory or memory-mapped.

    Attributes:
        pixels: all images, one after the other; each row by row from the top, channels last.
        offsets: where each image starts in `pixels`, shape `(n,)`.
        shapes: height, width and channels (1 or 3) of each image, shape `(n, 3)`.

    Example:
        >>> images = Images.from_array(np.zeros((10, 8, 8), np.uint8))
        >>> len(images), images[3].shape, images.channels
        (10, (8, 8, 1), 1)
    """

    pixels: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """Returns a view of one image, shape `(height, width, channels)`."""
        shape = tuple(int(side) for side in self.shapes[row])
        start = int(self.offsets[row])
        return self.pixels[start : start + shape[0] * shape[1] * shape[2]].reshape(shape)

    @property
    def channels(self) -> int:
        """The most channels any image has; an image of one channel among coloured ones counts as grey."""
        return int(self.shapes[:, 2].max())

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width if all images share them, else `None`."""
        sides = self.shapes[:, :2]
        return (int(sides[0, 0]), int(sides[0, 1])) if bool((sides == sides[0]).all()) else None

    @classmethod
    def from_list(cls, arrays: Sequence[npt.NDArray[np.uint8]]) -> "Images":
        """Copies uint8 images of any sizes, each of shape `(height, width, channels)`, into one array."""
        shapes = np.array([array.shape for array in arrays], np.int32).reshape(-1, 3)
        ends = np.cumsum(shapes.astype(np.int64).prod(axis=1))
        return cls(np.concatenate([array.reshape(-1) for array in arrays]), np.r_[0, ends[:-1]], shapes)

    @classmethod
    def of(cls, images: "Images | npt.ArrayLike") -> "Images":
        """Returns images as they are, or wraps an array or a tensor of them (see `from_array`)."""
        return images if isinstance(images, Images) else cls.from_array(np.asarray(images))

    @classmethod
    def from_array(cls, array: npt.NDArray[np.uint8]) -> "Images":
        """Wraps uint8 images of shape `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)` with 1 or 3 channels.

        Raises:
            InputError: the array is no such images. Which axis holds the channels is told by its length.
        """
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size == 0:
            raise InputError(f"images must be uint8 of shape (n, h, w[, c]), not {array.dtype} of shape {array.shape}")
        if array.ndim == 3:
            array = array[..., None]
        elif array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
            array = array.transpose(0, 2, 3, 1)
        count, height, width, channels = array.shape
        if channels not in (1, 3):
            raise InputError(f"images must have 1 or 3 channels; an array of shape {array.shape} has {channels}")
        return cls(
            pixels=np.ascontiguousarray(array).reshape(-1),
            offsets=np.arange(count, dtype=np.int64) * (height * width * channels),
            shapes=np.full((count, 3), (height, width, channels), np.int32),
        )
