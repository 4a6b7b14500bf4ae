"""The pull toward the pretrained weights."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from trainwell.errors import InputError
from trainwell.transfer.l2_sp import L2SP


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def _moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_its_penalty_is_half_the_squared_distance(model):
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    pull = L2SP(model, 0.3)
    _moved(model)
    apart = nn.utils.parameters_to_vector(model.parameters()) - start
    torch.testing.assert_close(pull.penalty(), 0.15 * apart.norm() ** 2)


def test_the_gradient_that_it_adds_is_autograds_of_the_penalty(model):
    pull = L2SP(model, 0.3)
    _moved(model)
    other, x = copy.deepcopy(model), torch.randn(7, 5, dtype=torch.float64)
    (model(x).square().mean() + pull.penalty()).backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    pull.add_gradient()
    for parameter, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-12)
    assert other(x).equal(model(x))


def test_with_no_other_force_plain_steps_go_back_in_closed_form(model):
    """Each step of gradient descent leaves 1 - lr * alpha of the distance."""
    start = [parameter.detach().clone() for parameter in model.parameters()]
    pull = L2SP(model, 0.5)
    _moved(model)
    moved = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        pull.penalty().backward()
        optimizer.step()
    for parameter, first, there in zip(model.parameters(), start, moved, strict=True):
        torch.testing.assert_close(parameter.detach(), first + (1 - 0.1) ** 20 * (there - first))


def test_the_head_and_what_is_frozen_are_left_alone(model):
    model[0].bias.requires_grad_(False)
    pull = L2SP(model, 1.0, head="2")
    _moved(model)
    model(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    pull.add_gradient()
    changed = [
        p.grad is not None and not p.grad.equal(grad) for p, grad in zip(model.parameters(), before, strict=True)
    ]
    assert changed == [True, False, False, False]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_the_head_is_left_alone_in_a_model_that_is_wrapped(model, wrap):
    pull = L2SP(wrap(model), 1.0, head="2")
    assert {*pull.state_dict()["start"]} == {"0.weight", "0.bias"}


def test_a_head_that_is_not_there_is_refused(model):
    with pytest.raises(
        InputError, match=r"no layer 'classifer' to be left out as its head \(did you mean 'classifier'"
    ):
        L2SP(nn.Sequential(OrderedDict(body=nn.Linear(2, 2), classifier=nn.Linear(2, 2))), 1.0, head="classifer")
    L2SP(model, 1.0, head="2.weight")


def test_its_state_pulls_to_the_same_weights_in_another_process(model):
    pull = L2SP(model, 0.3)
    saved = copy.deepcopy(pull.state_dict())
    _moved(model)
    again = L2SP(model, 0.3)
    assert again.penalty().item() == 0
    again.load_state_dict(saved)
    assert again.penalty().item() == pull.penalty().item() > 0
    with pytest.raises(InputError, match="of another model"):
        L2SP(nn.Linear(2, 2), 0.3).load_state_dict(saved)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_a_strength_out_of_range_is_refused(alpha, model):
    with pytest.raises(InputError, match="alpha is"):
        L2SP(model, alpha)
