"""Views at test: which pixels they show, and that they are averaged."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import trainwell as tw
from trainwell.augment import Augment, View, average, flips, multi_scale, samples, shifts, ten_crop
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


def test_scales_are_of_the_short_side_and_shrink_without_aliasing():
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
    ],
)
def test_an_average_that_cannot_be_is_refused(text, message):
    with pytest.raises(InputError, match="average") as error:
        average(text, Augment(), 32)
    assert message in str(error.value)


def test_words_for_views_may_be_written_as_in_python():
    assert len(average("ten_crop, flips", Augment(), 32)) == 12
    with pytest.raises(InputError, match="crops of 32 do not fit images whose short side is 16"):
        ten_crop(32, short_side=16)
    with pytest.raises(InputError, match=r"crops of \(24, 24\) do not fit images of 20 by 26: give a short_side"):
        ten_crop(24)[0](BATCH)
