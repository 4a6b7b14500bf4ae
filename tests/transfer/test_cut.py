"""Models that end at a stage."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.models import create, resnet18
from trainwell.transfer import Cut, stage_features
from trainwell.transfer.cut import cut_point
from trainwell.transfer.surgery import find_head, stage_names, stages


@pytest.mark.parametrize(("make", "side"), [
    (lambda: create("resnet8", num_classes=10, in_chans=3), 16), (lambda: resnet18(num_classes=5), 64),
])  # fmt: skip
def test_it_computes_what_the_children_up_to_there_do(make, side):
    """The children of our residual networks stand in the order of their use: the oracle is a plain chain of them."""
    x = torch.randn(2, 3, side, side)
    names = stage_names(make())
    for stage in names[:-2]:
        model = make().eval()
        children = dict(model.named_children())
        before = cut_point(model, stage)
        chain = nn.Sequential(*[child for name, child in children.items()][: [*children].index(before)])
        wanted = chain(x).mean((2, 3))
        torch.testing.assert_close(stage_features(model, [x])[stage], wanted.detach())
        cut = Cut(model, before, wanted.shape[1], num_classes=3).eval()
        assert cut(x).tolist() == torch.zeros(2, 3).tolist()
        nn.init.normal_(cut.head.weight)
        torch.testing.assert_close(cut(x), cut.head(wanted))
        assert find_head(cut) == "head"
        left = {name.split(".")[1] for name in cut.state_dict() if name.startswith("body.")}
        assert left == {
            name for name in children if name in _before(children, before) and [*children[name].parameters()]
        }


def _before(children, name):
    return [*children][: [*children].index(name)]


class _Scaled(nn.Module):
    """A stage with a parameter of its own beside its layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((outputs,), 2.0))
        self.into, self.blocks = nn.Linear(inputs, outputs), nn.ModuleList([_block(outputs), _block(outputs)])

    def forward(self, x):
        x = self.into(x)
        for block in self.blocks:
            x = x + block(x) * self.scale
        return x


def _block(width):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def test_a_model_with_lone_parameters_beyond_the_cut_is_cut_too():
    model = nn.Sequential(OrderedDict(s1=_Scaled(4, 8), s2=_Scaled(8, 16), head=nn.Linear(16, 3)))
    assert ("s2.scale", "s2.into") in stages(model)
    x = torch.randn(5, 4)
    wanted = model.s1(x)
    cut = Cut(model, "s2.into", 8, num_classes=3)
    nn.init.normal_(cut.head.weight)
    torch.testing.assert_close(cut(x), cut.head(wanted))


def test_the_last_stage_and_what_is_none_are_refused():
    model = create("resnet8", num_classes=10, in_chans=3)
    with pytest.raises(InputError, match="cut after conv1 or layer1 or layer2, not after 'layer3'"):
        cut_point(model, "layer3")
    with pytest.raises(InputError, match="cut before layer1 or layer2 or layer3, not before 'fc'"):
        Cut(model, "fc", 64, 2)


def test_stages_hand_over_what_comes_to_the_next(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(7, 4)
    found = stage_features(model, x.split(3))
    assert [*found] == ["0", "2"] == [names[0] for names in stages(model)[:-1]]
    torch.testing.assert_close(found["0"], model[:2](x).detach())  # after the activation
    torch.testing.assert_close(found["2"], model[:4](x).detach())


def test_tokens_of_a_transformer_become_their_mean():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(3)]
    model = nn.Sequential(nn.Linear(3, 8), *layers, nn.Flatten(), nn.Linear(40, 2))
    x = torch.randn(4, 5, 3)
    found = stage_features(model, [x])
    torch.testing.assert_close(found["1"], model[:2].eval()(x).mean(1).detach())
    assert found["3"].shape == (4, 40)
