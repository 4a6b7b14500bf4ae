"""One average over noise, crops and members: against enumerations, and leaving everything as it was."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from trainwell import InputError
from trainwell.ensemble import marginalize
from trainwell.regularize import Dropout, StochasticDepth, exact_marginal


def net(*noise, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), *noise, nn.Linear(5, 3))


@pytest.fixture
def x():
    return torch.randn(11, 6, generator=torch.Generator().manual_seed(1))


def test_members_and_crops_are_averaged_as_probabilities(x):
    members = [net(seed=seed).eval() for seed in range(3)]
    crops = [lambda x: x, lambda x: x.flip(1)]
    each = torch.stack([model(crop(x)).softmax(1) for model in members for crop in crops]).detach().double().numpy()
    result = marginalize(members, x, crops=crops, batch_size=4)
    mean = each.mean(0)
    np.testing.assert_allclose(result.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(result.std, each.std(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(result.entropy, stats.entropy(mean, axis=1), atol=1e-6)
    disagreeing = (each.argmax(2) != mean.argmax(1)).mean(0)
    np.testing.assert_allclose(result.disagreement, disagreeing, atol=1e-12)
    assert result.draws == 6
    logits = np.stack([model(crop(x)).detach().numpy() for model in members for crop in crops]).mean(0)
    of_logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(of_logits - mean).max() > 1e-3  # it would be something else


def test_plain_evaluation_is_one_draw(x):
    model = net(nn.Dropout(0.5)).train()
    result = marginalize(model, x)
    torch.testing.assert_close(result.probabilities.float(), model.eval()(x).softmax(1))
    assert result.draws == 1
    assert result.std.abs().max() == 0
    assert result.disagreement.abs().max() == 0


@pytest.mark.parametrize("noise", [Dropout(0.4), nn.Dropout(0.4)], ids=["ours", "torch's"])
def test_samples_approach_the_mean_over_all_masks(noise, x):
    model = net(noise).eval()
    ours = copy.deepcopy(model)
    ours[3] = Dropout(0.4)
    exact = exact_marginal(ours, x).detach().double()
    result = marginalize(model, x, samples=600)
    error = result.std / 600**0.5
    assert ((result.probabilities - exact).abs() <= 4.5 * error + 1e-7).all()
    assert result.std.max() > 0.01


def test_the_size_of_a_batch_changes_nothing_and_bounds_the_memory(x):
    model, most = net(Dropout(0.4), StochasticDepth(0.3)), []
    model.register_forward_pre_hook(lambda _, inputs: most.append(len(inputs[0])))
    whole = marginalize(model, x, samples=7)
    most.clear()
    pieces = marginalize(model, x, samples=7, batch_size=2)
    assert max(most) == 2
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b)
    other = marginalize(model, x, samples=7, seed=1)
    assert not torch.equal(other.probabilities, whole.probabilities)
    assert torch.equal(marginalize(model, x, samples=7).probabilities, whole.probabilities)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training, x):
    model = net(Dropout(0.4), nn.Dropout(0.2)).train(training)
    model[1].eval()
    model(x)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    result = marginalize([model, model], x, samples=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]
    assert not result.probabilities.requires_grad


def test_an_error_in_a_crop_leaves_the_modes(x):
    model = net(Dropout(0.4)).train()

    def fails(x):
        raise RuntimeError("no such crop")

    with pytest.raises(RuntimeError, match="no such crop"):
        marginalize(model, x, samples=2, crops=[lambda x: x, fails])
    assert all(module.training for module in model.modules())
    assert not model[3]._sampling


def test_several_labels(x):
    model = net().eval()
    result = marginalize(model, x, probabilities=torch.sigmoid)
    torch.testing.assert_close(result.probabilities.float(), model(x).sigmoid())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"model": []}, "at least one model"), ({"x": torch.zeros(0, 6)}, "one row"), ({"samples": -1}, "samples is -1"),
     ({"batch_size": 0}, "batch_size 0")],
)  # fmt: skip
def test_bad_input(arguments, message, x):
    with pytest.raises(InputError, match=message):
        marginalize(**{"model": net(), "x": x, **arguments})
