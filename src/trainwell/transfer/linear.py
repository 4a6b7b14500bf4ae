"""The linear classifier on given features that is best: a convex problem, solved to its optimum."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainwell.errors import InputError
from trainwell.metrics.calibration import LEAST

GRID = tuple(10.0**power for power in range(2, -7, -1))
"""The penalties that `best_l2` tries: 100, 10, … 0.000001."""

_ABSENT = -1e4  # a logit that no other comes near, but which half precision can hold
_TIGHT, _LOOSE = 1e-8, 1e-3  # the slope of the objective at which a fit ends; the loose one tells decades apart
_STEPS = 1_000
_GAIN = 1e-3  # of a mean log loss; less may come from where loose fits end

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def fit_linear(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    l2: float,
    intercept: bool = True,
    standardize: bool = False,
) -> nn.Linear:
    """Returns the linear layer with the lowest mean cross-entropy plus `l2 / 2 · ||W||²`: logistic regression.

    The optimum is one point, and nothing is drawn: the problem is convex and solved in float64 (by scikit-learn, with
    Newton's method) until the slope of the objective is 1e-8. The biases are not penalised.

    A class without samples gets the weights 0 and the bias -10000, for which its probability is 0; that is where the
    objective would send it.

    Args:
        features: Shape `(n, d)`, finite.
        targets: Classes from 0 to `num_classes - 1`, shape `(n,)`.
        num_classes: Rows of the layer; for two classes they are each other's opposite.
        l2: The penalty, above 0. As scikit-learn's `C` multiplies the sum of the losses, and it has one row of weights
            for two classes, which is twice either of ours, `C` is `1 / (n · l2)`, and `2 / (n · l2)` for two classes.
        intercept: Fit biases. Without, they are 0 (but for a class without samples, and what `standardize` adds).
        standardize: Fit to features less their mean, divided by their deviation (1 where that is 0). Then the penalty
            is on the weights of those. Mean and deviation are worked into the layer: it takes features as they are.

    Returns:
        `nn.Linear(d, num_classes)` on the device of the features, float64 if they are and else float32.

    Raises:
        InputError: Shapes do not fit, there are no samples, a feature is not finite, a target is no class, or `l2` is
            not above 0.

    >>> layer = fit_linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), num_classes=2, l2=0.1)
    >>> layer(torch.tensor([[-1.0], [1.0]])).argmax(1)
    tensor([0, 1])
    """
    _check_l2(l2)
    x, y = as_arrays(features, targets, num_classes)
    weight, bias = Fits(x, y, num_classes, _TIGHT, intercept=intercept, standardize=standardize).at(l2)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    layer = nn.Linear(x.shape[1], num_classes, device="meta", dtype=dtype)  # where nothing random is drawn
    layer = layer.to_empty(device=features.device)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def best_l2(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    grid: Sequence[float] = GRID,
    folds: int = 5,
    groups: npt.ArrayLike | None = None,
    standardize: bool = False,
    seed: int = 0,
) -> float:
    """Returns the penalty of `fit_linear` with the lowest log loss in stratified cross-validation.

    It goes from the strongest to the weakest, and ends where the log loss no longer falls by 0.001 at least: so of
    equals it takes the strongest. What is weaker still fits noise the more, and takes longest. Where no class has two
    samples (groups), nothing can be judged, and it is the strongest.

    Args:
        features: As for `fit_linear`.
        targets: As for `fit_linear`.
        num_classes: As for `fit_linear`.
        grid: The penalties to try, above 0.
        folds: As for `folds_of`.
        groups: As for `folds_of`.
        standardize: As for `fit_linear`, in each fold by the samples that are fitted to.
        seed: Chooses the folds.

    Raises:
        InputError: As for `fit_linear`, or the grid is empty, or `folds` or `groups` do not fit.

    >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    >>> best_l2(x, torch.arange(60) % 2, num_classes=2)  # noise: nothing is to be learnt
    100.0
    >>> best_l2(x, (x[:, 0] > 0).long(), num_classes=2) < 0.1
    True
    """
    x, y = as_arrays(features, targets, num_classes)
    if not len(grid):
        raise InputError("the grid of penalties is empty: give one at least")
    for l2 in grid:
        _check_l2(l2)
    groups = as_groups(groups, len(y))
    strongest = max(grid)
    if min(grid) == strongest or _units(y, groups).max() < 2:
        return float(strongest)
    parts = [
        (Fits(x[train], y[train], num_classes, _LOOSE, standardize=standardize), x[test], y[test])
        for train, test in folds_of(y, folds, groups, seed)
    ]
    best, lowest = strongest, math.inf
    for l2 in sorted(set(grid), reverse=True):
        total = 0.0
        for fits, inputs, labels in parts:
            weight, bias = fits.at(l2)
            total -= log_probabilities(inputs @ weight.T + bias)[np.arange(len(labels)), labels].sum()
        if total / len(y) > lowest - _GAIN:
            break
        best, lowest = l2, total / len(y)
    return float(best)


def folds_of(targets: Rows, folds: int, groups: Rows | None, seed: int) -> list[tuple[Rows, Rows]]:
    """Divides samples into stratified folds, and returns of each the rows to fit to and the rows to judge.

    There are no more folds than the rarest class has samples (groups), so that every fold judges every class. Classes
    with a single one do not count there: no folds let it be both learnt and judged, and it is judged as what it is
    to a model that has never seen its class.

    Args:
        targets: The classes, shape `(n,)`.
        folds: How many at most, from 2 on.
        groups: The group of each sample, shape `(n,)`; no group is in two folds. None for samples on their own.
        seed: Chooses the folds.

    Raises:
        InputError: `folds` is below 2, or no class has two samples (groups).

    >>> [test.tolist() for _, test in folds_of(np.array([0, 0, 0, 1, 1, 1]), 5, None, seed=0)]
    [[2, 4], [1, 5], [0, 3]]
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise InputError(f"folds is {folds}: samples are divided into 2 at least")
    units = _units(targets, groups)
    if units.max() < 2:
        raise InputError(
            f"no class has two {'samples' if groups is None else 'groups'}, to learn from one and judge by the other: "
            "add samples"
        )
    count = min(folds, int(units[units > 1].min()))
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # of one sample: see above
        divided = list(kind(count, shuffle=True, random_state=seed).split(targets, targets, groups))
    return [(train, test) for train, test in divided if len(test)]


def log_probabilities(logits: Floats) -> Floats:
    """Returns the logarithms of softmax probabilities, of which those below 2.2e-16 count as that."""
    from scipy.special import log_softmax

    found: Floats = np.maximum(log_softmax(logits, axis=1), math.log(LEAST))
    return found


def as_arrays(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Floats, Rows]:
    """Returns features as float64 and targets as int64, once they are checked as `fit_linear` says."""
    if features.ndim != 2 or targets.shape != features.shape[:1] or not len(targets):
        shapes = f"{tuple(features.shape)} and {tuple(targets.shape)}"
        raise InputError(f"features are (n, d) and targets (n,), with a sample at least, not {shapes}")
    if targets.is_floating_point() or targets.min() < 0 or targets.max() >= num_classes:
        raise InputError(f"targets are whole numbers from 0 to {num_classes - 1}, one class each")
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(1).nonzero()[0])
        raise InputError(f"the features of sample {row} are not finite: see whether the model's weights and inputs are")
    return features.detach().cpu().double().numpy(), targets.cpu().long().numpy()


def as_groups(groups: npt.ArrayLike | None, count: int) -> Rows | None:
    """Returns groups, of numbers or names, as numbers from 0 on."""
    if groups is None:
        return None
    given = np.asarray(groups)
    if given.shape != (count,):
        raise InputError(f"groups are one for each of the {count} samples, not {given.shape}")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def _units(targets: Rows, groups: Rows | None) -> Rows:
    """Returns how many samples, or groups, each class has that occurs."""
    pairs = np.stack([targets, np.arange(len(targets)) if groups is None else groups])
    return np.unique(np.unique(pairs, axis=1)[0], return_counts=True)[1]


def _check_l2(l2: float) -> None:
    if not 0 < l2 < math.inf:
        raise InputError(f"l2 is {l2}: a penalty is above 0 and finite; without one there may be no optimum")


class Fits:
    """Fits to the same samples with one penalty after the other, each started where the last one ended.

    Args:
        x: The features, shape `(n, d)`.
        y: The classes, shape `(n,)`.
        num_classes: How many classes there are, in `y` or not.
        tolerance: The slope of the objective at which a fit ends.
        intercept: As for `fit_linear`.
        standardize: As for `fit_linear`.
    """

    def __init__(
        self,
        x: Floats,
        y: Rows,
        num_classes: int,
        tolerance: float,
        *,
        intercept: bool = True,
        standardize: bool = False,
    ) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self._y, self._num_classes, self._present = y, num_classes, np.unique(y)
        # With free biases the optimum does not depend on the mean, but the way to it is shorter without.
        self._scaler = StandardScaler(with_mean=intercept or standardize, with_std=standardize).fit(x)
        self._x = self._scaler.transform(x)
        self._basis = None
        if x.shape[1] > len(x):  # the best weights are in the span of the samples, where their norm is the same
            self._basis, transposed = np.linalg.qr(self._x.T)
            self._x = np.ascontiguousarray(transposed.T)
        # Where features are on unlike scales, L-BFGS takes a hundred times as many steps.
        self._regression = LogisticRegression(
            tol=tolerance, max_iter=_STEPS, fit_intercept=intercept, warm_start=True, solver="newton-cg"
        )

    def at(self, l2: float) -> tuple[Floats, Floats]:
        """Returns weights `(num_classes, d)` and biases `(num_classes,)`, for features that are not standardised."""
        weight, bias = np.zeros((self._num_classes, self._scaler.n_features_in_)), np.full(self._num_classes, _ABSENT)
        weight[self._present], bias[self._present] = self._of_present(l2)
        return weight, bias

    def _of_present(self, l2: float) -> tuple[Any, Any]:
        """Returns weights and biases of the classes that have samples."""
        count = len(self._present)
        if count == 1:
            return 0.0, 0.0
        # One row of weights for two classes is the difference of two; a half of its square is what those add up to.
        self._regression.set_params(C=(2 if count == 2 else 1) / (len(self._y) * l2)).fit(self._x, self._y)
        weight, bias = self._regression.coef_, self._regression.intercept_
        if count == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        if self._basis is not None:
            weight = weight @ self._basis.T
        if self._scaler.with_std:
            weight = weight / self._scaler.scale_
        if self._scaler.with_mean:
            bias = bias - weight @ self._scaler.mean_
        return weight, bias
