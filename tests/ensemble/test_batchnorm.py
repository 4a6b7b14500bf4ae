"""Batch norm's statistics, computed anew: those of the whole data in one batch, whatever noise the model has."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import swa_utils

from trainwell.ensemble import refresh_batchnorm
from trainwell.errors import InputError
from trainwell.regularize import Dropout


def _deep(*noise):
    """Three batch norms, one of them after noise, and none at the statistics that it will have."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *noise, nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 6), nn.BatchNorm1d(6), nn.Linear(6, 3),
    ).double()  # fmt: skip


def _by_torch_in_one_batch(model, x):
    """Returns torch's own statistics of one batch of everything, the noise being off, by the layers' order.

    What a layer passes on there is normalised by the biased variance, and in evaluation by the unbiased one; so torch
    is asked layer by layer, each after the layers before it in evaluation.
    """
    norms = [i for i, layer in enumerate(model) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    model = copy.deepcopy(model).eval()
    for place in norms:
        layer = model[place].train()
        layer.momentum = None
        layer.reset_running_stats()
        model[: place + 1](x)
        layer.eval()
    return [(model[i].running_mean, model[i].running_var) for i in norms]


@pytest.mark.parametrize("noise", [(), (nn.Dropout(0.5),), (Dropout(0.5), nn.Dropout2d(0.3))])
@pytest.mark.parametrize("sizes", [[40], [16, 16, 8], [1, 38, 1]])
def test_the_statistics_are_those_of_one_batch_of_everything_with_dropout_in_the_model(noise, sizes):
    x = torch.randn(40, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    model = _deep(*noise).train()
    expected = _by_torch_in_one_batch(model, x)
    refresh_batchnorm(model, [(piece, None) for piece in x.split(sizes)])
    found = [(m.running_mean, m.running_var) for m in model if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert model[1].num_batches_tracked == len(sizes)


def test_torch_leaves_dropout_on_and_finds_a_variance_of_1_where_0_is_right():
    def model():
        return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1))

    data = [torch.ones(500, 1)] * 4
    theirs, ours = model(), model()
    swa_utils.update_bn(data, theirs)
    refresh_batchnorm(ours, data)
    assert theirs[1].running_var.item() == pytest.approx(1, abs=0.1)
    assert ours[1].running_var.item() == 0


def test_torch_weighs_a_small_batch_as_much_as_a_large_one_and_forgets_how_batches_differ():
    data = [torch.zeros(90, 1), torch.full((10, 1), 10.0)]
    theirs, ours = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    swa_utils.update_bn(data, theirs)
    refresh_batchnorm(ours, data)
    assert (theirs.running_mean.item(), theirs.running_var.item()) == (5, 0)
    assert ours.running_mean.item() == pytest.approx(1)
    assert ours.running_var.item() == pytest.approx(torch.cat(data).var().item(), rel=1e-6)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.booleans())
def test_one_layer_is_pooled_whatever_the_batches_in_one_pass_too(sizes, exact):
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(sum(sizes))) * 5 - 2
    layer = nn.BatchNorm1d(3)
    refresh_batchnorm(layer, list(x.split(sizes)), exact=exact)
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, x.var(0), rtol=1e-5, atol=1e-5)


def test_in_one_pass_layers_normalise_by_their_batch_as_torchs_do_in_training():
    x = torch.randn(64, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = _deep(), _deep()
    refresh_batchnorm(ours, iter(x.split(16)), exact=False)  # may be a generator
    swa_utils.update_bn(x.split(16), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, nn.BatchNorm2d):  # equal batches: the means agree
            torch.testing.assert_close(mine.running_mean, other.running_mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_modes_and_momenta_are_as_before(exact):
    model = _deep(nn.Dropout(0.5)).train()
    model[1].eval()
    before = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    refresh_batchnorm(model, [torch.randn(8, 2, 8, 8).double()], exact=exact)
    assert [(m.training, getattr(m, "momentum", None)) for m in model.modules()] == before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    model.train()(torch.randn(8, 2, 8, 8).double())
    assert model[5 if len(model) == 11 else 6].num_batches_tracked == 2  # and it goes on counting


def test_data_that_end_after_one_pass_and_no_data_are_refused():
    with pytest.raises(InputError, match="but once: give a list"):
        refresh_batchnorm(nn.BatchNorm1d(1), iter([torch.ones(2, 1)]))
    for exact in (True, False):
        with pytest.raises(InputError, match="no data"):
            refresh_batchnorm(nn.BatchNorm1d(1), [], exact=exact)


def test_a_model_without_batch_norm_is_left_alone():
    refresh_batchnorm(nn.Linear(1, 1), iter([]))


class Twins(nn.Module):
    """Two halves of the features go through one batch norm, which is called for each."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(x[:, :1]) + self.norm(x[:, 1:])


def test_a_batch_norm_that_comes_twice_pools_both_in_one_pass_and_is_refused_where_each_layer_has_its_own():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 10.0])
    model = Twins()
    with pytest.raises(InputError, match="more than once in a pass.*give exact=False"):
        refresh_batchnorm(model, [x])
    assert model.norm.running_mean.item() == 0
    refresh_batchnorm(model, list(x.split(8)), exact=False)
    assert model.norm.running_mean.item() == pytest.approx(x.mean().item(), rel=1e-5)
    assert model.norm.running_var.item() == pytest.approx(x.var().item(), rel=1e-5)


class Spare(nn.Module):
    """One batch norm is never called."""

    def __init__(self, used=True):
        super().__init__()
        self.norm, self.spare, self.used = nn.BatchNorm1d(2), nn.BatchNorm1d(2), used
        self.spare.running_mean.fill_(7.0)

    def forward(self, x):
        return self.norm(x) if self.used else x


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_norm_that_is_never_called_is_left_alone(exact):
    model, x = Spare(), torch.randn(30, 2) + 3
    refresh_batchnorm(model, [x], exact=exact)
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))
    assert model.spare.running_mean.tolist() == [7, 7]
    assert model.spare.num_batches_tracked == 0
    with pytest.raises(InputError, match="uses none of its batch norms"):
        refresh_batchnorm(Spare(used=False), [x], exact=exact)


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_norm_in_evaluation_within_a_model_in_training_keeps_its_statistics(exact):
    model, x = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)), torch.randn(30, 2) * 4 + 3
    model.train()
    model[0].eval().requires_grad_(False)
    refresh_batchnorm(model, [x], exact=exact)
    assert model[0].running_mean.tolist() == [0, 0]
    torch.testing.assert_close(model[1].running_mean, x.mean(0) / (1 + 1e-5) ** 0.5)  # of what it passes on
    refresh_batchnorm(model.eval(), [x], exact=exact)  # where all are in evaluation, none is set apart
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
