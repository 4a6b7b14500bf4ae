import json
import math
import os
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainwell.errors import InputError
from trainwell.train import CheckpointFolder

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.integers() | st.text()
NESTS = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner), max_leaves=10
)


@given(state=st.dictionaries(st.text(), NESTS))
def test_any_nest_comes_back_as_it_was(state, tmp_path_factory):
    checkpoints = CheckpointFolder(tmp_path_factory.mktemp("checkpoints"))
    checkpoints.save(1, state)
    loaded = checkpoints.load()
    assert loaded == state
    assert repr(loaded) == repr(state)  # tuples stay tuples, 1 does not become True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_of_every_kind_come_back_to_the_bit(dtype, tmp_path):
    tensors = {
        "plain": torch.randn(3, 4).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, 2, dtype=dtype),
        "strided": torch.randn(4, 6).to(dtype)[::2, ::3],
        "channels last": torch.randn(2, 3, 4, 4).to(dtype).to(memory_format=torch.channels_last),
    }
    CheckpointFolder(tmp_path).save(1, tensors | {"twice": tensors["plain"]})
    loaded = CheckpointFolder(tmp_path).load()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == dtype for name, value in tensors.items())
    assert torch.equal(loaded["twice"], tensors["plain"])


def _same(one, other):
    """Whether two values are of the same types and bits all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return (
            len(one) == len(other)
            and all(_same(a, b) for a, b in zip(one, other, strict=True))
            and all(_same(one[key], other[key]) for key in one)
            and getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
            and vars_of(one) == vars_of(other)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other or (one != one and other != other)


def vars_of(value):
    return getattr(value, "__dict__", None)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        np.array(3, np.int16),
        np.array([1, 2], ">i4").astype("=i4"),
        np.zeros((0, 2), np.uint64),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
        np.float64(0.1),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        math.inf,
        -0.0,
        math.nan,
        2**70,
        b"\x00\xff",
        {1, "a", None},
        frozenset({2}),
        torch.Size([2, 3]),
        torch.device("cuda", 1),
        torch.bfloat16,
        Path("a") / "b",
        Counter({30: 1, 80: 2}),
        OrderedDict([("b", 1), ("a", torch.ones(2))]),
        defaultdict(list, {"a": [1]}),
        {(1, "a"): 2, None: 3, 4.5: 6, True: 7},
        nn.Linear(2, 2).state_dict(),
        torch.tensor([1 + 2j]),
        torch.ones(2).to(torch.float8_e4m3fn).view(torch.uint8),
        random.getstate(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_with_the_types_and_bits_they_had(value, tmp_path):
    CheckpointFolder(tmp_path).save(1, {"value": value})
    assert _same(CheckpointFolder(tmp_path).load(), {"value": value})


def test_a_modules_state_keeps_the_versions_of_its_layers_formats(tmp_path):
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    CheckpointFolder(tmp_path).save(1, {"model": state})
    assert CheckpointFolder(tmp_path).load()["model"]._metadata == state._metadata
    assert state._metadata["0"] == {"version": 2}


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        lambda: None,
        Pair(1, 2),
        np.array(["a"]),
        np.array([None]),
        np.datetime64("2020-01-01"),
        np.zeros(1, np.longdouble),
        defaultdict(lambda: 0),
        torch.ones(2, 2).to_sparse(),
        torch.ones(1, dtype=torch.complex128),
        type("Sub", (torch.Tensor,), {})(),
        torch.ones(1, device="meta"),
        {"a": 1}.keys(),
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_have_to_be_pickled_is_refused_by_name_and_nothing_is_written(value, tmp_path):
    with pytest.raises(InputError, match=r"cannot hold model\.layer\[0\], of type ") as error:
        CheckpointFolder(tmp_path).save(1, {"model": {"layer": [value]}})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_names_with_another_beginning_are_another_series(tmp_path):
    one, other = CheckpointFolder(tmp_path), CheckpointFolder(tmp_path, prefix="save")
    for step in (1, 2, 3):
        one.save(step, {"one": step})
    other.save(1, {"other": 1})
    assert (one.steps(), other.steps()) == ([2, 3], [1])
    assert (one.load(), other.load()) == ({"one": 3}, {"other": 1})


def test_the_newest_two_and_a_pinned_one_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 5, 30, 200):
        checkpoints.save(step, {"step": step}, pinned=5)
    assert checkpoints.steps() == [5, 30, 200]
    assert checkpoints.load()["step"] == 200
    assert checkpoints.load(5)["step"] == 5
    checkpoints.remove_after(30)
    assert checkpoints.steps() == [5, 30]


def test_the_same_step_again_replaces_the_old_one_only_when_it_is_whole(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save(0, {"try": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(0, {"try": 2})
    assert checkpoints.load() == {"try": 1}
    for again in (2, 3):
        checkpoints.save(0, {"try": again})
        assert checkpoints.load() == {"try": again}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_checkpoint_is_let_be(tmp_path):
    CheckpointFolder(tmp_path).save(2, {"a": 1})
    (tmp_path / "step-00000002 copy").mkdir()
    (tmp_path / "step-notes.txt").write_text("")
    assert CheckpointFolder(tmp_path).steps() == [2]


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sha256.json"])
@pytest.mark.parametrize("damage", [_flip_a_byte, os.remove, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_damaged_one_is_named_and_the_one_before_it_used(name, damage, tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "weight": torch.full((100,), float(step))})
    damage(tmp_path / "step-00000002" / name)
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        state = checkpoints.load()
    assert state["step"] == 1
    assert torch.equal(state["weight"], torch.ones(100))


def test_none_or_none_whole_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        CheckpointFolder(tmp_path).load()
    CheckpointFolder(tmp_path).save(3, {})
    _flip_a_byte(tmp_path / "step-00000003" / "state.json")
    with pytest.raises(InputError, match="no checkpoint that is whole"), warnings.catch_warnings(action="ignore"):
        CheckpointFolder(tmp_path).load()


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_failure_while_saving_leaves_the_ones_before(call, tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save(1, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(2, {"step": 2})
    assert checkpoints.steps() == [1]
    assert checkpoints.load() == {"step": 1}
    checkpoints.save(2, {"step": 2})
    assert checkpoints.load() == {"step": 2}
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-made is left


def test_nothing_is_ever_pickled(tmp_path):
    with pytest.raises(InputError, match=r"cannot hold a\[1\]\.b, of type object"):
        CheckpointFolder(tmp_path).save(1, {"a": [0, {"b": object()}]})
    assert list(tmp_path.iterdir()) == []
    CheckpointFolder(tmp_path).save(1, {"a": torch.ones(1), "b": [1]})
    folder = tmp_path / "step-00000001"
    assert sorted(os.listdir(folder)) == ["sha256.json", "state.json", "tensors.safetensors"]
    assert json.loads((folder / "state.json").read_text())
