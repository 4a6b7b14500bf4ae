"""The maps of crops and distortions, composed, from the pixels of a batch to those of its images."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def covering(shapes: npt.NDArray[np.int32], size: tuple[int, int]) -> Floats:
    """Returns how many pixels of each image are one of the batch, `(n,)`, when the image just covers `size`."""
    return np.minimum(shapes[:, 0] / size[0], shapes[:, 1] / size[1])


def centre_crop(shapes: npt.NDArray[np.int32], size: tuple[int, int]) -> Floats:
    """Returns the maps that resize each image until it just covers `size`, and keep the centre.

    Args:
        shapes: height, width (and channels) of the images, shape `(n, 2 or 3)`.
        size: height and width of the batch.

    Returns:
        Maps of shape `(n, 2, 3)`; see `trainwell.augment.warp.Views`.

    >>> centre_crop(np.array([[8, 6]]), (3, 3))[0].tolist()  # every second pixel, from 0 across and 1 down
    [[2.0, 0.0, 0.0], [0.0, 2.0, 1.0]]
    """
    one, none = np.ones(1), np.zeros(1)
    linear = inverse(none, none, one, none, none, one)
    return place(linear, shapes, size, scale=one, position=np.zeros((1, 2)), translate=np.zeros((1, 2)))


def inverse(flip: Floats, upside: Floats, stretch: Floats, shear: Floats, rotate: Floats, scale: Floats) -> Floats:
    """Returns where, from the centre, what is seen comes from: the inverse of five distortions in this order.

    Args:
        flip: 1 for left and right exchanged, else 0; all are of shape `(n,)`.
        upside: likewise for top and bottom.
        stretch: how many times as wide, for the height; the area stays.
        shear: degrees by which uprights lean to the right.
        rotate: degrees, counter-clockwise.
        scale: how many times as large.

    Returns:
        Matrices `(n, 2, 2)` over (x, y); y points down.
    """
    angle, lean, root, zero = np.deg2rad(rotate), np.tan(np.deg2rad(shear)), np.sqrt(stretch), np.zeros_like(rotate)
    turn = _matrices(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))
    slope = _matrices(zero + 1, lean, zero, zero + 1)
    sides = _matrices((1 - 2 * flip) / (root * scale), zero, zero, (1 - 2 * upside) * root / scale)
    return sides @ slope @ turn


def _matrices(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    return np.stack(np.broadcast_arrays(a, b, c, d), -1).reshape(-1, 2, 2)


def place(
    linear: Floats,
    shapes: npt.NDArray[np.int32],
    size: tuple[int, int],
    *,
    scale: Floats,
    position: Floats,
    translate: Floats,
) -> Floats:
    """Returns whole maps of matrices about the centre.

    Args:
        linear: what `inverse` returns.
        shapes: height and width of the images, `(n, 2 or 3)`.
        size: height and width of the batch.
        scale: how many times as large the images are shown than when they just cover the batch's, `(n,)`.
        position: which part of an image is seen: x and y from -1, its left (top), to 1, its right (bottom), `(n, 2)`.
        translate: how far it is moved to the right and down, in parts of the batch's sides, `(n, 2)`.
    """
    sides, out = shapes[:, [1, 0]].astype(np.float64), np.array([size[1], size[0]], np.float64)
    step = covering(shapes, size)
    linear = linear * step[:, None, None]
    room = (sides - step[:, None] * out / scale[:, None]) / 2
    centre = sides / 2 + position * room
    offset = centre - np.einsum("nij,nj->ni", linear, np.broadcast_to(out / 2 + translate * out, (len(linear), 2)))
    return np.concatenate([linear, offset[:, :, None]], 2)
