import functools
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from trainwell.data import odd
from trainwell.data.decode import decode
from trainwell.images import Images

RNG = np.random.default_rng(0)


@functools.cache
def _samples():
    return load_sample_images().images


def photographs(count, height=60, width=80):
    """Pieces of the two photographs that scikit-learn brings along."""
    pieces = []
    for number in range(count):
        photo = _samples()[number % 2]
        top, left = RNG.integers(0, photo.shape[0] - height), RNG.integers(0, photo.shape[1] - width)
        pieces.append(photo[top : top + height, left : left + width].copy())
    return pieces


def drawing(height=60, width=80):
    """A frame with a disc in it, on white."""
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 247, np.uint8)
    image[(y - height // 2) ** 2 + (x - width // 2) ** 2 < 150] = [60, 60, 60]
    image[3, 3:-3] = image[-4, 3:-3] = 230
    return image


def told(arrays):
    return odd.find(Images.from_list(arrays))


def test_of_photographs_none_is_told():
    assert told(photographs(100)) == []


def test_a_drawing_among_photographs_is_told():
    found = told([*photographs(40), drawing(), *photographs(20)])
    assert found == [(40, "is flat as a drawing or a placeholder, unlike the others")]


def test_drawings_among_drawings_are_not_told():
    assert told([drawing(60 + number, 70) for number in range(30)] + photographs(10)) == []
    assert (
        told([drawing(60 + number, 70) for number in range(4)] + photographs(100)) == []
    )  # of a hundred, 4 are a kind
    assert odd.find(Images.from_array(load_digits().images.astype(np.uint8) * 15)) == []


def test_scans_with_a_black_surround_are_not_told():
    scans = []
    y, x = np.mgrid[:64, :64]
    for _ in range(50):
        scan = RNG.integers(0, 256, (64, 64, 1), np.uint8)
        scan[(y - 32) ** 2 + (x - 32) ** 2 > RNG.integers(150, 900)] = 0
        scans.append(scan)
    assert told(scans) == []


@pytest.mark.parametrize("shape", [(60, 80, 3), (1, 1, 1), (1, 90, 3), (90, 1, 1)])
def test_one_colour_is_told_in_any_shape(shape):
    blank = np.full(shape, 255, np.uint8)
    blank[..., 0] = 40
    assert told([*photographs(5), blank]) == [(5, "is of one colour throughout")]


def test_one_colour_is_not_told_where_most_are():
    assert told([np.full((9, 9, 3), number, np.uint8) for number in range(10)] + photographs(3)) == []


def test_one_pixel_more_is_a_drawing_and_stripes_are_neither():
    nearly = np.full((60, 80, 3), 40, np.uint8)
    nearly[30, 40] = 41
    striped = np.repeat(RNG.integers(0, 256, (60, 1, 3), np.uint8), 80, axis=1)
    found = told([*photographs(10), nearly, striped, striped.swapaxes(0, 1)])
    assert [row for row, _ in found] == [10]
    assert found[0][1].startswith("is flat")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_whose_data_end_too_early_is_told_though_libjpeg_is_content(tmp_path, orientation):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_samples()[1]).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    damaged = decode(tmp_path / "a.jpg", 60)
    found = told([*photographs(10), damaged])
    assert [row for row, _ in found] == [10]
    assert found[0][1].startswith("is plain grey on ")
    assert found[0][1].endswith("% of it, as a damaged JPEG file")
    framed = [np.pad(photo, ((9, 9), (0, 0), (0, 0)), constant_values=128) for photo in photographs(10)]
    assert told(framed) == []


def test_nothing_is_told_of_nothing():
    assert odd.find(Images(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty((0, 3), np.int32))) == []
