"""Oracle: the layers as matrix products."""

import pytest
import torch
from torch import nn

from trainwell.models import MLP


@pytest.mark.parametrize("batch_norm", [True, False])
def test_forward_equals_matrix_products(batch_norm: bool) -> None:
    torch.manual_seed(0)
    net = MLP(12, 3, hidden=(8, 5), batch_norm=batch_norm).double()
    x = torch.randn(7, 3, 2, 2, dtype=torch.float64)
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(8, 12), (5, 8), (3, 5)]
    hidden = x.reshape(7, 12)
    for layer in linear[:-1]:
        hidden = hidden @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        if batch_norm:
            hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        hidden = hidden.clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ net.fc.weight.T + net.fc.bias, rtol=1e-10, atol=1e-10)


def test_without_hidden_layers_it_is_linear() -> None:
    net = MLP(4, 2, hidden=())
    x = torch.randn(3, 4)
    torch.testing.assert_close(net(x), x @ net.fc.weight.T + net.fc.bias)
    assert [name for name, _ in net.named_parameters()] == ["fc.weight", "fc.bias"]


def test_dropout_acts_in_training_on_hidden_units_only() -> None:
    net = MLP(4, 3, hidden=(1000,), batch_norm=False, drop_rate=0.25)
    hidden: list[torch.Tensor] = []
    net.fc.register_forward_pre_hook(lambda _m, inputs: hidden.append(inputs[0]))
    x = torch.randn(1, 4)
    net.eval()(x)
    net.train()(x)
    active = hidden[0] > 0
    kept = hidden[1][active]
    assert 0.15 < (kept == 0).float().mean() < 0.35
    torch.testing.assert_close(kept[kept > 0], hidden[0][active][kept > 0] / 0.75)
