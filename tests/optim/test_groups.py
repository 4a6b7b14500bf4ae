from typing import Any

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import MLP, resnet8, resnet50
from trainwell.optim import no_decay_groups


def _names(model: nn.Module) -> tuple[list[str], list[str]]:
    decayed, others = no_decay_groups(model, 0.1)
    return decayed["param_names"], others["param_names"]


def test_convolutions_and_matrices_decay_and_nothing_else() -> None:
    model = resnet8(width=4)
    decayed, others = no_decay_groups(model, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    matrices = [name for name, p in model.named_parameters() if "conv" in name or name.endswith("downsample.0.weight")]
    assert decayed["param_names"] == [*matrices, "fc.weight"]
    assert all("bn" in name or name.endswith((".1.weight", "bias")) for name in others["param_names"])


@pytest.mark.parametrize("make", [lambda: resnet50(width=4), lambda: MLP(4, 2), lambda: nn.LSTM(3, 4)])
def test_every_parameter_is_in_exactly_one_group_under_its_name(make: Any) -> None:
    model = make()
    groups = no_decay_groups(model, 0.1)
    named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    expected = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(named) == len(expected)
    assert all(named[name] is expected[name] for name in expected)
    order = list(expected)
    for group in groups:
        assert group["param_names"] == sorted(group["param_names"], key=order.index)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((3, 4)),
        nn.RMSNorm((3, 4)),
        nn.GroupNorm(2, 4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_of_any_dimension_do_not_decay(norm: nn.Module) -> None:
    decayed, others = _names(norm)
    assert decayed == []
    assert others == [name for name, _ in norm.named_parameters()]


def test_stacked_biases_scalars_and_slopes_do_not_decay_and_embeddings_do() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 2, 3))
            self.bias = nn.Parameter(torch.zeros(5, 1, 3))
            self.temperature = nn.Parameter(torch.zeros(()))
            self.slope = nn.PReLU(4)
            self.table = nn.Embedding(6, 2)

    assert _names(Net()) == (["weight", "table.weight"], ["bias", "temperature", "slope.weight"])


def test_frozen_parameters_are_left_out() -> None:
    model = MLP(4, 2, hidden=(3,))
    model.layers.requires_grad_(False)
    assert _names(model) == (["fc.weight"], ["fc.bias"])


def test_shared_parameters_are_there_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embed"].weight
    assert _names(model) == (["embed.weight"], ["head.bias"])


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_torchs_optimizers_take_the_groups_and_decay_only_the_first(make: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    nn.init.ones_(model[0].bias)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(no_decay_groups(model, 0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name == "0.weight" else 1.0))
    assert [group["param_names"] for group in optimizer.state_dict()["param_groups"]] == [
        ["0.weight"],
        ["0.bias", "1.weight", "1.bias"],
    ]


def test_what_cannot_be_grouped_is_said() -> None:
    with pytest.raises(InputError, match="no parameter to train"):
        no_decay_groups(MLP(4, 2).requires_grad_(False), 0.1)
    with pytest.raises(InputError, match=r"weight_decay is -0\.1"):
        no_decay_groups(MLP(4, 2), -0.1)
    with pytest.raises(InputError, match=r"'0\.weight' has no shape yet"):
        no_decay_groups(nn.Sequential(nn.LazyLinear(3)), 0.1)
