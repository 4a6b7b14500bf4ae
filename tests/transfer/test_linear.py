"""Linear layers at the optimum: scikit-learn's, whose gradient by torch is 0, and the one that torch's L-BFGS finds."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainwell.errors import InputError
from trainwell.transfer.linear import best_l2, fit_linear, folds_of


def _data(classes, n=120, d=6, seed=0, mean=0.0):
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=random)
    centres = torch.randn(classes, d, generator=random, dtype=torch.float64)
    x = centres[y] + torch.randn(n, d, generator=random, dtype=torch.float64)
    return x * torch.logspace(-1, 1, d, dtype=torch.float64) + mean, y


def _slope(layer, x, y, l2):
    """The gradient of what the docstring says is minimised."""
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    (F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()).backward()
    return weight.grad.abs().max().item(), bias.grad.abs().max().item()


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-5])
def test_it_is_scikit_learns_and_the_gradient_of_the_objective_vanishes(classes, l2):
    x, y = _data(classes)
    layer = fit_linear(x, y, num_classes=classes, l2=l2)
    ones = 2 if classes == 2 else 1  # a single row w has the probabilities of the rows -w/2 and w/2: half the square
    theirs = LogisticRegression(C=ones / (len(y) * l2), tol=1e-9, solver="newton-cholesky").fit(x.numpy(), y.numpy())
    torch.testing.assert_close(
        layer(x).softmax(1).detach(), torch.from_numpy(theirs.predict_proba(x.numpy())), rtol=1e-6, atol=1e-8
    )
    coefficients = theirs.coef_ if classes > 2 else np.concatenate([-theirs.coef_, theirs.coef_]) / 2
    torch.testing.assert_close(layer.weight.detach(), torch.from_numpy(coefficients), rtol=1e-4, atol=1e-6)
    assert max(_slope(layer, x, y, l2)) < 1e-7


@pytest.mark.parametrize("classes", [2, 4])
def test_torchs_lbfgs_comes_to_the_same_from_zero(classes):
    x, y = _data(classes)
    layer = fit_linear(x, y, num_classes=classes, l2=0.01)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + 0.01 / 2 * weight.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    torch.testing.assert_close(layer.weight.detach(), weight.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.detach(), bias.detach(), rtol=1e-4, atol=1e-4)


@given(st.integers(2, 5), st.integers(1, 40), st.floats(-3, 1), st.booleans())
@settings(max_examples=25)
def test_the_gradient_vanishes_for_any_shape_more_features_than_samples_too(classes, d, power, standardize):
    x, y = _data(classes, n=25, d=d, seed=d, mean=50.0)
    l2 = 10.0**power
    layer = fit_linear(x, y, num_classes=classes, l2=l2, standardize=standardize)
    if standardize:  # the objective is that of the standardised features
        mean, deviation = x.mean(0), x.std(0, correction=0)
        with torch.no_grad():
            layer.bias += layer.weight @ mean
            layer.weight *= deviation
        x = (x - mean) / deviation
    slope, free = _slope(layer, x, y, l2)
    absent = sorted(set(range(classes)) - set(y.tolist()))
    assert slope < 1e-5 * max(1.0, x.abs().max().item())
    assert free < 1e-5
    assert (layer.bias[absent] < -1000).all()


def test_standardised_it_is_scikit_learns_pipeline_and_takes_raw_features():
    x, y = _data(3, mean=20.0)
    x = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)  # a feature without deviation
    layer = fit_linear(x, y, num_classes=3, l2=0.01, standardize=True)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (len(y) * 0.01), tol=1e-12, max_iter=10_000))
    expected = theirs.fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    torch.testing.assert_close(layer(x).softmax(1).detach(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_without_intercept_it_is_scikit_learns_without():
    x, y = _data(3)
    layer = fit_linear(x, y, num_classes=3, l2=0.1, intercept=False)
    theirs = LogisticRegression(C=1 / (len(y) * 0.1), fit_intercept=False, tol=1e-12).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(layer.weight.detach(), torch.from_numpy(theirs.coef_), rtol=1e-4, atol=1e-5)
    assert not layer.bias.any()


@pytest.mark.parametrize("present", [[1], [0, 3], [1, 2, 3]])
def test_a_class_without_samples_is_never_the_answer_and_changes_no_other(present):
    x, y = _data(len(present))
    labels = torch.tensor(present)[y]
    layer = fit_linear(x, labels, num_classes=5, l2=0.01)
    assert layer.weight.isfinite().all()
    assert layer.bias.half().isfinite().all()
    probabilities = layer(x).softmax(1)
    assert set(probabilities.argmax(1).tolist()) <= set(present)
    assert probabilities[:, [c for c in range(5) if c not in present]].max() == 0
    if len(present) > 1:
        alone = fit_linear(x, y, num_classes=len(present), l2=0.01)(x).softmax(1)
        torch.testing.assert_close(probabilities[:, present], alone)


def test_the_layer_has_the_type_of_the_features_and_nothing_random_is_drawn():
    x, y = _data(3)
    before = torch.get_rng_state()
    layers = [fit_linear(x.to(kind), y, num_classes=3, l2=0.1) for kind in (torch.float64, torch.float32, torch.half)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [layer.weight.dtype for layer in layers] == [torch.float64, torch.float32, torch.float32]
    torch.testing.assert_close(layers[1].weight.double(), layers[0].weight, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in layers[0].parameters())


@pytest.mark.parametrize(("noise", "n"), [(0.0, 60), (3.0, 90), (12.0, 90), (40.0, 60)])
def test_the_penalty_is_that_of_an_exhaustive_search_by_scikit_learn(noise, n):
    x, y = _data(3, n=n, d=8, seed=4)
    x = x + noise * torch.randn(n, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    grid = [10.0**power for power in range(2, -5, -1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = best_l2(x, y, num_classes=3, grid=grid, standardize=True)
    folds = folds_of(y.numpy(), 5, None, seed=0)
    losses = {}
    for l2 in grid:
        total = 0.0
        for train, test in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (len(train) * l2), max_iter=10_000))
            model.fit(x[train].numpy(), y[train].numpy())
            total += log_loss(y[test].numpy(), model.predict_proba(x[test].numpy()), normalize=False)
        losses[l2] = total / n
    assert losses[found] == pytest.approx(min(losses.values()), abs=2e-3)


def test_of_equals_it_is_the_strongest_penalty():
    x, y = torch.zeros(40, 3), torch.arange(40) % 2  # nothing to be learnt, whatever the penalty
    assert best_l2(x, y, num_classes=2, grid=[1e-3, 10.0, 0.1]) == 10
    assert best_l2(torch.eye(3), torch.arange(3), num_classes=3) == 100  # nothing to be judged by


def test_no_group_is_in_two_folds_and_folds_are_no_more_than_the_rarest_class_has_samples():
    y = np.array([0] * 12 + [1] * 3)
    assert len(folds_of(y, 5, None, seed=0)) == 3
    assert all(set(y[test]) == {0, 1} for _, test in folds_of(y, 5, None, seed=0))
    assert len(folds_of(np.array([0] * 12 + [1]), 5, None, seed=0)) == 5  # a single sample does not count
    groups = np.arange(15) // 2
    for train, test in folds_of(np.arange(15) % 2, 5, groups, seed=1):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(15))


def test_folds_can_be_given_to_scikit_learn():
    x, y = _data(2)
    folds = folds_of(y.numpy(), 4, None, seed=3)
    assert len(cross_val_predict(LogisticRegression(), x.numpy(), y.numpy(), cv=folds)) == len(y)  # a partition


def test_what_cannot_be_is_told_in_one_line():
    x, y = _data(3)
    infinite = x.clone()
    infinite[4, 2] = float("inf")
    for call, words in [
        (lambda: fit_linear(x, y[:-1], num_classes=3, l2=1.0), r"\(120, 6\) and \(119,\)"),
        (lambda: fit_linear(x[:0], y[:0], num_classes=3, l2=1.0), "a sample at least"),
        (lambda: fit_linear(x, y, num_classes=2, l2=1.0), "from 0 to 1"),
        (lambda: fit_linear(x, y.double(), num_classes=3, l2=1.0), "whole numbers"),
        (lambda: fit_linear(infinite, y, num_classes=3, l2=1.0), "sample 4 are not finite"),
        (lambda: fit_linear(x, y, num_classes=3, l2=0.0), "above 0"),
        (lambda: best_l2(x, y, num_classes=3, grid=[1.0, -1.0]), "above 0"),
        (lambda: best_l2(x, y, num_classes=3, grid=[]), "grid of penalties is empty"),
        (lambda: best_l2(x, y, num_classes=3, folds=1), "2 at least"),
        (lambda: best_l2(x, y, num_classes=3, groups=[1, 2]), "each of the 120 samples"),
        (lambda: folds_of(np.arange(4), 2, None, seed=0), "no class has two samples"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
