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
    cosine, sine, lean = np.cos(np.deg2rad(rotate)), np.sin(np.deg2rad(rotate)), np.tan(np.deg2rad(shear))
    across, down = (1 - 2 * flip) / (np.sqrt(stretch) * scale), (1 - 2 * upside) * np.sqrt(stretch) / scale
    (count,) = np.broadcast_shapes(*(values.shape for values in (across, down, cosine, lean)))
    # diag(across, down) @ [[1, lean], [0, 1]] @ [[cosine, -sine], [sine, cosine]]
    linear = np.empty((count, 2, 2))
    linear[:, 0, 0], linear[:, 0, 1] = across * (cosine + lean * sine), across * (lean * cosine - sine)
    linear[:, 1, 0], linear[:, 1, 1] = down * sine, down * cosine
    return linear


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
    sides, out = shapes[:, 1::-1].astype(np.float64), np.array([size[1], size[0]], np.float64)
    step = covering(shapes, size)[:, None]
    linear = linear * step[:, :, None]
    room = (sides - step * out / scale[:, None]) / 2
    centre, from_centre = sides / 2 + position * room, out / 2 + translate * out
    offset = centre - (linear[:, :, 0] * from_centre[:, :1] + linear[:, :, 1] * from_centre[:, 1:])
    maps = np.empty((len(offset), 2, 3))
    maps[:, :, :2], maps[:, :, 2] = linear, offset
    return maps
