"""Linear probes: how well a linear classifier on each stage's features would do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from torch import Tensor

from trainwell.errors import InputError
from trainwell.metrics import wilson_interval
from trainwell.transfer.linear import GRID, Fits, as_arrays, as_groups, best_l2, folds_of, log_probabilities

_INNER_FOLDS = 3
_TOLERANCE = 1e-5  # of fits: probabilities to four digits or so


@dataclass(frozen=True, eq=False)
class Probe:
    """How well a linear classifier on one stage's features does in cross-validation.

    Attributes:
        stage: its name.
        dimensions: how many features it has.
        accuracy: share of all samples that were classified correctly, each judged once, by a fit that has not seen it.
        interval: of the accuracy on new samples, 95 %: Wilson's, for samples that are right or wrong independently.
            Samples of one group often are not; then it is too short. So it is where nothing is to be learnt, as two
            samples are then right or wrong by each other: in simulations with noise it held chance in 80 to 85 % of
            all cases.
        log_loss: mean of `-log p` of the true class, where p is at least 2.2e-16.
        fold_accuracies: the accuracy in each fold.
        l2: the penalty of each fold, given or chosen within what it was fitted to.
        right: whether each sample was classified correctly, shape `(n,)`.
    """

    stage: str
    dimensions: int
    accuracy: float
    interval: tuple[float, float]
    log_loss: float
    fold_accuracies: tuple[float, ...]
    l2: tuple[float, ...]
    right: npt.NDArray[np.bool_]


def probe(
    features: Mapping[str, Tensor],
    targets: Tensor,
    *,
    num_classes: int,
    folds: int = 5,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    l2: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Probe]:
    """Fits a linear classifier to each stage's features, and judges all by the same cross-validation.

    Features are standardised by what is fitted to (Alain and Bengio, *Understanding intermediate layers using linear
    classifier probes*, 2016, have the probes, if not the standardisation). With 1,000 samples, five stages of 512
    features and ten classes it takes about 20 seconds of one core, and 5 where the penalty is given.

    Args:
        features: Of each stage `(n, d)`, as `trainwell.transfer.extract_features` returns them.
        targets: Classes from 0 to `num_classes - 1`, shape `(n,)`.
        num_classes: How many classes there are.
        folds: How many at most; fewer where a class has fewer samples, though never below 2. A class with one sample
            cannot be learnt and judged: its sample is judged by fits that do not know it, and is so never right.
        groups: The group of each sample, numbers or names, shape `(n,)`; no group is both learnt from and judged.
        seed: Chooses the folds.
        l2: The penalty, as for `fit_linear`; by default it is chosen in each fold, by cross-validation within what is
            fitted to (`best_l2`).
        progress: Called after each fold of each stage with how many are done and how many there are.

    Returns:
        One probe a stage, in the order of the features.

    Raises:
        InputError: There is no stage, what is given does not fit together, or no class has two samples (groups).

    >>> import torch
    >>> targets = torch.arange(100) % 2
    >>> noise = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> early, late = probe({"early": noise, "late": noise + 9 * targets[:, None]}, targets, num_classes=2)
    >>> late.accuracy, early.interval[0] < 0.5 < early.interval[1]
    (1.0, True)
    """
    if not features:
        raise InputError("there are no features to probe: give those of one stage at least")
    for values in features.values():
        _, labels = as_arrays(values, targets, num_classes)
    group_of = as_groups(groups, len(labels))
    divided = folds_of(labels, folds, group_of, seed)
    probes: list[Probe] = []
    for stage, values in features.items():
        x, y = as_arrays(values, targets, num_classes)
        log_p, penalties = np.zeros((len(y), num_classes)), list[float]()
        for train, test in divided:
            penalties.append(
                best_l2(
                    values[train],
                    targets[train],
                    num_classes=num_classes,
                    grid=GRID if l2 is None else (l2,),
                    folds=_INNER_FOLDS,
                    groups=None if group_of is None else group_of[train],
                    standardize=True,
                    seed=seed,
                )
            )
            fits = Fits(x[train], y[train], num_classes, _TOLERANCE, standardize=True)
            weight, bias = fits.at(penalties[-1])
            log_p[test] = log_probabilities(x[test] @ weight.T + bias)
            if progress:
                progress(len(probes) * len(divided) + len(penalties), len(features) * len(divided))
        probes.append(_judged(stage, x.shape[1], log_p, y, [test for _, test in divided], penalties))
    return probes


def compare(a: Probe, b: Probe) -> tuple[float, float, float]:
    """Returns by how much `a` is more accurate than `b` on the same samples, and the 95 % interval of that.

    The interval is Wald's after one sample was added on either side, which one probe alone has right (Bonett and Price,
    *Adjusted Wald confidence interval for a difference of binomial proportions based on paired data*, 2012). So it has
    a width even where the two never differ.

    Raises:
        InputError: the probes are of different samples.

    >>> import torch
    >>> targets = torch.arange(20) % 2
    >>> told, untold = probe({"a": targets[:, None].float(), "b": torch.zeros(20, 1)}, targets, num_classes=2)
    >>> [round(value, 2) for value in compare(told, untold)]
    [0.5, 0.21, 0.7]
    """
    n = len(a.right)
    if len(b.right) != n:
        raise InputError(f"probes of {n} and of {len(b.right)} samples cannot be compared: probe the same samples")
    only_a, only_b = int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle = share_a - share_b
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt((share_a + share_b - middle**2) / (n + 2)))
    return (only_a - only_b) / n, max(middle - half, -1.0), min(middle + half, 1.0)


def best(probes: Sequence[Probe]) -> Probe:
    """Returns the most accurate probe; of those that may be as accurate, the one with the lowest log loss.

    A probe may be as accurate if the interval of its difference to the most accurate one (`compare`) holds 0.

    Raises:
        InputError: there are no probes.
    """
    if not probes:
        raise InputError("there are no probes to choose from: probe one stage at least")
    top = max(probes, key=lambda one: one.accuracy)
    return min((one for one in probes if compare(top, one)[1] <= 0), key=lambda one: one.log_loss)


def table(probes: Sequence[Probe]) -> str:
    """Returns the probes as lines of text, in their order; the best is marked."""
    chosen = best(probes)
    width = max(len("stage"), *(len(one.stage) for one in probes))
    lines = [f"{'stage':{width}}  features  accuracy    95 % interval  log loss"]
    for one in probes:
        low, high = one.interval
        lines.append(
            f"{one.stage:{width}}  {one.dimensions:8}  {one.accuracy:8.1%}  {low:6.1%} – {high:6.1%}"
            f"  {one.log_loss:8.3f}{'  best' if one is chosen else ''}"
        )
    return "\n".join(lines)


def _judged(
    stage: str,
    dimensions: int,
    log_p: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    tests: list[npt.NDArray[np.int64]],
    penalties: list[float],
) -> Probe:
    right = log_p.argmax(1) == labels
    return Probe(
        stage=stage,
        dimensions=dimensions,
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), len(right)),
        log_loss=float(-log_p[np.arange(len(labels)), labels].mean()),
        fold_accuracies=tuple(float(right[test].mean()) for test in tests),
        l2=tuple(penalties),
        right=right,
    )
