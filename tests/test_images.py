import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.data import Images
from trainwell.errors import InputError


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3)])
def test_from_array_gives_the_images_back(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = Images.from_array(array)
    assert len(images) == 5
    assert images.size == (4, 6)
    for row in range(5):
        assert (images[row] == array[row].reshape(4, 6, -1)).all()


def test_channels_first_is_told_by_its_length():
    array = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    assert (Images.from_array(array)[2] == array[2].transpose(1, 2, 0)).all()


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])), min_size=1, max_size=6))
def test_from_list_keeps_every_shape(shapes):
    arrays = [np.full(shape, number, np.uint8) for number, shape in enumerate(shapes)]
    images = Images.from_list(arrays)
    assert all((images[row] == array).all() for row, array in enumerate(arrays))
    assert [images[row].shape for row in range(len(images))] == shapes
    assert images.channels == max(shape[2] for shape in shapes)
    assert (images.size is None) == (len({shape[:2] for shape in shapes}) > 1)


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4, 2), np.uint8),
     np.zeros((0, 4, 4), np.uint8)],
)  # fmt: skip
def test_what_is_no_image_is_refused(array):
    with pytest.raises(InputError, match="images must"):
        Images.from_array(array)
