import json
import os
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainwell.errors import InputError
from trainwell.train import Checkpoints

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.integers() | st.text()
NESTS = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner), max_leaves=10
)


@given(state=st.dictionaries(st.text(), NESTS))
def test_any_nest_comes_back_as_it_was(state, tmp_path_factory):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
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
    Checkpoints(tmp_path).save(1, tensors | {"twice": tensors["plain"]})
    loaded = Checkpoints(tmp_path).load()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == dtype for name, value in tensors.items())
    assert torch.equal(loaded["twice"], tensors["plain"])


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam],
)
def test_state_of_torchs_optimizers_comes_back(make, tmp_path):
    model = nn.Linear(3, 2)
    optimizer = make(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    Checkpoints(tmp_path).save(1, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    loaded = Checkpoints(tmp_path).load()
    again, copy = nn.Linear(3, 2), None
    again.load_state_dict(loaded["model"])
    copy = make(again.parameters(), lr=9.0)
    copy.load_state_dict(loaded["optimizer"])
    x = torch.randn(4, 3)
    for one, its in ((model, optimizer), (again, copy)):
        its.zero_grad()
        one(x).square().sum().backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_newest_two_and_a_pinned_one_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 5, 30, 200):
        checkpoints.save(step, {"step": step}, pinned=5)
    assert checkpoints.steps() == [5, 30, 200]
    assert checkpoints.load()["step"] == 200
    assert checkpoints.load(5)["step"] == 5
    checkpoints.remove_after(30)
    assert checkpoints.steps() == [5, 30]


def test_the_same_step_again_replaces_the_old_one_only_when_it_is_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
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
    Checkpoints(tmp_path).save(2, {"a": 1})
    (tmp_path / "step-00000002 copy").mkdir()
    (tmp_path / "step-notes.txt").write_text("")
    assert Checkpoints(tmp_path).steps() == [2]


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sha256.json"])
@pytest.mark.parametrize("damage", [_flip_a_byte, os.remove, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_damaged_one_is_named_and_the_one_before_it_used(name, damage, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "weight": torch.full((100,), float(step))})
    damage(tmp_path / "step-00000002" / name)
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        state = checkpoints.load()
    assert state["step"] == 1
    assert torch.equal(state["weight"], torch.ones(100))


def test_none_or_none_whole_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        Checkpoints(tmp_path).load()
    Checkpoints(tmp_path).save(3, {})
    _flip_a_byte(tmp_path / "step-00000003" / "state.json")
    with pytest.raises(InputError, match="no checkpoint that is whole"), warnings.catch_warnings(action="ignore"):
        Checkpoints(tmp_path).load()


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_failure_while_saving_leaves_the_ones_before(call, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
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
    with pytest.raises(TypeError, match="cannot hold a object"):
        Checkpoints(tmp_path).save(1, {"a": object()})
    Checkpoints(tmp_path).save(1, {"a": torch.ones(1), "b": [1]})
    folder = tmp_path / "step-00000001"
    assert sorted(os.listdir(folder)) == ["sha256.json", "state.json", "tensors.safetensors"]
    assert json.loads((folder / "state.json").read_text())
