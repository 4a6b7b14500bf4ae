"""Surgery: the last layer and the stages are found in models of all usual forms, and changed as asked for."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trainwell.errors import InputError
from trainwell.freezing import freeze_parameter, is_frozen, thaw
from trainwell.models import MLP, create
from trainwell.optim import layer_decay_groups
from trainwell.transfer.surgery import (
    find_head,
    freeze_all_but,
    head_inputs,
    reinitialize,
    replace_head,
    stages,
)


class Block(nn.Module):
    """A transformer's, with its parts under the usual names."""

    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        x = x + self.attn(*[self.norm1(x)] * 3, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """As timm names its parts; `pretrained_cfg` may tell the head."""

    def __init__(self, depth=12, classifier=None):
        super().__init__()
        if classifier is not None:
            self.pretrained_cfg = {"classifier": classifier}
        self.num_classes = 10
        self.patch_embed = nn.Conv2d(1, 8, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm, self.head_drop, self.head = nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 10)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.head_drop(self.norm(x)[:, 0]))


class _Named(nn.Module):
    """Children by name, called one after the other."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class _Layers(nn.Module):
    """The encoder of transformers: a list, called in order."""

    def __init__(self, *layers):
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)
        return x


def _transformers_vit():
    return _Named(
        vit=_Named(
            embeddings=_Named(flat=nn.Flatten(2), projection=nn.Linear(64, 8)),
            encoder=_Layers(*[Block() for _ in range(4)]),
            layernorm=nn.LayerNorm(8),
        ),
        flatten=nn.Flatten(),
        classifier=nn.Linear(8, 10),
    )


def _bert():
    """Its embeddings hold most of the parameters."""
    return _Named(
        bert=_Named(
            embeddings=nn.Embedding(5000, 8), encoder=_Layers(Block(), Block()), pooler=_Named(dense=nn.Linear(8, 8))
        ),
        classifier=nn.Linear(8, 10),
    )


def _inverted(chans):
    return _Named(
        conv=nn.Sequential(
            nn.Sequential(nn.Conv2d(chans, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            nn.Conv2d(16, chans, 1, bias=False),
            nn.BatchNorm2d(chans),
        )
    )


def _mobilenet():
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)), _inverted(4), _inverted(4), _inverted(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return _Named(features=features, classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 10)))


def _vgg():
    """Its classifier holds most of the parameters."""
    features = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )  # fmt: skip
    return _Named(features=features, classifier=nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)))


def _squeezenet():
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU())
    pool = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(6, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return _Named(features=features, classifier=pool, flatten=nn.Flatten())


def _resnet(name="resnet8", **options):
    return create(name, num_classes=10, in_chans=1, **options)


MODELS = {
    "resnet": (_resnet, "fc", "conv1 bn1 | layer1 | layer2 | layer3 | fc"),
    "resnet18": (
        lambda: _resnet("resnet18"), "fc", "conv1 bn1 | layer1 | layer2 | layer3 | layer4 | fc",
    ),
    "resnet in a model": (
        lambda: _Named(net=_resnet()), "net.fc", "net.conv1 net.bn1 | net.layer1 | net.layer2 | net.layer3 | net.fc",
    ),
    "resnet after a norm": (
        lambda: nn.Sequential(nn.BatchNorm2d(1), _resnet()), "1.fc",
        "0 1.conv1 1.bn1 | 1.layer1 | 1.layer2 | 1.layer3 | 1.fc",
    ),
    "mlp": (lambda: MLP(64, 10), "fc", "layers.0 | layers.1 | fc"),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "1", "1"),
    "vit": (
        ViT, "head",
        "cls_token pos_embed patch_embed | " + "".join(f"blocks.{k} | " for k in range(11)) + "blocks.11 norm | head",
    ),
    "short vit": (lambda: ViT(2), "head", "cls_token pos_embed patch_embed | blocks.0 | blocks.1 norm | head"),
    "vit of one block": (lambda: ViT(1), "head", "cls_token pos_embed patch_embed | blocks norm | head"),
    "transformers": (
        _transformers_vit, "classifier",
        "vit.embeddings | vit.encoder.layer.0 | vit.encoder.layer.1 | vit.encoder.layer.2 | "
        "vit.encoder.layer.3 vit.layernorm | classifier",
    ),
    "bert": (
        _bert, "classifier",
        "bert.embeddings | bert.encoder.layer.0 | bert.encoder.layer.1 | bert.pooler | classifier",
    ),
    "mobilenet": (
        _mobilenet, "classifier.1", "features.0 | features.1 | features.2 | features.3 | classifier",
    ),
    "vgg": (_vgg, "classifier.2", "features.0 | features.2 | features.4 | classifier"),
    "squeezenet": (_squeezenet, "classifier.1", "features.0 | features.2 | classifier"),
}  # fmt: skip
IMAGES = sorted(set(MODELS) - {"transformers", "bert", "resnet18", "vit"})  # those that take them, and not long


def _images(n=6, side=8):
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_the_head_and_the_stages_are_those_that_a_person_would_say(name):
    make, head, expected = MODELS[name]
    model = make()
    assert find_head(model) == head
    assert " | ".join(" ".join(stage) for stage in stages(model)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_layer_wise_rates_take_the_stages(name):
    model = MODELS[name][0]()
    found = stages(model)
    groups = layer_decay_groups(model, lr=1.0, decay=0.5, stages=found)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {0.5**k for k in range(len(found))}
    of_head = {name for group in groups if group["lr"] == 1.0 for name in group["param_names"]}
    assert f"{find_head(model)}.weight" in of_head


def test_a_block_with_a_shortcut_is_never_taken_apart():
    block = _resnet().layer2[0]  # whose `downsample` is a Sequential
    model = nn.Sequential(nn.Conv2d(1, 16, 3), block, nn.Flatten(), nn.Linear(32, 10))
    assert stages(model) == [("0",), ("1",), ("3",)]


def test_the_stage_of_the_head_is_the_last_wherever_it_was_added():
    model = _Named(head=nn.Linear(3, 2), a=nn.Linear(4, 3), b=nn.Linear(3, 3), norm=nn.LayerNorm(3))
    assert stages(model) == [("a",), ("b", "norm"), ("head",)]


def _plain():
    return st.sampled_from(
        [lambda: nn.Linear(3, 3), lambda: nn.BatchNorm1d(3), nn.ReLU, lambda: nn.Dropout(0.5), lambda: nn.PReLU()]
    )


@given(st.recursive(_plain(), lambda layers: st.lists(layers, min_size=1, max_size=4), max_leaves=25))
def test_each_parameter_of_nested_chains_is_in_one_stage_and_stages_keep_the_order(nest):
    def made(nest):
        return nn.Sequential(*map(made, nest)) if isinstance(nest, list) else nest()

    model = nn.Sequential(made(nest), nn.Linear(3, 2))
    found = stages(model)
    names = [name for stage in found for name in stage]
    covered = [f"{name}.{key}" for name in names for key, _ in model.get_submodule(name).named_parameters()]
    assert covered == [name for name, _ in model.named_parameters()]
    assert find_head(model).startswith(found[-1])
    for stage in found:
        assert any(isinstance(layer, nn.Linear) for name in stage for layer in model.get_submodule(name).modules())


def test_a_shared_parameter_belongs_to_the_first_that_has_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    model[1].bias = model[0].bias
    assert stages(model) == [("0",), ("2",)]
    model[2] = model[0]
    with pytest.raises(InputError, match="parameters of other layers"):
        stages(nn.Sequential(model[0], _Named(fc=model[1])))


# ---------------------------------------------------------------------- the head


def test_what_a_model_says_of_its_head_is_right():
    assert find_head(ViT(1, classifier="blocks.0.mlp.2")) == "blocks.0.mlp.2"
    assert find_head(ViT(1, classifier=("head", "head_dist"))) == "head"
    with pytest.raises(InputError, match="'heed', which it does not have"):
        find_head(ViT(1, classifier="heed"))


def test_a_model_without_head_is_refused_and_no_inner_layer_taken():
    for model in (_resnet(), ViT(1, classifier="head")):
        setattr(model, find_head(model), nn.Identity())
        with pytest.raises(InputError, match="last layer '(fc|head)' is Identity"):
            find_head(model)
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 2, 3)), nn.ReLU()):
        with pytest.raises(InputError, match="no Linear and no 1×1 Conv2d"):
            find_head(model)


@pytest.mark.parametrize("name", IMAGES)
def test_the_first_loss_with_a_new_head_is_that_of_guessing_and_the_second_is_lower(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    before = {key: value.clone() for key, value in model.named_parameters()}
    new = replace_head(model, 7)
    assert new is model.get_submodule(MODELS[name][1])
    assert new.bias is not None
    assert getattr(model, "num_classes", 7) == 7
    kept = {key for key, value in model.named_parameters() if key in before and torch.equal(value, before[key])}
    assert set(before) - kept == {f"{MODELS[name][1]}.weight", f"{MODELS[name][1]}.bias"}
    x, y = _images().double(), torch.tensor([0, 1, 2, 2, 2, 6])
    model.eval()
    loss = F.cross_entropy(model(x), y)
    assert loss.item() == pytest.approx(math.log(7), abs=1e-6)
    loss.backward()
    torch.optim.SGD(new.parameters(), lr=0.01).step()
    assert F.cross_entropy(model(x), y) < loss


def test_a_new_head_has_dtype_device_mode_and_kind_of_the_old_and_is_drawn_by_torch_if_asked_for():
    model = _resnet().to(torch.bfloat16).to("meta").eval()
    new = replace_head(model, 3)
    assert (new.weight.dtype, new.weight.device.type, new.training) == (torch.bfloat16, "meta", False)
    model = _squeezenet()
    torch.manual_seed(3)
    new = replace_head(model, 5, name="classifier.1", zero=False)
    torch.manual_seed(3)
    assert torch.equal(new.weight, nn.Conv2d(6, 5, 1).weight)
    assert model(_images()).shape == (6, 5)
    model = ViT(1)
    freeze_all_but(model, 1)
    assert not is_frozen(replace_head(model, 3))


def test_what_cannot_be_replaced_is_refused():
    model = _resnet()
    with pytest.raises(InputError, match="num_classes is 0"):
        replace_head(model, 0)
    with pytest.raises(InputError, match=r"no module 'fcc' \(did you mean 'fc'\?\)"):
        replace_head(model, 3, name="fcc")
    for name, kind in (("layer1", "Sequential"), ("conv1", "Conv2d"), ("", "ResNet")):
        with pytest.raises(InputError, match=f"{name!r} is a {kind}"):
            replace_head(model, 3, name=name)
    with pytest.raises(InputError, match="no shape yet"):
        replace_head(nn.Sequential(nn.LazyLinear(3)), 3)
    with pytest.raises(InputError, match="no shape yet"):
        stages(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("name", IMAGES)
def test_the_head_makes_the_models_output_of_what_comes_to_it(name):
    model = MODELS[name][0]().eval()
    x, ran = _images(), []
    head = model.get_submodule(find_head(model))
    head.register_forward_hook(lambda *_: ran.append(1))
    inputs = head_inputs(model, x)
    assert not ran
    output = head(inputs)
    if name == "squeezenet":
        output = F.adaptive_avg_pool2d(output.relu(), 1).flatten(1)
    assert torch.equal(output, model(x))


def test_the_inputs_of_a_head_that_is_called_by_keyword_or_not_at_all():
    class ByKeyword(nn.Sequential):
        def forward(self, x):
            return self[0](input=x)

    class Not(nn.Sequential):
        def forward(self, x):
            return x

    x = torch.ones(2, 3)
    assert head_inputs(ByKeyword(nn.Linear(3, 2)), x) is x
    with pytest.raises(InputError, match="does not come to its last layer '0'"):
        head_inputs(Not(nn.Linear(3, 2)), x)
    model = ByKeyword(nn.Linear(3, 2))
    head_inputs(model, x)
    assert model(x).shape == (2, 2)  # and later passes are whole


# ---------------------------------------------------------------------- freezing


@pytest.mark.parametrize("name", IMAGES)
def test_training_changes_the_top_stages_alone(name):
    model = MODELS[name][0]()
    found = stages(model)
    for top in range(1, len(found) + 1):
        frozen = freeze_all_but(model, top)
        assert frozen == [part for stage in found[:-top] for part in stage]
        below = {key for key in model.state_dict() if any(f"{key}.".startswith(f"{part}.") for part in frozen)}
        before = copy.deepcopy(model.state_dict())
        stepper = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(2):
            stepper.zero_grad()
            model.train()(_images()).logsumexp(1).sum().backward()
            stepper.step()
        assert {key for key, value in model.state_dict().items() if torch.equal(value, before[key])} == below
    assert not frozen


def test_containers_are_frozen_whole_and_what_stands_before_the_head_is_not():
    model = _transformers_vit()
    freeze_all_but(model, 1)
    assert is_frozen(model.vit)
    freeze_all_but(model, 2)
    assert not any(map(is_frozen, (model.vit, model.vit.encoder, model.vit.encoder.layer[3])))
    assert all(map(is_frozen, (model.vit.embeddings, model.vit.encoder.layer[2])))
    model = ViT(2)
    freeze_all_but(model, 1)
    assert is_frozen(model.blocks)
    assert not is_frozen(model.head_drop)


def test_a_parameter_that_never_was_trained_stays_so():
    model = ViT(2)
    model.pos_embed.requires_grad_(False)
    freeze_all_but(model, 1)
    assert not model.cls_token.requires_grad
    freeze_all_but(model, len(stages(model)))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]
    freeze_parameter(model, "cls_token")
    thaw(model)
    assert model.cls_token.requires_grad


@pytest.mark.parametrize("top", [0, 6, -1])
def test_as_many_stages_as_there_are_can_be_trained(top):
    with pytest.raises(InputError, match=f"top is {top}: the model has 5 stages"):
        freeze_all_but(_resnet(), top)


# ---------------------------------------------------------------------- weights drawn anew


def test_modules_are_drawn_anew_as_torch_draws_them_and_norms_forget():
    model = _resnet()
    model.train()(_images())
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    reinitialize(model, "fc")
    torch.manual_seed(5)
    fresh = nn.Linear(model.fc.in_features, 10)
    assert torch.equal(model.fc.weight, fresh.weight)
    assert torch.equal(model.fc.bias, fresh.bias)
    reinitialize(model, "bn1", "layer3")
    assert (model.bn1.running_mean == 0).all()
    assert model.layer3[0].bn1.num_batches_tracked == 0
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.partition(".")[0] for key in changed} == {"fc", "bn1", "layer3"}
    assert "layer3.0.conv1.weight" in changed


def test_a_module_sets_its_parts_after_they_drew_themselves():
    class Residual(nn.Sequential):
        def reset_parameters(self):
            nn.init.zeros_(self[-1].weight)

    model = Residual(nn.Linear(2, 2), nn.Linear(2, 2))
    reinitialize(model, "")
    assert not model[-1].weight.any()
    assert model[0].weight.any()


def test_a_module_that_cannot_be_drawn_is_named_and_nothing_is_changed():
    model = ViT(1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"MultiheadAttention 'blocks\.0\.attn' has no reset_parameters"):
        reinitialize(model, "head", "blocks")
    with pytest.raises(InputError, match=r"no module 'heap' \(did you mean 'head'"):
        reinitialize(model, "head", "heap")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
