"""What is averaged over at test: crops, shifts, flips, scales, and some draws of the augmentation of training.

Ten crops are those of Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep convolutional neural
networks* (2012), section 4.1; scales those of He, Zhang, Ren and Sun, *Deep residual learning* (2016), section 3.4.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trainwell import random
from trainwell.augment.augment import Augment, Params
from trainwell.augment.geometry import covering
from trainwell.errors import InputError, nearest

SCALES = (224, 256, 384, 480, 640)
_SHIFT = 0.125  # 4 of 32 pixels


@dataclass(frozen=True, eq=False)
class View:
    """One look at images, the same for all: a function of a batch, for `marginalize`.

    Attributes:
        params: what is done to each image.
        augment: what brings size and normalisation along, and what is seen beyond the border.
        short_side: pixels that the shorter side is resized to before the crop; `None` for as large as training shows
            it: the image just covers the crop, times the scale of `params`.
        native: crop pixel by pixel of the image as large as it is, in place of a `short_side`.

    Example:
        >>> import torch
        >>> View(Params(flip=np.ones(1)))(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[2., 1.]]]])
    """

    params: Params = dataclasses.field(default_factory=Params)
    augment: Augment = dataclasses.field(default_factory=Augment)
    short_side: int | None = None
    native: bool = False

    def at(self, shapes: npt.NDArray[np.int32], size: tuple[int, int]) -> Params:
        """Returns what is done to images of these shapes, for a batch of this size.

        Raises:
            InputError: the view is a native one, and larger than the images.
        """
        scale = self.params.scale * covering(shapes, size)
        if self.native:
            return dataclasses.replace(self.params, scale=scale, position=self._whole_pixels(shapes, size))
        if self.short_side is None:
            return self.params
        return dataclasses.replace(self.params, scale=scale * (self.short_side / shapes[:, :2].min(axis=1)))

    def _whole_pixels(self, shapes: npt.NDArray[np.int32], size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Returns positions of crops that lie between no pixels: rounded as torchvision does, half to even."""
        if (shapes[:, :2] < size).any():
            height, width = shapes[:, :2].min(axis=0)
            raise InputError(f"crops of {size} do not fit images of {height} by {width}: give a short_side")
        room = shapes[:, [1, 0]] - np.array([size[1], size[0]])
        begin = np.rint((1 + self.params.position) * room / 2)
        return np.asarray(2 * begin / np.maximum(room, 1) - 1)

    def __call__(self, batch: Tensor) -> Tensor:
        """Returns the view of a batch `(n, c, h, w)`, uint8 or float: normalised already, if no colours change."""
        shape = np.array([batch.shape[2:]], np.int32)
        size = self.augment.size or (batch.shape[2], batch.shape[3])
        return self.augment(batch, params=self.at(shape, (size, size) if isinstance(size, int) else size))


def flips() -> list[View]:
    """Returns images as they are, and mirrored.

    >>> len(flips())
    2
    """
    return [View(), View(Params(flip=np.ones(1)))]


def shifts(by: float = _SHIFT, flip: bool = True) -> list[View]:
    """Returns ten views of small images: as they are and shifted along the diagonals, each also mirrored.

    Args:
        by: how far, in parts of the sides: 0.125 is what four pixels of padding do to 32.
        flip: each also mirrored; without, they are five.

    >>> import torch
    >>> shifts(0.5, flip=False)[2](torch.tensor([[[[1.0, 2.0]]]]))  # half to the right, where the border is reflected
    tensor([[[[1., 1.]]]])
    """
    places = [(0.0, 0.0), *((x * by, y * by) for y in (-1, 1) for x in (-1, 1))]
    return [View(Params(translate=np.array([place]), flip=way)) for place in places for way in _ways(flip)]


def ten_crop(size: int, short_side: int | None = None, flip: bool = True) -> list[View]:
    """Returns the four corners and the centre of images, each also mirrored.

    Args:
        size: side of the crops, in pixels.
        short_side: what the shorter side is resized to first; by default images are cropped as they are, and a centre
            that lies between pixels is moved to whole ones, as torchvision does.
        flip: each also mirrored; without, they are five.

    Raises:
        InputError: `size` is no number of pixels, or the crops are larger than the images.

    >>> import torch
    >>> [view(torch.arange(16.0).view(1, 1, 4, 4))[0, 0, 0, 0].item() for view in ten_crop(3, flip=False)]
    [0.0, 1.0, 4.0, 5.0, 0.0]
    """
    if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
        raise InputError(f"ten_crop: size is the side of the crops, in pixels, from 1; it is {size!r}")
    if short_side is not None and short_side < size:
        raise InputError(
            f"crops of {size} do not fit images whose short side is {short_side}: give a larger short_side"
        )
    augment = Augment(size=size)
    places = [*((x, y) for y in (-1.0, 1.0) for x in (-1.0, 1.0)), (0.0, 0.0)]
    return [
        View(Params(position=np.array([place]), flip=way), augment, short_side, native=short_side is None)
        for place in places
        for way in _ways(flip)
    ]


def _ways(flip: bool) -> list[npt.NDArray[np.float64]]:
    return [np.zeros(1), np.ones(1)] if flip else [np.zeros(1)]


def multi_scale(short_sides: Sequence[int] = SCALES, size: int = 224, flip: bool = True) -> list[View]:
    """Returns ten crops at each of several scales: fifty by default.

    ResNet's authors had the network see the whole image at each scale; ten crops stand for that.

    Args:
        short_sides: what the shorter side is resized to, in pixels.
        size: side of the crops.
        flip: each crop also mirrored; without, they are five at each scale.

    Raises:
        InputError: `size` is no number of pixels, or a short side is smaller.

    >>> len(multi_scale((256, 384))), len(multi_scale((256, 384), flip=False))
    (20, 10)
    """
    return [view for short_side in short_sides for view in ten_crop(size, short_side, flip)]


def samples(augment: Augment, count: int, seed: int = 0) -> list[View]:
    """Returns some of the draws of an augmentation, each of them the same for all images.

    Args:
        augment: what training did.
        count: how many draws.
        seed: of the draws.

    Raises:
        InputError: there are to be none.

    >>> import torch
    >>> [tuple(view(torch.rand(4, 3, 32, 32)).shape) for view in samples(Augment(rotate=10, size=24), 2)]
    [(4, 3, 24, 24), (4, 3, 24, 24)]
    """
    if count < 1:
        raise InputError(f"samples: count is how many draws, from 1; it is {count}")
    draws = augment.params(random.keys(random.key(seed, "samples"), np.arange(count)))
    return [View(draws[number : number + 1], augment) for number in range(count)]


def parse_views(text: str, augment: Augment, size: int, flip: bool = True) -> list[View]:
    """Reads which views a prediction is to be averaged over.

    Args:
        text: names, and numbers behind colons: `flips`, `shifts`, `ten-crop`, `multi-scale`, `samples:8`; separated by
            commas, for all of them together.
        augment: what training did, for `samples`.
        size: side of the images that the model sees.
        flip: whether views are also mirrored; not where training showed no mirror images.

    Raises:
        InputError: a name is none of these, there twice, or `flips` without `flip`; or a number is missing or out of
            place.

    >>> len(parse_views("ten-crop,samples:8", Augment(rotate=5), 32))
    18
    >>> len(parse_views("ten-crop", Augment(), 32, flip=False))
    5
    """
    if not isinstance(text, str):
        raise InputError(f"average is text, such as 'ten-crop,samples:8'; it is {text!r}")
    made: dict[str, Callable[[], list[View]]] = {
        "flips": flips,
        "shifts": lambda: shifts(flip=flip),
        "ten-crop": lambda: ten_crop(size, round(size * 8 / 7), flip),
        "multi-scale": lambda: multi_scale([round(side * size / SCALES[0]) for side in SCALES], size, flip),
    }
    known = [*made, "samples"]
    views: dict[str, list[View]] = {}
    for part in text.split(","):
        name, _, number = part.strip().replace("_", "-").partition(":")
        if name not in known:
            raise InputError(f"average must be of {', '.join(known)}; it is {name!r}{nearest(name, known)}")
        if (name == "samples") != bool(number) or (number and not (number.isdecimal() and 0 < int(number) <= 1_000)):
            raise InputError(f"average: {part.strip()!r}; samples alone takes a number, from 1 to 1000: samples:8")
        if name in views:
            raise InputError(f"average: {name} is there twice, in {text!r}: the same views count once")
        if name == "flips" and not flip:
            raise InputError(
                "average: flips are mirror images, of which training showed none: "
                "take shifts, ten-crop or multi-scale, which here mirror nothing"
            )
        views[name] = samples(augment, int(number)) if name == "samples" else made[name]()
    return [view for several in views.values() for view in several]
