import io
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits

from trainwell.data import duplicates
from trainwell.data.duplicates import clusters, find
from trainwell.images import Images


def picture(seed, height=96, width=128):
    """Colour noise of every scale, each as strong as the next: the statistics of photographs."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64) - 128
    return Image.fromarray((128 + 0.5 * total).clip(0, 255).astype(np.uint8))


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def noisy(image):
    noise = np.random.default_rng(1).normal(0, 6, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def marked(image):
    image = image.copy()
    image.paste((255, 255, 255), (8, 8, 8 + image.width // 4, 8 + image.height // 12))
    return image


def cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round((1 - right) * width),
                       round((1 - bottom) * height)))  # fmt: skip


CHANGES = {
    "jpeg": lambda image: saved(image, format="JPEG", quality=30),
    "webp": lambda image: saved(image, format="WEBP", quality=50),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "dull": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "crop": lambda image: cropped(image, 0.05, 0.0, 0.0, 0.05),
    "crop all around": lambda image: cropped(image, 0.04, 0.04, 0.04, 0.04),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(0.8)),
    "noise": noisy,
    "mark": marked,
    "mirror": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def stored(pictures):
    arrays = [np.array(one) for one in pictures]
    return Images.from_list([one[..., None] if one.ndim == 2 else one for one in arrays])


def found(images):
    result = find(images, quiet=True)
    return [tuple(pair) for pair in result.pairs.tolist()]


@cache
def originals():
    return [picture(seed) for seed in range(20)]


LARGE, SMALL = (96, 128), (32, 32)
# On a small image a mark may hide too much.
CASES = [(name, size) for name in CHANGES for size in (LARGE, SMALL) if (name, size) != ("mark", SMALL)]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_copies_that_were_changed_a_little_are_found_and_nothing_else_is(name, size):
    pictures = originals() if size == LARGE else [picture(seed, *size) for seed in range(20)]
    copies = [CHANGES[name](one) for one in pictures]
    result = find(stored([*pictures, *copies]), quiet=True)
    assert result.pairs.tolist() == [[i, i + 20] for i in range(20)]
    assert not result.exact.any()
    assert result.mirrored.all() == (name == "mirror")


def test_different_pictures_are_not_found():
    images = stored([picture(seed, 32, 32) for seed in range(300)])
    assert found(images) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_exact_pairs_are_those_that_enumeration_finds(chosen):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(4, 6, 3)] * 3 + [(6, 4, 3)] + [(9, 8, 1)]]
    arrays.append(arrays[0].reshape(6, 4, 3))  # the same bytes in another shape
    result = find(Images.from_list([arrays[one] for one in chosen]), quiet=True)
    expected = [[chosen.index(one), j] for j, one in enumerate(chosen) if chosen.index(one) < j]
    assert result.pairs.tolist() == sorted(expected)
    assert result.exact.all()


def test_exact_and_near_are_told_apart():
    one, other = picture(1), picture(2)
    result = find(stored([one, other, one, CHANGES["jpeg"](one)]), quiet=True)
    assert result.pairs.tolist() == [[0, 2], [0, 3]]
    assert result.exact.tolist() == [True, False]
    assert clusters(4, result.pairs).tolist() == [0, 1, 0, 0]


def test_blank_images_are_near_duplicates_of_nothing():
    rng = np.random.default_rng(0)
    blank = [np.full((64, 64, 3), level, np.uint8) for level in range(0, 250, 10)]
    hazy = [np.clip(rng.normal(200, 0.7, (64, 64, 3)), 0, 255).astype(np.uint8) for _ in range(25)]
    assert found(stored([*blank, *hazy])) == []


def test_patterns_too_fine_for_low_frequencies_are_compared_without_a_warning():
    board = np.indices((64, 64)).sum(axis=0) // 2 % 2
    boards = [(board * contrast).astype(np.uint8) for contrast in range(100, 250, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(stored([*boards, *originals()])) == []


def test_handwritten_digits_of_a_class_are_not_taken_for_copies():
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert found(Images.from_array(digits)) == []
    large = [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in digits]
    concerned = np.unique(find(stored(large), quiet=True).pairs)
    assert len(concerned) <= 0.01 * len(digits)


def test_of_pictures_that_all_look_alike_only_copies_are_found():
    template = np.asarray(picture(0, 64, 64), np.float64)
    rng = np.random.default_rng(0)
    own = [np.asarray(picture(seed, 64, 64), np.float64) - 128 for seed in range(1, 61)]
    alike = [Image.fromarray((template + 0.3 * one).clip(0, 255).astype(np.uint8)) for one in own]
    copies = [saved(alike[row], format="JPEG", quality=80) for row in range(10)]
    assert found(stored([*alike, *copies])) == [(row, 60 + row) for row in range(10)]
    assert found(stored([alike[row] for row in rng.permutation(60)])) == []


def test_the_answer_does_not_depend_on_threads_or_on_the_other_images_order():
    pictures = [*originals(), *(CHANGES["jpeg"](one) for one in originals()[:7])]
    order = np.random.default_rng(0).permutation(len(pictures))
    images, shuffled = stored(pictures), stored([pictures[row] for row in order])
    expected = found(images)
    torch.set_num_threads(3)
    try:
        assert found(images) == expected
    finally:
        torch.set_num_threads(1)
    assert sorted(tuple(sorted(order[list(pair)].tolist())) for pair in found(shuffled)) == expected


def test_more_images_than_fit_into_one_block_are_all_compared():
    copied = [0, 255, 256, 1023, 1024, 1025, 1199]
    cells = np.random.default_rng(0).integers(0, 200, (1_200, 8, 8), dtype=np.uint8)
    pictures = cells.repeat(4, axis=1).repeat(4, axis=2)
    images = Images.from_array(np.concatenate([pictures, pictures[copied] + np.uint8(20)]))
    assert found(images) == [(row, 1_200 + number) for number, row in enumerate(copied)]


def test_of_too_many_images_only_equal_ones_are_found(monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST", 3)
    one = picture(0)
    pictures = [one, CHANGES["jpeg"](one), picture(1), one]
    assert found(stored(pictures)) == [(0, 3)]
    assert found(stored(pictures[:3])) == [(0, 1)]


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_clusters_are_those_that_spreading_finds(count, pairs):
    pairs = [(a % count, b % count) for a, b in pairs]
    expected = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    numbers = clusters(count, np.array(pairs, np.int64).reshape(-1, 2))
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [sorted(set(expected)).index(one) for one in expected]


@given(st.integers(1, 10), st.integers(0, 40), st.integers(0, 5))
def test_the_best_are_kept_in_whatever_order_they_come(most, count, seed):
    rng = np.random.default_rng(seed)
    scores, rows = rng.permutation(count).astype(np.float64), np.arange(3 * count).reshape(count, 3)
    best = duplicates._Best(most, -1.0)
    for chunk in np.array_split(np.arange(count), 7):
        passed = chunk[scores[chunk] > best.least]
        best.add(rows[passed], scores[passed])
    expected = np.sort(np.argsort(scores)[::-1][:most])
    assert np.array_equal(best.rows(), rows[expected])
