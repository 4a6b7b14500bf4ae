import pickle

import numpy as np
import pytest
import torch

from trainwell.data.sources import load
from trainwell.errors import InputError
from trainwell.images import Images

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = np.arange(60) % 3


@pytest.mark.parametrize(
    ("y", "task", "classes", "targets"),
    [
        (Y, "classification", ("0", "1", "2"), Y),
        (Y[:, None].astype(np.uint8), "classification", ("0", "1", "2"), Y),
        (Y * 5 + 5, "classification", ("5", "10", "15"), Y),
        (np.array(["c", "a", "b"])[Y], "classification", ("a", "b", "c"), (Y + 2) % 3),
        (np.array(["c", "a", "b"], object)[Y], "classification", ("a", "b", "c"), (Y + 2) % 3),
        (np.array(["c", "a", "b"], np.dtypes.StringDType())[Y], "classification", ("a", "b", "c"), (Y + 2) % 3),
        (np.array([b"c", b"a", b"b"])[Y], "classification", ("a", "b", "c"), (Y + 2) % 3),
        (np.array([b"c", b"a", b"\xe9"])[Y], "classification", ("\\xe9", "a", "c"), (2 - Y) % 3),
        (Y > 0, "classification", ("False", "True"), (Y > 0).astype(int)),
        (torch.tensor(Y), "classification", ("0", "1", "2"), Y),
        (Y / 7, "regression", (), (Y / 7).astype(np.float32)),
        (X, "regression", (), X.astype(np.float32)),
        (np.eye(3, dtype=int)[Y], "multilabel", (), np.eye(3)[Y]),
        (X > 0, "multilabel", (), X > 0),
    ],
)
def test_the_task_follows_from_the_targets(y, task, classes, targets):
    data = load((X, y))
    assert (data.task, data.classes) == (task, classes)
    assert np.array_equal(data.train.targets, targets)
    assert data.train.targets.dtype == (np.int64 if task == "classification" else np.float32)
    assert data.train.inputs.dtype == np.float32
    assert np.array_equal(data.train.inputs, X.astype(np.float32))


@pytest.mark.parametrize("shape", [(60, 8, 9), (60, 8, 9, 3), (60, 3, 8, 9), (60, 8, 9, 1)])
def test_bytes_are_images(shape):
    x = RNG.integers(0, 256, shape, np.uint8)
    data = load((torch.tensor(x), Y))
    expected = x.transpose(0, 2, 3, 1) if shape[1] == 3 else x.reshape(60, 8, 9, -1)
    assert isinstance(data.train.inputs, Images)
    assert np.array_equal(data.images[11], expected[11])


@pytest.mark.parametrize("x", [X[:, 0], X.astype(int), X.astype(np.float16), X > 0, RNG.random((60, 4, 4, 3))])
def test_all_other_numbers_are_features(x):
    inputs = load((x, Y)).train.inputs
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs, x.astype(np.float32).reshape(60, *(x.shape[1:] or (1,))))
    tensor = torch.tensor(X, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(load((tensor, Y)).train.inputs, tensor.detach().float().numpy())


def test_parts_that_are_given_stay_what_they_are():
    given = {"test": (X[50:], Y[50:]), "train": (X[:40], Y[:40]), "valid": (X[40:50], Y[40:50])}
    data = load(given)
    for part, rows in {"train": slice(40), "val": slice(40, 50), "test": slice(50, 60)}.items():
        ours = getattr(data, part)
        assert np.array_equal(ours.inputs[ours.indices], X[rows].astype(np.float32))
        assert np.array_equal(ours.targets[ours.indices], Y[rows])
    del given["valid"]
    assert load(given, val=5).sizes == {"train": 35, "val": 5, "test": 10}


@pytest.mark.parametrize("keys", [("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target")])
def test_npz_of_one_pair(tmp_path, keys):
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (X, Y), strict=True)))
    data = load(str(tmp_path / "a.npz"), split_seed=4)
    assert np.array_equal(data.train.inputs, X.astype(np.float32))
    assert data.source == str(tmp_path / "a.npz")
    assert load(data.source, **data.options).fingerprint == data.fingerprint


@pytest.mark.parametrize(("x", "val"), [("x", "val"), ("X", "valid"), ("x", "validation")])
def test_npz_of_parts(tmp_path, x, val):
    arrays = {f"{x}_train": X[:40], "y_train": Y[:40], f"{x}_{val}": X[40:50], f"y_{val}": Y[40:50]}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{x}_test": X[50:], "y_test": Y[50:]})
    assert load(tmp_path / "a.npz").sizes == {"train": 40, "val": 10, "test": 10}


def test_npz_with_the_part_in_front_as_in_medmnist(tmp_path):
    images, labels = RNG.integers(0, 256, (60, 8, 8), np.uint8), Y[:, None].astype(np.uint8)
    parts = {"train": slice(40), "val": slice(40, 50), "test": slice(50, 60)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{part}_labels": labels[rows] for part, rows in parts.items()})
    data = load(tmp_path / "a.npz")
    assert data.sizes == {"train": 40, "val": 10, "test": 10}
    assert np.array_equal(data.images[45][..., 0], images[45])
    assert np.array_equal(data.test.targets[data.test.indices], Y[50:])


def test_a_test_part_beside_x_and_y_is_not_overlooked(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:50], y=Y[:50], x_test=X[50:], y_test=Y[50:])
    assert load(tmp_path / "a.npz", val=10).sizes == {"train": 40, "val": 10, "test": 10}


def test_npz_that_cannot_be_used_are_refused_and_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "objects.npz", x=np.array([Trap()] * 3, object), y=np.arange(3))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "page.npz").write_text("<html>")
    np.savez(tmp_path / "whole.npz", x=X, y=Y)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:900])
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", X)
    np.savez(tmp_path / "names.npz", a=X, b=Y)
    np.savez(tmp_path / "many.npz", **{f"array{number}": X for number in range(99)})
    np.savez(tmp_path / "twice.npz", x=X, y=Y, x_train=X, y_train=Y)
    np.savez(tmp_path / "half.npz", x_train=X, y_train=Y, x_test=X)
    for name, message in {
        "objects.npz": "no .npz file of plain arrays",
        "plain.npz": "no .npz file of plain arrays",
        "page.npz": "no .npz file of plain arrays",
        "cut.npz": "cannot be read as an .npz file",
        "empty.npz": "cannot be read as an .npz file",
        "one.npy": "one array without targets",
        "names.npz": "holds a, b; expected are x and y",
        "half.npz": "x_test but not y_test",
        "many.npz": "holds array0, .*array15, …; expected",
        "twice.npz": "holds the part 'train' twice: as x and as x_train",
    }.items():
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)


def with_value(array, value, row=17):
    array = array.astype(type(value))
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((X, Y[:-1]), "60 samples but 59 targets"),
        ((X[:0], Y[:0]), "train part of arrays is empty"),
        ((X, 3), "train part of arrays must be arrays with a row for each sample"),
        ((X.astype(object), Y), "x of arrays must be numbers, not object"),
        ((with_value(X, float("nan")), Y), r"x of arrays has NaN or infinite values in 1 of 60 rows, .* row 17"),
        ((X * 1e300, Y), "NaN or infinite values in 60 of 60"),
        ((X, with_value(Y, float("inf"))), r"y of arrays has NaN .* row 17"),
        ((X, Y * 0), "all samples to train on in arrays have the label 0"),
        ((X, with_value(Y, -1)), r"label -1 \(row 17\)"),
        ((X.astype(str), Y), "x of arrays must be numbers, not <U"),
        ((X.astype(complex), Y), "x of arrays must be numbers, not complex"),
        ((X, [None] * 60), "y of arrays must be numbers or strings, not object"),
        ((X, RNG.random((60, 2, 2))), "one or two dimensions"),
        (([[1, 2], [3]], [0, 1]), "x is no array"),
        ((X, np.arange(60)), "60 classes"),
        ((RNG.integers(0, 9, (60, 5, 5, 7), np.uint8), Y), "1 or 3 channels"),
        ({"train": (X, Y), "val": (X, Y + 1)}, "label 3 .* in no sample to train on"),
        ({"train": (X, Y), "val": (X[:, :4], Y)}, "parts of arrays differ: x"),
        ({"train": (X, Y), "val": (X, Y.astype(str))}, "parts of arrays differ: y"),
        ({"train": (X, Y), "tset": (X, Y)}, r"unknown part 'tset' \(did you mean 'test'\?\)"),
        ({"train": (X, Y), "val": (X, Y), "valid": (X, Y)}, "given twice"),
        ({"train": X}, "must be .x, y. or .x, y, groups."),
        ({"test": (X, Y)}, '"train" is missing'),
        (X, "cannot load a ndarray"),
        (None, "cannot load a NoneType"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(source, message):
    with pytest.raises(InputError, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)
