"""Images that are hardly photographs among photographs."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainwell.images import Images

_LINES = 32  # rows (and columns) that are looked at in an image
_FLAT = 0.25  # of the neighbouring values in a flat image so many differ at most; in a photograph most do
_FLATTER = 3  # how many times fewer neighbours differ than in the median image
_RARE = 50  # at most one in so many images, or 3, is an outlier
_GREY = 128  # what libjpeg shows where the data are missing
_BAND = 16  # of the height or width, the least part that counts as missing


def find(images: Images) -> list[tuple[int, str]]:
    """Finds images unlike the others: of one colour, drawn rather than photographed, or with a part missing.

    An image is flat, as a placeholder, a logo or a screenshot is, if of its neighbouring values at most a quarter
    differ, and at most a third of what differs in the median image; it is damaged if a sixteenth of it or more is the
    grey that libjpeg shows for missing data. Both are told if no more than one image in 50, or three, are like that:
    else it is what the data are. An image of one colour is told unless most are.

    Args:
        images: uint8 images of any sizes; of a large one some rows and columns are looked at.

    Returns:
        The row of each such image and what it is, as a predicate ("is of one colour throughout"), in order.

    Example:
        >>> noise = np.random.default_rng(0).integers(0, 256, (99, 32, 32), np.uint8)
        >>> find(Images.from_array(np.concatenate([noise, np.full((1, 32, 32), 255, np.uint8)])))
        [(99, 'is of one colour throughout')]
    """
    blank, flat, grey = [], [], []
    differ = np.empty(len(images))
    for row in range(len(images)):
        image = images[row]
        differ[row] = _differing(image)
        if differ[row] <= _FLAT and _is_blank(image):
            blank.append(row)
        elif differ[row] <= _FLAT and _differing(image.swapaxes(0, 1)) <= _FLAT:
            flat.append(row)
        elif part := _grey_part(image):
            grey.append((row, part))
    told: list[tuple[int, str]] = []
    if 2 * len(blank) < len(images):
        told += [(row, "is of one colour throughout") for row in blank]
    rare = max(3, len(images) // _RARE)
    usual = float(np.median(differ)) if flat else 0.0
    flat = [row for row in flat if differ[row] <= usual / _FLATTER]
    if len(flat) <= rare:
        told += [(row, "is flat as a drawing or a placeholder, unlike the others") for row in flat]
    if len(grey) <= rare:
        told += [(row, f"is plain grey on {part:.0%} of it, as a damaged JPEG file") for row, part in grey]
    return sorted(told)


def _differing(image: npt.NDArray[np.uint8]) -> float:
    """Returns the share of values that differ from their neighbour in the same row and channel, from some rows."""
    rows = image[:: max(1, len(image) // _LINES)]
    other = rows[:, 1:] != rows[:, :-1]
    return float(np.count_nonzero(other) / other.size) if other.size else 0.0


def _is_blank(image: npt.NDArray[np.uint8]) -> bool:
    return bool((image == image[0, 0]).all())


def _grey_part(image: npt.NDArray[np.uint8]) -> float:
    """Returns which part of an image is plain middle grey, over its whole breadth, from one of its sides."""
    sides: tuple[Callable[[], npt.NDArray[np.uint8]], ...] = (
        lambda: image[::-1], lambda: image, lambda: image.swapaxes(0, 1), lambda: image.swapaxes(0, 1)[::-1],
    )  # fmt: skip
    if not (image[0, 0, 0] == _GREY or image[-1, -1, 0] == _GREY):  # of each side, one end is one of these corners
        return 0.0
    for side in sides:
        lines = side()
        least = max(1, len(lines) // _BAND)
        if (lines[:least] == _GREY).all():
            whole = (lines == _GREY).all(axis=(1, 2))
            return float(np.argmin(whole) / len(lines))
    return 0.0
