"""What a look at all images of a store shows: duplicates, and images that are hardly photographs."""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainwell.data import duplicates, odd
from trainwell.files import write_json
from trainwell.images import Images

_FORMAT = 1  # to be raised whenever a look would find something else
_FILE = "seen.json"


class Seen(NamedTuple):
    """What was found.

    Attributes:
        pairs: the images that show the same, or nearly, as pairs of rows, shape `(m, 2)`.
        exact: whether a pair is the same to the bit, shape `(m,)`.
        odd: rows and reasons of images unlike the others.
    """

    pairs: npt.NDArray[np.int64]
    exact: npt.NDArray[np.bool_]
    odd: list[tuple[int, str]]


def look(images: Images, kept_in: Path, quiet: bool = False) -> Seen:
    """Looks at all images, or reads what an earlier look at the same images found.

    Args:
        images: all images of a store.
        kept_in: the folder of the store; what is found is kept there if it can be.
        quiet: show no progress.
    """
    path = kept_in / _FILE
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # anything but what is expected: look anew
        content = json.loads(path.read_text("utf-8"))
        if content["format"] == _FORMAT:
            pairs = np.array(content["pairs"], np.int64).reshape(-1, 2)
            exact = np.array(content["exact"], bool)
            odd_ones = [(int(row), str(reason)) for row, reason in content["odd"]]
            rows = [*pairs.reshape(-1).tolist(), *(row for row, _ in odd_ones)]
            if len(pairs) == len(exact) and all(0 <= row < len(images) for row in rows):
                return Seen(pairs, exact, odd_ones)
    found = duplicates.find(images, quiet)
    seen = Seen(found.pairs, found.exact, odd.find(images))
    with contextlib.suppress(OSError):  # no room: then the next time it is looked for again
        lists = {"pairs": seen.pairs.tolist(), "exact": seen.exact.tolist(), "odd": seen.odd}
        write_json(path, {"format": _FORMAT, **lists})
    return seen
