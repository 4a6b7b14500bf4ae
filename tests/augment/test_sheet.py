import numpy as np
import pytest
import torch

from trainwell.augment import Augment, light, pictures, strong
from trainwell.errors import InputError


def _rows(sheet):
    """The tiles of each row of a sheet."""
    pixels = np.asarray(sheet)
    return [
        [pixels[top : top + 96, left : left + 96] for left in range(132, pixels.shape[1], 100)]
        for top in range(0, pixels.shape[0], 100)
    ]


def test_the_sheet_shows_each_amount_alone_and_all_together():
    batch = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    sheet = pictures(strong(), batch, rows=(0, 2))
    amounts = 13  # all of strong's, without pca, for which there are no components
    assert sheet.size[1] == (amounts + 2) * 100
    assert np.asarray(sheet).std() > 10


def test_one_image_is_enough_and_grey_ones_have_a_sheet_too():
    sheet = pictures(Augment(brightness=0.5, flip=0.5), np.full((1, 8, 8), 100, np.uint8))
    assert sheet.size[1] == 3 * 100
    tiles = np.asarray(sheet)[100:196, 132:, 0]  # of brightness: darker on the left than on the right
    assert tiles[40, 20] < 60
    assert tiles[40, -20] > 140


@pytest.mark.parametrize("preset", [light, strong])
def test_every_row_shows_a_change_on_square_images_too(preset):
    square = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = _rows(pictures(preset(), square))
    assert len(rows) == {light: 3, strong: 13}[preset] + 1
    for number, tiles in enumerate(rows):
        assert len({tile.tobytes() for tile in tiles}) > 1, number


def test_what_is_wiped_out_shows_as_the_mean_that_the_model_sees_there():
    white = np.full((1, 20, 20, 3), 255, np.uint8)
    for given, expected in (({}, [0, 0, 0]), ({"mean": (0.2, 0.4, 0.6), "std": (0.5, 0.25, 0.2)}, [51, 102, 153])):
        for tile in _rows(pictures(Augment(erase=1.0, **given), white))[0]:
            colours = np.unique(tile.reshape(-1, 3), axis=0).tolist()
            assert colours == sorted([expected, [255, 255, 255]])


def test_a_sheet_needs_images_and_the_colours_of_pca():
    with pytest.raises(InputError, match="images must be uint8"):
        pictures(strong(), torch.rand(2, 3, 8, 8))
    with pytest.raises(InputError, match="pca needs the colours of the training set"):
        pictures(Augment(pca=0.1), np.zeros((1, 8, 8, 3), np.uint8))
