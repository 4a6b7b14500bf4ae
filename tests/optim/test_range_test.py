"""The range test: what it suggests, and that it leaves no trace."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainwell import optim
from trainwell.errors import InputError
from trainwell.optim.range_test import RangeTest, lr_range
from trainwell.optim.schedules import cosine, linear

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "lbfgs-like lists": lambda p: Remembering(p, lr=0.01),
    "our schedules": lambda p: optim.SGD(p, lr=cosine(0.1, 20), momentum=linear(0.9, 20, 0.5)),
    "our tensor": lambda p: optim.AdamW(p, lr=torch.tensor(0.01), amsgrad=True),
    "our soap": lambda p: optim.SOAP(p, lr=0.01, precondition_frequency=2),
}


class Remembering(torch.optim.SGD):
    """Keeps lists, tensors and numbers of its own, as LBFGS does."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.norms, self.count, self.total = [], 0, torch.zeros(2)

    def step(self, closure=None):
        p = self.param_groups[0]["params"][0]
        self.norms.append(float(p.grad.norm()))
        self.count += 1
        self.total += 1
        self.state[p].setdefault("old", []).append(p.grad.clone())
        return super().step(closure)


class Net(nn.Module):
    """Has all that training may change besides parameters."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head, self.frozen = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("expanded", torch.zeros(1).expand(3))
        self.number, self.seen, self.fail_at = 0, [], None
        self.noise = torch.Generator().manual_seed(7)

    def forward(self, x):
        self.calls += 1
        self.replaced = self.replaced + 1
        self.number += 1
        self.seen.append(self.number)
        random.random()
        np.random.rand()
        if self.fail_at and self.number >= self.fail_at[0]:
            raise self.fail_at[1]
        h = self.body(x) + 0.01 * torch.rand((), generator=self.noise)
        return self.head(h) + self.frozen(h) + self.expanded


def _data(n=48):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


def _everything(model, optimizer, generator):
    """Returns copies of all that may not change, with the objects that must stay the same ones."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "gradients": {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "gradient objects": {name: id(p.grad) for name, p in model.named_parameters() if p.grad is not None},
        "wanted": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "plain": (model.number, list(model.seen), model.noise.get_state()),
        "state": copy.deepcopy(optimizer.state_dict()),
        "own": {
            k: copy.deepcopy(v) for k, v in vars(optimizer).items() if k in ("norms", "count", "total", "defaults")
        },
        "schedules": copy.deepcopy([group.get("schedules") for group in optimizer.param_groups]),
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state(), generator.get_state()),
        "attributes": (sorted(vars(model)), sorted(vars(optimizer))),
    }


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.detach().contiguous().numpy().tobytes() == b.detach().contiguous().numpy().tobytes()
    elif isinstance(a, np.ndarray):
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b


def _prepared(name, warm):
    torch.manual_seed(3)
    model, generator = Net(), torch.Generator().manual_seed(5)
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    loader = DataLoader(_data(), batch_size=16, shuffle=True, generator=generator)
    if warm:
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.body[1].eval()
    return model, optimizer, loader, generator


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "failure", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["ends", "fails", "Ctrl-C"]
)
def test_nothing_is_changed(name, warm, failure):
    model, optimizer, loader, generator = _prepared(name, warm)
    if failure is not None:
        model.fail_at = (model.number + 12, failure)
    before = _everything(model, optimizer, generator)
    if failure is None:
        lr_range(
            model,
            optimizer,
            loader,
            nn.functional.cross_entropy,
            low=0.01,
            high=1.0,
            steps=20,
            trial_steps=20,
            quiet=True,
        )
    else:
        with pytest.raises(type(failure)):
            lr_range(
                model,
                optimizer,
                loader,
                nn.functional.cross_entropy,
                low=0.01,
                high=1.0,
                steps=20,
                trial_steps=20,
                quiet=True,
            )
    _same(before, _everything(model, optimizer, generator))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_same_bits(name):
    def trained(with_test):
        model, optimizer, loader, _ = _prepared(name, warm=True)
        own = optimizer.param_groups[0].get("schedules")
        schedule = None if own else torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for epoch in range(2):
            if with_test and epoch == 1:
                lr_range(
                    model,
                    optimizer,
                    loader,
                    nn.functional.cross_entropy,
                    low=0.01,
                    high=1.0,
                    steps=20,
                    trial_steps=20,
                    quiet=True,
                )
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            if schedule:
                schedule.step()
        return [p.detach() for p in model.parameters()], optimizer.param_groups[0]["lr"]

    _same(trained(False), trained(True))


@settings(max_examples=10)
@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=4), st.booleans())
def test_groups_keep_the_ratios_of_their_rates(rates, as_tensors):
    parameters = [nn.Parameter(torch.ones(1)) for _ in rates]
    groups = [
        {"params": [p], "lr": torch.tensor(rate) if as_tensors else rate}
        for p, rate in zip(parameters, rates, strict=True)
    ]
    optimizer, seen = torch.optim.SGD(groups, lr=1.0, foreach=False), []

    def closure(_):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        loss = sum((p**2).sum() for p in parameters)
        loss.backward()
        return loss

    model = nn.ParameterList(parameters)
    found = lr_range(model, optimizer, [0], closure=closure, trial_steps=0, quiet=True)
    for rate, row in zip(found.rates, seen, strict=False):
        assert max(row) == pytest.approx(rate, rel=1e-6)
        assert np.divide(row, max(row)) == pytest.approx(np.divide(rates, max(rates)), rel=1e-5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(rates)


def test_rates_of_0_as_before_a_warmup_are_taken_as_equal():
    model, optimizer, batches = _quadratic([1.0, 1.0])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert lr_range(model, optimizer, batches, _half_square, quiet=True).suggestion
    assert optimizer.param_groups[0]["lr"] == 0


class Point(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.at = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.at - x


def _half_square(outputs, curvature):
    return (curvature[0] * outputs**2).sum(-1).mean() / 2


def _quadratic(curvature, noise=0.0):
    """Loss with the curvatures given; with gradient descent it is stable below 2 / the highest of them."""
    generator = torch.Generator().manual_seed(0)
    h = torch.tensor(curvature)
    batches = [(noise * torch.randn(8, len(h), generator=generator), h.expand(8, -1)) for _ in range(25)]
    model = Point(len(h))
    return model, torch.optim.SGD(model.parameters(), lr=1.0), batches


@pytest.mark.parametrize("highest", [0.3, 1.0, 7.0, 250.0])
def test_the_suggestion_for_a_quadratic_lies_below_its_stable_limit(highest):
    model, optimizer, batches = _quadratic([highest, highest / 3, highest / 30])
    found = lr_range(model, optimizer, batches, _half_square, quiet=True, high=1000.0)
    # The best constant rate is 2 / (highest + lowest curvature), nearly the limit itself.
    best = 2 / (highest + highest / 30)
    assert best / 3 <= found.suggestion < 2 / highest
    assert found.lowest < found.suggestion < found.diverges
    assert 2 / highest < found.diverges < 30 / highest


def test_with_noise_the_suggestion_is_lower():
    clean = lr_range(*_quadratic([1.0, 0.3]), _half_square, quiet=True)
    noisy = lr_range(*_quadratic([1.0, 0.3], noise=0.7), _half_square, quiet=True)
    assert noisy.suggestion < clean.suggestion / 2


def test_the_rates_rise_geometrically_and_the_losses_are_smoothed_without_bias():
    model, optimizer, batches = _quadratic([1.0])
    found = lr_range(model, optimizer, batches, _half_square, low=1e-6, high=1e-2, steps=50, trial_steps=0, quiet=True)
    assert found.rates == pytest.approx(np.geomspace(1e-6, 1e-2, 50))
    weights = 0.9 ** np.arange(50)[::-1]
    for k in (0, 1, 20, 49):
        expected = np.average(found.losses[: k + 1], weights=weights[-k - 1 :])
        assert found.smoothed[k] == pytest.approx(expected)
    assert found.diverges is None
    assert "does not diverge up to 0.01" in str(found)


def test_no_trials_take_a_tenth_of_the_rate_with_the_lowest_loss():
    model, optimizer, batches = _quadratic([1.0, 0.2])
    found = lr_range(model, optimizer, batches, _half_square, trial_steps=0, quiet=True)
    assert found.trials == ()
    assert found.suggestion == pytest.approx(found.rates[np.argmin(found.smoothed)] / 10)


def test_a_sweep_that_begins_where_the_loss_falls_already_will_do():
    model, optimizer, batches = _quadratic([4.0, 1.0], noise=0.01)
    found = lr_range(model, optimizer, batches, _half_square, low=0.1, quiet=True)
    assert 0.4 / 3 <= found.suggestion < 0.5


@pytest.mark.parametrize("low", [0.6, 1.0, 3.0])
def test_nothing_is_suggested_where_every_rate_diverges(low):
    model, optimizer, batches = _quadratic([4.0, 1.0], noise=0.01)
    found = lr_range(model, optimizer, batches, _half_square, low=low, high=100.0, quiet=True)
    assert found.suggestion is None
    assert all(math.isinf(loss) for _, loss in found.trials)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite_end_the_sweep(bad):
    model, optimizer, batches = _quadratic([1.0])

    def loss(outputs, curvature):
        value = _half_square(outputs, curvature)
        return value * bad if optimizer.param_groups[0]["lr"] > 0.1 else value

    found = lr_range(model, optimizer, batches, loss, quiet=True)
    assert all(map(math.isfinite, (*found.losses, *found.smoothed)))
    assert 0.1 < found.diverges < 0.13
    assert 0.01 < found.suggestion <= 0.1
    assert len(found.rates) == len(found.losses) == len(found.smoothed)


def test_nothing_is_suggested_where_the_loss_never_falls():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    found = lr_range(model, optimizer, [(torch.zeros(4, 2), None)], lambda out, _: 0 * out.sum() + 1.0, quiet=True)
    assert found.suggestion is found.lowest is None
    assert "no learning rate to suggest" in str(found)
    assert found.picture().layout.title.text == str(found)


def test_an_iterator_will_do_as_long_as_it_lasts():
    model, optimizer, batches = _quadratic([1.0])
    endless = (batches[k % 25] for k in range(10**6))
    assert lr_range(model, optimizer, endless, _half_square, quiet=True).suggestion
    with pytest.raises(InputError, match="no batches, or no more: give what can be gone through again"):
        lr_range(model, optimizer, iter(batches), _half_square, quiet=True)


MODEL, SGD, BATCHES = _quadratic([1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": []}, "there are no batches"),
        ({"batches": [torch.zeros(3)]}, "a batch must be inputs and targets, not a Tensor"),
        ({"loss": None}, "give either loss"),
        ({"closure": print}, "give either loss"),
        ({"loss": None, "closure": lambda batch: "much"}, "one number, not a str"),
        ({"loss": lambda outputs, _: outputs}, "a tensor with one number"),
        ({"loss": lambda outputs, _: outputs.detach().sum()}, "depends on no parameter"),
        ({"loss": lambda outputs, _: outputs.sum() * math.nan}, "is nan before the first step"),
        ({"low": 0.0}, "0 < low < high"),
        ({"low": 1.0, "high": 0.1}, "0 < low < high"),
        ({"high": math.inf}, "0 < low < high"),
        ({"low": math.nan}, "0 < low < high"),
        ({"steps": 5}, "at least 20"),
        ({"trial_steps": 3}, "at least 20"),
        ({"trial_steps": -1}, "at least 20"),
        ({"model": nn.LazyLinear(2)}, "without a shape yet"),
    ],
)
def test_wrong_input_is_told_in_one_line(changes, message):
    arguments = {"model": MODEL, "optimizer": SGD, "batches": BATCHES, "loss": _half_square, "quiet": True} | changes
    before = MODEL.at.detach().clone()
    with pytest.raises(InputError, match=message) as told:
        lr_range(**arguments)
    assert "\n" not in str(told.value)
    _same(MODEL.at.detach(), before)


def test_the_picture_marks_what_was_found_and_its_file_needs_no_other(tmp_path):
    model, optimizer, batches = _quadratic([1.0, 0.2], noise=0.1)
    found = lr_range(model, optimizer, batches, _half_square, quiet=True)
    figure = json.loads(found.picture().to_json())
    assert figure["layout"]["xaxis"]["type"] == "log"
    lines = sorted(shape["x0"] for shape in figure["layout"]["shapes"])
    assert lines == pytest.approx(sorted([found.lowest, found.suggestion, found.diverges]))
    labels = {mark["text"]: mark["x"] for mark in figure["layout"]["annotations"]}
    assert labels[f"suggestion {found.suggestion:.2g}"] == pytest.approx(math.log10(found.suggestion))
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < min(found.smoothed) < found.smoothed[0] < high

    found.save(tmp_path / "picture.html")
    page = (tmp_path / "picture.html").read_text("utf-8")
    assert f"suggestion {found.suggestion:.2g}" in page
    assert '<script src="http' not in page
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.html"]


def test_it_is_a_line():
    found = RangeTest((1e-3, 1e-2), (1.0, 0.5), (1.0, 0.7), ((1e-2, 0.5),), 0.0123, 1e-3, 0.456)
    assert str(found) == "learning rate 0.012 (the loss falls from 0.001 on and diverges at 0.46)"
