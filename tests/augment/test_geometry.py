"""The maps, against distortions done one after the other, and the pass, against SciPy, Pillow and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from trainwell.augment import Augment, Params
from trainwell.augment.warp import PADDINGS, Views, warp
from trainwell.images import Images

KERNELS = pytest.mark.parametrize("kernel", ["auto", "reference"])
MODES = {"reflection": "reflect", "border": "nearest", "zeros": "grid-constant"}  # of SciPy


def _photograph(height=60, width=80, seed=0):
    """Smooth colours with edges in them, uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    picture = 128 + 60 * smooth / smooth.std() + 40 * (noise[..., :1].cumsum(0) > 0)
    return picture.clip(0, 255).astype(np.uint8)


def _params(**values):
    return Params(**{name: np.atleast_1d(np.asarray(value, float)) for name, value in values.items()})


def _seen_at(params, shape, size):
    """Where each pixel of the batch comes from, in source pixels: one distortion undone after the other."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = x - size[1] / 2, y - size[0] / 2
    further = 1 + params.lens[0] * (x**2 + y**2) / ((size[0] ** 2 + size[1] ** 2) / 4)
    x, y = x * further, y * further
    x, y = x - params.translate[0, 0] * size[1], y - params.translate[0, 1] * size[0]
    x, y = x / params.scale[0], y / params.scale[0]
    angle = np.deg2rad(params.rotate[0])
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y  # y points down
    x = x + np.tan(np.deg2rad(params.shear[0])) * y
    x, y = x / params.stretch[0] ** 0.5, y * params.stretch[0] ** 0.5
    x, y = (-x if params.flip[0] else x), (-y if params.flip_vertical[0] else y)
    step = min(shape[0] / size[0], shape[1] / size[1])
    room = (np.array(shape) - step * np.array(size) / params.scale[0]) / 2
    x = x * step + shape[1] / 2 + params.position[0, 0] * room[1]
    y = y * step + shape[0] / 2 + params.position[0, 1] * room[0]
    return y - 0.5, x - 0.5


MIXED = _params(
    flip=1, scale=1.7, position=[[0.3, -0.8]], translate=[[0.07, -0.1]], rotate=17, stretch=1.2, shear=9, lens=0.12
)


@KERNELS
@pytest.mark.parametrize("mode", PADDINGS)
@pytest.mark.parametrize("lens", [0.12, -0.12])
def test_all_distortions_at_once_are_scipys_one_interpolation_at_the_composed_places(kernel, mode, lens):
    picture, size = _photograph(), (48, 40)
    params = Params(**(vars(MIXED) | {"lens": np.array([lens])}))
    views = Augment().views(params, np.array([[60, 80, 3]], np.int32), size, 3)
    got = warp(Images.from_list([picture]), views, size, padding_mode=mode, kernel=kernel)[0].numpy() / 255
    places = _seen_at(params, (60, 80), size)
    for channel in range(3):
        expected = ndimage.map_coordinates(picture[..., channel] / 255, places, order=1, mode=MODES[mode])
        np.testing.assert_allclose(got[channel], expected, atol=1e-4, rtol=0)


@KERNELS
def test_it_is_torchs_grid_sample(kernel):
    picture = torch.from_numpy(_photograph()).permute(2, 0, 1)[None]
    theta = torch.tensor([[[0.8, -0.3, 0.1], [0.2, 0.9, -0.2]]], dtype=torch.float64)
    for mode in PADDINGS:
        grid = F.affine_grid(theta, [1, 3, 90, 110], align_corners=False)
        expected = F.grid_sample(picture.double(), grid, padding_mode=mode, align_corners=False)[0]
        to_unit = np.array([[2 / 110, 0, -1], [0, 2 / 90, -1], [0, 0, 1]])
        from_unit = np.array([[40, 0, 40], [0, 30, 30], [0, 0, 1]])
        maps = (from_unit @ np.vstack([theta[0].numpy(), [0, 0, 1]]) @ to_unit)[None, :2]
        views = Views.plain(maps, np.ones((1, 3)), np.zeros((1, 3)))
        got = warp(picture, views, (90, 110), padding_mode=mode, kernel=kernel)[0]
        assert (got - expected).abs().max() < 255e-4


@KERNELS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_with_every_amount_at_zero_the_pixels_are_the_same_to_the_bit(kernel, dtype):
    batch = torch.from_numpy(np.stack([_photograph(20, 31, seed) for seed in range(3)])).permute(0, 3, 1, 2).to(dtype)
    views = Augment().views(Params(), np.array([[20, 31]], np.int32), (20, 31), 3)
    assert torch.equal(warp(batch, views, (20, 31), kernel=kernel), batch.float())
    if kernel == "auto":
        assert torch.equal(Augment()(batch.float() / 255), batch.float() / 255)


def test_the_lens_passes_through_no_change_without_a_jump():
    picture = Images.from_list([_photograph()])
    between = [[0.3 / 80, 0.3 / 60]]  # pixels, because an interpolation has a bend at each
    plain = _seen(picture, lens=0.0, translate=between)
    slight, twice, opposite = (_seen(picture, lens=k, translate=between) - plain for k in (1e-4, 2e-4, -1e-4))
    assert 0 < slight.abs().max() < 1
    assert (twice - 2 * slight).abs().max() < 0.01
    assert (opposite + slight).abs().max() < 0.01


def _seen(images, size=(60, 80), **params):
    params = _params(**params)
    return warp(images, Augment().views(params, images.shapes, size, 3), size)[0]


def test_each_amount_does_what_its_name_says():
    disc = np.zeros((41, 41, 3), np.uint8)
    disc[5:12, 17:24] = 255  # a square above the centre
    images = Images.from_list([disc])

    def centre(**params):
        seen = _seen(images, (41, 41), **params)[0].double().numpy()
        y, x = np.mgrid[:41, :41] - 20
        return float((seen * x).sum() / seen.sum()), float((seen * y).sum() / seen.sum())

    assert centre() == pytest.approx((0, -12), abs=0.01)
    assert centre(rotate=90) == pytest.approx((-12, 0), abs=0.01)  # counter-clockwise: what was above is left
    assert centre(translate=[[0.25, 0.1]]) == pytest.approx((10.25, -7.9), abs=0.05)  # to the right, and down
    assert centre(flip_vertical=1) == pytest.approx((0, 12), abs=0.01)
    assert centre(shear=45) == pytest.approx((12, -12), abs=0.2)  # the top leans to the right
    assert centre(scale=1.25) == pytest.approx((0, -15), abs=0.1)
    assert centre(stretch=1.44) == pytest.approx((0, -10), abs=0.05)  # wider, and lower: the area stays
    wide = Images.from_list([np.concatenate([np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)], 1)])
    assert _seen(wide, (20, 20), position=[[-1.0, 0.0]]).max() == 0
    assert _seen(wide, (20, 20), position=[[1.0, 0.0]]).min() == 255
    assert torch.equal(_seen(images, (41, 41), flip=1), _seen(images, (41, 41)).flip(-1))


@KERNELS
@pytest.mark.parametrize("shrink", [2, 3, 4, 7])
def test_shrinking_is_pillows_box_within_a_grey_level(kernel, shrink):
    picture = _photograph(60 * shrink, 40 * shrink)
    images = Images.from_list([picture])
    views = Augment().views(Params(), images.shapes, (60, 40), 3)
    got = warp(images, views, (60, 40), kernel=kernel)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(picture).resize((40, 60), Image.Resampling.BOX), float)
    assert np.abs(got - expected).max() < 1.01  # Pillow rounds twice


@KERNELS
@pytest.mark.parametrize(
    ("shrink", "on_average", "at_most"),
    [(1.4, 0.6, 5.5), (1.6, 1.2, 11), (2.5, 2.1, 12)],  # seen: 0.55 and 5.0, 1.14 and 10.6, 2.00 and 11.2 of 255
)
def test_shrinking_by_other_numbers_is_pillows_bilinear_about(kernel, shrink, on_average, at_most):
    """Nothing is averaged below 1.5; from there on, blocks of a whole number of pixels, which blur a little more."""
    height, width = round(60 * shrink), round(40 * shrink)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(height, width, 3)), (4, 4, 0))
    picture = (128 + 60 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    images = Images.from_list([picture])
    views = Augment().views(Params(), images.shapes, (60, 40), 3)
    got = warp(images, views, (60, 40), kernel=kernel)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(picture).resize((40, 60), Image.Resampling.BILINEAR), float)
    assert np.abs(got - expected).mean() < on_average
    assert np.abs(got - expected).max() < at_most


@KERNELS
@pytest.mark.parametrize("mode", PADDINGS)
@given(seed=st.integers(0, 10**6))
def test_kernel_and_reference_are_one(kernel, mode, seed):
    rng = np.random.default_rng(seed)
    shapes = [(int(h), int(w), int(rng.choice([1, 3]))) for h, w in rng.integers(1, 40, (4, 2))]
    images = Images.from_list([rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes])
    aug = Augment(flip=0.5, flip_vertical=0.5, crop=1, scale=(0.3, 2), translate=0.6, rotate=180, stretch=1, shear=20,
                  lens=0.3, brightness=0.5, contrast=0.5, saturation=0.5, hue=90, cutout=0.3, padding_mode=mode,
                  mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))  # fmt: skip
    size = tuple(int(side) for side in rng.integers(1, 24, 2))
    params = aug.params(rng.integers(0, 2**63, 4, dtype=np.uint64), size)
    views = aug.views(params, images.shapes, size, 3, 1 / 255)
    fast = warp(images, views, size, padding_mode=mode)
    slow = warp(images, views, size, padding_mode=mode, kernel="reference")
    assert (fast - slow).abs().max() < 5e-4  # of about ±8: 1e-4 of the scale from 0 to 1 over a deviation of 0.2
