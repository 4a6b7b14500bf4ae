"""Boxes that are wiped out, another for each image: random erasing and cutout.

Zhong, Zheng, Kang, Li and Yang, *Random erasing data augmentation* (2017), algorithm 1; DeVries and Taylor, *Improved
regularization of convolutional neural networks with cutout* (2017).
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the image; height over width


def random_boxes(uniform: Floats, size: tuple[int, int]) -> Floats:
    """Returns boxes of random area and proportions, anywhere within the image.

    Args:
        uniform: draws from [0, 1), `(n, 4)`: for the area, the proportions, the place down and across.
        size: height and width of the image.

    Returns:
        Top, left, bottom and right in parts of the image's sides, `(n, 4)`.

    >>> random_boxes(np.array([[1.0, 0.5, 0.0, 1.0]]), (32, 32)).round(3).tolist()  # a square third, top right
    [[0.0, 0.423, 0.577, 1.0]]
    """
    area = AREA[0] + uniform[:, 0] * (AREA[1] - AREA[0])
    ratio = np.exp(np.log(RATIO[0]) + uniform[:, 1] * (np.log(RATIO[1]) - np.log(RATIO[0]))) * (size[1] / size[0])
    height, width = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    top, left = uniform[:, 2] * (1 - height), uniform[:, 3] * (1 - width)
    return np.stack([top, left, top + height, left + width], 1)


def squares(uniform: Floats, side: float, size: tuple[int, int]) -> Floats:
    """Returns squares whose centres are anywhere in the image; what is beyond the border is cut off.

    Args:
        uniform: draws from [0, 1), `(n, 2)`: for the centre, down and across.
        side: of the squares, in parts of the image's shorter side.
        size: height and width of the image.

    Returns:
        As `random_boxes`.
    """
    half = side * min(size) / np.array(size) / 2
    return np.asarray(np.clip(np.concatenate([uniform - half, uniform + half], 1), 0, 1))


def in_pixels(boxes: Floats, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Returns boxes in whole pixels; what is beyond the border is cut off.

    >>> in_pixels(np.array([-0.5, 0.25, 1.5, 1.0]), (8, 4)).tolist()
    [0, 1, 8, 4]
    """
    return np.asarray(np.rint(np.clip(boxes, 0, 1) * np.array([*size, *size])), np.int64)
