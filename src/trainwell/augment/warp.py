"""One pass from images to a batch: gather, resample once, colour, normalise, erase.

Every image has its own map from the pixels of the batch to its own: a lens about the centre of the batch's image, then
an affine map. Where it shrinks so far that pixels would be read 1.5 or more apart, the mean of a block of them, of a
whole number to a side, stands for each that is read: all count, and fine patterns hardly come out as coarse ones. What
is between pixels is interpolated bilinearly. Then the channels are mixed by a matrix and shifted, by which brightness,
contrast, colour and normalisation are one step.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from trainwell.errors import InputError
from trainwell.images import Images
from trainwell.threads import share

Floats = npt.NDArray[np.floating[Any]]
Padding = Literal["reflection", "border", "zeros"]
PADDINGS = ("reflection", "border", "zeros")
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue are: ITU-R BT.601
MEAN_OF = 4_096  # pixels that the mean grey of a large image is taken over, about: in rows of even distances
_FEW = 1 << 14  # pixels that one thread is faster with


@dataclass(frozen=True, eq=False)
class Views:
    """What each image of a batch becomes. Its first axis counts the images, or is 1 where all are alike.

    Attributes:
        maps: affine maps from the batch to the source, `(n, 2, 3)`: `source_xy = map[:, :2] @ batch_xy + map[:, 2]`,
            in pixels, where the centre of the first pixel is at 0.5.
        colour: matrices over the channels of the batch, `(n, c, c)`, for pixels as they are.
        shift: what is added then, `(n, c)`.
        lens: the part of its distance from the centre by which a corner of the batch's image is moved outwards in what
            it reads, `(n,)`; points between, by the square of their distance.
        to_grey: how much of the source's mean grey is added to all channels, times `grey`, `(n,)`.
        grey: what one unit of grey is in each channel of the batch, `(1, c)`.
        boxes: top, left, bottom and right of what is set to 0, in pixels of the batch, `(n, k, 4)`.
    """

    maps: Floats
    colour: Floats
    shift: Floats
    lens: Floats
    to_grey: Floats
    grey: Floats
    boxes: npt.NDArray[np.int64]

    @classmethod
    def plain(cls, maps: Floats, scale: Floats, shift: Floats) -> "Views":
        """Returns views of `scale * pixel + shift`, both `(n or 1, c)`, and nothing else."""
        channels = scale.shape[1]
        none, boxes = np.zeros(1), np.zeros((1, 0, 4), np.int64)
        return cls(maps, scale[:, :, None] * np.eye(channels), shift, none, none, np.zeros((1, channels)), boxes)

    def rows(self, part: slice | list[int]) -> "Views":
        """Returns the views of some images."""
        return Views(*(value if len(value) == 1 else value[part] for value in vars(self).values()))

    def checked(self, count: int) -> "CheckedViews":
        """Returns the views of `count` images in the types and layout that the kernel reads without looking.

        Raises:
            InputError: a map is not finite, or a shape does not fit.
        """
        channels = self.shift.shape[1]
        shapes = {
            "maps": (count, 2, 3), "colour": (count, channels, channels), "shift": (count, channels),
            "lens": (count,), "to_grey": (count,), "grey": (count, channels),
            "boxes": (count, *self.boxes.shape[1:]),
        }  # fmt: skip
        types = {"maps": np.float64, "lens": np.float64, "boxes": np.int64}
        values: dict[str, Any] = {
            name: np.full(shape, getattr(self, name), types.get(name, np.float32)) for name, shape in shapes.items()
        }
        if not (np.isfinite(values["maps"]).all() and np.isfinite(values["lens"]).all()):
            raise InputError("maps must be finite")
        return CheckedViews(**values)


class CheckedViews(Views):
    """Views that need not be looked at again."""


def warp(
    source: Images | Tensor,
    views: Views,
    size: tuple[int, int],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    padding_mode: Padding = "border",
    channels_last: bool = False,
    kernel: Literal["auto", "reference"] = "auto",
) -> Tensor:
    """Makes a batch of views of images.

    Args:
        source: images of any sizes, or a batch of them, uint8 or float32, `(n, c, h, w)` on any device.
        views: what each becomes.
        size: height and width of the batch.
        rows: which of the images, `(n,)`; by default all.
        padding_mode: what is outside the image: its reflection, its border continued, or zeros.
        channels_last: lay the batch out in memory as NHWC (its shape stays NCHW).
        kernel: "auto" for the compiled pass on the CPU where numba is installed, "reference" for tensor operations,
            which other devices always have.

    Returns:
        A float32 tensor of shape `(n, c, height, width)` on the source's device. An image of one channel fills all c.

    Raises:
        InputError: an image has more channels than the batch.
        InputError: a map is not finite, a shape does not fit, or a box leaves the batch's images.
    """
    if padding_mode not in PADDINGS:
        raise InputError(f"padding_mode must be one of {', '.join(PADDINGS)}; it is {padding_mode!r}")
    batch = len(source) if rows is None else len(rows)
    if not (isinstance(views, CheckedViews) and len(views.maps) == batch):
        views = views.checked(batch)
    if views.boxes.size and (views.boxes.min() < 0 or (views.boxes[..., 2:] > size).any()):
        raise InputError(f"boxes must lie within {size}")  # the compiled pass writes them unchecked
    given = source if isinstance(source, Images) else _Batch(source)
    rows = np.arange(batch) if rows is None else rows
    channels, of_each = views.shift.shape[1], given.shapes[rows, 2]
    most = int(of_each.max(initial=0))
    if most > channels or 1 < int(of_each.min(initial=channels)) < channels:
        raise InputError(f"images of {most} channels do not fit a batch of {channels}: convert them first")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = source.device if isinstance(source, Tensor) else torch.device("cpu")  # whatever torch's default is
    out = torch.empty((batch, channels, *size), dtype=torch.float32, device=device, memory_format=layout)
    compiled = _compiled() if kernel == "auto" and device.type == "cpu" and channels in (1, 3) else None
    if compiled is not None:
        _in_threads(compiled, given, rows, views, PADDINGS.index(padding_mode), out)
        return out
    with torch.device(device):
        _reference(given, rows, views, padding_mode, out)
    return out


class _Batch:
    """A batch of tensors, read like `Images`."""

    def __init__(self, batch: Tensor) -> None:
        if batch.ndim != 4 or batch.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"a batch is uint8 or float32, (n, c, h, w), not {batch.dtype} of {tuple(batch.shape)}")
        self.batch = batch.detach()
        count, channels, height, width = batch.shape
        self.shapes = np.full((count, 3), (height, width, channels), np.int32)

    def flat(self) -> tuple[npt.NDArray[Any], Tensor]:
        """Returns the batch's memory as one array, and the batch in it, copied if it repeats itself."""
        batch = self.batch
        if any(step == 0 and side > 1 for side, step in zip(batch.shape, batch.stride(), strict=True)):
            batch = batch.contiguous()
        extent = 1 + sum((side - 1) * step for side, step in zip(batch.shape, batch.stride(), strict=True))
        return batch.as_strided((extent if batch.numel() else 0,), (1,)).numpy().view(), batch


def _shrinkage(maps: Floats) -> npt.NDArray[np.int64]:
    """Returns the sides of the blocks whose mean stands for a pixel, `(n, 2)`: how far apart pixels are read."""
    apart = np.sqrt(maps[:, ::-1, 0] ** 2 + maps[:, ::-1, 1] ** 2)  # in rows, in columns
    return np.maximum(1, np.floor(apart + 0.5)).astype(np.int64)


# ---------------------------------------------------------------------- in tensor operations


def _reference(
    source: "Images | _Batch", rows: npt.NDArray[np.int64], views: Views, padding_mode: str, out: Tensor
) -> None:
    """The same pass, one `grid_sample` for all images of one shape and shrinkage."""
    channels, height, width = out.shape[1:]
    kinds: dict[tuple[int, ...], list[int]] = {}
    for i, (shape, shrinkage) in enumerate(zip(source.shapes[rows], _shrinkage(views.maps), strict=True)):
        kinds.setdefault((*shape.tolist(), *shrinkage.tolist()), []).append(i)
    for (h, w, _, ny, nx), members in kinds.items():
        if isinstance(source, Images):
            pixels = torch.from_numpy(np.stack([source[int(rows[i])] for i in members])).permute(0, 3, 1, 2).float()
        else:
            pixels = source.batch[torch.from_numpy(rows[members])].float()
        few = views.rows(members)
        maps, lens, colour, shift, to_grey, grey = (
            torch.from_numpy(value).float().to(out.device)
            for value in (_in_units(few.maps, (h, w), (height, width), (ny, nx)), few.lens, few.colour, few.shift,
                          few.to_grey, few.grey)
        )  # fmt: skip
        mean = _mean_grey(pixels)
        pixels = F.avg_pool2d(pixels, (ny, nx), ceil_mode=True) if ny > 1 or nx > 1 else pixels
        y, x = ((2 * torch.arange(side, dtype=torch.float32) + 1) / side - 1 for side in (height, width))
        at = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        distance = ((at * torch.tensor([width, height], dtype=torch.float32)) ** 2).sum(-1) / (width**2 + height**2)
        at = at * (1 + lens[:, None, None] * distance)[..., None]
        grid = at @ maps[:, None, :, :2].transpose(-1, -2) + maps[:, None, None, :, 2]
        if (h, w) == (height, width) and (few.maps == np.eye(2, 3)).all() and not few.lens.any():
            read = pixels  # to the bit
        else:
            read = F.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
        read = torch.einsum("nij,njhw->nihw", colour, read.expand(-1, channels, -1, -1))
        out[members] = read + (shift + (to_grey * mean)[:, None] * grey)[:, :, None, None]
    for i, boxes in enumerate(views.boxes):
        for top, left, bottom, right in boxes.tolist():
            out[i, :, top:bottom, left:right] = 0


def _in_units(maps: Floats, source: tuple[int, int], size: tuple[int, int], blocks: tuple[int, int]) -> Floats:
    """Returns maps between coordinates that run from -1 to 1 over the batch's image and the blocks of the source."""
    half = np.array([size[1], size[0]]) / 2
    whole = np.array([-(-side // n) * n for side, n in zip(source, blocks, strict=True)])[::-1]
    linear, offset = maps[:, :, :2] * half, maps[:, :, :2] @ half + maps[:, :, 2]
    return np.concatenate([linear * (2 / whole)[:, None], (offset * (2 / whole) - 1)[:, :, None]], 2)


def _mean_grey(pixels: Tensor) -> Tensor:
    apart = max(1, pixels.shape[2] * pixels.shape[3] // MEAN_OF)
    wide = torch.float32 if pixels.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    means = pixels[:, :, ::apart].to(wide).mean((2, 3)).float()
    return means @ torch.tensor(LUMA, dtype=torch.float32) if means.shape[1] == 3 else means.mean(1)


# ---------------------------------------------------------------------- compiled


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """The pass as machine code, or `None` without numba."""
    try:
        from trainwell.augment import kernel
    except ImportError:
        return None
    return kernel.warp


def _in_threads(
    compiled: Callable[..., None],
    source: "Images | _Batch",
    rows: npt.NDArray[np.int64],
    views: Views,
    pad: int,
    out: Tensor,
) -> None:
    shapes = source.shapes[rows].astype(np.int64)
    if isinstance(source, Images):
        pixels, (_, w, c) = source.pixels.view(), shapes.T
        offsets, steps = source.offsets[rows], np.stack([w * c, c, np.ones_like(c)], 1)
    else:
        pixels, batch = source.flat()
        n, channel, row, column = batch.stride()
        offsets, steps = rows * n, np.full((len(rows), 3), (row, column, channel), np.int64)
    pixels.flags.writeable = False  # as it is in a memory map: for one type more the kernel would be compiled again
    blocks, strides = _shrinkage(views.maps), np.array(out.stride(), np.int64)
    flat = out.as_strided((out.numel(),), (1,)).numpy()

    given = (
        pixels, offsets, shapes, steps, views.maps, blocks, views.lens, views.colour, views.shift, views.to_grey,
        views.grey, views.boxes, pad, flat, strides, *out.shape[2:], out.shape[1],
    )  # fmt: skip
    threads = torch.get_num_threads() if len(rows) * out.shape[2] * out.shape[3] > _FEW else 1
    share(compiled, given, len(rows), threads)
