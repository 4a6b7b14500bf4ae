import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import trainwell as tw
from trainwell.data.divide import usual_folds
from trainwell.data.sources import read

NOISE = np.random.default_rng(0)
X, Y = NOISE.normal(size=(60, 4)).astype("f4"), np.arange(60) % 3


def test_each_fold_is_a_split_and_together_they_are_all():
    parts = [tw.load((X, Y), folds=5, fold=fold) for fold in range(1, 6)]
    for data in parts:
        rows = [part.indices for part in data.parts.values()]
        assert sorted(np.concatenate(rows)) == list(range(60))
        assert np.bincount(Y[data.test.indices]).tolist() == [4, 4, 4]
    assert sorted(np.concatenate([data.test.indices for data in parts])) == list(range(60))
    last = tw.load((X, Y), folds=5)
    assert last.sizes == {"train": 51, "val": 9, "test": 0}
    assert len({data.fingerprint for data in [*parts, last]}) == 6


def test_no_group_is_on_two_sides():
    groups = np.repeat(np.arange(12), 5)
    for fold in range(1, 5):
        data = tw.load((X, Y, groups), folds=4, fold=fold)
        sides = [set(groups[part.indices]) for part in data.parts.values()]
        assert sum(map(len, sides)) == 12
        assert len(set.union(*sides)) == 12
    assert (data.groups == groups).all()


def test_groups_given_as_words_and_for_each_part():
    words = np.repeat(["ann", "bob", "eve"], 20)
    data = tw.load((X, Y, words))
    sides = [set(words[part.indices]) for part in data.parts.values()]
    assert sorted(map(len, sides)) == [1, 1, 1]
    data = tw.load({"train": (X, Y, words), "test": (X[:3], Y[:3], ["ann", "eve", "zoe"])}, val=20)
    [told] = [notice for notice in data.notices if notice.kind == "groups" and "test" in notice.text]
    training = set(words[data.train.indices[data.train.indices < 60]])
    assert told.text.startswith(f"{len(training & {'ann', 'eve'})} of 3 test samples are of groups in training")


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ((X, Y), {"folds": 0}, "folds must be a whole number"),
        ((X, Y), {"folds": 5, "fold": 6}, "fold must be from 1 to 5"),
        ((X, Y), {"fold": 2}, "needs folds="),
        ((X, Y), {"group_by": "animal"}, r"give arrays as \(x, y, groups\)"),
        ((X, Y, np.arange(59)), {}, "one for each of the 60 samples"),
        ((X, Y, X[:, 0]), {}, "whole numbers or strings"),
        ({"train": (X, Y), "test": (X, Y)}, {"folds": 3, "fold": 1}, "a test part of its own"),
        ({"train": (X, Y, Y), "test": (X, Y)}, {}, "some have none"),
    ],
)
def test_what_cannot_be_divided(source, options, words):
    with pytest.raises(tw.InputError, match=words):
        tw.load(source, **options)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ((X, Y), 5),
        ({"train": (X, Y), "val": (X, Y)}, 5),
        ({"train": (X, Y), "test": (X, Y)}, 1),
        ((np.zeros((2_000, 1)), np.arange(2_000) % 2), 1),
        ((np.zeros((1_999, 1)), np.arange(1_999) % 2), 5),
        ((X[:5], np.array([0, 0, 0, 0, 1])), 1),  # a class of one sample cannot be in training and in a fold
        ((X, X[:, 0]), 5),
    ],
)
def test_how_many_folds_are_usual(source, count):
    unsaid = ("group_by", "images", "file_column", "label_column", "label_separator", "task", "short_side")
    options = dict.fromkeys(unsaid)
    samples, _ = read(source, options | {"folds": 1}, quiet=True)
    found, why = usual_folds(samples)
    assert found == count
    assert bool(why) == (len(samples.targets) == 5)


# ------------------------------------------------------------------ folders


def _picture(path, seed, side=40):
    """A smooth random picture, as no two photographs are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8))
    small.resize((side, side), Image.Resampling.BICUBIC).save(path)


def _photos(root, count=20):
    for number in range(count):
        _picture(root / f"{'cat' if number % 2 else 'dog'}/animal{number // 4}_{number}.png", number)
    return root


def test_groups_in_file_names(tmp_path):
    data = tw.load(_photos(tmp_path), group_by=r"animal(\d+)_", val=4, test=4)
    animals = np.array([name.split("animal")[1].split("_")[0] for name in data.names])
    sides = [set(animals[part.indices]) for part in data.parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 5


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "no regular expression"), ("cat", "finds nothing in 'dog/"), ("animal", "one group")]
)
def test_patterns_that_find_no_groups(pattern, words, tmp_path):
    with pytest.raises(tw.InputError, match=words):
        tw.load(_photos(tmp_path), group_by=pattern)


@given(st.integers(0, 50))
def test_copies_stay_on_one_side(tmp_path_factory, seed):
    root = tmp_path_factory.getbasetemp() / "copies"
    if not root.exists():
        _photos(root)
        for number in (0, 4, 8):
            _picture(root / f"dog/copy{number}.png", number)
    data = tw.load(root, split_seed=seed, quiet=True)
    side = np.empty(23)
    for place, part in enumerate(data.parts.values()):
        side[part.indices] = place
    where = dict(zip(data.names, side, strict=True))
    for number in (0, 4, 8):
        assert where[f"dog/copy{number}.png"] == where[f"dog/animal{number // 4}_{number}.png"]
    [told] = [notice for notice in data.notices if notice.kind == "duplicates"]
    assert len(told.paths) == 6
    assert not [notice for notice in data.notices if notice.kind == "across"]


def test_copies_across_the_parts_of_a_folder_are_told(tmp_path):
    _photos(tmp_path / "train")
    for number in (0, 1, 30, 31):
        _picture(tmp_path / f"test/{'cat' if number % 2 else 'dog'}/{number}.png", number)
    data = tw.load(tmp_path)
    [told] = [notice for notice in data.notices if notice.kind == "across"]
    assert told.text.startswith("2 of 4 test samples show the same")
    assert told.paths == ("test/cat/1.png", "test/dog/0.png")


def test_copies_of_copies_across_the_parts_are_told(tmp_path):
    _photos(tmp_path / "train")
    for path in ("test/dog/z.png", "val/dog/y.png", "train/dog/zz.png"):
        _picture(tmp_path / path, 99)
    for part in ("test", "val"):
        _picture(tmp_path / part / "cat/other.png", 1_000 + len(part))
    data = tw.load(tmp_path)
    told = {notice.paths for notice in data.notices if notice.kind == "across"}
    assert told == {("test/dog/z.png",), ("val/dog/y.png",)}


def test_equal_images_in_two_classes_are_told(tmp_path):
    _photos(tmp_path)
    _picture(tmp_path / "cat/again.png", 0)
    [told] = [notice for notice in tw.load(tmp_path).notices if notice.kind == "labels"]
    assert set(told.paths) == {"cat/again.png", "dog/animal0_0.png"}
    assert "(cat)" in told.text
    assert "(dog)" in told.text


def test_what_was_seen_is_kept_with_the_store(tmp_path, monkeypatch):
    _photos(tmp_path)
    _picture(tmp_path / "dog/again.png", 0)
    before = tw.load(tmp_path).notices

    def never(*_):
        raise AssertionError("looked for again")

    monkeypatch.setattr("trainwell.data.duplicates.find", never)
    assert tw.load(tmp_path).notices == before
