"""One pass from stored images to a batch: gather, resample, colour, normalise.

Every image has its own affine map from the pixels of the batch to its own pixels, and its own scale and shift of
the pixel values; a crop, a resize and, later, any mix of augmentations are different numbers in these. Each output
pixel is read once by bilinear interpolation; where the map shrinks, the mean of a grid of such readings stands for
the pixel, so that nothing is aliased. Outside the image its border continues.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from trainwell import jit
from trainwell.data.images import Images
from trainwell.errors import InputError
from trainwell.threads import share

Maps = npt.NDArray[np.float64]


def centre_crop(shapes: npt.NDArray[np.int32], size: tuple[int, int]) -> Maps:
    """Returns the maps that resize each image until it just covers `size`, and keep the centre.

    Args:
        shapes: height, width (and channels) of the images, shape `(n, 2 or 3)`.
        size: height and width of the output.

    Returns:
        Maps of shape `(n, 2, 3)`: `source_xy = map[:, :2] @ output_xy + map[:, 2]`, in pixels, where the centre of
        the first pixel is at 0.5.
    """
    height, width = shapes[:, 0].astype(np.float64), shapes[:, 1].astype(np.float64)
    step = np.minimum(height / size[0], width / size[1])
    maps = np.zeros((len(shapes), 2, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = step
    maps[:, 0, 2] = (width - step * size[1]) / 2
    maps[:, 1, 2] = (height - step * size[0]) / 2
    return maps


def warp(
    images: Images,
    rows: npt.NDArray[np.int64],
    maps: Maps,
    scale: npt.NDArray[np.floating],
    shift: npt.NDArray[np.floating],
    size: tuple[int, int],
    *,
    channels_last: bool = False,
    kernel: str = "auto",
) -> torch.Tensor:
    """Makes a batch: `scale * pixel + shift`, where the pixel is read through each image's map.

    Args:
        images: where the pixels are.
        rows: which images, shape `(n,)`.
        maps: affine maps from output to source, shape `(n, 2, 3)`; see `centre_crop`.
        scale: shape `(n, c)`, or `(1, c)` for all alike; c is the number of channels of the batch.
        shift: likewise.
        size: height and width of the batch.
        channels_last: lay the batch out in memory as NHWC (its shape stays NCHW).
        kernel: "auto" for the compiled pass where numba is installed, "reference" for tensor operations.

    Returns:
        A float32 tensor of shape `(n, c, height, width)`. An image of one channel fills all c.

    Raises:
        InputError: an image has more channels than the batch.
        ValueError: a map is not finite, or a shape does not fit.
    """
    batch, channels = len(rows), scale.shape[1]
    shapes = images.shapes[rows]
    if most := shapes[:, 2][shapes[:, 2] > channels].max(initial=0):
        raise InputError(f"images of {most} channels do not fit a batch of {channels}: convert them first")
    # Of one type and layout each, because the kernel checks nothing, and is compiled anew for any other.
    maps = np.ascontiguousarray(np.broadcast_to(maps, (batch, 2, 3)), np.float64)
    scale, shift = (np.ascontiguousarray(np.broadcast_to(a, (batch, channels)), np.float32) for a in (scale, shift))
    if not np.isfinite(maps).all():
        raise ValueError("maps must be finite")
    layout = (batch, *size, channels) if channels_last else (batch, channels, *size)
    out = torch.empty(layout, dtype=torch.float32, device="cpu")  # whatever torch's defaults are set to
    nchw = out.permute(0, 3, 1, 2) if channels_last else out
    compiled = None if kernel == "reference" else _compiled()
    if compiled is None:
        with torch.device("cpu"):
            _reference(images, rows, maps, scale, shift, nchw)
    else:
        offsets, strides, flat = images.offsets[rows], np.array(nchw.stride(), np.int64), out.numpy().reshape(-1)
        pixels = images.pixels.view()
        pixels.flags.writeable = False  # as it is in a memory map

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            compiled(
                pixels, offsets[part], shapes[part], maps[part], scale[part], shift[part],
                flat[start * strides[0] :], strides, *size, channels,
            )  # fmt: skip

        share(work, batch, threads=torch.get_num_threads() if batch * size[0] * size[1] > _FEW else 1)
    return nchw


def _readings(linear: npt.NDArray[np.float64]) -> int:
    """How many readings a side stand for one output pixel, for the linear part of a map, shape `(2, 2)`."""
    longest: float = np.sqrt((linear**2).sum(axis=0)).max()
    return max(1, math.floor(longest + 0.5))


def _reference(
    images: Images,
    rows: npt.NDArray[np.int64],
    maps: Maps,
    scale: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    out: torch.Tensor,
) -> None:
    """The same pass in tensor operations, one `grid_sample` for all images of one shape and shrinkage."""
    channels, height, width = out.shape[1:]
    kinds: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        kinds.setdefault((*images.shapes[row].tolist(), _readings(maps[i, :, :2])), []).append(i)
    for (h, w, _, n), members in kinds.items():
        pixels = torch.from_numpy(np.stack([images[int(rows[i])] for i in members])).float().permute(0, 3, 1, 2)
        ys, xs = ((torch.arange(side * n, dtype=torch.float64) + 0.5) / n for side in (height, width))
        grid = torch.stack([*torch.meshgrid(xs, ys, indexing="xy"), torch.ones(height * n, width * n)], -1)
        source = grid @ torch.from_numpy(maps[members]).transpose(1, 2)[:, None]
        unit = (2 * source / torch.tensor([w, h]) - 1).float()  # grid_sample's coordinates run from -1 to 1
        read = F.grid_sample(pixels, unit, mode="bilinear", padding_mode="border", align_corners=False)
        read = F.avg_pool2d(read, n).expand(-1, channels, -1, -1)
        a, b = (torch.from_numpy(values[members])[:, :, None, None] for values in (scale, shift))
        out[members] = read * a + b


_FEW = 1 << 14  # pixels that one thread is faster with


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """The pass as machine code, or `None` without numba."""
    try:
        return jit.compiled(_pass, fastmath={"contract"})
    except ImportError:
        return None


def _pass(
    pixels: Any,
    offsets: Any,
    shapes: Any,
    maps: Any,
    scale: Any,
    shift: Any,
    out: Any,
    strides: Any,
    height: int,
    width: int,
    channels: int,
) -> None:
    for i in range(len(offsets)):
        image, map_ = pixels[offsets[i] :], maps[i]
        h, w, c = shapes[i, 0], shapes[i, 1], shapes[i, 2]
        to_out = i * strides[0]
        whole = map_[0, 2] == np.floor(map_[0, 2]) and map_[1, 2] == np.floor(map_[1, 2])
        straight = map_[0, 0] == 1.0 and map_[1, 1] == 1.0 and map_[0, 1] == 0.0 and map_[1, 0] == 0.0
        left, top = int(map_[0, 2]), int(map_[1, 2])
        if whole and straight and left >= 0 and top >= 0 and left + width <= w and top + height <= h:
            # Pixels fall on pixels: read them as they are.
            for k in range(channels):
                a, b, band = scale[i, k], shift[i, k], min(k, c - 1)
                for y in range(height):
                    start = ((y + top) * w + left) * c + band
                    target = to_out + k * strides[1] + y * strides[2]
                    for x in range(width):
                        out[target + x * strides[3]] = np.float32(image[start + x * c]) * a + b
            continue
        long_x = math.sqrt(map_[0, 0] ** 2 + map_[1, 0] ** 2)
        long_y = math.sqrt(map_[0, 1] ** 2 + map_[1, 1] ** 2)
        n = max(1, math.floor(max(long_x, long_y) + 0.5))
        for y in range(height):
            for x in range(width):
                target = to_out + y * strides[2] + x * strides[3]
                for k in range(channels):
                    out[target + k * strides[1]] = np.float32(0)
                for reading in range(n * n):
                    v, u = y + (reading // n + 0.5) / n, x + (reading % n + 0.5) / n
                    sx = map_[0, 0] * u + map_[0, 1] * v + map_[0, 2] - 0.5
                    sy = map_[1, 0] * u + map_[1, 1] * v + map_[1, 2] - 0.5
                    sx, sy = min(max(sx, 0.0), w - 1.0), min(max(sy, 0.0), h - 1.0)
                    x0, y0 = int(sx), int(sy)
                    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
                    fx, fy = np.float32(sx - x0), np.float32(sy - y0)
                    one = np.float32(1)
                    for k in range(channels):
                        band = min(k, c - 1)
                        above = np.float32(image[(y0 * w + x0) * c + band]) * (one - fx)
                        above += np.float32(image[(y0 * w + x1) * c + band]) * fx
                        below = np.float32(image[(y1 * w + x0) * c + band]) * (one - fx)
                        below += np.float32(image[(y1 * w + x1) * c + band]) * fx
                        out[target + k * strides[1]] += above * (one - fy) + below * fy
                for k in range(channels):
                    at = target + k * strides[1]
                    out[at] = out[at] * (scale[i, k] / np.float32(n * n)) + shift[i, k]
