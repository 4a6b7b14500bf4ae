"""DropConnect: against the enumeration of all masks, and its Gaussian against the moments of that."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from trainwell import InputError
from trainwell.regularize import DropConnect, keyed, masks, sampling


def outcomes(weight, bias, x, p, scale):
    """Yields the chance and the pre-activations of every mask of weights and biases, in NumPy."""
    flat = np.concatenate([weight.reshape(-1), bias])
    for mask in itertools.product([0, 1], repeat=len(flat)):
        chance = np.prod([(1 - p) if kept else p for kept in mask])
        masked = flat * np.array(mask) * scale
        yield chance, x @ masked[: weight.size].reshape(weight.shape).T + masked[weight.size :]


@pytest.mark.parametrize("scaling", ["inverted", "classic"])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_mean_and_gaussian_are_those_of_the_enumeration(p, scaling):
    torch.manual_seed(0)
    linear = nn.Linear(3, 2).double()
    layer = DropConnect(linear, p, scaling=scaling).eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    scale = 1 / (1 - p) if scaling == "inverted" else 1.0
    every = list(outcomes(linear.weight.detach().numpy(), linear.bias.detach().numpy(), x.numpy(), p, scale))
    mean = sum(chance * out for chance, out in every)
    variance = sum(chance * (out - mean) ** 2 for chance, out in every)
    np.testing.assert_allclose(layer(x).detach(), mean, atol=1e-12)
    many = x.repeat_interleave(40_000, 0)
    for draws in (_sampled(layer, many), _trained(layer, many)):  # the Gaussian, and the masks
        draws = draws.view(2, 40_000, 2).numpy()
        error = np.sqrt(variance / 40_000)
        assert (np.abs(draws.mean(1) - mean) < 4.5 * error).all()
        np.testing.assert_allclose(draws.var(1), variance, rtol=0.06)


def _sampled(layer, x):
    with torch.no_grad(), sampling(layer), keyed(layer, 0):
        return layer(x)


def _trained(layer, x):
    layer.train()
    with torch.no_grad(), keyed(layer, 0):
        return layer(x)


def test_in_training_each_row_has_every_mask_as_often_as_it_should():
    linear = nn.Linear(2, 1).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(4.0)  # so that the output says which were kept
    layer = DropConnect(linear, 0.25, scaling="classic")
    out = _trained(layer, torch.ones(40_000, 2, dtype=torch.float64)).flatten()
    for kept in range(8):
        chance = 0.75 ** bin(kept).count("1") * 0.25 ** (3 - bin(kept).count("1"))
        share = float((out == kept).double().mean())
        assert abs(share - chance) < 4.5 * (chance * (1 - chance) / 40_000) ** 0.5


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias, on sequences": (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 7, 7)),
    "grouped, dilated, reflecting": (
        lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, padding_mode="reflect"), (5, 4, 7, 7),
    ),
    "same padding": (lambda: nn.Conv1d(4, 2, 3, padding="same", bias=False), (5, 4, 9)),
    "in space": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
}  # fmt: skip
NAMED = pytest.mark.parametrize("name", LAYERS)


@NAMED
def test_a_row_is_the_layer_with_that_rows_weights(name):
    make, shape = LAYERS[name]
    inner, x = make().double(), torch.randn(shape, dtype=torch.float64)
    layer = DropConnect(inner, 0.4)
    with keyed(layer, 3):
        out, keys = layer(x), layer.row_keys(x)
    sizes = [parameter.numel() for parameter in inner.parameters()]
    for i, row in enumerate(x):
        kept = masks.kept(masks.splitmix64(keys[i : i + 1]), sum(sizes), 0.4)[0].double() / 0.6
        parameters = {
            n: value * mask.view_as(value)
            for (n, value), mask in zip(inner.named_parameters(), kept.split(sizes), strict=True)
        }
        torch.testing.assert_close(out[i : i + 1], torch.func.functional_call(inner, parameters, (row[None],)))


@NAMED
def test_evaluation_is_the_layer_and_sampling_is_about_it(name):
    make, shape = LAYERS[name]
    inner = make()
    layer = DropConnect(inner, 0.4).eval()
    x = torch.randn(shape)
    assert torch.equal(layer(x), inner(x))
    with torch.no_grad(), sampling(layer):
        first, second = layer(x), layer(x)
    assert first.shape == layer(x).shape
    assert not torch.equal(first, second)


@NAMED
def test_it_trains_and_gradients_reach_the_kept_weights(name):
    make, shape = LAYERS[name]
    layer = DropConnect(make().double(), 0.4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def loss(x):
        with keyed(layer, 1):
            return layer(x)

    assert torch.autograd.gradcheck(loss, x)
    layer(x[:1]).sum().backward()
    weight = layer.weight
    assert 0.1 < float((weight.grad == 0).double().mean()) < 0.8


@NAMED
@pytest.mark.parametrize("scaling", ["inverted", "classic"])
def test_under_autocast_training_and_sampling_have_the_dtype_of_evaluation(name, scaling):
    make, shape = LAYERS[name]
    layer, x = DropConnect(make(), 0.4, scaling=scaling), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        trained = layer(x)
        evaluated = layer.eval()(x)
        with sampling(layer):
            sampled = layer(x)
    assert trained.dtype == sampled.dtype == evaluated.dtype == torch.bfloat16


@NAMED
def test_an_empty_batch_has_the_shape_of_evaluation_and_a_gradient(name):
    make, shape = LAYERS[name]
    layer, x = DropConnect(make(), 0.4), torch.randn(0, *shape[1:])
    expected = layer.eval()(x).shape
    with sampling(layer):
        assert layer(x).shape == expected
    trained = layer.train()(x)
    assert trained.shape == expected
    trained.sum().backward()
    assert not layer.weight.grad.any()


def test_gaussian_numbers_are_gaussian():
    from scipy import stats

    numbers = masks.gaussian(masks.splitmix64(torch.arange(50)), 2000).flatten()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-4
    assert abs(float(np.corrcoef(numbers[::2], numbers[1::2])[0, 1])) < 0.02
    assert numbers.isfinite().all()


def test_pieces_of_a_batch_have_the_rows_of_the_whole():
    layer, x = DropConnect(nn.Linear(6, 4), 0.4), torch.randn(8, 6)
    for mode in (layer.train, layer.eval):
        mode()
        with sampling(layer) if not layer.training else keyed(layer, 0), keyed(layer, 0):
            whole = layer(x)
            with keyed(layer, 0, rows=range(3, 8)):
                torch.testing.assert_close(layer(x[3:]), whole[3:])


def test_names_of_weights_and_bad_input():
    assert set(DropConnect(nn.Linear(2, 2)).state_dict()) == {"weight", "bias"}
    with pytest.raises(InputError, match="not for a BatchNorm1d"):
        DropConnect(nn.BatchNorm1d(3))
    with pytest.raises(InputError, match="from 0 to below 1"):
        DropConnect(nn.Linear(2, 2), 1.0)
    with pytest.raises(InputError, match="inverted or classic"):
        DropConnect(nn.Linear(2, 2), scaling="paper")
    inner, x = nn.Linear(2, 2), torch.randn(3, 2)
    assert torch.equal(DropConnect(inner, 0.0)(x), inner(x))


def test_it_stands_in_for_the_layer():
    layer = DropConnect(nn.Conv2d(2, 4, 3, stride=2, bias=False))
    assert dict(layer.named_parameters()).keys() == {"weight"}
    assert (layer.in_channels, layer.kernel_size, layer.stride, layer.bias) == (2, (3, 3), (2, 2), None)
    model, x = nn.Sequential(DropConnect(nn.Linear(3, 2))).eval(), torch.randn(4, 3)
    zero = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert not torch.func.functional_call(model, zero, x).any()


def test_layers_that_do_more_than_they_say_are_refused():
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    for other in (Adapted(2, 2), parametrized):
        with pytest.raises(InputError, match="not for a "):
            DropConnect(other)
    with pytest.raises(InputError, match="has hooks"):
        DropConnect(nn.utils.spectral_norm(nn.Linear(2, 2)))


def test_a_row_of_zeros_has_a_derivative_where_it_is_sampled():
    layer = DropConnect(nn.Linear(3, 2, bias=False), 0.5).eval()
    with sampling(layer):
        layer(torch.tensor([[0.0, 0, 0], [1, 2, 3]])).sum().backward()
    assert layer.weight.grad.isfinite().all()
