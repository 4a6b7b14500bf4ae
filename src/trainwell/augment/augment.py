"""Random changes of images that leave what they show as it is: drawn for each image, made in one pass."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainwell import random
from trainwell.augment import colour, erase, geometry
from trainwell.augment.colour import Components
from trainwell.augment.plain import are_numbers, per_channel, plain
from trainwell.augment.warp import PADDINGS, Padding, Views, warp
from trainwell.errors import InputError

Floats = npt.NDArray[np.float64]
Numbers = float | Sequence[float] | npt.NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Params:
    """What is done to each image of a batch, `n` of them, or 1 where all are treated alike.

    What is not given leaves images as they are.

    Attributes:
        flip: 1 for left and right exchanged, else 0.
        flip_vertical: likewise for top and bottom.
        scale: how many times as large as when the image just covers the batch's.
        position: which part is seen, across and down: from -1, left and top, to 1; `(n, 2)`.
        translate: to the right and down, in parts of the sides, `(n, 2)`.
        rotate: degrees counter-clockwise.
        stretch: how many times as wide, for the height.
        shear: degrees by which uprights lean to the right.
        lens: by which part of its distance from the centre a corner reads further out.
        brightness: what all is multiplied with.
        contrast: what the distance from the image's mean grey is multiplied with.
        saturation: what the distance from each pixel's own grey is multiplied with.
        hue: degrees by which colours are turned about grey.
        pca: the alphas of the colours' components, `(n, 3)`.
        boxes: top, left, bottom and right of what is wiped out, in parts of the sides, `(n, k, 4)`.

    Example:
        >>> quarter = Params(rotate=np.array([90.0]))  # a turn to the left, the same for all images
        >>> Augment()(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), params=quarter)[0, 0].tolist()
        [[2.0, 4.0], [1.0, 3.0]]
    """

    flip: Floats = field(default_factory=lambda: np.zeros(1))
    flip_vertical: Floats = field(default_factory=lambda: np.zeros(1))
    scale: Floats = field(default_factory=lambda: np.ones(1))
    position: Floats = field(default_factory=lambda: np.zeros((1, 2)))
    translate: Floats = field(default_factory=lambda: np.zeros((1, 2)))
    rotate: Floats = field(default_factory=lambda: np.zeros(1))
    stretch: Floats = field(default_factory=lambda: np.ones(1))
    shear: Floats = field(default_factory=lambda: np.zeros(1))
    lens: Floats = field(default_factory=lambda: np.zeros(1))
    brightness: Floats = field(default_factory=lambda: np.ones(1))
    contrast: Floats = field(default_factory=lambda: np.ones(1))
    saturation: Floats = field(default_factory=lambda: np.ones(1))
    hue: Floats = field(default_factory=lambda: np.zeros(1))
    pca: Floats = field(default_factory=lambda: np.zeros((1, 3)))
    boxes: Floats = field(default_factory=lambda: np.zeros((1, 0, 4)))

    def __len__(self) -> int:
        """How many images they are for; 1 for any number."""
        return max(len(value) for value in vars(self).values())

    def __getitem__(self, rows: Any) -> "Params":
        """Returns what is done to some of the images: a slice, or numbers of rows.

        Raises:
            IndexError: there is no such row; so a loop over them ends.
        """
        if isinstance(rows, Integral):
            if not -len(self) <= int(rows) < len(self):
                raise IndexError(f"params are for {len(self)} images; there is no number {rows}")
            rows = [int(rows)]
        return Params(**{name: value if len(value) == 1 else value[rows] for name, value in vars(self).items()})


_UNIFORM = {  # how many draws each takes, in this order; to be added to at the end, or else all others change
    "flip": 1, "flip_vertical": 1, "scale": 1, "crop": 2, "translate": 2, "rotate": 1, "stretch": 1, "shear": 1,
    "lens": 1, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 1, "pca": 6, "erase": 5, "cutout": 2,
}  # fmt: skip
_MIXED = ("translate", "rotate", "stretch", "shear", "lens", "brightness", "contrast", "saturation", "hue", "pca")
_MOST = {
    "flip": 1, "flip_vertical": 1, "crop": 1, "rotate": 180, "shear": 60, "lens": 0.33, "brightness": 1, "contrast": 1,
    "saturation": 1, "hue": 180, "erase": 1, "cutout": 2, "chance": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Augment:
    """Draws a change for each image of a batch and makes them all in one pass over uint8 or float images.

    Each amount is 0 for off, and its draws are spread evenly over its range, apart from `pca`'s, which are normal. All
    geometry becomes one map, so that pixels are interpolated once; where the image shrinks so far that they would be
    read 1.5 or more apart, means of blocks of them are read. Colours are one matrix, not cut off at black and white.

    A call takes images uint8, or float32 from 0 to 1, `(n, c, h, w)`, of any number of channels, on any device, and
    returns `(n, c, *size)`. On the CPU that is a compiled pass where numba is installed and there are 1 or 3 channels,
    else tensor operations.

    Attributes:
        flip: how often left and right are exchanged, from 0 to 1.
        flip_vertical: how often top and bottom are, likewise.
        crop: how far the part that is seen may be from the image's centre: 0 the centre, 1 up to the border.
        scale: by how much of itself the image is larger or smaller, below 1, or the range itself: ResNet's short side
            of 256 to 480 pixels for a crop of 224 is `scale=(256 / 224, 480 / 224), crop=1`.
        translate: how far it is moved across and down, in parts of the sides, up to 10.
        rotate: degrees, either way, up to 180.
        stretch: how much wider, or higher: 0.1 is up to 1.1 times as wide for its height, or the other way round; up to
            10.
        shear: degrees by which uprights lean, either way, up to 60.
        lens: how far corners bulge in or out, in parts of their distance from the centre, up to 0.33.
        brightness: by how much of itself all becomes brighter or darker, up to 1.
        contrast: by how much of itself the distance from the image's mean grey grows or shrinks, up to 1.
        saturation: by how much of itself the distance of each colour from its own grey does, up to 1.
        hue: degrees by which colours are turned about grey, either way, up to 180.
        pca: standard deviation of the alphas that the principal components of the colours are added with, times their
            variances; AlexNet's is 0.1, the most 10. Needs `components`.
        erase: how often a box of random size and shape is wiped out (set to 0, after normalisation), from 0 to 1.
        cutout: side of a square that is wiped out of each image, in parts of the shorter side, up to 2.
        chance: how often each of translate, rotate, stretch, shear, lens, brightness, contrast, saturation, hue and pca
            is applied to an image, from 0 to 1; each for itself, so that any mix of them comes about.
        padding_mode: what is seen beyond the border: its reflection, the border continued, or zeros (black).
        size: height and width of what comes out; by default that of the batch.
        mean: what is then subtracted from each channel, on the scale from 0 to 1: a number, or one a channel, in a
            sequence, an array or a tensor, which is kept as a tuple.
        std: what it is then divided by, likewise, above 0.
        components: of the training set's colours (`principal_components`), for `pca`.
        dtype: of what comes out: `torch.float32`, or `torch.bfloat16` or another.
        channels_last: lay out the batch in memory as NHWC.

    Raises:
        InputError: an amount is out of its range, or another attribute is none of what is said above.

    Example:
        >>> aug = Augment(flip=0.5, translate=0.1, rotate=15, brightness=0.2, size=24)
        >>> batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> aug(batch).shape
        torch.Size([8, 3, 24, 24])
        >>> keys = random.keys(random.key(0, "augment", 5), range(100, 108))  # seed, epoch; numbers of the samples
        >>> torch.equal(aug(batch, keys=keys)[2:], aug(batch[2:], keys=keys[2:]))
        True
    """

    flip: float = 0.0
    flip_vertical: float = 0.0
    crop: float = 0.0
    scale: float | tuple[float, float] = 0.0
    translate: float = 0.0
    rotate: float = 0.0
    stretch: float = 0.0
    shear: float = 0.0
    lens: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    pca: float = 0.0
    erase: float = 0.0
    cutout: float = 0.0
    chance: float = 1.0
    padding_mode: Padding = "reflection"
    size: int | tuple[int, int] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    components: Components | None = field(default=None, repr=False)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("mean and std belong together: give both, or neither")
        kept = {name: plain(getattr(self, name)) for name in (*_UNIFORM, "chance", "size")}
        kept |= {name: per_channel(name, getattr(self, name)) for name in ("mean", "std") if self.mean is not None}
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        for name in (*_UNIFORM, "chance"):
            value = getattr(self, name)
            if name == "scale" and value != 0:
                ends = self.scales
                if not (are_numbers(ends) and len(ends) == 2 and 0 < ends[0] <= ends[1] < math.inf):
                    raise InputError(f"scale is a part below 1, or a range above 0 as (0.8, 1.25); it is {value!r}")
            elif not (are_numbers((value,)) and 0 <= value <= _MOST.get(name, 10)):
                raise InputError(f"{name} must be from 0 to {_MOST.get(name, 10)}; it is {value!r}")
        size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if self.size is not None and not (len(size) == 2 and all(type(s) is int and s > 0 for s in size)):
            raise InputError(f"size is a number of pixels, or height and width; it is {self.size!r}")
        if self.padding_mode not in PADDINGS:
            raise InputError(f"padding_mode must be one of {', '.join(PADDINGS)}; it is {self.padding_mode!r}")
        if not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise InputError(f"dtype is one of floating numbers, such as torch.bfloat16; it is {self.dtype!r}")

    def __repr__(self) -> str:
        """Returns the amounts that are not off, and what else differs from the defaults."""
        told = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self)
                if f.repr and getattr(self, f.name) != f.default]  # fmt: skip
        return f"Augment({', '.join(told)})"

    @property
    def scales(self) -> tuple[float, ...]:
        """The least and the largest scale."""
        if isinstance(self.scale, tuple) or not are_numbers((self.scale,)):
            return self.scale if isinstance(self.scale, tuple) else ()
        return (1 - self.scale, 1 + self.scale)

    def off(self) -> "Augment":
        """Returns one with every amount 0: the same size and normalisation, for validation."""
        none: dict[str, Any] = dict.fromkeys(_UNIFORM, 0.0)
        return dataclasses.replace(self, **none)

    def params(self, keys: npt.NDArray[np.uint64], size: int | tuple[int, int] | None = None) -> Params:
        """Draws what is done to each image, as a function of its key alone.

        An amount that is switched on or off changes no other's draws.

        Args:
            keys: one an image, `(n,)`; see `trainwell.random.keys`.
            size: height and width of the batch, whose proportions the boxes that are wiped out take into account; by
                default its own `size`, or as of a square.
        """
        size = _pair(size or self.size or 1)
        keys = np.asarray(keys).astype(np.uint64)
        draws = random.uniform(keys, sum(_UNIFORM.values()))
        around_0 = 2 * draws - 1
        # Whether each is applied is drawn behind the amounts, because more amounts may come.
        applied = random.uniform(random.splitmix64(keys), len(_UNIFORM)) < self.chance if self.chance < 1 else None
        drawn: dict[str, Floats] = {}  # of the amounts that are on; what is left out is off

        begin = 0
        boxes = []
        for number, (name, count) in enumerate(_UNIFORM.items()):
            amount, places = getattr(self, name), slice(begin, begin + count)
            begin += count
            if not amount:
                continue
            u, even = draws[:, places], around_0[:, places]
            if applied is not None and name in _MIXED:
                even = even * applied[:, number, None]
            if name in ("flip", "flip_vertical"):
                drawn[name] = (u[:, 0] < amount).astype(np.float64)
            elif name == "scale":
                drawn[name] = self.scales[0] + (self.scales[1] - self.scales[0]) * u[:, 0]
            elif name == "crop":
                drawn["position"] = amount * even
            elif name == "translate":
                drawn[name] = amount * even
            elif name in ("rotate", "shear", "lens", "hue"):
                drawn[name] = amount * even[:, 0]
            elif name == "stretch":
                drawn[name] = (1 + amount) ** even[:, 0]
            elif name in ("brightness", "contrast", "saturation"):
                drawn[name] = 1 + amount * even[:, 0]
            elif name == "pca":
                normal = np.sqrt(-2 * np.log1p(-u[:, :3])) * np.cos(2 * np.pi * u[:, 3:])  # Box and Muller
                drawn[name] = amount * (normal if applied is None else normal * applied[:, number, None])
            elif name == "erase":
                boxes.append(np.where(u[:, :1] < amount, erase.random_boxes(u[:, 1:], size), 0))
            elif name == "cutout":
                boxes.append(erase.squares(u, amount, size))
        if boxes:
            drawn["boxes"] = np.stack(boxes, 1)
        return Params(**drawn) if drawn else Params(flip=np.zeros(len(keys)))

    def views(
        self, params: Params, shapes: npt.NDArray[np.int32], size: tuple[int, int], channels: int, unit: float = 1.0
    ) -> Views:
        """Returns how the pass makes them: maps, matrices and boxes.

        Args:
            params: what is done to each image.
            shapes: height, width (and channels) of the images, `(n, 2 or 3)`.
            size: height and width of the batch.
            channels: of the batch.
            unit: what one step of the pixels is on the scale from 0 to 1: `1 / 255` for uint8.

        Raises:
            InputError: `mean` or `std` is of another number of channels, or `pca` lacks its components.
        """
        p = params
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (count := np.size(values or 0)) not in (1, channels):
                raise InputError(f"{name} has {count} numbers, and the batch {channels} channels")
        linear = geometry.inverse(p.flip, p.flip_vertical, p.stretch, p.shear, p.rotate, p.scale)
        mean, std = (
            np.broadcast_to(np.array(given, np.float64), channels) for given in (self.mean or 0, self.std or 1)
        )
        return Views(
            maps=geometry.place(linear, shapes, size, scale=p.scale, position=p.position, translate=p.translate),
            colour=colour.matrices(p.brightness * p.contrast, p.saturation, p.hue, channels) * (unit / std)[:, None],
            shift=(colour.along(self.components, p.pca, channels) - mean) / std,
            lens=p.lens,
            to_grey=p.brightness * (1 - p.contrast),
            grey=unit / std[None],
            boxes=erase.in_pixels(p.boxes, size),
        )

    def __call__(
        self, batch: Tensor, *, keys: npt.NDArray[np.uint64] | None = None, params: Params | None = None
    ) -> Tensor:
        """Returns the batch with every image changed.

        Args:
            batch: images, uint8 or float32 from 0 to 1, `(n, c, h, w)`.
            keys: one an image, which its draws are a function of; by default torch's generator draws them.
            params: what is done to the images, in place of draws: those of an earlier call, from `params`.

        Raises:
            InputError: the batch is none of images, keys or params do not fit it, or both are given.
        """
        _check_batch(batch)
        size = _pair(self.size or (batch.shape[2], batch.shape[3]))
        if params is None:
            keys = drawn_keys(len(batch)) if keys is None else np.asarray(keys)
            if keys.shape != (len(batch),):
                raise InputError(
                    f"keys are of shape {keys.shape}, and there are {len(batch)} images: give one for each"
                )
            params = self.params(keys, size)
        elif keys is not None:
            raise InputError("give keys or params, not both: keys are what params are drawn by")
        else:
            _check_params(params, len(batch))
        unit = 1 / 255 if batch.dtype == torch.uint8 else 1.0
        source = batch if batch.dtype == torch.uint8 else batch.float()
        shapes = np.full((len(batch), 2), batch.shape[2:], np.int32)
        views = self.views(params, shapes, size, batch.shape[1], unit)
        out = warp(source, views, size, padding_mode=self.padding_mode, channels_last=self.channels_last)
        return out.to(self.dtype)


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, Tensor):
        raise InputError(f"a batch is a tensor; this is of type {type(batch).__name__}: give torch.from_numpy(array)")
    shape = tuple(batch.shape)
    if batch.ndim != 4 or not (batch.dtype == torch.uint8 or batch.is_floating_point()):
        raise InputError(f"a batch of images is uint8 or float of shape (n, c, h, w), not {batch.dtype} of {shape}")
    if 0 in shape[1:]:
        raise InputError(f"a batch has the shape {shape}: images have at least one channel and one pixel")
    if shape[1] > 4 and shape[3] in (1, 3, 4):
        raise InputError(
            f"a batch is (n, c, h, w), and this one, {shape}, (n, h, w, c): give batch.permute(0, 3, 1, 2)"
        )


def _check_params(params: Params, count: int) -> None:
    for name, value in vars(params).items():
        if np.shape(value)[:1] not in ((1,), (count,)):
            raise InputError(
                f"params.{name} is of shape {np.shape(value)}, and there are {count} images: give {count}, or 1 for all"
            )
    boxes = np.asarray(params.boxes)
    inside = np.abs(boxes - 0.5) < 0.5 + 1e-6  # whoever adds parts up may be beyond 1 by a rounding error
    if boxes.shape[2:] != (4,) or not inside.all() or (boxes[..., :2] > boxes[..., 2:]).any():
        raise InputError(
            "params.boxes are in parts of the sides, from 0 to 1, of shape (n, k, 4): top, left, bottom, right"
        )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def drawn_keys(count: int) -> npt.NDArray[np.uint64]:
    """Returns random keys, from torch's generator on the CPU, which `torch.manual_seed` sets."""
    return torch.randint(2**63 - 1, (count,), device="cpu").numpy().astype(np.uint64)
