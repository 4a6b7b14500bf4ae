"""Which stages of a pretrained model are trained when, and how fast."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import trainwell as tw
from trainwell.freezing import freeze_parameter
from trainwell.models import create
from trainwell.train.optimizers import make_optimizer
from trainwell.train.recipe import Recipe
from trainwell.train.tuning import Tuning, make_tuning, stages_trained

STAGES = ["conv1", "layer1", "layer2", "layer3", "fc"]


def _tuning(total_steps=100, **fields) -> Tuning:
    torch.manual_seed(0)
    recipe = Recipe(lr=0.1, weight_decay=0.01, **fields)
    tuning = make_tuning(create("resnet8", num_classes=3, in_chans=3), recipe, total_steps)
    assert tuning is not None
    return tuning


def _trained(tuning) -> set[str]:
    return {name.split(".")[0] for name, p in tuning.model.named_parameters() if p.requires_grad} & set(STAGES)


@pytest.mark.parametrize(
    ("way", "trained"),
    [
        ("linear", {"fc"}), ("top1", {"fc", "layer3"}), ("top2", {"fc", "layer3", "layer2"}), ("top9", set(STAGES)),
        ("all", set(STAGES)), ("lp_ft", set(STAGES)),
    ],
)  # fmt: skip
def test_each_way_trains_its_stages_throughout(way, trained):
    tuning = _tuning(transfer=way)
    for step in (0, 50, 100):
        tuning.at(step)
        assert _trained(tuning) == trained


def test_a_head_alone_leaves_all_else_of_its_stage_as_it_is_statistics_too():
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False))
    model.classifier = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    tuning = make_tuning(model, Recipe(lr=0.1, weight_decay=0.01, transfer="linear"), 100)
    assert tuning is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, tuning.recipe, tuning)
    torch.nn.functional.cross_entropy(model.train()(torch.randn(16, 4)), torch.arange(16) % 3).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.3.weight", "classifier.3.bias"}


def test_gradual_thaws_stage_by_stage_from_the_head_and_goes_back_as_well():
    tuning = _tuning(transfer="gradual")
    trained = []
    for step in range(101):
        tuning.at(step)
        trained.append(len(_trained(tuning)))
    assert [trained.index(count) for count in (1, 2, 3, 4, 5)] == [0, 13, 25, 38, 50]
    tuning.at(0)  # as after a loss that was not finite
    assert _trained(tuning) == {"fc"}


@given(st.integers(2, 40), st.integers(1, 500))
def test_gradual_never_freezes_again_and_ends_with_all(count, steps):
    trained = [stages_trained("gradual", count, step, steps) for step in range(steps + 1)]
    assert trained[0] == 1
    assert trained[-1] == count
    assert trained == sorted(trained)


def test_rates_fall_with_depth_and_decay_is_where_it_belongs():
    tuning = _tuning(transfer="all", backbone_lr=0.2, layer_decay=0.5)
    optimizer = make_optimizer(tuning.model, tuning.recipe, tuning)
    names = {id(parameter): name for name, parameter in tuning.model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            found[name] = group["lr_scale"], group["weight_decay"]
    assert found.keys() == dict(tuning.model.named_parameters()).keys()
    expected = dict(zip(["fc", "layer3", "layer2", "layer1", "conv1"], [1.0, 0.2, 0.1, 0.05, 0.025], strict=True))
    for name, (scale, decay) in found.items():
        stage = name.split(".")[0].replace("bn1", "conv1")
        assert math.isclose(scale, expected[stage]), name
        assert decay == (0.01 if "conv" in name or "downsample.0" in name or name == "fc.weight" else 0.0), name
    assert optimizer.param_groups[0]["lr_scale"] == 1  # whose rate the history tells


def test_the_pull_takes_the_place_of_decay_below_the_head():
    tuning = _tuning(transfer="all", l2_sp=0.1)
    for group in make_optimizer(tuning.model, tuning.recipe, tuning).param_groups:
        assert group["weight_decay"] == (0.01 if group["param_names"] == ["fc.weight"] else 0.0)


def test_the_heavy_ball_and_decay_of_all_are_to_be_had():
    model = create("resnet8", num_classes=3, in_chans=3)
    recipe = Recipe(optimizer="sgd", lr=0.1, weight_decay=0.01)
    assert [group["nesterov"] for group in make_optimizer(model, recipe).param_groups] == [True, True]
    assert {group["weight_decay"] for group in make_optimizer(model, recipe).param_groups} == {0.01, 0.0}
    other = make_optimizer(model, dataclasses.replace(recipe, nesterov=False, decay_all=True))
    assert [group["nesterov"] for group in other.param_groups] == [False, False]
    assert [group["momentum"] for group in other.param_groups] == [0.9, 0.9]
    assert [group["weight_decay"] for group in other.param_groups] == [0.01, 0.01]
    assert sum(len(group["params"]) for group in other.param_groups) == len(list(model.parameters()))


def test_rates_of_an_equal_backbone_are_those_of_no_tuning():
    tuning = _tuning(transfer="all", backbone_lr=1.0)
    parts = make_optimizer(tuning.model, tuning.recipe, tuning).param_groups
    whole = make_optimizer(tuning.model, tuning.recipe).param_groups
    for index, decay in enumerate((0.01, 0.0)):
        named = sorted(name for group in parts if group["weight_decay"] == decay for name in group["param_names"])
        assert named == sorted(whole[index]["param_names"])


def _of(model, way) -> Tuning:
    tuning = make_tuning(model, Recipe(lr=0.1, weight_decay=0.01, transfer=way), 100)
    assert tuning is not None
    return tuning


@pytest.mark.parametrize("way", ["all", "top3", "gradual", "lp_ft"])
def test_what_was_frozen_before_stays_frozen_at_every_step(way):
    model = create("resnet8", num_classes=3, in_chans=3)
    tw.transfer.freeze(model.layer2)
    freeze_parameter(model, "fc.bias")
    tuning = _of(model, way)
    for step in (0, 20, 100, 0):
        tuning.at(step)
        assert tw.transfer.is_frozen(model.layer2)
        assert model.fc.weight.requires_grad
        assert not model.fc.bias.requires_grad
    tuning.at(100)
    assert _trained(tuning) == {*STAGES} - {"layer2"} - ({"conv1"} if way == "top3" else set())
    assert tuning.sentence().endswith("; stays frozen: fc.bias, layer2")


def test_what_tuning_froze_is_thawed_by_the_next_one_and_what_the_user_froze_is_not():
    model = create("resnet8", num_classes=3, in_chans=3)
    tw.transfer.freeze(model.layer1)
    assert _trained(_of(model, "linear")) == {"fc"}
    assert _trained(_of(model, "all")) == {*STAGES} - {"layer1"}
    tw.transfer.thaw(model)
    assert _trained(_of(model, "all")) == {*STAGES}
    _of(model, "linear")
    tw.transfer.thaw(model)
    tw.transfer.freeze(model.layer3)
    assert _trained(_of(model, "all")) == {*STAGES} - {"layer3"}


def test_a_model_from_scratch_has_none():
    assert make_tuning(nn.Linear(2, 2), Recipe(transfer="none"), 10) is None


@pytest.mark.parametrize("way", ["top0", "top", "linear ", "fine_tune", ""])
def test_a_way_that_is_none_is_refused(way):
    with pytest.raises(tw.InputError, match="transfer must be"):
        Recipe(transfer=way)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"), ({"layer_decay": 0.0}, "must be above 0"),
        ({"backbone_lr": 0.0}, "backbone_lr must be above 0"), ({"l2_sp": -1.0}, "l2_sp must be at least 0"),
    ],
)  # fmt: skip
def test_figures_out_of_range_are_refused(fields, told):
    with pytest.raises(tw.InputError, match=told):
        Recipe(**fields)
