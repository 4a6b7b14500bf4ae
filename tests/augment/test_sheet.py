import numpy as np
import torch

from trainwell.augment import Augment, pictures, strong


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
