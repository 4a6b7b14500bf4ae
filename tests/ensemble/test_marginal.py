"""One average over noise, crops and members: against enumerations, and leaving everything as it was."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from trainwell import InputError
from trainwell.ensemble import marginalize
from trainwell.freezing import freeze
from trainwell.regularize import Dropout, StochasticDepth, exact_marginal


def net(*noise, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), *noise, nn.Linear(5, 3))


def freeze_of(layer):
    freeze(layer)
    return layer


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


class Says(nn.Module):
    """A model that gives each row the same probabilities, as logits of labels, whatever it is called with."""

    def __init__(self, *p):
        super().__init__()
        self.logits = torch.tensor(p, dtype=torch.float64).logit().float()

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_several_labels_by_hand(x):
    result = marginalize([Says(0.9, 0.2), Says(0.3, 0.4)], x, multilabel=True)
    assert result.probabilities.shape == (11, 2)
    np.testing.assert_allclose(result.probabilities[0], [0.6, 0.3], atol=1e-6)
    np.testing.assert_allclose(result.std[0], [0.6 / 2**0.5, 0.2 / 2**0.5], atol=1e-6)
    np.testing.assert_allclose(result.entropy[0], stats.entropy([0.6, 0.4]) + stats.entropy([0.3, 0.7]), atol=1e-6)
    assert result.disagreement[0] == 0.25  # of four decisions, yes no and no no, one is not as in yes no
    assert result.entropy.shape == result.disagreement.shape == (11,)


def test_one_yes_or_no_output_by_hand(x):
    result = marginalize([Says(0.9), Says(0.3), Says(0.3)], x, multilabel=True)
    np.testing.assert_allclose(result.probabilities[0], [0.5], atol=1e-6)
    np.testing.assert_allclose(result.std[0], [0.12**0.5], atol=1e-6)
    np.testing.assert_allclose(result.entropy[0], np.log(2), atol=1e-6)
    even = marginalize([Says(0.5), Says(0.5)], x, multilabel=True)
    assert even.disagreement.abs().max() == 0
    assert marginalize([Says(0.5), Says(0.4)], x, multilabel=True).disagreement[0] == 0.5  # at 0.5 it is yes


def test_softmax_of_one_output_is_refused(x):
    with pytest.raises(InputError, match="give multilabel=True for one yes-or-no output"):
        marginalize(Says(0.9), x)


def test_values_of_one_column_are_averaged_as_they_are(x):
    models = [nn.Linear(6, 1), nn.Linear(6, 1)]
    result = marginalize(models, x, probabilities=lambda outputs: outputs)
    torch.testing.assert_close(result.probabilities.float(), (models[0](x) + models[1](x)).detach() / 2)


@pytest.mark.parametrize(
    ("kind", "logits"),
    [(lambda y: {"logits": y, "loss": None}, lambda out: out["logits"]), (lambda y: (y, "more"), lambda out: out[0])],
    ids=["dict", "tuple"],
)
def test_a_model_may_return_anything_of_which_probabilities_are_made(kind, logits, x):
    model = net(Dropout(0.4)).eval()
    told = copy.deepcopy(model)
    told.register_forward_hook(lambda _, __, y: kind(y))
    expected = marginalize(model, x, samples=3)
    result = marginalize(told, x, samples=3, probabilities=lambda out: logits(out).softmax(1))
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Conv1d(6, 4, 1), "x": torch.zeros(3, 6, 5)}, r"is of shape \(3, 4, 5\), not of shape \(3, k\)"),
        ({"crops": [lambda x: torch.cat([x, x])]}, r"for 11 rows is of shape \(22, 3\)"),
        ({"probabilities": lambda y: y.softmax(1).mean(1)}, r"is of shape \(11,\), not"),
        ({"probabilities": lambda y: (y,)}, "is of type tuple, not"),
        ({"model": nn.LSTM(6, 3)}, "is of type tuple, not"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_probabilities_is_refused_by_its_shape(arguments, message, x):
    with pytest.raises(InputError, match=message) as caught:
        marginalize(**{"model": net(), "x": x, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [(), (nn.Dropout(0.0),), (freeze_of(nn.Dropout(0.5)),)], ids=["none", "0", "frozen"])
def test_samples_where_nothing_is_random_are_refused(noise, x):
    quiet = net(*noise)
    with pytest.raises(InputError, match="^there is no noise to sample in the model: samples=0, or "):
        marginalize([quiet, quiet], x, samples=20)
    assert marginalize([quiet, net(nn.Dropout(0.5))], x, samples=20).std.max() > 0  # one has some
    assert marginalize(quiet, x).draws == 1


def test_a_layer_of_others_that_skips_branches_is_sampled(x):
    class DropPath(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    assert marginalize(net(DropPath()), x, samples=20).std.max() > 0.01


@pytest.mark.parametrize("samples", [0, 4])
def test_what_draws_even_in_evaluation_is_a_function_of_the_seed_and_changes_no_state(samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_size=5), nn.Flatten(), nn.Linear(75, 3))
    x = torch.randn(4, 3, 9, 9)
    state = torch.get_rng_state()
    first = marginalize(model, x, samples=samples).probabilities
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(marginalize(model, x, samples=samples).probabilities, first)
    assert not torch.equal(marginalize(model, x, samples=samples, seed=1).probabilities, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"model": []}, "at least one model"), ({"x": torch.zeros(0, 6)}, "one row"), ({"samples": -1}, "samples is -1"),
     ({"batch_size": 0}, "batch_size 0")],
)  # fmt: skip
def test_bad_input(arguments, message, x):
    with pytest.raises(InputError, match=message):
        marginalize(**{"model": net(), "x": x, **arguments})
