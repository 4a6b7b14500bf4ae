"""Features at any module: those of the whole model's own pass, pooled; kept to the bit, and made anew when damaged."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import create
from trainwell.transfer.features import cached, extract_features, inputs_of, key_of


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return create("resnet8", num_classes=3, in_chans=2, drop_rate=0.5, drop_path_rate=0.5).train()


@pytest.fixture
def images():
    return torch.randn(20, 2, 12, 12, generator=torch.Generator().manual_seed(1))


def _by_hand(model, x):
    """The stages one after the other, as `nn.Sequential` runs them: children stand in the order of use."""
    found = {}
    model.eval()
    with torch.no_grad():
        for name, child in model.named_children():
            x = child(x)
            found[name] = x.clone()
    return found


def test_they_are_the_outputs_in_evaluation_pooled_over_positions_whatever_the_batches(resnet, images):
    before = [module.training for module in resnet.modules()]
    batches = [(images[:8], None), [images[8:16]], images[16:]]
    found = extract_features(resnet, batches, at=["layer3", "fc", "conv1", "layer1"])
    last = inputs_of(resnet, "fc", batches)
    assert [module.training for module in resnet.modules()] == before
    expected = _by_hand(resnet, images)
    for name in ("conv1", "layer1", "layer3"):
        torch.testing.assert_close(found[name], expected[name].mean((2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["fc"], expected["fc"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, expected["flatten"], rtol=1e-5, atol=1e-5)
    assert all(values.dtype == torch.float32 for values in found.values())


def test_what_comes_to_the_head_gives_the_outputs_exactly(resnet, images):
    resnet.eval()
    with torch.no_grad():
        assert torch.equal(resnet.fc(inputs_of(resnet, "fc", [images])), resnet(images))


def test_nothing_is_computed_after_the_last_module_that_is_named(resnet, images):
    runs = []
    resnet.layer2.register_forward_pre_hook(lambda *_: runs.append("layer2"))
    resnet.layer3.register_forward_pre_hook(lambda *_: runs.append("layer3"))
    extract_features(resnet, [images, images], at=["layer2", "conv1"])
    assert runs == ["layer2"] * 2
    assert not resnet.layer1._forward_hooks  # and no hook is left
    assert not resnet.conv1._forward_hooks


def test_a_later_layer_that_works_in_place_changes_nothing():
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Linear(2, 2))
    x = torch.tensor([[-1.0, 2.0]])
    assert extract_features(model, [x.clone()], at=["0", "2"])["0"].tolist() == [[-1, 2]]
    assert inputs_of(model, "1", [x.clone()]).tolist() == [[-1, 2]]


@dataclasses.dataclass
class _Output:
    note: str
    hidden: torch.Tensor


class _Tokens(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        tokens = x.view(len(x), 3, 2)
        return {"tuple": (tokens, None), "dict": {"hidden": tokens}, "dataclass": _Output("", tokens)}[self.form]


class _Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.body = _Tokens(form)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        self.body(x)
        return x


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
def test_tokens_are_averaged_and_the_first_tensor_of_an_output_is_taken(form):
    found = extract_features(_Wrapped(form), [torch.arange(6.0)[None]], at=["body"])
    assert found["body"].tolist() == [[2, 3]]  # of (0, 1), (2, 3), (4, 5)


def test_under_autocast_they_are_the_lower_precision_s_in_float32(resnet, images):
    found = extract_features(resnet, [images], at=["layer3"], autocast=torch.autocast("cpu", torch.bfloat16))["layer3"]
    exact = extract_features(resnet, [images], at=["layer3"])["layer3"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


def test_progress_counts_batches(resnet, images):
    told = []
    extract_features(resnet, images.split(8), at=["conv1"], progress=lambda done, total: told.append((done, total)))
    inputs_of(resnet, "fc", _once(images), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3), (1, 0)]


def _once(x):
    yield x


def test_what_cannot_be_is_told_in_one_line(resnet, images):
    for call, words in [
        (lambda: extract_features(resnet, [images], at=["layer4"]), "no module 'layer4' .did you mean 'layer"),
        (lambda: extract_features(resnet, [images], at=[]), "name one at least"),
        (lambda: extract_features(resnet, [], at=["fc"]), "no data"),
        (lambda: inputs_of(resnet, "conv1", [images]), r"'conv1' is float32 \(20, 2, 12, 12\), not \(n, d\)"),
        (lambda: extract_features(_Wrapped("dict"), [torch.ones(1, 6)], at=["body", "unused"]), "'unused' is not used"),
        (
            lambda: extract_features(nn.Sequential(nn.Flatten(0, 1)), [torch.ones(2, 3, 4)], at=["0"]),
            "6 rows for 2 samples",
        ),
        (lambda: extract_features(nn.Sequential(nn.Flatten(0)), [torch.ones(2, 3)], at=["0"]), r"\(6,\), not \(n, d\)"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in resnet.modules())


def _tensors():
    random = torch.Generator().manual_seed(0)
    return {
        "late": torch.randn(7, 5, generator=random),
        "early": torch.randn(5, 7, generator=random).T,
        "half": torch.randn(7, 2, generator=random).bfloat16(),
    }


def _same(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


def _never():
    raise AssertionError("computed again")


def test_what_is_kept_is_the_same_to_the_bit_and_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path))
    _same(cached("key", _tensors), _tensors())
    _same(cached("key", _never), _tensors())
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["key.safetensors"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage", [_cut, _flip, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\x80\x04x" * 9)]
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    cached("key", _tensors, tmp_path)
    damage(tmp_path / "key.safetensors")
    _same(cached("key", _tensors, tmp_path), _tensors())
    _same(cached("key", _never, tmp_path), _tensors())


def test_where_nothing_can_be_kept_it_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    _same(cached("key", _tensors, tmp_path / "file"), _tensors())


def test_two_processes_at_once_leave_one_whole_file(tmp_path):
    code = """if True:
        import sys, time, torch
        from pathlib import Path
        from trainwell.transfer.features import cached
        here = Path(sys.argv[1])
        (here / f"ready{sys.argv[2]}").touch()
        while len(list(here.glob("ready*"))) < 2:
            time.sleep(0.001)
        for number in range(20):
            found = cached(f"key{number}", lambda: {"x": torch.full((1000, 50), float(number))}, here / "kept")
            assert (found["x"] == number).all()
    """
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(k)]) for k in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == sorted(f"key{k}.safetensors" for k in range(20))
    for number in range(20):
        assert (cached(f"key{number}", _never, tmp_path / "kept")["x"] == number).all()


def test_another_weight_statistic_type_name_or_part_is_another_key():
    def fresh(name="bn"):
        torch.manual_seed(0)
        layers = nn.Sequential()
        layers.add_module("linear", nn.Linear(3, 2, dtype=torch.bfloat16))
        layers.add_module(name, nn.BatchNorm1d(2))
        return layers

    def nudged():
        layers = fresh()
        with torch.no_grad():
            layers.linear.weight[1, 2] *= 1.01
        return layers

    def seen():
        layers = fresh()
        layers.bn.num_batches_tracked += 1
        return layers

    key = key_of(fresh(), "a", "b")
    assert key == key_of(fresh(), "a", "b") == key_of(torch.nn.DataParallel(fresh()), "a", "b")
    others = [
        key_of(nudged(), "a", "b"),
        key_of(seen(), "a", "b"),
        key_of(fresh("norm"), "a", "b"),
        key_of(fresh().float(), "a", "b"),
        key_of(fresh(), "ab"),
        key_of(fresh(), "b", "a"),
        key_of(fresh()),
    ]
    assert len({key, *others}) == 8
    assert Path(key).name == key  # fit to be a file's name
