import dataclasses
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numba.core import caching
from PIL import Image
from scipy import ndimage

from trainwell.augment.geometry import centre_crop
from trainwell.augment.warp import Views, _compiled, _mean_grey
from trainwell.augment.warp import warp as warped
from trainwell.errors import InputError
from trainwell.images import Images

RNG = np.random.default_rng(0)
ONES, ZEROS = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)


def warp(images, rows, maps, scale, shift, size, **options):
    return warped(images, Views.plain(maps, scale, shift), size, rows=rows, **options)


def _images(shapes):
    return Images.from_list([RNG.integers(0, 256, shape, dtype=np.uint8) for shape in shapes])


def _random_maps(shapes, size, scale):
    maps = centre_crop(shapes, size)
    maps[:, :, :2] += RNG.normal(0, scale, (len(maps), 2, 2))
    maps[:, :, 2] += RNG.normal(0, 2, (len(maps), 2))
    return maps


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_map_that_does_not_shrink_is_bilinear_interpolation(kernel):
    images = _images([(11, 17, 3)])
    maps = np.array([[[0.8, -0.5, 3.2], [0.4, 0.7, -1.1]]])  # partly outside: the border continues
    got = warp(images, np.array([0]), maps, ONES, ZEROS, (12, 10), kernel=kernel)[0]
    y, x = np.mgrid[:12, :10] + 0.5
    source_x = maps[0, 0, 0] * x + maps[0, 0, 1] * y + maps[0, 0, 2] - 0.5
    source_y = maps[0, 1, 0] * x + maps[0, 1, 1] * y + maps[0, 1, 2] - 0.5
    for channel in range(3):
        plane = images[0][..., channel].astype(float)
        expected = ndimage.map_coordinates(plane, [source_y, source_x], order=1, mode="nearest")
        np.testing.assert_allclose(got[channel].numpy(), expected, atol=255e-4, rtol=0)


def test_kernel_and_reference_agree_on_images_of_all_kinds():
    shapes = [(5, 9, 3), (30, 20, 3), (8, 8, 1), (64, 50, 3), (1, 1, 3), (200, 3, 1)]
    images = _images(shapes)
    rows = np.array([3, 1, 0, 2, 4, 5, 3])
    maps = _random_maps(images.shapes[rows], (8, 7), 0.2)
    scale = RNG.normal(1, 0.2, (7, 3)).astype(np.float32) / 255
    shift = RNG.normal(0, 1, (7, 3)).astype(np.float32)
    fast = warp(images, rows, maps, scale, shift, (8, 7))
    slow = warp(images, rows, maps, scale, shift, (8, 7), kernel="reference")
    assert (fast - slow).abs().max() < 1e-4


def test_no_change_is_none_to_the_bit():
    images = _images([(8, 9, 3)] * 4)
    rows = np.arange(4)
    got = warp(images, rows, centre_crop(images.shapes, (8, 9)), ONES.repeat(4, 0), ZEROS.repeat(4, 0), (8, 9))
    assert (got.permute(0, 2, 3, 1).numpy() == np.stack([images[i] for i in range(4)])).all()


def test_a_whole_crop_is_a_slice_to_the_bit():
    images = _images([(9, 12, 3)])
    maps = np.array([[[1.0, 0, 3], [0, 1, 2]]])
    got = warp(images, np.array([0]), maps, ONES, ZEROS, (5, 6))[0].permute(1, 2, 0).numpy()
    assert (got == images[0][2:7, 3:9]).all()


def test_layout_and_threads_do_not_change_a_pixel():
    images = _images([(40, 50, 3), (70, 30, 3)] * 8)
    rows = np.arange(16)
    maps = _random_maps(images.shapes, (48, 48), 0.1)
    scale, shift = ONES.repeat(16, 0), ZEROS.repeat(16, 0)
    one = warp(images, rows, maps, scale, shift, (48, 48))
    try:
        torch.set_num_threads(3)
        three = warp(images, rows, maps, scale, shift, (48, 48), channels_last=True)
    finally:
        torch.set_num_threads(1)
    assert three.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one, three)


def test_a_fine_pattern_shrunk_by_a_whole_number_is_its_mean():
    stripes = Images.from_array(np.tile(np.array([0, 255], np.uint8), (1, 64, 32))[..., None])
    got = warp(stripes, np.array([0]), centre_crop(stripes.shapes, (16, 16)), ONES[:, :1], ZEROS[:, :1], (16, 16))
    assert (got - 127.5).abs().max() < 1


def test_halving_is_the_mean_of_four_pixels():
    images = _images([(32, 32, 3)])
    got = warp(images, np.array([0]), centre_crop(images.shapes, (16, 16)), ONES, ZEROS, (16, 16))[0]
    expected = images[0].reshape(16, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)


def test_the_centre_crop_of_a_smooth_photograph_is_pillows():
    y, x = np.mgrid[:90, :120] / 20
    smooth = np.stack([np.sin(x + k) * np.cos(y - k) * 120 + 128 for k in range(3)], -1).astype(np.uint8)
    images = Images.from_list([smooth])
    got = warp(images, np.array([0]), centre_crop(images.shapes, (45, 45)), ONES, ZEROS, (45, 45))[0]
    half = Image.fromarray(smooth).resize((60, 45), Image.Resampling.BOX)
    expected = np.asarray(half)[:, 7:52].astype(float)  # 7.5 pixels are cut off at each side
    expected = (expected + np.asarray(half)[:, 8:53]) / 2
    assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() < 2


def test_grey_fills_all_channels():
    images = Images.from_array(np.arange(16, dtype=np.uint8).reshape(1, 4, 4))
    for kernel in ("auto", "reference"):
        got = warp(images, np.array([0]), centre_crop(images.shapes, (4, 4)), ONES, ZEROS, (4, 4), kernel=kernel)
        assert all(torch.allclose(got[0, k], torch.arange(16.0).reshape(4, 4)) for k in range(3))


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 6, 2), (0, -2, 5, 2), (0, 0, 5, 7)])
def test_a_box_beyond_the_batch_is_refused_before_the_kernel_writes_it(kernel, box):
    batch = torch.ones(3, 3, 5, 6)
    views = Views.plain(centre_crop(np.array([[5, 6, 3]]), (5, 6)), ONES, ZEROS)
    with pytest.raises(ValueError, match=r"boxes must lie within \(5, 6\)"):
        warped(batch, dataclasses.replace(views, boxes=np.array([[box]])), (5, 6), kernel=kernel)
    edge = dataclasses.replace(views, boxes=np.array([[[4, 5, 5, 6]]]))  # the last pixel
    assert (warped(batch, edge, (5, 6), kernel=kernel) == 0).nonzero()[:, 2:].unique(dim=0).tolist() == [[4, 5]]


def test_the_mean_grey_needs_no_float64_on_a_device_that_has_none():
    class OnMps(torch.Tensor):
        device = torch.device("mps")

        def to(self, dtype):
            assert dtype != torch.float64
            return super().to(dtype)

        def double(self):
            return self.to(torch.float64)

    pixels = torch.from_numpy(RNG.integers(0, 256, (2, 3, 9, 7), dtype=np.uint8)).float()
    torch.testing.assert_close(_mean_grey(pixels.as_subclass(OnMps)).as_subclass(torch.Tensor), _mean_grey(pixels))


def test_colour_is_not_silently_made_grey():
    images = _images([(4, 4, 1), (4, 4, 3)])
    maps = centre_crop(images.shapes, (4, 4))
    for kernel in ("auto", "reference"):
        with pytest.raises(InputError, match="images of 3 channels do not fit a batch of 1"):
            warp(images, np.arange(2), maps, ONES[:, :1], ZEROS[:, :1], (4, 4), kernel=kernel)


def test_one_scale_serves_all_and_what_does_not_fit_is_refused_before_the_kernel_reads_it():
    images = _images([(5, 6, 3)] * 4)
    rows, maps = np.arange(4), centre_crop(images.shapes, (5, 6))
    shared = warp(images, rows, maps, ONES * 2, ZEROS, (5, 6))
    assert torch.equal(shared, warp(images, rows, maps, ONES.repeat(4, 0) * 2, ZEROS.repeat(4, 0), (5, 6)))
    with pytest.raises(ValueError, match="broadcast"):
        warp(images, rows, maps, ONES.repeat(3, 0), ZEROS, (5, 6))
    with pytest.raises(ValueError, match="broadcast"):
        warp(images, rows, maps[:3], ONES, ZEROS, (5, 6))
    with pytest.raises(ValueError, match="finite"):
        warp(images, rows, np.where(maps == 1, np.nan, maps), ONES, ZEROS, (5, 6))


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_batch_is_float32_on_the_cpu_whatever_the_defaults(kernel):
    images = _images([(9, 9, 3)])
    maps = centre_crop(images.shapes, (4, 4))
    expected = warp(images, np.array([0]), maps, ONES, ZEROS, (4, 4), kernel=kernel)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            got = warp(images, np.array([0]), maps, ONES, ZEROS, (4, 4), kernel=kernel)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_a_huge_image_shrunk_to_a_few_pixels_keeps_its_means():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1200, 1600, 3), np.uint8)
    images = Images.from_list([image])
    got = warp(images, np.array([0]), centre_crop(images.shapes, (3, 4)), ONES, ZEROS, (3, 4))[0]
    expected = image.reshape(3, 400, 4, 400, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(got.numpy(), expected, atol=0.1)


def test_it_works_where_numba_can_keep_nothing(monkeypatch):
    expected = _many()
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    _compiled.cache_clear()
    try:
        assert _many() == expected
    finally:
        _compiled.cache_clear()


def _many() -> bytes:
    pixels = np.arange(64 * 64 * 3 * 8, dtype=np.uint64).astype(np.uint8).reshape(8, 64, 64, 3)
    images = Images.from_array(pixels)
    maps = centre_crop(images.shapes, (64, 64))
    return warp(images, np.arange(8), maps, ONES.repeat(8, 0), ZEROS.repeat(8, 0), (64, 64)).numpy().tobytes()


def _in_child(queue):
    queue.put(_many())


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_it_works_in_a_forked_child():
    expected = _many()  # the pool of threads exists before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()


@pytest.mark.usefixtures("two_threads")
def test_it_works_in_several_threads_at_once():
    expected = _many()
    with ThreadPoolExecutor(4) as pool:
        assert [future.result(60) for future in [pool.submit(_many) for _ in range(8)]] == [expected] * 8
