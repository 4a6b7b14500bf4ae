"""Brightness, contrast and colour as one matrix over the channels; the principal components of a set's colours.

Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep convolutional neural networks* (2012), section 4.1,
for the components.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainwell.augment.warp import LUMA
from trainwell.errors import InputError
from trainwell.images import Images

_ACROSS = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # the cross product with grey's direction
_TWICE_ACROSS, _SAME, _LUMA = _ACROSS @ _ACROSS, np.eye(3), np.array(LUMA)
_PIXELS = 1_000  # of each image, about, that covariances are taken over

Floats = npt.NDArray[np.float64]


class Components(NamedTuple):
    """The principal components of colours on the scale from 0 to 1.

    Attributes:
        values: the variances along them, the largest first.
        vectors: the components, one a row, each of length 1: its red, green and blue.
    """

    values: tuple[float, float, float]
    vectors: tuple[tuple[float, float, float], ...]


def principal_components(images: Any, rows: npt.ArrayLike | None = None, most: int = 2_000) -> Components:
    """Returns the principal components of the red, green and blue of all pixels of a training set.

    Args:
        images: `tw.data.Images`, or a uint8 array or tensor of shape `(n, h, w[, c])` or `(n, c, h, w)`; those of one
            channel count as grey.
        rows: which of them are trained on; by default all.
        most: how many images are looked at, spread evenly; of large ones, pixels of a grid.

    Raises:
        InputError: the images are no such array, or there are no rows.

    >>> noise = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    >>> components = principal_components(noise.repeat(3, 3))  # grey alone
    >>> np.round(np.abs(components.vectors[0]), 3).tolist(), round(components.values[1], 6)
    ([0.577, 0.577, 0.577], 0.0)
    """
    images = Images.of(images)
    rows = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)
    if not len(rows):
        raise InputError("principal_components: rows is empty: give the numbers of one image or more")
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]:
        image = images[int(row)]
        apart = max(1, round((image.shape[0] * image.shape[1] / _PIXELS) ** 0.5))
        pixels = image[::apart, ::apart].reshape(-1, image.shape[2]) / 255
        pixels = np.broadcast_to(pixels, (len(pixels), 3))
        count, total, products = count + len(pixels), total + pixels.sum(0), products + pixels.T @ pixels
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    values, vectors = values[::-1], vectors.T[::-1]
    # A component's sign means nothing, and is another on other machines: the largest of its colours is made positive.
    signs = np.sign(vectors[range(3), np.abs(vectors).argmax(1)])
    return Components(
        tuple(np.maximum(values, 0).tolist()), tuple(tuple(vector) for vector in (signs[:, None] * vectors).tolist())
    )


def matrices(gain: Floats, saturation: Floats, hue: Floats, channels: int) -> Floats:
    """Returns the matrices over the channels, `(n, channels, channels)`.

    Args:
        gain: what all channels are multiplied with, `(n,)`.
        saturation: how far colours are from grey: 1 as they are, 0 grey; `(n,)`. For three channels alone.
        hue: degrees by which colours are turned about grey, red towards green, `(n,)`. For three channels alone.
        channels: of the batch.
    """
    gain = gain[:, None, None]
    if channels != 3:
        return np.asarray(gain * np.eye(channels))
    kept, angle = saturation[:, None, None], np.deg2rad(hue)[:, None, None]
    turn = _SAME + np.sin(angle) * _ACROSS + (1 - np.cos(angle)) * _TWICE_ACROSS  # Rodrigues
    return np.asarray(gain * (kept * turn + (1 - kept) * _LUMA))  # grey stays where it is when colours turn


def along(components: Components | None, alphas: Floats, channels: int) -> Floats:
    """Returns the sums of the components, each times its variance and its alpha, `(n, channels)`.

    Raises:
        InputError: there are no components.
    """
    if channels != 3 or not alphas.any():
        return np.zeros((len(alphas), channels))
    if components is None:
        raise InputError(
            "pca needs the colours of the training set: components=tw.augment.principal_components(images)"
        )
    return np.asarray((alphas * np.array(components.values)) @ np.array(components.vectors))
