"""Noise put into any model: where, in what order, and that nothing else changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import resnet14
from trainwell.regularize import (
    Change,
    DropConnect,
    Dropout,
    Noise,
    StochasticDepth,
    apply,
    keyed,
    sampling,
)


class Block(nn.Module):
    """A residual block as torchvision writes it."""

    def __init__(self, chans, out=None):
        super().__init__()
        out = out or chans
        self.conv1 = nn.Conv2d(chans, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None if out == chans else nn.Sequential(nn.Conv2d(chans, out, 1), nn.BatchNorm2d(out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class PreNorm(nn.Module):
    """A transformer's block for vectors, the norm first; its sums by the operator and by torch.add."""

    def __init__(self, size):
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(size), nn.Linear(size, size)
        self.norm2, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        x = x + self.mix(self.norm1(x))
        return torch.add(self.down(nn.functional.gelu(self.up(self.norm2(x)))), x)


def _convolutional():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(nn.Conv2d(2, 8, 3), Block(8), Block(8, 12), Block(12), *head)


X = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def _noise(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Noise)}


def test_it_says_what_it_changed_and_where():
    model = _convolutional()
    changes = apply(model, dropout=0.5, feature_dropout=0.1, dropconnect=0.3, stochastic_depth=0.2)
    assert changes == [
        Change("6", "DropConnect 0.3"),
        Change("6", "dropout 0.5 at its input"),
        *[
            Change(f"{block}.{conv}", "feature dropout 0.1 at its input")
            for block in (1, 2, 3) for conv in ("conv1", "conv2")
        ],
        Change("1.bn2", "stochastic depth 0 at its output"),
        Change("2.bn2", "stochastic depth 0.1 at its output"),
        Change("3.bn2", "stochastic depth 0.2 at its output"),
    ]  # fmt: skip
    assert str(changes[0]) == "6: DropConnect 0.3"


EACH = [{"dropout": 0.5}, {"feature_dropout": 0.3}, {"dropconnect": 0.5}, {"stochastic_depth": 0.9}]


@pytest.mark.parametrize("asked", [*EACH, {k: v for one in EACH for k, v in one.items()}], ids=str)
def test_names_and_evaluation_stay_and_training_and_sampling_are_noisy(asked):
    model = _convolutional().eval()
    names, before = list(model.state_dict()), model(X)
    weights = {name: p.data_ptr() for name, p in model.state_dict(keep_vars=True).items()}
    apply(model, **asked)
    assert list(model.state_dict()) == names
    assert {name: p.data_ptr() for name, p in model.state_dict(keep_vars=True).items()} == weights
    assert torch.equal(model(X), before)
    with sampling(model):
        assert not torch.equal(model(X), model(X))
    model.train()
    with keyed(model, 0, 1):
        one = model(X)
    with keyed(model, 0, 1):
        assert torch.equal(model(X), one)
    with keyed(model, 0, 2):
        assert not torch.equal(model(X), one)
    other = _convolutional()
    other.load_state_dict(model.state_dict())  # from a model with noise into one without, and back
    model.load_state_dict(other.state_dict())
    assert not model.load_state_dict(other.state_dict(), strict=False).missing_keys


def test_the_noise_is_what_the_layers_do_by_hand():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(7, 4)
    apply(model, dropout=0.5)
    layer = model[2].noise_before
    with keyed(model, 5):
        got = model(x)
    with keyed(model, 5):
        hidden = layer(model[1](model[0](x)))
    assert torch.equal(got, nn.functional.linear(hidden, model[2].weight, model[2].bias))


def test_stochastic_depth_skips_the_branch_and_keeps_the_shortcut():
    block = Block(3)
    apply(model := nn.Sequential(block), stochastic_depth=1.0, branches=["0.bn2"])
    model.train()
    assert block.bn2.noise_after.p == 1  # one block: the last of the line
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), x.relu())


def test_it_goes_into_blocks_that_are_written_otherwise():
    model = nn.Sequential(PreNorm(6), PreNorm(6), nn.Linear(6, 2))
    changes = apply(model, stochastic_depth=0.3)
    assert [change.where for change in changes] == ["0.mix", "0.down", "1.mix", "1.down"]
    assert [round(layer.p, 3) for layer in _noise(model).values()] == [0.0, 0.1, 0.2, 0.3]


def test_sums_that_are_no_residual_branch_are_left_alone():
    class Towers(nn.Module):
        """Two equal ways from one point, two ways from two points, and a sum with a constant."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
            self.place = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.a(x) + self.b(x) + self.place

    with pytest.raises(InputError, match=r"^stochastic_depth: the model has no residual branch"):
        apply(Towers(), stochastic_depth=0.1)


def test_layers_that_are_there_get_the_new_fraction():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Dropout2d(0.1), nn.Flatten(), Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.9),
        nn.Linear(8, 2),
    )  # fmt: skip
    model[5].eval()
    apply(model, dropout=0.5, feature_dropout=0.2)
    layers = _noise(model)
    assert {name: (layer.p, layer.maps) for name, layer in layers.items()} == {
        "1": (0.2, True), "3": (0.5, False), "5": (0.5, False),
    }  # fmt: skip
    assert not model[5].training
    assert model[3].training


@pytest.mark.parametrize(
    ("model", "name"),
    [(nn.Dropout(0.1), "dropout"), (nn.Dropout2d(0.1), "feature_dropout"), (Dropout(0.1), "dropout"),
     (StochasticDepth(0.1), "stochastic_depth"), (DropConnect(nn.Linear(2, 2), 0.1), "dropconnect")],
    ids=repr,
)  # fmt: skip
def test_a_model_that_is_itself_a_noise_layer_gets_the_new_fraction(model, name):
    [change] = apply(model, **{name: 0.5})
    assert change.where == ""
    assert model.p == 0.5


def test_a_model_that_is_itself_a_layer_of_others_that_skips_is_refused():
    class DropPath(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(InputError, match="no residual branch"):
        apply(DropPath(), stochastic_depth=0.5)


def test_again_it_sets_what_it_put_in_before():
    model = _convolutional()
    first = {"dropout": 0.5, "feature_dropout": 0.1, "dropconnect": 0.3, "stochastic_depth": 0.2}
    apply(model, **first)
    count = len(_noise(model))
    apply(model, dropout=0.1, feature_dropout=0.0, dropconnect=0.0, stochastic_depth=0.0)
    assert len(_noise(model)) == count
    assert sorted({layer.p for layer in _noise(model).values()}) == [0.0, 0.1]


@pytest.mark.parametrize("order", [["dropout", "dropconnect"], ["dropconnect", "dropout"]])
def test_dropout_and_dropconnect_of_one_layer_both_act_in_whatever_order(order):
    model = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    for name in order:
        apply(model, **{name: 0.5})
    assert isinstance(model[1], DropConnect)
    seen = []
    model[1].noise_before.register_forward_hook(lambda *_: seen.append(1))
    model(torch.randn(3, 4))
    assert seen == [1]


def test_places_for_a_path_to_be_dropped_are_used_as_timm_has_them():
    class DropPath(nn.Module):
        def forward(self, x):
            return x

    model = nn.ModuleDict({
        "block1": nn.ModuleDict({"drop_path1": nn.Identity(), "drop_path2": DropPath()}),
        "block2": nn.ModuleDict({"drop_path": StochasticDepth(0.9), "other": nn.Identity()}),
    })  # fmt: skip
    changes = apply(model, stochastic_depth=0.4)
    assert [change.where for change in changes] == ["block1.drop_path1", "block1.drop_path2", "block2.drop_path"]
    assert [round(layer.p, 3) for layer in _noise(model).values()] == [0.0, 0.2, 0.4]


def test_our_own_models_are_as_if_made_so():
    made, given = (resnet14(num_classes=3, drop_rate=p, drop_path_rate=rate) for p, rate in ((0.0, 0.0), (0.5, 0.2)))
    apply(made, dropout=0.5, stochastic_depth=0.2)
    assert repr(made) == repr(given)
    assert sum(layer.p > 0 for layer in _noise(made).values()) == 6


def test_copies_and_files_have_the_noise_too():
    model = _convolutional()
    apply(model, dropout=0.5, dropconnect=0.3, stochastic_depth=0.5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for one in (model, other):
            one.train()
        torch.manual_seed(0)
        with keyed(model, 1):
            wanted = model(X)
        model.load_state_dict(other.state_dict())
        with keyed(other, 1):
            assert torch.equal(other(X), wanted)
        assert other[6].noise_before is not model[6].noise_before


def test_compiled_it_computes_the_same():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    apply(model, dropout=0.5)
    x = torch.randn(7, 4)
    with keyed(model, 5):
        wanted = model(x)
    fast = torch.compile(model, backend="eager")
    with keyed(fast, 5):
        torch.testing.assert_close(fast(x), wanted)


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (nn.ReLU(), {"dropout": 0.5}, r"^dropout: the model has no linear layer within it"),
        (nn.Linear(2, 2), {"dropconnect": 0.5}, r"^dropconnect: the model has no linear layer within it"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1), nn.Linear(1, 1)),
            {"feature_dropout": 0.5},
            r"^feature_dropout: .*first",
        ),
        (nn.Sequential(nn.Linear(2, 2)), {"stochastic_depth": 0.5}, r"^stochastic_depth: .*branches="),
        (nn.Sequential(nn.Linear(2, 2)), {"stochastic_depth": 0.5, "branches": ["9"]}, "no module '9'"),
        (nn.Sequential(nn.Linear(2, 2)), {"dropout": 1.5}, "dropout is 1.5"),
        (nn.Sequential(nn.Linear(2, 2)), {"dropconnect": 1.0}, "from 0 to below 1"),
    ],
)
def test_what_has_no_place_is_refused_and_nothing_changed(model, asked, message):
    before = repr(model)
    with pytest.raises(InputError, match=message):
        apply(model, **asked)
    with pytest.raises(InputError, match=message):
        apply(model, **{"dropout": 0.5, **asked})
    assert repr(model) == before


def test_a_branch_that_is_a_chain_or_is_named_twice_has_one_noise():
    class Chained(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))

        def forward(self, x):
            return x + self.branch(x)

    model = nn.Sequential(Chained(), Chained())
    names = list(model.state_dict())
    for ends in (["0.branch", "1.branch"], ["0.branch.2", "1.branch.2", "1.branch.2"]):
        other = copy.deepcopy(model)
        apply(other, stochastic_depth=0.5, branches=ends)
        apply(other, stochastic_depth=0.5)
        assert [layer.p for layer in _noise(other).values()] == [0.0, 0.5]
        assert list(other.state_dict()) == names
        x = torch.randn(2000, 3)
        kept = (other[1].branch(x) != 0).any(1).double().mean()
        assert abs(kept - 0.5) < 0.06
        apply(other, stochastic_depth=0.3, branches=ends)
        assert [layer.p for layer in _noise(other).values()] == [0.0, 0.3]
    with pytest.raises(InputError, match="branches is empty"):
        apply(model, stochastic_depth=0.5, branches=[])


def test_a_module_under_two_names_is_changed_under_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 3)
            self.alias = self.head

    apply(model := Tied(), dropconnect=0.5)
    assert model.alias is model.head
    assert isinstance(model.alias, DropConnect)


def test_a_compiled_model_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(InputError, match="before torch.compile"):
        apply(torch.compile(model, backend="eager"), dropout=0.5)
    assert apply(torch.compile(model, backend="eager")) == []
    model.compile(backend="eager")
    with pytest.raises(InputError, match="before torch.compile"):
        apply(model, dropout=0.5)


def test_inputs_by_name_are_noisy_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(50, 2)

        def forward(self, x):
            return self.fc(input=x)

    apply(model := Named(), dropout=0.5)
    x = torch.randn(3, 50)
    assert not torch.equal(model(x), model(x))


def test_looking_for_branches_leaves_nothing_in_the_model():
    class Keeping(Block):
        def forward(self, x, times=1, verbose=False):
            self.last = x
            return super().forward(x) * times if verbose else super().forward(x)

    model = nn.Sequential(Keeping(3), Keeping(3))
    assert len(apply(model, stochastic_depth=0.5)) == 2
    assert not hasattr(model[0], "last")


def test_a_branch_that_returns_no_tensor_says_so():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 1)})
    apply(model, stochastic_depth=0.5, branches=["attention"])
    x = torch.randn(2, 3, 4)
    with pytest.raises(InputError, match="returns a tuple"):
        model["attention"](x, x, x)


def test_a_model_that_cannot_be_traced_names_its_branches():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return x + self.layer(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"torch\.fx cannot trace the model \(.*branches="):
        apply(Odd(), stochastic_depth=0.5)
    [change] = apply(model := Odd(), stochastic_depth=0.5, branches=["layer"])
    assert change.where == "layer"
    assert isinstance(model.layer.noise_after, StochasticDepth)


def test_attention_keeps_its_own_projection():
    """Its last linear layer is not called, so that noise there would be lost."""
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    [change] = apply(model, dropout=0.5)
    assert change.where == "0"
