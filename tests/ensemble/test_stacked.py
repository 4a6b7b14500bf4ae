"""Stacked models: each member computes, learns and draws what it does alone."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainwell import InputError, optim
from trainwell.ensemble.stacked import Stacked
from trainwell.models import MLP, resnet8
from trainwell.regularize import DropConnect, Dropout, FractionalMaxPool2d, StochasticDepth, apply, keyed

K, ROWS = 3, 6


def images(channels=2, side=8):
    return torch.randn(ROWS, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def features(width=12):
    return torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def members(make, count=K):
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(make().double())
    return models


def with_put_in_noise(model, **rates):
    apply(model, **rates)
    return model


class Scaled(nn.Module):
    """A block with a parameter of its own, which cannot be taken apart."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(12, 12), nn.Parameter(torch.rand(12))

    def forward(self, x):
        return x + self.scale * self.inner(x).relu()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(12, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.last(self.one(self.two(self.one(x)).relu()))


class OneOutput(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze(1)


class Tokens(nn.Module):
    """Linear layers on more than rows, and an embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.last = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(12 * 4, 3)

    def forward(self, x):
        return self.last(self.mix(self.embed((x.abs() * 4).long().clamp(max=9))).relu().flatten(1))


MODELS = {
    "mlp": (lambda: MLP(12, 3, (16, 8), drop_rate=0.3), features),
    "mlp without batch norm": (lambda: MLP(12, 3, (16,), batch_norm=False), features),
    "one output a row": (lambda: OneOutput(nn.Linear(12, 1)), features),
    "resnet8": (lambda: resnet8(in_chans=2, width=4, drop_rate=0.2, drop_path_rate=0.5), images),
    "resnet8, noise put in": (lambda: with_put_in_noise(resnet8(in_chans=2, width=4), feature_dropout=0.2), images),
    "dropconnect": (lambda: with_put_in_noise(MLP(12, 3, (8,)), dropconnect=0.4, dropout=0.2), features),
    "other layers": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="circular"), nn.GroupNorm(2, 4), nn.PReLU(4),
            FractionalMaxPool2d(0.7), Dropout(0.3), nn.InstanceNorm2d(4, affine=True), nn.Flatten(),
            nn.LayerNorm(100), nn.Linear(100, 3),
        ),
        images,
    ),
    "a block of its own": (lambda: nn.Sequential(Scaled(), nn.BatchNorm1d(12, momentum=None), Scaled()), features),
    "tied": (Tied, features),
    "tokens": (Tokens, features),
    "frozen": (lambda: nn.Sequential(nn.Linear(12, 8).requires_grad_(False), nn.BatchNorm1d(8).eval()), features),
}  # fmt: skip


def same_state(ours, theirs, most=1e-10):
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=most, atol=most, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_statistics_are_those_of_each_alone(name):
    make, data = MODELS[name]
    models = members(make)
    alone, x = copy.deepcopy(models), data()
    stacked = Stacked(models, x[:4])
    for ours, theirs in zip(models, alone, strict=True):
        same_state(ours, theirs, 0)  # the proof has left nothing behind
    inputs = [x + k for k in range(K)]
    with contextlib.ExitStack() as places:
        for k, model in [*enumerate(models), *enumerate(alone)]:
            places.enter_context(keyed(model, k, "noise"))
        outputs = stacked(inputs)
        if outputs.requires_grad:
            outputs.square().sum().backward()
        for k, model in enumerate(alone):
            own = model(inputs[k])
            torch.testing.assert_close(outputs[k], own, rtol=1e-10, atol=1e-10)
            if own.requires_grad:
                own.square().sum().backward()
    for stack, parts in stacked.stacks:
        for k, part in enumerate(parts):
            (key,) = [key for key, p in models[k].named_parameters() if p is part]
            own = alone[k].get_parameter(key).grad
            assert (stack.grad is None) == (own is None)
            if own is not None:
                torch.testing.assert_close(stack.grad[k], own, rtol=1e-9, atol=1e-10, msg=key)
    for ours, theirs in zip(models, alone, strict=True):
        same_state(ours, theirs)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: MLP(12, 3, (16, 8), drop_rate=0.3), features),
        (lambda: resnet8(in_chans=2, width=4, drop_rate=0.2), images),
    ],
    ids=["mlp", "resnet8"],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["AdamW", "SGD"])
def test_twenty_steps_are_those_of_each_alone(make, data, rule):
    """With rates, decay and noise of each member's own."""
    options = {"momentum": 0.9, "nesterov": True} if rule == "SGD" else {}
    rates, decays = [0.01, 0.02, 0.005], [0.0, 0.1, 0.3]
    models = members(make)
    alone, x = copy.deepcopy(models), data()
    targets = torch.arange(ROWS) % 3
    stacked = Stacked(models, x)
    joint = getattr(optim, rule)([stack for stack, _ in stacked.stacks], lr=rates, weight_decay=decays, **options)
    own = [
        getattr(optim, rule)(model.parameters(), lr=rate, weight_decay=decay, **options)
        for model, rate, decay in zip(alone, rates, decays, strict=True)
    ]
    for step in range(20):
        inputs = [x.roll(step + k, 0) for k in range(K)]
        with contextlib.ExitStack() as places:
            for k, model in enumerate(models):
                places.enter_context(keyed(model, k, "noise", step))
            outputs = stacked(inputs)
            sum(F.cross_entropy(output, targets) for output in outputs).backward()
        joint.step()
        joint.zero_grad()
        for k, model in enumerate(alone):
            with keyed(model, k, "noise", step):
                F.cross_entropy(model(inputs[k]), targets).backward()
            own[k].step()
            own[k].zero_grad()
    for ours, theirs in zip(models, alone, strict=True):
        same_state(ours, theirs, 1e-9)
    assert not torch.allclose(next(models[0].parameters()), next(models[1].parameters()))


def test_a_step_on_the_stack_is_seen_in_the_members_and_a_loaded_member_in_the_stack():
    models, x = members(lambda: MLP(12, 3, (8,))), features()
    stacked = Stacked(models, x)
    before = models[1].state_dict()["fc.weight"].clone()
    optimizer = optim.SGD([stack for stack, _ in stacked.stacks], lr=0.1)
    stacked(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(models[1].state_dict()["fc.weight"], before)
    assert int(models[1].layers[0][1].num_batches_tracked) == 1
    other = members(lambda: MLP(12, 3, (8,)), 5)[4]
    models[1].load_state_dict(other.state_dict())
    torch.testing.assert_close(stacked.eval()(x)[1], other.eval()(x))
    stacked.release()
    optimizer.step()
    assert torch.equal(models[1].fc.weight, other.fc.weight)


def test_channels_last_stays_so():
    models = [model.to(memory_format=torch.channels_last) for model in members(lambda: resnet8(in_chans=3, width=4))]
    x = images(3).contiguous(memory_format=torch.channels_last)
    stacked, seen = Stacked(models, x), []
    for name, layer in stacked.named_modules():
        if name.endswith(("conv1", "bn2")):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    stacked(x)
    assert len(seen) > 3
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in seen)
    assert all(model.conv1.weight.is_contiguous(memory_format=torch.channels_last) for model in models)


class OverChannels(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(1)


class FixedSize(nn.Sequential):
    def forward(self, x):
        return super().forward(x.view(-1, 12))


class InTrainingAlone(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(1, keepdim=True) if self.training else y


class InEvaluationAlone(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y.softmax(1)


class Functional(nn.Sequential):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: OverChannels(nn.Linear(12, 3)), "mixes channels.*member 1 computes something else"),
        (lambda: FixedSize(nn.Linear(12, 3)), "fixed sizes"),
        (lambda: InTrainingAlone(nn.Linear(12, 3)), "mixes channels"),
        (lambda: InEvaluationAlone(nn.Linear(12, 3)), "mixes channels"),
        (lambda: Functional(nn.Linear(12, 3)), "draws from torch's generator"),
        (lambda: nn.Sequential(nn.Linear(12, 3), nn.Dropout(0.1)), "1 is torch's Dropout"),
    ],
)
def test_models_that_cannot_be_stacked_are_refused_and_stay_as_they_were(make, why):
    models = members(make)
    alone, memory = copy.deepcopy(models), [p.data_ptr() for model in models for p in model.parameters()]
    with pytest.raises(InputError, match=why) as caught:
        Stacked(models, features())
    assert "\n" not in str(caught.value)
    assert [p.data_ptr() for model in models for p in model.parameters()] == memory
    for ours, theirs in zip(models, alone, strict=True):
        same_state(ours, theirs, 0)


def test_members_that_differ_are_refused():
    for other, why in (
        (nn.Sequential(nn.Linear(12, 4)), "tensors of 0"),
        (nn.Sequential(nn.Linear(12, 3), nn.ReLU()), "children of the model"),
        (nn.Sequential(nn.Linear(12, 3).requires_grad_(False)), "tensors of 0"),
        (nn.Sequential(nn.Linear(12, 3)).eval(), "mode of the model"),
        (nn.Sequential(nn.Linear(12, 3)).double(), "tensors of 0"),
    ):
        with pytest.raises(InputError, match=f"the members differ: the {why}") as caught:
            Stacked([nn.Sequential(nn.Linear(12, 3)), other], torch.randn(4, 12))
        assert "\n" not in str(caught.value)
    one = nn.Linear(12, 3)
    with pytest.raises(InputError, match="share parameters"):
        Stacked([one, one], torch.randn(4, 12))
    tied, loose = Tied(), Tied()
    loose.two.weight = nn.Parameter(loose.one.weight.detach().clone())
    with pytest.raises(InputError, match="shared in some"):
        Stacked([tied, loose], torch.randn(4, 12))
    with pytest.raises(InputError, match="shared in some"):
        Stacked([loose, tied], torch.randn(4, 12))


def test_rates_of_noise_may_differ():
    models = [nn.Sequential(nn.Linear(12, 5), Dropout(p), StochasticDepth(p)) for p in (0.0, 0.3, 1.0)]
    x = features().float()
    stacked = Stacked(models, x)
    with contextlib.ExitStack() as places:
        for model in models:
            places.enter_context(keyed(model, 1))
        outputs = stacked(x)
        for k, model in enumerate(models):
            torch.testing.assert_close(outputs[k], model(x))
    assert not outputs[2].any()
    assert outputs[0].all()


def test_dropconnect_alone_is_a_layer():
    models = [DropConnect(nn.Linear(12, 3)) for _ in range(K)]
    assert Stacked(models, features().float())(features().float()).shape == (K, ROWS, 3)
