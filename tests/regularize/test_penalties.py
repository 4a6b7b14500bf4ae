"""Penalties: as a term of the loss, and in proximal form, against scikit-learn's coefficients."""

import numpy as np
import pytest
import torch
from sklearn import linear_model
from torch import nn

import trainwell as tw
from trainwell import optim
from trainwell.errors import InputError
from trainwell.optim import no_decay_groups, schedules
from trainwell.regularize import L1, L2, ElasticNet, sparsity

ALPHA = 0.3


@pytest.fixture(scope="module")
def problem():
    """A least-squares problem with few true coefficients; its penalised solutions by scikit-learn."""
    random = np.random.default_rng(0)
    true = np.zeros(20)
    true[:5] = [3, -2, 1, 0.5, -4]
    x = random.normal(size=(120, 20))
    y = x @ true + 0.5 * random.normal(size=120)
    exactly = {"fit_intercept": False, "tol": 1e-12, "max_iter": 100_000}
    found = {
        (ALPHA, 0.0): linear_model.Lasso(alpha=ALPHA, **exactly),
        (0.0, ALPHA): linear_model.Ridge(alpha=ALPHA * len(x), fit_intercept=False),
        (ALPHA / 2, ALPHA / 2): linear_model.ElasticNet(alpha=ALPHA, l1_ratio=0.5, **exactly),
    }
    return torch.tensor(x), torch.tensor(y), {key: model.fit(x, y).coef_ for key, model in found.items()}


def _descend(x, y, optimizer, p, steps):
    """Minimises half the mean squared error, of which only the gradient is needed."""
    gram, moment = x.T @ x / len(x), x.T @ y / len(x)
    for _ in range(steps):
        p.grad = p.detach() @ gram - moment
        optimizer.step()
    return p.detach().numpy()


def _zeros(*shape, dtype=torch.float64):
    return nn.Parameter(torch.zeros(*shape, 20, dtype=dtype))


FALLING = schedules.exponential(0.1, rate=0.0075)
RULES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("Adagrad", {"lr": 1.0}),
    ("RMSprop", {"lr": FALLING}),  # whose steps do not fall by themselves
    ("RMSprop", {"lr": FALLING, "momentum": 0.5}),
    ("RMSprop", {"lr": FALLING, "centered": True, "eps_inside": True, "eps": 1e-4}),
    ("Adam", {"lr": 0.05}),
    ("Adam", {"lr": 0.05, "amsgrad": True}),
    ("Adam", {"lr": 0.05, "bias_correction": False}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.0}),
    ("Adamax", {"lr": 0.2}),
    ("NAdam", {"lr": 0.05}),
    ("RAdam", {"lr": 0.2}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_the_proximal_form_finds_scikit_learns_coefficients_with_exact_zeros(rule, options, problem):
    x, y, solutions = problem
    p = _zeros(len(solutions))  # lasso, ridge and elastic net at once, as members
    l1, l2 = map(list, zip(*solutions, strict=True))
    found = _descend(x, y, getattr(optim, rule)([p], l1=l1, l2=l2, **options), p, 500)
    for mine, solution in zip(found, solutions.values(), strict=True):
        np.testing.assert_allclose(mine, solution, atol=1e-4)
        assert ((mine == 0) == (solution == 0)).all()
    assert (found[0] == 0).sum() >= 10


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize(("rule", "options"), [("SGD", {"lr": 0.05, "momentum": 0.9}), ("Adam", {"lr": 0.05})])
def test_float32_and_each_kernel_find_them_too(kernel, rule, options, problem):
    x, y, solutions = problem
    for (l1, l2), solution in solutions.items():
        p = _zeros(dtype=torch.float32)
        optimizer = getattr(optim, rule)([p], l1=l1, l2=l2, kernel=kernel, **options)
        found = _descend(x.float(), y.float(), optimizer, p, 500)
        np.testing.assert_allclose(found, solution, atol=1e-4)
        assert ((found == 0) == (solution == 0)).all()


def test_as_a_term_of_the_loss_they_are_as_near_as_the_rate_allows(problem):
    x, y, solutions = problem
    for (l1, l2), solution in solutions.items():
        p, penalty = _zeros(), ElasticNet(l1, l2)
        optimizer = torch.optim.SGD([p], lr=2e-3, momentum=0.9)
        for _ in range(700):
            optimizer.zero_grad()
            ((x @ p - y).square().mean() / 2 + penalty([p])).backward()
            optimizer.step()
        np.testing.assert_allclose(p.detach(), solution, atol=0.02 if l1 else 1e-4)


@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_the_step_size_is_the_step_for_a_gradient_that_has_long_been_one(rule, options):
    """So a penalty of 1 and a gradient of -1 hold each other, whatever the rule, and a little more does not."""
    if options.get("centered"):
        options = options | {"eps": 1.0}  # it divides by the deviation, which a constant gradient has not
    for gradient, stays in ((-1.0, True), (-1.01, False)):
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = getattr(optim, rule)([p], **options | {"lr": 0.01})
        for step in range(1_100):
            if step == 1_000:
                optimizer.param_groups[0]["l1"] = 1.0
                p.data.zero_()
            p.grad = torch.full_like(p, gradient)
            optimizer.step()
        assert (p.item() < 1e-4) == stays, p.item()


def test_strengths_are_schedules_too_and_each_member_may_have_its_own(problem):
    x, y, solutions = problem
    p = nn.Parameter(torch.zeros(2, 20, dtype=torch.float64))
    optimizer = optim.SGD([p], lr=0.1, l1=[0.0, schedules.constant(ALPHA)])
    _descend(x, y, optimizer, p, 400)
    plain = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(p[0].detach(), plain, atol=1e-6)
    np.testing.assert_allclose(p[1].detach(), solutions[ALPHA, 0.0], atol=1e-6)


def test_nan_stays_nan():
    p = nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([p], lr=0.1, l1=1e3)
    p.grad = torch.tensor([float("nan"), 0.0])
    optimizer.step()
    assert p[0].isnan()
    assert p[1] == 0


@pytest.mark.parametrize("rule", ["Lion", "Muon", "SOAP"])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_rules_in_which_they_have_no_meaning_refuse_them(rule, name):
    weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(InputError, match=rf"^{name} is 0\.1, and {rule} cannot take it: .*AdamW.*ElasticNet"):
        getattr(optim, rule)([weight], **{name: 0.1})
    with pytest.raises(InputError, match="cannot take it"):
        getattr(optim, rule)([{"params": [weight], name: schedules.constant(0.0)}])
    getattr(optim, rule)([weight])


def test_strengths_below_zero_are_refused():
    with pytest.raises(InputError, match="l1"):
        optim.SGD([_zeros()], l1=-0.1)
    with pytest.raises(InputError, match="l2 is -1"):
        no_decay_groups(nn.Linear(2, 2), l2=-1)
    with pytest.raises(InputError, match="l1 is nan"):
        L1(float("nan"))


def test_rows_without_a_gradient_are_penalised_too():
    table = nn.Embedding(3, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = optim.SGD(table.parameters(), lr=0.1, l2=1.0)
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    moved = torch.zeros(3, 2)
    moved[1] = 0.1
    torch.testing.assert_close(table.weight.detach(), (before - moved) / 1.1)


def test_the_groups_penalise_weights_and_neither_biases_nor_norms():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    weights, others = no_decay_groups(model, 0.1, l1=0.2, l2=0.3)
    assert weights["param_names"] == ["0.weight", "2.weight"]
    assert (weights["weight_decay"], weights["l1"], weights["l2"]) == (0.1, 0.2, 0.3)
    assert (others["weight_decay"], others["l1"], others["l2"]) == (0, 0, 0)
    assert "l1" not in no_decay_groups(model, 0.1)[0]  # so that any optimizer takes it


def test_the_term_is_the_formula_on_weights_or_on_what_is_given():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    weights = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()])
    torch.testing.assert_close(L1(0.2)(model), 0.2 * weights.abs().sum())
    torch.testing.assert_close(L2(0.2)(model), 0.1 * weights.square().sum())
    torch.testing.assert_close(ElasticNet(0.2, 0.4)(model), L1(0.2)(model) + L2(0.4)(model))
    assert L1(2.0)(model[0].bias).item() == pytest.approx(2 * model[0].bias.abs().sum().item())
    assert ElasticNet(0.0, 0.0)(model).item() == 0
    for nothing in (nn.ReLU(), []):
        with pytest.raises(InputError, match="no weight to penalise"):
            L1(0.1)(nothing)


def test_the_gradient_of_the_squares_is_weight_decays():
    model = nn.Linear(3, 2)
    L2(0.3)(model).backward()
    torch.testing.assert_close(model.weight.grad, 0.3 * model.weight.detach())
    assert model.bias.grad is None


@pytest.mark.parametrize("rule", ["Adagrad", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam"])
def test_weights_that_have_had_no_gradient_rest(rule):
    """Their scale is not known yet: by the rate over eps the least penalty would make them 0 at once."""
    table = nn.Embedding(10, 4)
    before = table.weight.detach().clone()
    optimizer = getattr(optim, rule)(table.parameters(), lr=0.01, weight_decay=0.0, l1=1e-3, l2=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        table(torch.arange(5)).square().sum().backward()
        optimizer.step()
    assert torch.equal(table.weight[5:], before[5:])
    assert (table.weight[:5].abs() < before[:5].abs()).all()


def test_strengths_that_come_otherwise_than_by_the_constructor_are_checked_too():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    lion = optim.Lion([weight])
    lion.param_groups[0]["l1"] = 0.1
    with pytest.raises(InputError, match="Lion cannot take it"):
        lion.step()


def test_a_rule_with_a_formula_of_its_own_has_no_step_size_of_its_parents():
    class Halved(optim.SGD):
        @staticmethod
        def update(p, g, *, lr):
            return p - lr * g / 2

    with pytest.raises(InputError, match="Halved cannot take it"):
        Halved([_zeros()], l1=0.1)


def test_groups_take_schedules():
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(no_decay_groups(model, l1=schedules.linear(0.5, steps=2)), lr=1.0)
    before = model.weight.detach().abs().clone()
    for _ in range(2):
        model.weight.grad = torch.zeros(2, 2)
        optimizer.step()
    torch.testing.assert_close(model.weight.detach().abs(), (before - 0.75).clamp(min=0))


def test_scales_of_channels_are_no_weights():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
            self.conv = nn.Conv2d(1, 4, 1)

    weights, others = no_decay_groups(Block(), 0.1)
    assert (weights["param_names"], others["param_names"]) == (["conv.weight"], ["scale", "conv.bias"])


def test_frozen_weights_are_not_penalised():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    torch.testing.assert_close(L1(1.0)(model), model[1].weight.abs().sum())


def test_fit_makes_zeros_and_says_how_many(tmp_path, capsys):
    options = {"model": "mlp", "epochs": 3, "folds": 1, "optimizer": "adam"}
    dense = tw.fit("digits", out=tmp_path / "dense", quiet=True, **options)
    run = tw.fit("digits", out=tmp_path / "sparse", l1=0.01, **options)
    assert dense.result["sparsity"] == 0
    assert run.result["sparsity"] == sparsity(run.model) > 0.2
    assert f"{run.result['sparsity']:.1%} of the weights are exactly 0" in capsys.readouterr().err


def test_sparsity_counts_weights_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.zeros_(model[0].bias)
    assert sparsity(model) == 0
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    assert sparsity(model) == 0.25
    assert np.isnan(sparsity(nn.ReLU()))


@pytest.mark.parametrize("optimizer", ["lion", "muon", "soap"])
def test_fit_refuses_them_for_such_rules_before_it_begins(optimizer, tmp_path):
    with pytest.raises(InputError, match="cannot take it"):
        tw.fit("digits", out=tmp_path / "run", optimizer=optimizer, l1=1e-3, quiet=True)
    assert not (tmp_path / "run").exists()


def test_complex_weights_count_by_their_size():
    w = torch.tensor([3 + 4j], requires_grad=True)
    penalty = tw.regularize.ElasticNet(l1=1.0, l2=2.0)([w])
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(5 + 25)
