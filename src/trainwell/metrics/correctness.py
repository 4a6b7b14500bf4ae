"""How good answers are, and how far to trust the number."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from trainwell.errors import InputError
from trainwell.random import key, keys, uniform

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def accuracy(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Returns the fraction of samples whose largest output is at the true class; among equal outputs the first counts.

    Args:
        outputs: Scores, logits or probabilities, shape `(n, classes)`.
        targets: The true classes, integers, shape `(n,)`.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: If the shapes do not fit, or there are no samples.

    >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    0.5
    """
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise InputError(f"outputs are (n, classes) and targets (n,), not {outputs.shape} and {targets.shape}")
    if not len(targets):
        raise InputError("accuracy needs at least one sample")
    return float((outputs.argmax(axis=1) == targets).mean())


def recalls(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """Returns for each class the fraction of its samples whose largest output is at it; NaN where it has none.

    Args:
        outputs: Scores, logits or probabilities, shape `(n, classes)`.
        targets: The true classes, integers from 0 to `classes - 1`, shape `(n,)`.

    Returns:
        Numbers in [0, 1] or NaN, shape `(classes,)`.

    Raises:
        InputError: If the shapes do not fit, there are no samples, or a target is no class.

    >>> recalls([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.2, 0.8, 0]], [0, 0, 1])
    array([0.5, 1. , nan])
    """
    accuracy(outputs, targets)  # checks the shapes
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    classes = outputs.shape[1]
    if targets.min() < 0 or targets.max() >= classes:
        raise InputError(f"targets are from 0 to {classes - 1}, not {targets.min()} to {targets.max()}")
    counts = np.bincount(targets, minlength=classes)
    right = np.bincount(targets, outputs.argmax(axis=1) == targets, classes)
    found: Floats = np.divide(right, counts, out=np.full(classes, np.nan), where=counts > 0)
    return found


def balanced_accuracy(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Returns the mean recall of the classes that occur: the accuracy if every class were equally frequent.

    Arguments and errors as for `recalls` (Brodersen et al., *The balanced accuracy and its posterior distribution*,
    2010; scikit-learn's `balanced_accuracy_score`).

    >>> balanced_accuracy([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], [0, 0, 0, 1])
    0.5
    """
    return float(np.nanmean(recalls(outputs, targets)))


def average_precision(scores: npt.ArrayLike, targets: npt.ArrayLike) -> Floats:
    """Returns each label's average precision: the precision at each threshold, weighted by the recall it adds.

    `Σ (R_t - R_(t-1)) P_t` over the distinct scores t from the highest on, so that the order of equal scores does not
    matter; as scikit-learn's `average_precision_score`, without interpolation. Its mean over labels is known as mAP.

    Args:
        scores: The higher, the more likely is the label, shape `(n, labels)`.
        targets: 1 where the sample has the label, else 0, shape `(n, labels)`.

    Returns:
        Numbers in [0, 1], shape `(labels,)`; NaN where no sample has the label.

    Raises:
        InputError: If the shapes do not fit, a target is neither 0 nor 1, or a score is NaN.

    >>> average_precision([[0.9, 0.2], [0.8, 0.1], [0.7, 0.4]], [[1, 0], [0, 0], [1, 0]]).round(3)
    array([0.833,   nan])
    """
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    if scores.ndim != 2 or targets.shape != scores.shape:
        raise InputError(f"scores and targets are both (n, labels), not {scores.shape} and {targets.shape}")
    if not np.isin(targets, (0, 1)).all() or np.isnan(scores).any():
        raise InputError("targets are 0 or 1 for each label, and scores are numbers")
    truth = targets == 1
    found = np.full(scores.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order, label]) != 0, True))  # of each run of equal scores
        hits = truth[order, label].cumsum()[ends]
        found[label] = (np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1]
    return found


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval for the chance of success, after `successes` in `n` tries.

    Unlike the textbook `p ± z·sqrt(p(1-p)/n)` it stays inside [0, 1] and has a width at 0 and at `n` successes
    (E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, 1927).

    Args:
        successes: How many of the tries went well, from 0 to `n`.
        n: How many tries there were, at least 1.
        level: How often such an interval holds the true chance, strictly between 0 and 1.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        InputError: If an argument is out of range.

    >>> low, high = wilson_interval(98, 100)
    >>> round(low, 3), round(high, 3)
    (0.93, 0.994)
    """
    if n < 1:
        raise InputError(f"an interval needs at least one try, not n={n}")
    if not 0 <= successes <= n:
        raise InputError(f"successes are between 0 and n={n}, not {successes}")
    z = _normal_quantile(level)
    return _wilson(successes / n, z * z / n)


def _normal_quantile(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level is between 0 and 1, not {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _wilson(p: float, stretch: float) -> tuple[float, float]:
    """Returns Wilson's interval around `p`, which depends on the quantile and the number through z²/n alone."""
    half = math.sqrt(stretch * p * (1 - p) + stretch * stretch / 4)
    # At the ends the formula gives exactly 0 and 1; rounding must not spoil that.
    low = 0.0 if p == 0 else (p + stretch / 2 - half) / (1 + stretch)
    high = 1.0 if p == 1 else (p + stretch / 2 + half) / (1 + stretch)
    return low, high


def accuracy_interval(
    right: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Returns an interval for the accuracy on new samples, and on new groups where samples come in groups.

    Without groups it is Wilson's. Pictures of one group (a patient, a camera, a copy of a picture) tend to be right or
    wrong together and tell less than as many from groups of their own. Then it is Wilson's interval with Student's
    quantile for `G - 1` degrees of freedom and an effective number of samples, `n / d` (Korn and Graubard, *Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data*, 1998; Dean and
    Pagano, *Evaluating confidence interval methods for binomial proportions in clustered surveys*, 2015). `d`, the
    design effect, is by how much the variance between groups, `G / (G - 1) Σ (right_g - p n_g)² / n²`, exceeds that of
    independent samples, `p (1 - p) / n`, at least 1 and at most `D = Σ n_g² / n`, which it is when all samples of a
    group are alike.

    Few mistakes say little about `d`, and intervals that trust them are too short (Franco, Little, Louis and Slud,
    *Comparative study of confidence intervals for proportions in complex sample surveys*, 2019). So it is averaged with
    what could be: `(f d + D / 2) / (f + 1 / 2)`, where `f` is the number of groups with a mistake (or with a right
    answer, if those are fewer). If all are right, an interval rests on the number of groups alone.

    In simulations (`bench/interval_coverage.py`) such intervals held the true value in 94 to 98 % of all cases with 30
    groups or more, in 97 to nearly 100 % with 10: with few groups they are rather too long than too short.

    Args:
        right: Whether each sample was classified correctly, shape `(n,)`.
        groups: The group of each sample, shape `(n,)`, any integers; without them every sample is on its own.
        level: How often such an interval holds the true chance, strictly between 0 and 1.

    Returns:
        The lower and the upper end, in [0, 1]. They are 0 and 1 if there is a single group of several samples.

    Raises:
        InputError: If the shapes do not fit, there are no samples, or the level is out of range.

    >>> right = [True] * 90 + [False] * 10
    >>> [round(end, 3) for end in accuracy_interval(right)]
    [0.826, 0.945]
    >>> [round(end, 3) for end in accuracy_interval(right, groups=[sample // 5 for sample in range(100)])]
    [0.682, 0.974]
    """
    right = np.asarray(right, bool)
    return balanced_accuracy_interval(right, np.zeros(right.shape, np.int64), groups, level)


def balanced_accuracy_interval(
    right: npt.ArrayLike, targets: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Returns an interval for the balanced accuracy on new samples (and on new groups, if samples come in groups).

    Wilson's intervals `l_c` to `u_c` of the recalls `r_c` are put together to that of their mean over K classes, which
    is `B - sqrt(Σ (r_c - l_c)²) / K` to `B + sqrt(Σ (u_c - r_c)²) / K` (the method of variance estimates recovery:
    Zou and Donner, *Construction of confidence limits about effect measures: a general approach*, 2008). With groups
    the number of samples of each class is divided by the design effect of `B`, as `accuracy_interval` does with `n`.

    Args:
        right: Whether each sample was classified correctly, shape `(n,)`.
        targets: The true classes, integers, shape `(n,)`. The mean is over those that occur.
        groups: The group of each sample, shape `(n,)`, any integers; without them every sample is on its own.
        level: How often such an interval holds the true value, strictly between 0 and 1.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        InputError: If the shapes do not fit, there are no samples, or the level is out of range.

    >>> right, targets = [True] * 85 + [False] * 5 + [True] * 6 + [False] * 4, [0] * 90 + [1] * 10
    >>> [round(end, 3) for end in balanced_accuracy_interval(right, targets)]
    [0.625, 0.889]
    """
    right, targets = np.asarray(right, bool), np.asarray(targets)
    if right.ndim != 1 or targets.shape != right.shape or np.shape(right if groups is None else groups) != right.shape:
        shapes = [right.shape, targets.shape, *([] if groups is None else [np.shape(groups)])]
        raise InputError(f"right, targets and groups have one entry a sample, not {', '.join(map(str, shapes))}")
    if not len(right):
        raise InputError("an interval needs at least one sample")
    _, class_of, counts = np.unique(targets, return_inverse=True, return_counts=True)
    rates = np.bincount(class_of, right) / counts

    stretch = _normal_quantile(level) ** 2
    if groups is not None:
        _, group_of = np.unique(np.asarray(groups), return_inverse=True)
        stretch = _stretched(right, class_of, counts, rates, group_of, level) or stretch
    if math.isinf(stretch):
        return 0.0, 1.0
    ends = np.array([_wilson(rate, stretch / count) for rate, count in zip(rates, counts, strict=True)])
    below, above = np.sqrt(((ends - rates[:, None]) ** 2).sum(axis=0)) / len(counts)
    return max(float(rates.mean() - below), 0.0), min(float(rates.mean() + above), 1.0)


def _stretched(
    right: npt.NDArray[np.bool_], class_of: Ints, counts: Ints, rates: Floats, group_of: Ints, level: float
) -> float:
    """Returns Student's quantile squared times the design effect; 0 if no two samples share a group."""
    from scipy.special import stdtrit

    groups = int(group_of.max()) + 1
    if groups == len(right):
        return 0.0
    if groups == 1:
        return math.inf  # nothing is known of how groups differ
    share = 1 / (len(counts) * counts[class_of])  # of a sample in the balanced accuracy
    residual = np.bincount(group_of, share * (right - rates[class_of]))
    between = groups / (groups - 1) * (residual**2).sum()
    independent = (rates * (1 - rates) / counts).sum() / len(counts) ** 2
    largest = (np.bincount(group_of, share) ** 2).sum() / (share**2).sum()
    effect = min(max(between / independent, 1.0), largest) if independent > 0 else largest
    telling = min(len(np.unique(group_of[right])), len(np.unique(group_of[~right])))
    effect = (telling * effect + largest / 2) / (telling + 1 / 2)
    quantile = float(stdtrit(groups - 1, (1 + level) / 2))
    return quantile * quantile * float(effect)


def indistinguishable(accuracy: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Returns which accuracies of another model, on `n` other samples, could be chance next to this one on `n`.

    These are the `q` that the test for two independent proportions with a common variance does not tell from the
    accuracy `p`: `|p - q| ≤ z sqrt(2 m (1 - m) / n)` with `m = (p + q) / 2` (Pearson's chi-squared test of two by two
    tables), solved for `q`. If two models are equally good, the second is outside in 1 - `level` of all cases.

    Two models that are measured on the *same* samples can be compared better, sample by sample. And of models that
    truly differ by just that much, half are told apart.

    Args:
        accuracy: What fraction of the `n` samples was classified correctly, in [0, 1].
        n: How many samples each model was measured on, at least 1.
        level: One less the chance of a false alarm, strictly between 0 and 1.

    Returns:
        The lowest and the highest of these accuracies, in [0, 1].

    Raises:
        InputError: If an argument is out of range.

    >>> [round(end, 3) for end in indistinguishable(0.95, 120)]
    [0.879, 0.992]
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise InputError(f"an accuracy is between 0 and 1 on at least one sample, not {accuracy} on {n}")
    a = 2 * _normal_quantile(level) ** 2 / n
    # With q = p + d: (1 + a/4) d² - a (1 - 2p)/2 d - a p (1 - p) = 0
    b, c = a * (1 - 2 * accuracy) / 2, a * accuracy * (1 - accuracy)
    root = math.sqrt(b * b + (4 + a) * c)
    low, high = (accuracy + (b + sign * root) / (2 + a / 2) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def smallest_difference(accuracy: float, n: int, level: float = 0.95) -> float:
    """Returns by how much another model's accuracy on `n` other samples has to differ to be told apart for certain.

    The distance to the farther end of `indistinguishable`, which see; towards the nearer end less is enough.

    >>> round(smallest_difference(0.95, 120), 3)
    0.071
    """
    low, high = indistinguishable(accuracy, n, level)
    return max(accuracy - low, high - accuracy)


def bootstrap_interval(
    metric: Callable[[torch.Tensor, torch.Tensor], float],
    outputs: torch.Tensor,
    targets: torch.Tensor,
    level: float = 0.95,
    resamples: int = 1_000,
    groups: npt.ArrayLike | None = None,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of any metric (B. Efron, *Bootstrap methods*, 1979).

    The metric is computed on `resamples` samples of the same size, drawn with replacement; with groups, on as many
    groups as there are, each with all its samples (Davison and Hinkley, *Bootstrap methods and their application*,
    1997, section 3.8). The draws are the same at every call.

    Args:
        metric: A function of outputs and targets. On some draws it may fail or be NaN, as AUC is where all are of one
            class: those are left out.
        outputs: Of all samples, shape `(n, …)`.
        targets: Of all samples, shape `(n, …)`.
        level: How often such an interval should hold the true value, strictly between 0 and 1.
        resamples: How many samples are drawn.
        groups: The group of each sample, shape `(n,)`, any integers; without them every sample is on its own.

    Returns:
        Its ends; NaN where the metric is a number on less than half of the draws, or there is one sample or group, of
            which all draws are the same.

    Raises:
        InputError: If `groups` has another shape.

    >>> outputs, targets, groups = torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.zeros(4), [7, 7, 8, 8]
    >>> bootstrap_interval(lambda o, t: float((o - t).mean()), outputs, targets, groups=groups)
    (1.0, 2.0)
    """
    group_of: npt.ArrayLike = range(len(targets)) if groups is None else groups
    if np.shape(group_of) != (len(targets),):
        raise InputError(f"groups has one entry for each of {len(targets)} samples, not {np.shape(group_of)}")
    _, first, group_of, sizes = np.unique(group_of, return_index=True, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return math.nan, math.nan
    members = np.argsort(group_of, kind="stable")  # group by group; each begins at:
    begins, by_appearance = sizes.cumsum() - sizes, np.argsort(first)
    values = []
    for draw in range(resamples):
        drawn = (uniform(keys(key("bootstrap"), [draw]), len(sizes))[0] * len(sizes)).astype(np.int64)
        drawn = by_appearance[drawn]  # so that it does not matter how groups are numbered
        ends = sizes[drawn].cumsum()
        places = np.arange(ends[-1]) + np.repeat(begins[drawn] - (ends - sizes[drawn]), sizes[drawn])
        rows = torch.from_numpy(members[places])
        values.append(_or_nan(metric, outputs[rows], targets[rows]))
    if np.isnan(values).mean() > 0.5:
        return math.nan, math.nan
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _or_nan(
    metric: Callable[[torch.Tensor, torch.Tensor], float], outputs: torch.Tensor, targets: torch.Tensor
) -> float:
    try:
        return float(metric(outputs, targets))
    except Exception:  # the user's own code, which has no answer for such a draw
        return math.nan
