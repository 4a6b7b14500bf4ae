"""Views at test: which pixels they show, and that they are averaged."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trainwell as tw
from trainwell import random
from trainwell.augment import Augment, View, flips, multi_scale, parse_views, samples, shifts, ten_crop
from trainwell.augment.warp import warp
from trainwell.errors import InputError
from trainwell.images import Images

BATCH = torch.rand(5, 3, 20, 26, generator=torch.Generator().manual_seed(0))


def test_ten_crops_are_the_corners_and_the_centre_and_their_mirror_images_to_the_bit():
    crops = [BATCH[:, :, y : y + 16, x : x + 16] for y in (0, 4) for x in (0, 10)] + [BATCH[:, :, 2:18, 5:21]]
    expected = [view for crop in crops for view in (crop, crop.flip(-1))]
    seen = [view(BATCH) for view in ten_crop(16)]
    assert len(seen) == len(expected) == 10
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("size", [1, 7, 15, 16, 17, 19, 20])
def test_crops_are_of_whole_pixels_where_torchvision_has_them_whatever_the_differences(size):
    tall = torch.rand(2, 3, 97, 64, generator=torch.Generator().manual_seed(1))
    for batch in (BATCH, BATCH.transpose(-1, -2), tall):
        y, x = batch.shape[2] - size, batch.shape[3] - size
        places = [(0, 0), (0, x), (y, 0), (y, x), (int(round(y / 2)), int(round(x / 2)))]  # noqa: RUF046
        for view, (top, left) in zip(ten_crop(size, flip=False), places, strict=True):
            assert torch.equal(view(batch), batch[:, :, top : top + size, left : left + size])


def test_without_mirror_images_the_others_are_the_same():
    for whole, some in (
        (ten_crop(16), ten_crop(16, flip=False)),
        (shifts(0.2), shifts(0.2, flip=False)),
        (multi_scale((16, 24), 16), multi_scale((16, 24), 16, flip=False)),
        (
            parse_views("shifts,ten-crop,multi-scale", Augment(), 16),
            parse_views("shifts,ten-crop,multi-scale", Augment(), 16, False),
        ),
    ):
        assert len(some) == len(whole) // 2
        for one, other, mirrored in zip(some, whole[::2], whole[1::2], strict=True):
            assert torch.equal(one(BATCH), other(BATCH))
            assert not torch.equal(one(BATCH), mirrored(BATCH))


def test_scales_are_of_the_short_side_and_shrink_as_pillows_box_does():
    picture = (255 * BATCH[0].permute(1, 2, 0)).byte().repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    images, size = Images.from_list([picture]), (40, 40)  # of 160 by 208
    for short, view in zip((40, 80), multi_scale((40, 80), 40)[8::10], strict=True):  # the centres
        views = Augment().views(view.at(images.shapes, size), images.shapes, size, 3)
        got = warp(images, views, size)[0].permute(1, 2, 0).numpy()
        small = np.asarray(Image.fromarray(picture).resize((208 * short // 160, short), Image.Resampling.BOX), float)
        top, left = (small.shape[0] - 40) // 2, (small.shape[1] - 40) // 2
        assert np.abs(got - small[top : top + 40, left : left + 40]).max() < 1.01
    assert len(multi_scale()) == 50


def test_shifts_are_those_of_a_padded_image():
    padded = nn.functional.pad(BATCH[:, :, :, :20], (4, 4, 4, 4))
    for view, (y, x) in zip(shifts(0.2)[2::2], [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        moved = View(view.params, Augment(padding_mode="zeros"))(BATCH[:, :, :, :20])
        crop = padded[:, :, 8 * (1 - y) : 8 * (1 - y) + 20, 8 * (1 - x) : 8 * (1 - x) + 20]
        assert torch.allclose(moved, crop, atol=1e-5)
    assert len(shifts()) == 10
    assert torch.equal(flips()[1](BATCH), BATCH.flip(-1))


def test_samples_are_draws_of_the_augmentation_the_same_for_all_images_and_batches():
    aug = Augment(rotate=30, brightness=0.3, size=16)
    views = samples(aug, 3, seed=1)
    whole = [view(BATCH) for view in views]
    assert all(torch.equal(view(BATCH[2:4]), seen[2:4]) for view, seen in zip(views, whole, strict=True))
    assert not torch.equal(whole[0], whole[1])
    again, other = samples(aug, 3, seed=1)[0](BATCH), samples(aug, 3, seed=2)[0](BATCH)
    assert torch.equal(again, whole[0])
    assert not torch.equal(other, whole[0])


@pytest.mark.parametrize("side", [16, 20, 40, 97])
def test_samples_show_what_training_shows_whatever_the_size_of_the_images(side):
    aug = Augment(rotate=30, brightness=0.3, crop=1, scale=(0.8, 1.5), erase=1.0, size=24)
    draws = aug.params(random.keys(random.key(5, "samples"), np.arange(2)))
    batch = torch.rand(3, 3, side, side + 5, generator=torch.Generator().manual_seed(2))
    for number, view in enumerate(samples(aug, 2, seed=5)):
        assert torch.equal(view(batch), aug(batch, params=draws[number]))
        assert view(batch).shape[2:] == (24, 24)


def test_marginalize_averages_the_probabilities_of_the_views():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()
    views = ten_crop(16) + samples(Augment(rotate=10, size=16), 2)
    result = tw.ensemble.marginalize(model, BATCH, crops=views, batch_size=2)
    with torch.no_grad():
        expected = torch.stack([model(view(BATCH)).double().softmax(1) for view in views]).mean(0)
    assert result.draws == 12
    assert torch.allclose(result.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ten-crops", "did you mean 'ten-crop'?"),
        ("samples", "samples alone takes a number"),
        ("samples:0", "from 1 to 1000"),
        ("flips:2", "samples alone takes a number"),
        ("samples:-1", "from 1 to 1000"),
        ("flips,", "average must be of"),
        (None, "average is text, such as 'ten-crop,samples:8'; it is None"),
        (["flips"], "average is text"),
        ("flips,shifts,flips", "flips is there twice"),
        ("samples:4, samples:8", "samples is there twice"),
    ],
)
def test_an_average_that_cannot_be_is_refused(text, message):
    with pytest.raises(InputError, match="average") as error:
        parse_views(text, Augment(), 32)
    assert message in str(error.value)


def test_mirror_images_that_training_did_not_show_are_refused_and_what_to_take_is_said():
    with pytest.raises(
        InputError, match="flips are mirror images, of which training showed none: take shifts, ten-crop"
    ):
        parse_views("ten-crop,flips", Augment(), 32, flip=False)


@pytest.mark.parametrize("size", [0, -3, 24.0, (24, 32), True, "24"])
def test_a_crop_whose_side_is_no_number_of_pixels_is_refused(size):
    with pytest.raises(InputError, match="ten_crop: size is the side of the crops, in pixels, from 1; it is"):
        ten_crop(size)


@pytest.mark.parametrize("count", [0, -1])
def test_no_samples_are_refused(count):
    with pytest.raises(InputError, match=f"samples: count is how many draws, from 1; it is {count}"):
        samples(Augment(rotate=5), count)


def test_words_for_views_may_be_written_as_in_python():
    assert len(parse_views("ten_crop, flips", Augment(), 32)) == 12
    with pytest.raises(InputError, match="crops of 32 do not fit images whose short side is 16"):
        ten_crop(32, short_side=16)
    with pytest.raises(InputError, match=r"crops of \(24, 24\) do not fit images of 20 by 26: give a short_side"):
        ten_crop(24)[0](BATCH)
