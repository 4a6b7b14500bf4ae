"""Dropout: against the enumeration of all masks, in mean and variance, and in its gradient."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from trainwell import InputError
from trainwell.freezing import freeze
from trainwell.regularize import Dropout, exact_marginal, keyed, sampling


def both(x, p, scaling="inverted", maps=False):
    layer = Dropout(p, scaling=scaling, maps=maps)
    with keyed(layer, 0):
        return layer(x), layer.eval()(x)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("scaling", ["inverted", "classic"])
def test_mean_and_variance_in_training(p, scaling):
    x = torch.tensor([1.0, -2.0, 3.0]).double().expand(40_000, 3)
    sampled, evaluated = both(x, p, scaling)
    scale = 1 / (1 - p) if scaling == "inverted" else 1.0
    for j in range(3):
        value = float(x[0, j]) * scale
        kept = int((sampled[:, j] != 0).sum())
        assert set(sampled[:, j].unique().tolist()) <= {0.0, value}
        assert stats.binomtest(kept, 40_000, 1 - p).pvalue > 1e-4
        mean, variance = value * (1 - p), value**2 * p * (1 - p)
        assert abs(float(sampled[:, j].mean()) - mean) < 4.5 * math.sqrt(variance / 40_000)
        assert float(sampled[:, j].var()) == pytest.approx(variance, rel=0.05)
        assert float(evaluated[0, j]) == pytest.approx(mean, rel=1e-12)  # evaluation is the mean, exactly


def enumerated(weights, x, p, scaling, softmax):
    """The mean over all masks of the hidden units of a two-layer network, in NumPy."""
    (a, b), (c, d) = weights
    hidden = np.maximum(x @ a.T + b, 0)
    total = 0
    for mask in itertools.product([0, 1], repeat=hidden.shape[1]):
        chance = np.prod([(1 - p) if kept else p for kept in mask])
        scale = 1 / (1 - p) if scaling == "inverted" else 1.0
        out = (hidden * np.array(mask) * scale) @ c.T + d
        if softmax:
            out = np.exp(out - out.max(1, keepdims=True))
            out /= out.sum(1, keepdims=True)
        total = total + chance * out
    return total


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("scaling", ["inverted", "classic"])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_exact_marginal_and_samples_against_the_enumeration(p, scaling, softmax):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), Dropout(p, scaling=scaling), nn.Linear(7, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    weights = [[t.detach().numpy() for t in (layer.weight, layer.bias)] for layer in (model[0], model[3])]
    oracle = torch.from_numpy(enumerated(weights, x.numpy(), p, scaling, softmax))
    exact = exact_marginal(model, x, probabilities=softmax)
    torch.testing.assert_close(exact, oracle, rtol=0, atol=1e-12)
    if not softmax:  # of what is linear in the units, evaluation is the exact mean
        torch.testing.assert_close(model.eval()(x), oracle, rtol=0, atol=1e-12)
    with torch.no_grad(), sampling(model):
        samples = torch.stack([model(x.repeat(500, 1)).view(500, 5, 3) for _ in range(8)]).flatten(0, 1)
    samples = samples.softmax(2) if softmax else samples
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - oracle).abs() <= 4.5 * error + 1e-12).all()


def test_two_layers_of_feature_maps_are_enumerated():
    torch.manual_seed(0)
    model = nn.Sequential(Dropout(0.25, maps=True), nn.Conv2d(2, 3, 3), nn.Tanh(), Dropout(0.5, maps=True),
                          nn.Flatten(), nn.Linear(12, 2)).double()  # fmt: skip
    x, total = torch.randn(2, 2, 4, 4, dtype=torch.float64), 0
    for first in itertools.product([0.0, 1.0], repeat=2):
        for second in itertools.product([0.0, 1.0], repeat=3):
            a, b = torch.tensor(first).double(), torch.tensor(second).double()
            chance = torch.where(a > 0, 0.75, 0.25).prod() * 0.5**3
            hidden = torch.tanh(model[1](x * a[:, None, None] / 0.75)) * b[:, None, None] / 0.5
            total = total + chance * model[5](hidden.flatten(1)).softmax(1)
    torch.testing.assert_close(exact_marginal(model, x), total.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("units", [12, 13])
def test_the_exact_mean_of_a_float32_model_is_that_of_float64(units, softmax):
    torch.manual_seed(units)
    model = nn.Sequential(nn.Linear(6, units), nn.ReLU(), Dropout(0.5), nn.Linear(units, 3))
    x = torch.randn(4, 6)
    exact = exact_marginal(model, x, probabilities=softmax)
    assert exact.dtype == torch.float64
    doubled = exact_marginal(copy.deepcopy(model).double(), x.double(), probabilities=softmax)
    torch.testing.assert_close(exact, doubled, rtol=0, atol=1e-6)


def test_frozen_dropout_drops_nothing_in_the_exact_mean_either():
    model = nn.Sequential(Dropout(0.5), nn.Linear(30, 5), nn.Tanh(), Dropout(0.5), nn.Linear(5, 3))
    x = torch.randn(2, 30)
    freeze(model[0])  # of which there would be 2**30 masks
    mine = exact_marginal(nn.Sequential(*model[1:]), x)
    torch.testing.assert_close(exact_marginal(model, x), mine)
    freeze(model)
    torch.testing.assert_close(exact_marginal(model, x), model.eval()(x).softmax(1).double())
    torchs = nn.Sequential(nn.Dropout(0.5), Dropout(0.5))
    freeze(torchs[0])
    assert exact_marginal(torchs, x[:, :4]).shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("how", [{"p": 0.4}, {"p": 0.4, "maps": True}, {"p": 0}, {"p": 1}], ids=str)
def test_dtype_and_layout_in_memory_are_kept(dtype, layout, how):
    layer, x = Dropout(**how), torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=layout)
    for y in (layer(x), layer.eval()(x)):
        assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())


def test_a_dropped_map_is_dropped_whole():
    sampled, _ = both(torch.rand(50, 20, 6, 6) + 1, 0.3, maps=True)
    whole = (sampled != 0).flatten(2)
    assert (whole.all(2) | ~whole.any(2)).all()
    assert stats.binomtest(int((~whole[..., 0]).sum()), 1000, 0.3).pvalue > 1e-4


@pytest.mark.parametrize("maps", [False, True])
def test_the_gradient_flows_through_kept_units_alone(maps):
    x = torch.randn(6, 5, 4, 4, requires_grad=True)
    layer = Dropout(0.4, maps=maps)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y != 0, 1 / 0.6, 0.0))


@pytest.mark.parametrize("maps", [False, True])
def test_derivatives_of_both_orders_and_both_modes(maps):
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = Dropout(0.4, maps=maps)

    def keyed_layer(x):
        with keyed(layer, 1):
            return layer(x)

    assert torch.autograd.gradcheck(keyed_layer, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(keyed_layer, x)


def test_in_torch_func_and_compiled_it_is_the_same():
    x = torch.randn(6, 5)
    layer = Dropout(0.4)

    def loss(x):
        with keyed(layer, 1):
            return (layer(x) ** 2).sum()

    expected = torch.autograd.functional.jacobian(loss, x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), expected)
    compiled = torch.compile(layer, backend="eager")
    with keyed(compiled, 1):
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("p", [0, 1])
def test_nothing_and_everything(p):
    x = torch.randn(4, 3, requires_grad=True)
    y = Dropout(p)(x)
    y.sum().backward()
    assert torch.equal(y, x if p == 0 else torch.zeros(4, 3))
    assert torch.equal(x.grad, torch.full((4, 3), 1.0 - p))
    assert torch.equal(Dropout(p).eval()(x), x)
    assert torch.equal(Dropout(p, scaling="classic").eval()(x), x * (1 - p))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(p):
    with pytest.raises(InputError, match="fraction that is dropped"):
        Dropout(p)


def test_other_bad_input():
    with pytest.raises(InputError, match="inverted or classic"):
        Dropout(0.5, scaling="inverse")
    with pytest.raises(InputError, match="no feature maps"):
        Dropout(0.5, maps=True)(torch.zeros(3, 4))
    with pytest.raises(InputError, match="2\\*\\*40 masks"):
        exact_marginal(nn.Sequential(Dropout(0.5), nn.Linear(40, 2)), torch.zeros(1, 40))
    with pytest.raises(InputError, match="Dropout1d is random too"):
        exact_marginal(nn.Sequential(Dropout(0.5), nn.Dropout1d(0.5)), torch.zeros(1, 4))
    layer = Dropout(0.5)
    with pytest.raises(InputError, match="more than once"):
        exact_marginal(nn.Sequential(layer, nn.Linear(4, 4), layer), torch.zeros(1, 4))


def test_nothing_is_left_of_the_enumeration():
    model = nn.Sequential(Dropout(0.5), nn.Linear(3, 2)).train()
    exact_marginal(model, torch.randn(2, 3))
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
    assert model.training
    assert not model[0]._sampling
    assert model.state_dict().keys() == {"1.weight", "1.bias"}


def test_reverse_over_forward_is_forward_over_reverse():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Dropout(0.5), nn.Linear(4, 2)).double()
    x, direction = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    with keyed(model, 0, 1), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
        ours = torch.autograd.grad(tangent.square().sum(), model[0].weight)[0]
    with keyed(model, 0, 1):
        product = torch.autograd.functional.jvp(lambda x: model(x), x, direction, create_graph=True)[1]
        theirs = torch.autograd.grad(product.square().sum(), model[0].weight)[0]
    assert ours.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs)
