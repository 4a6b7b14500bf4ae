"""Augment: what is drawn, that it belongs to the sample, and what is refused."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainwell import random
from trainwell.augment import Augment, Components, Params, parse, principal_components, strong
from trainwell.augment.warp import warp
from trainwell.errors import InputError
from trainwell.images import Images

RNG = np.random.default_rng(0)
COMPONENTS = Components((0.09, 0.01, 0.002), ((0.6, 0.6, 0.53), (0.7, 0.0, -0.71), (0.4, -0.8, 0.4)))
ALL = strong(components=COMPONENTS, flip_vertical=0.3, cutout=0.4, size=(20, 24), mean=(0.5, 0.4, 0.3), std=(0.2,) * 3)


def _batch(count=12, size=(18, 21), channels=3):
    return torch.from_numpy(RNG.integers(0, 256, (count, channels, *size), dtype=np.uint8))


def _keys(numbers, epoch=0):
    return random.keys(random.key(3, "augment", epoch), numbers)


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 2])
def test_the_pixels_are_a_function_of_seed_epoch_and_sample_whatever_the_batch_and_the_threads(count, threads):
    threads(count)
    batch = _batch(40, size=(60, 64))
    whole = ALL(batch, keys=_keys(np.arange(40)))
    threads(1)
    order = RNG.permutation(40)
    for rows in np.split(order, [1, 4, 17]):
        assert torch.equal(ALL(batch[rows], keys=_keys(rows)), whole[rows])
    assert not torch.equal(ALL(batch, keys=_keys(np.arange(40), epoch=1)), whole)


def test_layouts_and_dtypes_of_the_same_pixels_make_the_same_batch():
    batch, keys = _batch(), _keys(np.arange(12))
    expected = ALL(batch, keys=keys)
    as_nhwc = batch.to(memory_format=torch.channels_last)
    assert torch.equal(ALL(as_nhwc, keys=keys), expected)
    assert torch.equal(ALL(batch.flip(0).flip(0), keys=keys), expected)
    assert torch.allclose(ALL(batch.double() / 255, keys=keys), expected, atol=1e-5)
    out = dataclasses.replace(ALL, channels_last=True, dtype=torch.bfloat16)(batch, keys=keys)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, expected.bfloat16())
    half = torch.cat([batch, batch])[:12]  # a view of a longer tensor, and one that repeats itself
    assert torch.equal(ALL(half, keys=keys), expected)
    assert torch.equal(ALL(batch[:1].expand(12, -1, -1, -1), keys=keys)[0], expected[0])


def test_what_was_drawn_can_be_done_again_and_a_part_of_it():
    batch, keys = _batch(), _keys(np.arange(12))
    params = ALL.params(keys)
    assert len(params) == 12
    assert torch.equal(ALL(batch, params=params), ALL(batch, keys=keys))
    assert torch.equal(ALL(batch[3:5], params=params[3:5]), ALL(batch, keys=keys)[3:5])
    assert torch.equal(ALL(batch[7:8], params=params[7]), ALL(batch, keys=keys)[7:8])


def test_an_amount_that_is_switched_off_changes_no_other_draws():
    keys = _keys(np.arange(50))
    whole = ALL.params(keys)
    for name in ("flip", "scale", "translate", "rotate", "lens", "contrast", "pca", "erase"):
        fewer = dataclasses.replace(ALL, **{name: 0.0}).params(keys)
        changed = {"erase": "boxes"}.get(name, name)
        for field in dataclasses.fields(Params):
            if field.name != changed:
                assert np.array_equal(getattr(fewer, field.name), getattr(whole, field.name)), (name, field.name)


def test_draws_are_spread_as_the_amounts_say():
    drawn = ALL.params(_keys(np.arange(4000)))
    uniform = {
        "rotate": (-20, 20),
        "shear": (-8, 8),
        "lens": (-0.15, 0.15),
        "brightness": (0.7, 1.3),
        "scale": (0.8, 1.5),
    }
    for name, (low, high) in uniform.items():
        assert stats.kstest(getattr(drawn, name), stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    assert stats.kstest(np.log(drawn.stretch), stats.uniform(-math.log(1.2), 2 * math.log(1.2)).cdf).pvalue > 1e-3
    assert stats.kstest(drawn.pca.ravel() / 0.1, stats.norm.cdf).pvalue > 1e-3
    assert abs(drawn.flip.mean() - 0.5) < 0.03
    assert abs(drawn.flip_vertical.mean() - 0.3) < 0.03
    wiped = (drawn.boxes[:, 0] != drawn.boxes[:, 0, :1]).any(1)
    assert abs(wiped.mean() - 0.25) < 0.03
    names = ("rotate", "shear", "lens", "brightness", "contrast", "saturation", "hue")
    together = np.corrcoef([getattr(drawn, name) for name in names])
    assert np.abs(together - np.eye(len(names))).max() < 0.07  # each for itself


def test_params_can_be_gone_through_one_by_one_and_end_with_the_last_image():
    params = ALL.params(_keys(np.arange(4)))
    assert [len(each) for each in params] == [1] * 4
    assert [each.rotate[0] for each in params] == params.rotate.tolist()
    assert params[np.int64(2)].rotate == params[-2].rotate == params.rotate[2]
    assert len(list(itertools.islice(ALL.params(_keys([5])), 9))) == 1
    for beyond in (4, -5, np.int64(4)):
        with pytest.raises(IndexError, match=f"params are for 4 images; there is no number {beyond}"):
            params[beyond]


def test_a_chance_leaves_out_each_amount_for_itself():
    drawn = Augment(rotate=10, shear=5, brightness=0.2, flip=0.5, chance=0.3).params(_keys(np.arange(4000)))
    on = np.stack([drawn.rotate != 0, drawn.shear != 0, drawn.brightness != 1])
    assert np.abs(on.mean(1) - 0.3).max() < 0.03
    assert np.abs(np.corrcoef(on) - np.eye(3)).max() < 0.07
    assert abs(drawn.flip.mean() - 0.5) < 0.03


def test_without_keys_torchs_generator_draws():
    batch = _batch()
    torch.manual_seed(1)
    first, second = ALL(batch), ALL(batch)
    torch.manual_seed(1)
    assert torch.equal(ALL(batch), first)
    assert not torch.equal(first, second)


def test_draws_do_not_depend_on_torchs_default_device():
    batch = _batch()
    torch.manual_seed(1)
    expected = ALL(batch)
    torch.manual_seed(1)
    with torch.device("meta"):  # stands for a GPU
        assert torch.equal(ALL(batch), expected)


def test_off_is_the_same_size_and_normalisation_alone():
    batch = _batch(size=(20, 24))
    expected = (batch / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2
    assert torch.allclose(ALL.off()(batch), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_numbers_of_channels_are_changed_alike(channels):
    batch = _batch(channels=channels)
    batch[:] = batch[:, :1]
    out = Augment(rotate=20, lens=0.2, brightness=0.3, contrast=0.3, erase=0.5, size=16)(
        batch, keys=_keys(np.arange(12))
    )
    assert out.shape == (12, channels, 16, 16)
    assert torch.equal(out, out[:, :1].expand_as(out))


def test_the_mean_colour_shifts_by_the_drawn_combination_of_the_training_sets_components():
    pixels = RNG.normal(size=(30, 16, 16, 3)) @ np.diag([40, 12, 4]) @ np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    images = Images.from_array((128 + pixels).clip(0, 255).astype(np.uint8))
    components = principal_components(images)
    flat = images.pixels.reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    assert components.values == pytest.approx(values[::-1])
    np.testing.assert_allclose(np.abs(np.array(components.vectors) @ vectors[:, ::-1]), np.eye(3), atol=1e-6)
    assert all(max(vector, key=abs) > 0 for vector in components.vectors)

    aug = Augment(pca=0.1, components=components)
    batch, keys = torch.from_numpy(np.stack([images[i] for i in range(30)])).permute(0, 3, 1, 2), _keys(np.arange(30))
    shift = (aug(batch, keys=keys) - batch / 255).double()
    alphas = aug.params(keys).pca
    expected = sum(alphas[:, i, None] * components.values[i] * np.array(components.vectors[i]) for i in range(3))
    np.testing.assert_allclose(shift.mean((2, 3)).numpy(), expected, atol=1e-6)
    assert shift.std((2, 3)).max() < 1e-6  # all pixels of an image alike


def test_colours_are_pillows():
    """The same formulas as ImageEnhance's, before it rounds and cuts off."""
    from PIL import Image, ImageEnhance

    batch = torch.from_numpy(RNG.integers(90, 160, (1, 3, 20, 20), dtype=np.uint8))
    picture = Image.fromarray(batch[0].permute(1, 2, 0).numpy())
    for name, enhance in (("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")):
        for factor in (0.6, 1.0, 1.4):
            got = Augment()(batch, params=Params(**{name: np.array([factor])}))[0].permute(1, 2, 0).numpy() * 255
            expected = np.asarray(getattr(ImageEnhance, enhance)(picture).enhance(factor), float)
            assert np.abs(got - expected).max() < 2.1, (name, factor)  # Pillow rounds the grey too


def test_a_third_of_a_turn_of_hue_exchanges_the_colours():
    batch = _batch()
    out = Augment()(batch, params=Params(hue=np.array([120.0])))
    assert torch.allclose(out, batch[:, [2, 0, 1]] / 255, atol=1e-5)  # what was red is green
    grey = batch[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(Augment()(grey, params=Params(hue=np.array([77.0]))), grey / 255, atol=1e-5)


def test_boxes_are_another_for_each_image_of_the_area_that_the_paper_says_and_wiped_out():
    aug = Augment(erase=1.0, size=(40, 60), mean=(0.5,), std=(0.2,))
    out = aug(torch.full((400, 1, 40, 60), 255, dtype=torch.uint8), keys=_keys(np.arange(400)))
    areas = (out == 0).double().mean((1, 2, 3))
    assert len({tuple(box) for box in aug.params(_keys(np.arange(400)), (40, 60)).boxes[:, 0].tolist()}) == 400
    assert 0.01 < areas.min() < 0.04
    assert 0.28 < areas.max() < 0.36
    assert stats.kstest(areas.numpy(), stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 1e-3
    filled = areas == torch.stack([_filled(image[0] == 0) for image in out])
    assert filled.all()


def _filled(wiped):
    """The share of the image of the smallest box around what was wiped out."""
    rows, columns = wiped.any(1).nonzero(), wiped.any(0).nonzero()
    return ((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)).double() / wiped.numel()


def test_cutout_is_a_square_that_the_border_may_cut():
    aug = Augment(cutout=0.5)
    wiped = (aug(torch.full((300, 1, 32, 32), 9, dtype=torch.uint8), keys=_keys(np.arange(300))) == 0).sum((1, 2, 3))
    assert wiped.max() in range(15 * 15, 17 * 17 + 1)
    assert (wiped < 200).any()


@given(st.integers(0, 2**63), st.integers(1, 5))
def test_the_output_is_finite_whatever_is_drawn(seed, side):
    batch = torch.full((2, 3, side, side + 1), 200, dtype=torch.uint8)
    out = dataclasses.replace(ALL, lens=0.33, rotate=180.0, scale=(0.01, 8.0), size=7)(batch, keys=_keys([seed, 1]))
    assert torch.isfinite(out).all()


REFUSED = [
    ({"rotate": -1}, "rotate must be from 0 to 180; it is -1"),
    ({"lens": 0.5}, "lens must be from 0 to 0.33"),
    ({"flip": "a"}, "flip must be from 0 to 1; it is 'a'"),
    ({"flip": True}, "flip must be from 0 to 1"),
    ({"chance": "a"}, "chance must be from 0 to 1"),
    ({"rotate": math.nan}, "rotate must be from 0 to 180"),
    ({"scale": 1.0}, "scale is a part below 1, or a range above 0 as (0.8, 1.25); it is 1.0"),
    ({"scale": (2.0, 1.0)}, "scale is a part below 1"),
    ({"scale": (1, 2, 3)}, "scale is a part below 1"),
    ({"scale": None}, "scale is a part below 1"),
    ({"scale": "a"}, "scale is a part below 1"),
    ({"padding_mode": "mirror"}, "padding_mode must be one of reflection, border, zeros; it is 'mirror'"),
    ({"size": 16.0}, "size is a number of pixels, or height and width; it is 16.0"),
    ({"size": (16,)}, "size is a number of pixels"),
    ({"size": 0}, "size is a number of pixels"),
    ({"size": True}, "size is a number of pixels"),
    ({"size": [16, 16.0]}, "size is a number of pixels"),
    ({"scale": (0.5, math.inf)}, "scale is a part below 1"),
    ({"mean": (0.5,)}, "mean and std belong together"),
    ({"mean": (0.5,), "std": (0.0,)}, "std must be above 0, because it is divided by; it is (0.0,)"),
    ({"mean": (math.nan,) * 3, "std": (1,) * 3}, "mean is a finite number, or one a channel; it is (nan, nan, nan)"),
    ({"mean": "0.5", "std": 1}, "mean is a finite number, or one a channel; it is ('0.5',)"),
    ({"mean": 0.5, "std": []}, "std is a finite number, or one a channel; it is ()"),
    ({"dtype": "bfloat16"}, "dtype is one of floating numbers, such as torch.bfloat16; it is 'bfloat16'"),
    ({"dtype": torch.uint8}, "dtype is one of floating numbers"),
]


@pytest.mark.parametrize(("amounts", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_in_one_line(amounts, message):
    with pytest.raises(InputError) as error:
        Augment(**amounts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [
        list,
        np.array,
        torch.tensor,
        lambda row: np.array(row, np.float64)[:, None, None],
        lambda row: [np.float32(value) for value in row],
    ],
    ids=["list", "array", "tensor", "array (c, 1, 1)", "NumPy's numbers"],
)
def test_mean_and_std_may_be_rows_of_any_kind_and_make_the_same_augmentation(rows):
    mean, std = (0.5, 0.25, 0.125), (0.5, 1, 2)
    given, expected = Augment(flip=0.5, mean=rows(mean), std=rows(std)), Augment(flip=0.5, mean=mean, std=std)
    assert given == expected
    assert hash(given) == hash(expected)
    assert repr(given) == "Augment(flip=0.5, mean=(0.5, 0.25, 0.125), std=(0.5, 1.0, 2.0))"
    batch = _batch()
    assert torch.equal(given(batch, keys=_keys(np.arange(12))), expected(batch, keys=_keys(np.arange(12))))


def test_amounts_and_sizes_of_numpy_are_taken_and_printed_as_plain_numbers():
    given = Augment(flip=np.float32(0.5), rotate=np.int64(5), scale=np.array([0.75, 1.5]), size=[np.int64(20), 24])
    assert repr(given) == "Augment(flip=0.5, scale=(0.75, 1.5), rotate=5, size=(20, 24))"
    assert given == Augment(flip=0.5, rotate=5, scale=(0.75, 1.5), size=(20, 24))
    assert parse(repr(Augment(rotate=np.float64(2.5)))) == Augment(rotate=2.5)
    assert Augment(size=np.int64(16))(_batch()).shape == (12, 3, 16, 16)
    one, batch = Augment(mean=0.5, std=np.float64(0.25)), _batch()  # one number for all channels
    assert torch.equal(one(batch), Augment(mean=(0.5,) * 3, std=(0.25,) * 3)(batch))


def test_boxes_are_whole_pixels_of_the_batch_whatever_was_asked_for():
    beyond = np.array([[[-0.2, 0.5, 0.4, 1.5]], [[0.5, -3.0, 7.0, 0.25]]])
    views = Augment().views(Params(boxes=beyond), np.array([[8, 12, 3]] * 2, np.int32), (8, 12), 3)
    assert views.boxes.tolist() == [[[0, 6, 3, 12]], [[4, 0, 8, 3]]]
    batch = _batch(2, (8, 12)).clamp(min=1)
    fast, slow = warp(batch, views, (8, 12)), warp(batch, views, (8, 12), kernel="reference")
    assert torch.equal(fast, slow)
    assert (fast == 0).sum((2, 3)).tolist() == [[18] * 3, [12] * 3]


@pytest.mark.parametrize("box", [(10, 10, 20, 20), (-0.2, 0, 0.2, 1), (0.5, 0, 0.2, 1), (0, 0, 1, math.nan), (0, 1)])
def test_boxes_in_pixels_or_the_wrong_way_round_are_refused(box):
    with pytest.raises(InputError, match="params.boxes are in parts of the sides, from 0 to 1"):
        Augment()(_batch(), params=Params(boxes=np.array([[box]], float)))


def test_boxes_that_end_at_the_border_but_for_a_rounding_error_are_taken():
    wiped = Augment()(_batch().clamp(min=1), params=Params(boxes=np.array([[[0, 0, 0.1 + 0.2 + 0.7 + 2e-16, 1.0]]])))
    assert (wiped == 0).all()


def test_what_is_no_batch_is_refused():
    aug = Augment(rotate=5)
    for batch in (torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.int64)):
        with pytest.raises(InputError, match="a batch of images is uint8 or float of shape"):
            aug(batch)
    with pytest.raises(InputError, match=r"torch\.from_numpy"):
        aug(_batch().numpy())
    for channels in (1, 3, 4):
        with pytest.raises(InputError, match=r"give batch\.permute\(0, 3, 1, 2\)"):
            aug(torch.zeros(2, 24, 32, channels))
    assert aug(torch.zeros(2, 3, 24, 3)).shape == (2, 3, 24, 3)  # narrow images are none
    with pytest.raises(InputError, match="mean has 2 numbers, and the batch 3 channels"):
        Augment(mean=(0.5, 0.5), std=(0.2, 0.2))(_batch())
    with pytest.raises(InputError, match="pca needs the colours of the training set"):
        Augment(pca=0.1)(_batch())


@pytest.mark.parametrize("shape", [(3,), (1,), (0,), (), (12, 1)])
def test_keys_that_are_not_one_an_image_are_refused_because_images_would_be_changed_alike(shape):
    with pytest.raises(InputError, match="keys are of shape .*, and there are 12 images: give one for each"):
        Augment(rotate=5)(_batch(), keys=np.ones(shape, np.uint64))


def test_params_that_do_not_fit_the_batch_are_refused_and_one_row_serves_all():
    aug, batch, keys = Augment(rotate=5), _batch(), _keys(np.arange(12))
    with pytest.raises(InputError, match="give keys or params, not both"):
        aug(batch, keys=keys, params=aug.params(keys))
    for short in (Params(rotate=np.ones(12), flip=np.ones(2)), aug.params(keys[:5]), Params(flip=1.0)):
        with pytest.raises(
            InputError, match=r"params\.\w+ is of shape .*, and there are 12 images: give 12, or 1 for all"
        ):
            aug(batch, params=short)
    one_flip = Params(flip=np.ones(1), brightness=np.full(12, 255.0))
    assert torch.equal(aug(batch.float() / 256, params=one_flip), batch.flip(-1) / 256 * 255)


def test_colours_are_taken_of_the_rows_that_are_given_in_any_form():
    batch = _batch()
    assert principal_components(batch, [0, 2]) == principal_components(batch[[0, 2]])
    with pytest.raises(InputError, match="principal_components: rows is empty"):
        principal_components(batch, [])


def test_a_preset_is_read_from_text_and_printed_as_it_can_be_read():
    for text in ("none", "light", "standard", "strong", "standard(flip=0.0)", "Augment(rotate=5, scale=(0.9, 1.2))"):
        assert parse(repr(parse(text))) == parse(text)
    assert parse("standard(scale=[0.9, 1.1])").scale == (0.9, 1.1)
    assert parse("standard").pca == 0
    assert parse("standard", COMPONENTS).pca == 0.1
    assert parse("none", COMPONENTS).pca == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("standart", "did you mean 'standard'?"),
        ("standard(", "augment must be one of none, light, standard, strong"),
        ("standard(0.5)", "augment must be one of"),
        ("standard(rotat=5)", "did you mean 'rotate'?"),
        ("standard(size=5)", "size and normalisation are set by fit"),
        ("standard(rotate=five)", "rotate must be a number; it is five"),
        ("standard(**{})", "none of the amounts"),
        ("standard(rotate=999)", "rotate must be from 0 to 180"),
        ("__import__('os').system('true')", "augment must be one of"),
        ("standard(rotate=__import__('os'))", "rotate must be a number"),
    ],
)
def test_text_that_is_none_is_refused_and_nothing_is_run(text, message):
    with pytest.raises(InputError) as error:
        parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{}, {"flip": 0.5}, {"rotate": 10}, {"erase": 1.0}])
def test_an_empty_batch_stays_empty_and_images_without_pixels_are_refused(change):
    assert Augment(**change)(torch.rand(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    with pytest.raises(InputError, match=r"the shape \(2, 3, 0, 4\): images have at least one channel and one pixel"):
        Augment(**change)(torch.rand(2, 3, 0, 4))
