import os

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trainwell.data.dataset import Data
from trainwell.data.decode import decode
from trainwell.data.sources import load
from trainwell.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = np.arange(60) % 3


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))


def photos(root, *folders, count=10):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8)).save(root / folder / f"{number}.png")
    return root


def same(one, other):
    assert one.fingerprint == other.fingerprint
    assert (one.classes, one.names, one.options, one.source) == (
        other.classes,
        other.names,
        other.options,
        other.source,
    )
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(one, part).indices, getattr(other, part).indices)
    assert np.array_equal(one.train.targets, other.train.targets)


def test_digits_are_those_of_scikit_learn():
    data = load("digits")
    oracle = load_digits()
    assert data.sizes == {"train": 1257, "val": 270, "test": 270}
    assert data.classes == tuple("0123456789")
    assert np.array_equal(data.train.targets, oracle.target)
    assert np.array_equal(data.images[7][..., 0], np.rint(oracle.images[7] / 16 * 255))
    assert (data.source, data.task, data.names, data.skipped) == ("digits", "classification", (), ())


def test_a_folder_of_class_folders(tmp_path):
    root = photos(tmp_path / "photos", "cat", "dog")
    (root / "cat/notes.txt").write_text("x")
    (root / "dog/bad.jpg").write_text("x")
    data = load(root, val=0.2, test=4)
    assert data.sizes == {"train": 12, "val": 4, "test": 4}
    assert data.classes == ("cat", "dog")
    assert data.names[0] == "cat/0.png"
    assert [one.path for one in data.skipped] == ["cat/notes.txt", "dog/bad.jpg"]
    for row, name in enumerate(data.names):
        assert np.array_equal(data.images[row], decode(root / name))
        assert data.classes[data.train.targets[row]] == name.split("/")[0]
    assert data.source == str(root)
    asked = {"val": 0.2, "test": 4, "split_seed": 0, "short_side": 256, "strict": False, "folds": 1}
    assert {name: value for name, value in data.options.items() if value is not None} == asked
    again = load(data.source, **data.options)
    same(data, again)
    assert again.skipped == data.skipped


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_divided_folder_keeps_its_parts_and_splits_off_what_is_missing(tmp_path, val):
    root = photos(tmp_path / "photos", "train/cat", "train/dog", f"{val}/dog", f"{val}/cat")
    data = load(root, test=0.25)
    assert data.sizes == {"train": 15, "val": 20, "test": 5}
    assert {data.names[row].split("/")[0] for row in data.val.indices} == {val}
    assert {data.names[row].split("/")[0] for row in [*data.train.indices, *data.test.indices]} == {"train"}
    (root / "labels.csv").touch()
    assert [(one.path, one.reason) for one in load(root).skipped] == [("labels.csv", f"not in train, {val}")]


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    root = photos(tmp_path / "one", "cat")
    with pytest.raises(InputError, match="one class, 'cat'"):
        load(root)
    (root / "dog").mkdir()
    with pytest.raises(InputError, match=r"class folder .*dog holds no images"):
        load(root)
    (root / "dog/1.jpg").touch()
    with pytest.raises(InputError, match=r"class 'dog' .* has no image that can be read"):
        load(root)
    root = photos(tmp_path / "two", "train/cat", "train/dog", "test/cat", "test/dgo")
    with pytest.raises(InputError, match=r"has the class 'dgo', which .*train lacks \(did you mean 'dog'\?\)"):
        load(root)
    root = photos(tmp_path / "three", "train/cat", "train/dog")
    (root / "val/cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val holds no images"):
        load(root)
    (root / "val/cat/1.jpg").touch()
    with pytest.raises(InputError, match=r"val part .* no samples that can be read"):
        load(root)
    with pytest.raises(InputError, match=r"no file or folder .*did you mean 'digits'"):
        load("digit")
    for side in (-1, 0):
        with pytest.raises(InputError, match="short_side"):
            load(root, short_side=side)


def test_a_folder_named_digits_is_reached_by_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = photos(tmp_path / "digits", "cat", "dog")
    assert load(root.relative_to(tmp_path)).source == str(root)
    assert load("digits").source == "digits"


def test_strict_refuses_and_names_the_first(tmp_path):
    root = photos(tmp_path / "photos", "cat", "dog")
    assert load(root, strict=True).skipped == ()
    for number in range(5):
        (root / f"dog/bad{number}.jpg").write_text("x")
    with pytest.raises(InputError, match=r"5 files .* \(dog/bad0.jpg: not an image.*bad2.jpg.*; and 2 more\)"):
        load(root, strict=True)


def test_a_fingerprint_differs_as_soon_as_samples_or_split_do(tmp_path):
    root = photos(tmp_path / "photos", "cat", "dog")
    prints = [load(root).fingerprint, load(root, split_seed=1).fingerprint, load(root, short_side=8).fingerprint]
    Image.new("RGB", (5, 5)).save(root / "cat/0.png")
    prints.append(load(root).fingerprint)
    changed = X.copy()
    changed[3, 3] += 1
    prints += [load((x, y)).fingerprint for x, y in [(X, Y), (changed, Y), (X, (Y + 1) % 3), (X, Y.astype(float))]]
    prints.append(load((X, Y), val=0.2).fingerprint)
    assert len(set(prints)) == len(prints)
    assert load((X.copy(), Y.tolist())).fingerprint == load((X, Y)).fingerprint


def test_a_fingerprint_stays_when_files_are_moved_touched_or_joined_by_others(tmp_path):
    root = photos(tmp_path / "photos", "cat", "dog")
    first = load(root)
    root = root.rename(tmp_path / "moved")
    assert load(root).fingerprint == first.fingerprint
    os.utime(root / "cat/0.png", (1, 1))
    (root / "cat/notes.txt").write_text("x")
    assert load(root).fingerprint == first.fingerprint
    (root / "cat/3.png").rename(root / "dog/3a.png")
    assert load(root).fingerprint != first.fingerprint
    assert load((X.astype(np.float32), Y)).fingerprint == load((torch.tensor(X), Y)).fingerprint


@pytest.mark.parametrize("options", [{"val": 0}, {"test": 0.0}, {"val": 1.5}, {"test": 60}, {"val": 0.6, "test": 0.6}])
def test_sizes_that_leave_a_part_empty_are_refused(options):
    with pytest.raises(InputError):
        load((X, Y), **options)


def test_data_pass_through():
    data = load((X, Y))
    assert isinstance(data, Data)
    assert load(data) is data
