from typing import Any

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import MLP, resnet8, resnet14, resnet50
from trainwell.optim.groups import layer_decay_groups, no_decay_groups
from trainwell.optim.schedules import cosine, scaled


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


def _rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_a_resnets_stages_are_its_stem_its_blocks_and_its_last_layer() -> None:
    model = resnet14(width=4)  # two blocks in each of layer1, layer2, layer3
    rates = _rates(layer_decay_groups(model, lr=0.1, decay=0.5))
    order = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "fc"]
    for name, rate in rates.items():
        depth = next((i for i, block in enumerate(order, start=1) if name.startswith(f"{block}.")), 0)
        assert rate == pytest.approx(0.1 * 0.5 ** (7 - depth), rel=1e-12), name
    assert rates["conv1.weight"] == rates["bn1.bias"] == 0.1 * 0.5**7
    assert len(set(rates.values())) == 8


def test_a_transformers_blocks_are_stages_and_its_tokens_belong_to_the_first() -> None:
    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.patch_embed = nn.Conv2d(3, 4, 2)
            self.dropout = nn.Dropout(0.1)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(12))
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 2)

    def layer_of(name: str) -> int:  # as BEiT's fine-tuning counts them; its last norm learns like the head, ours like
        if name.startswith(("cls_token", "patch_embed")):  # the block whose output it scales
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 12 if name.startswith("norm") else 13

    for name, rate in _rates(layer_decay_groups(ViT(), lr=1e-3, decay=0.65)).items():
        assert rate == pytest.approx(1e-3 * 0.65 ** (13 - layer_of(name)), rel=1e-12), name


def test_nested_containers_are_opened_and_what_has_no_weight_joins_the_stage_before() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.PReLU())
    model = nn.Sequential(nn.LayerNorm(3), nn.Sequential(block, nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 1))
    rates = _rates(layer_decay_groups(model, lr=1.0, decay=0.1))
    assert {name: round(rate, 9) for name, rate in rates.items()} == {
        **dict.fromkeys(["0.weight", "0.bias", "1.0.0.weight", "1.0.0.bias"], 0.01),
        **dict.fromkeys(["1.0.1.weight", "1.0.1.bias", "1.0.2.weight"], 0.01),
        **dict.fromkeys(["1.2.weight", "1.2.bias"], 0.1),
        **dict.fromkeys(["2.weight", "2.bias"], 1.0),
    }


@pytest.mark.parametrize("make", [lambda: resnet50(width=4), lambda: MLP(4, 2), lambda: nn.LSTM(3, 4), nn.Bilinear])
def test_layer_decay_has_every_parameter_once_and_decays_what_no_decay_groups_decays(make: Any) -> None:
    model = make(2, 2, 2) if make is nn.Bilinear else make()
    groups = layer_decay_groups(model, lr=0.1, decay=0.9, weight_decay=0.05)
    for decay, of_all in ((0.05, no_decay_groups(model, 0.05)[0]), (0.0, no_decay_groups(model, 0.05)[1])):
        ours = [pair for group in groups for pair in _pairs(group) if group["weight_decay"] == decay]
        assert len(ours) == len(of_all["params"])
        assert {(name, id(p)) for name, p in ours} == {(name, id(p)) for name, p in _pairs(of_all)}
    assert all(group["params"] for group in groups)
    assert [group["lr"] for group in groups] == sorted(group["lr"] for group in groups)
    assert groups[-1]["lr"] == 0.1


def _pairs(group: dict[str, Any]) -> list[tuple[str, nn.Parameter]]:
    return list(zip(group["param_names"], group["params"], strict=True))


def test_stages_can_be_named() -> None:
    stages = [("conv1", "bn1"), "layer1.0", ("layer2", "layer1"), "layer3", "fc.weight", "fc"]
    rates = _rates(layer_decay_groups(resnet14(width=4), lr=1.0, decay=0.5, stages=stages))
    assert rates["bn1.weight"] == rates["conv1.weight"] == 0.5**5
    assert rates["layer1.0.conv1.weight"] == 0.5**4
    assert rates["layer1.1.conv1.weight"] == rates["layer2.0.bn2.bias"] == 0.5**3
    assert rates["layer3.1.conv2.weight"] == 0.5**2
    assert (rates["fc.weight"], rates["fc.bias"]) == (0.5, 1.0)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
@pytest.mark.parametrize("stages", [None, [["conv1", "bn1"], "layer1", "layer2", "layer3", "fc"]])
def test_a_model_that_is_wrapped_has_the_rates_and_names_of_the_model_itself(wrap: Any, stages: Any) -> None:
    model = resnet14(width=4)
    alone, wrapped = (layer_decay_groups(one, lr=1.0, decay=0.5, stages=stages) for one in (model, wrap(model)))
    assert _rates(wrapped) == _rates(alone)
    assert len({*_rates(wrapped).values()}) > 2


def test_a_name_is_not_the_start_of_another() -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)})
    rates = _rates(layer_decay_groups(model, lr=1.0, decay=0.5, stages=["layer1", "layer10"]))
    assert (rates["layer1.weight"], rates["layer10.weight"]) == (0.5, 1.0)


@pytest.mark.parametrize("stages", [None, ["0", "1", "2"]])
def test_frozen_stages_are_left_out_and_count_for_the_depth(stages: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    groups = layer_decay_groups(model, lr=1.0, decay=0.5, stages=stages)
    assert len(groups) == 4
    rates = _rates(groups)
    assert rates == {"0.weight": 0.25, "0.bias": 0.25, "2.weight": 1.0, "2.bias": 1.0}


def test_a_schedule_is_scaled_for_each_stage() -> None:
    rate = cosine(1.0, steps=10)
    lower, upper = (g["lr"] for g in layer_decay_groups(nn.Sequential(nn.Bilinear(1, 1, 1), MLP(1, 1)), rate, 0.5)[::2])
    assert (lower, upper) == (scaled(rate, 0.5), scaled(rate, 1.0))
    assert [(lower(k), upper(k)) for k in range(10)] == [(0.5 * rate(k), rate(k)) for k in range(10)]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_torchs_optimizers_take_each_stages_rate(make: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = make(layer_decay_groups(model, lr=0.1, decay=0.5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # by -lr, whether with momentum or without
    torch.testing.assert_close(model[0].weight.detach(), before[0] - 0.05)
    torch.testing.assert_close(model[1].weight.detach(), before[1] - 0.1)


def test_a_rate_that_does_not_decay_with_depth_is_the_same_everywhere() -> None:
    assert set(_rates(layer_decay_groups(resnet14(width=4), lr=0.1, decay=1.0)).values()) == {0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, "decay is 0.0: it must be above 0 and at most 1"),
        ({"decay": 1.1}, "decay is 1.1"),
        ({"decay": "0.5"}, "decay is '0.5': it must be a finite number"),
        ({"lr": "fast"}, "lr is 'fast': it must be a finite number"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"stages": ["layers", "fcc"]}, r"no parameter is left for 'fcc' \(did you mean 'fc'\?\)"),
        ({"stages": ["layers", "layers.0", "fc"]}, r"no parameter is left for 'layers.0'.*before its parent"),
        ({"stages": ["fc"]}, "parameter 'layers.0.0.weight' is in none, like 2 more"),
        ({"stages": []}, "is in none"),
    ],
)
def test_wrong_options_of_layer_decay_are_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        layer_decay_groups(MLP(4, 2, hidden=(3,)), **{"lr": 0.1, "decay": 0.5, **options})
    assert "\n" not in str(caught.value)


def test_models_that_no_decay_groups_refuses_are_refused() -> None:
    with pytest.raises(InputError, match=r"'0\.weight' has no shape yet"):
        layer_decay_groups(nn.Sequential(nn.LazyLinear(3)), 0.1, 0.5)
    with pytest.raises(InputError, match="no parameter to train"):
        layer_decay_groups(MLP(4, 2).requires_grad_(False), 0.1, 0.5)
