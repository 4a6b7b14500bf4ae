"""Sharpness-aware minimisation, against the two formulas written out, and its bookkeeping."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import trainwell as tw
from trainwell.errors import InputError
from trainwell.optim import SAM
from trainwell.regularize import Dropout


def _model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def _batch(n=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=generator, dtype=dtype), torch.randint(0, 3, (n,), generator=generator)


def _gradient(model, x, y, weights):
    """The gradient at other weights, in a copy: no state of the model is used."""
    model = copy.deepcopy(model)
    model.load_state_dict(model.state_dict() | weights)
    slopes = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    return dict(zip(weights, slopes, strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_the_one_at_the_papers_point(adaptive):
    model, (x, y) = _model(), _batch()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    g, rho = _gradient(model, x, y, weights), 0.3
    if adaptive:
        length = torch.cat([(w * g[n]).flatten() for n, w in weights.items()]).norm()
        top = {n: w + rho * w**2 * g[n] / length for n, w in weights.items()}
    else:
        length = torch.cat([slope.flatten() for slope in g.values()]).norm()
        top = {n: w + rho * g[n] / length for n, w in weights.items()}
    wanted = _gradient(model, x, y, top)

    cross_entropy(model(x), y).backward()
    with SAM(model, rho, adaptive=adaptive).ascended():
        cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name])
        assert torch.equal(p, weights[name]), "the weights are back to the bit"


def test_at_a_distance_of_0_it_is_the_plain_gradient():
    model, (x, y) = _model(), _batch()
    cross_entropy(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    with SAM(model, 0.0).ascended():
        cross_entropy(model(x), y).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))


def test_statistics_come_from_the_first_pass_alone():
    model, (x, y) = _model(), _batch()
    model.append(nn.Unflatten(1, (3, 1))).append(nn.InstanceNorm1d(3, track_running_stats=True).double())
    model[-1].eval()  # which needs more than one value; its statistics are to rest all the same
    model.append(nn.Flatten())
    once = copy.deepcopy(model)
    once(x)
    cross_entropy(model(x), y).backward()
    with SAM(model, 0.3).ascended():
        cross_entropy(model(x), y).backward()
    for (name, mine), theirs in zip(model.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    assert model[1].num_batches_tracked == 1
    assert model.training
    assert model[1].track_running_stats


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, pieces = nn.Linear(6, 3).double(), None
    pieces = copy.deepcopy(whole)
    x, y = _batch(12)
    cross_entropy(whole(x), y).backward()
    with SAM(whole, 0.5).ascended():
        cross_entropy(whole(x), y).backward()

    def accumulate():
        for a, b in zip(x.split(4), y.split(4), strict=True):
            (cross_entropy(pieces(a), b) / 3).backward()

    accumulate()
    with SAM(pieces, 0.5).ascended():
        accumulate()
    torch.testing.assert_close(pieces.weight.grad, whole.weight.grad)


@pytest.mark.parametrize("make", [
    lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: tw.optim.AdamW(p, lr=0.01),
    lambda p: tw.optim.Muon(p, lr=0.01), lambda p: tw.optim.SOAP(p, lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01),
])  # fmt: skip
def test_it_goes_with_any_optimizer_and_with_clipping(make):
    model, (x, y) = _model(), _batch()
    optimizer, sam = make(model.parameters()), SAM(model, 0.05)
    losses = []
    for _ in range(30):
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        with sam.ascended():
            cross_entropy(model(x), y).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("together", [True, False])
def test_autocast_sees_the_weights_that_are_up_the_gradient(together):
    model, (x, y) = _model(torch.float32), _batch(dtype=torch.float32)
    found = []
    for cast in (together, False):
        outside = torch.autocast("cpu", torch.bfloat16, enabled=cast)
        inside = contextlib.nullcontext() if cast else torch.autocast("cpu", torch.bfloat16)
        with outside:
            with inside:
                loss = cross_entropy(model(x), y)
            loss.backward()
            with SAM(model, 1.0).ascended():
                with inside:
                    loss = cross_entropy(model(x), y)
                loss.backward()
            found.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
        model[1].reset_running_stats()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_an_error_within_leaves_the_weights_where_they_were():
    model, (x, y) = _model(), _batch()
    cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="mine"), SAM(model, 10.0).ascended():
        model(x)
        raise RuntimeError("mine")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_there_is_no_slope_the_weights_stay():
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.grad = torch.zeros(1, 1)
    before = weight.weight.item()
    with SAM(weight, 0.5).ascended():
        assert weight.weight.item() == before


def test_frozen_and_unused_parameters_stay():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "frozen": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    model["frozen"].weight.grad = torch.ones(2, 2)  # of before
    model["used"](torch.ones(1, 2)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    with SAM(model, 1.0).ascended():
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) != name.startswith("used")


def test_bad_input_says_what_to_do():
    model = nn.Linear(2, 2)
    for rho in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="rho is"):
            SAM(model, rho)
    with pytest.raises(InputError, match="call loss.backward"), SAM(model).ascended():
        pass
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([0])).sum().backward()
    with pytest.raises(InputError, match="sparse=False"), SAM(table).ascended():
        pass


def test_it_finds_the_flatter_of_two_minima():
    """From the same start between a narrow and a wide minimum: plain descent stays in the narrow one."""

    def loss(x):
        return torch.minimum(50 * (x - 1) ** 2, 0.5 * (x + 2) ** 2 + 0.05).sum()

    ends = {}
    for rho in (0.0, 1.0):
        weight = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(weight.weight, 0.9)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.01)
        for _ in range(500):
            optimizer.zero_grad()
            loss(weight.weight).backward()
            with SAM(weight, rho).ascended():
                loss(weight.weight).backward()
            optimizer.step()
        ends[rho] = weight.weight.item()
    assert ends[0.0] == pytest.approx(1.0, abs=1e-3)
    assert ends[1.0] < 0


@pytest.mark.parametrize("noise", [lambda: Dropout(0.5), lambda: nn.Dropout(0.5)])
def test_both_passes_of_fit_have_the_same_noise(noise, tmp_path, monkeypatch):
    """At a distance of next to nothing a run with it is the run without, noise and all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), noise(), nn.ReLU(), nn.Linear(16, 10))
    ends = []
    for rho in (0.0, 1e-12):
        options = {"epochs": 1, "folds": 1, "precision": "fp32", "quiet": True}
        run = tw.fit("digits", out=tmp_path / str(rho), model=copy.deepcopy(model), sam=rho, **options)
        ends.append(torch.cat([p.flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("size", [4e4, 2e-7])
def test_half_precision_ascends_by_rho_whatever_the_gradients_size(size):
    model = nn.Linear(4, 1, bias=False).half()
    start = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, size)
    with SAM(model, 0.5).ascended():
        torch.testing.assert_close(model.weight - start, torch.full_like(start, 0.25), atol=1e-3, rtol=0)
