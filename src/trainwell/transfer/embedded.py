"""The backbone that comes with the package: a small network for small images, and what it was trained on."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainwell.images import Images
from trainwell.transfer.found import Found
from trainwell.transfer.saved import about_file, read_saved

NAME = "embedded"
PATH = Path(__file__).with_name("embedded.safetensors")
PRINTS = "prints"
SIDE = 32  # pixels of its images
_BITS = 32


def read_embedded() -> Found:
    """Reads the weights; `bench/pretrain.py` has made them."""
    return dataclasses.replace(read_saved(PATH, about_file(PATH)), source=NAME)


def seen_before(images: Images, rows: npt.NDArray[np.int64], most: int = 2_000) -> float:
    """Returns which share of some images it was trained on, or ones that look the same at a glance.

    What it says of such images tells nothing of others, so that a test on them would flatter it.

    Args:
        images: of the data.
        rows: which of them.
        most: how many of them are looked at.
    """
    chosen = rows[:: max(1, len(rows) // most)]
    alike = np.array([row for row in chosen.tolist() if tuple(images.shapes[row]) == (SIDE, SIDE, 3)], np.int64)
    if not len(alike):
        return 0.0
    prints = image_prints(np.stack([images[row] for row in alike]))
    return float(np.isin(prints, _known()).sum() / len(chosen))


@functools.cache
def _known() -> npt.NDArray[np.uint32]:
    from safetensors.numpy import load_file

    return load_file(PATH)[PRINTS].view(np.uint32)


def image_prints(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Returns 32 bits of each image that stay mostly the same when it is saved anew: signs of low frequencies.

    Args:
        pixels: shape `(n, height, width, 3)`.
    """
    from scipy.fft import dctn

    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # which JPEG keeps best
    low = dctn(luma, axes=(1, 2))[:, :8, :8].reshape(len(pixels), -1)
    order = np.argsort([row + column for row in range(8) for column in range(8)], kind="stable")
    signs = np.packbits(low[:, order[1 : _BITS + 1]] > 0, axis=1)
    return np.ascontiguousarray(signs).view(np.uint32)[:, 0]
