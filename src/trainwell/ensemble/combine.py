"""How the answers of several members become one, and how sure that one may be."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.metrics.calibration import LEAST, SUM_WITHIN

RANGE = (0.05, 20.0)  # of temperatures
_ROUNDING = 1e-12  # of a log loss; a smaller gain is none


def mean_of(outputs: Tensor, mean: Literal["arithmetic", "geometric"] = "arithmetic") -> Tensor:
    """Returns the mean of the members' outputs.

    The arithmetic mean is of any outputs. The geometric is of probabilities alone, `exp(mean of log p)` divided by its
    sum (the logarithmic opinion pool: Heskes, *Selecting weighting factors in logarithmic opinion pools*, 1998); there
    probabilities below 2.2e-16 count as that, so that a single 0 does not overrule all others.

    Args:
        outputs: Shape `(members, n, classes)`.
        mean: `"arithmetic"` or `"geometric"`.

    Returns:
        The mean, float64, shape `(n, classes)`.

    Raises:
        InputError: If the shape does not fit, there is no member or no such mean, or the geometric mean is of something
            else than probabilities.

    >>> members = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    >>> print(mean_of(members), mean_of(members, "geometric"))
    tensor([[0.7000, 0.3000]], dtype=torch.float64) tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    _check_members(outputs)
    if mean == "arithmetic":
        return outputs.mean(0, dtype=torch.float64)
    if mean == "geometric":
        return _log(outputs).mean(0).softmax(-1)
    raise InputError(f"mean is {mean!r}; it is 'arithmetic' or 'geometric'")


@torch.no_grad()
def select(outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], float]) -> list[int]:
    """Chooses members one by one so that their arithmetic mean has a low loss; none twice.

    The first is the best alone. Then always that one is added with which the loss of the mean is lowest, until all are
    in; and those are taken up to where the loss was lowest on this way (Caruana, Niculescu-Mizil, Crew and Ksikes,
    *Ensemble selection from libraries of models*, 2004, section 2). On these samples the result is thus never worse
    than the best member; elsewhere it may be, the more so the fewer samples and the more members there are: choose on
    validation, and report on others.

    Args:
        outputs: Of all members for the same samples, shape `(members, n, classes)`, finite.
        targets: What `loss` compares with, shape `(n, …)`.
        loss: A function of mean outputs (float64, `(n, classes)`) and targets; lower is better.

    Returns:
        The members' numbers in the order of choice, at least one. Among equally good ones it is the lowest.

    Raises:
        InputError: If the shapes do not fit, there is no member or sample, or an output or a loss is not a number.

    >>> members = torch.tensor([[[2.0], [0.0]], [[0.0], [3.0]], [[9.0], [9.0]]])
    >>> select(members, torch.ones(2, 1), lambda mean, targets: float(((mean - targets) ** 2).mean()))
    [0, 1]
    """
    _check_members(outputs)
    if len(targets) != outputs.shape[1] or not len(targets):
        raise InputError(f"outputs of {outputs.shape[1]} samples need as many targets and at least one: {len(targets)}")
    if not outputs.isfinite().all():
        bad = (~outputs.isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise InputError(f"member {bad} has outputs that are not finite; leave it out")
    total, way = torch.zeros_like(outputs[0], dtype=torch.float64), list[int]()
    kept, lowest = 1, math.inf
    left = list(range(len(outputs)))
    while left:
        losses = {member: float(loss((total + outputs[member]) / (len(way) + 1), targets)) for member in left}
        if any(map(math.isnan, losses.values())):
            raise InputError("the loss of the mean is not a number; it has to be one for all finite outputs")
        best = min(left, key=losses.__getitem__)  # the first, and thus lowest, of equals
        total = total + outputs[best]
        way.append(best)
        left.remove(best)
        if losses[best] < lowest - _ROUNDING:
            kept, lowest = len(way), losses[best]
    return way[:kept]


@torch.no_grad()
def temperature(probabilities: Tensor, targets: Tensor, *, doubt: float = 1.0) -> float:
    """Returns the T from 0.05 to 20 for which `tempered(probabilities, T)` has the lowest log loss.

    Above 1 it makes answers less sure, below 1 surer; no answer changes (Guo, Pleiss, Sun and Weinberger, *On
    calibration of modern neural networks*, 2017, section 4.2). A mean of calibrated members is too unsure, so T belongs
    to the mean (Rahaman and Thiery, *Uncertainty quantification and deep ensembles*, 2021). As `log p` stands for
    logits, it is one number on a convex curve: the log loss in `1/T` has the slope `mean(Σ q_k log p_k - log p_y)`,
    where q is tempered, and its root is what is sought.

    Where all answers are right, that alone would make them ever surer, and the first mistake on other samples would
    cost more than all was worth. So one more sample is counted in that is a mistake: every sample's likeliest wrong
    class, each for its n-th part. It is Laplace's rule of succession, as Platt scaling has it (Platt, *Probabilistic
    outputs for support vector machines*, 1999, section 2.2), and hardly counts where there are many samples.

    Args:
        probabilities: Of samples that were not trained on, shape `(n, classes)`; below 2.2e-16 they count as that.
        targets: The true classes, integers from 0 to `classes - 1`, shape `(n,)`.
        doubt: How many mistakes are counted in; 0 for the samples alone.

    Returns:
        The temperature; exactly 1 if none is better. An end of the range means that the best lies beyond.

    Raises:
        InputError: If the shapes do not fit, there is no sample, rows are no probabilities, or a target is no class.

    >>> sure = torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64)
    >>> round(temperature(sure, torch.tensor([0, 0, 0, 1]), doubt=0), 6)  # log 9 / log 3: three of four are right
    2.0
    """
    from scipy.optimize import brentq

    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1] or not len(targets):
        shapes = f"{tuple(probabilities.shape)} and {tuple(targets.shape)}"
        raise InputError(f"probabilities are (n, classes) and targets (n,), with a sample at least, not {shapes}")
    if targets.is_floating_point() or targets.min() < 0 or targets.max() >= probabilities.shape[1]:
        raise InputError(f"targets are whole numbers from 0 to {probabilities.shape[1] - 1}, one class each")
    log_p = _log(probabilities)
    true = log_p.gather(1, targets.long()[:, None])[:, 0]
    if probabilities.shape[1] > 1:
        wrong = log_p.scatter(1, targets.long()[:, None], -math.inf).amax(1)
        share = doubt / (len(targets) + doubt)
        true = (1 - share) * true + share * wrong

    def slope(inverse: float) -> float:
        return float(((log_p * inverse).softmax(1) * log_p).sum(1).sub(true).mean())

    def loss(t: float) -> float:
        return float((log_p / t).logsumexp(1).sub(true / t).mean())

    coldest, hottest = RANGE
    if slope(1 / hottest) >= 0:
        best = hottest
    elif slope(1 / coldest) <= 0:
        best = coldest
    else:
        best = 1 / float(brentq(slope, 1 / hottest, 1 / coldest))
    return best if loss(best) < loss(1.0) - _ROUNDING else 1.0


def tempered(probabilities: Tensor, T: float) -> Tensor:
    """Returns `p^(1/T)` divided by its sum: softmax with temperature T, if p is a softmax (see `temperature`).

    Args:
        probabilities: Shape `(…, classes)`; below 2.2e-16 they count as that.
        T: Above 0; at 1 probabilities stay as they are.

    Returns:
        Probabilities, float64, of the same shape.

    Raises:
        InputError: If rows are no probabilities, or T is not above 0.

    >>> tempered(torch.tensor([0.9, 0.1], dtype=torch.float64), 2.0)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if not 0 < T < math.inf:
        raise InputError(f"a temperature is above 0 and finite, not {T}")
    return (_log(probabilities) / T).softmax(-1)


def _check_members(outputs: Tensor) -> None:
    if outputs.ndim != 3 or not len(outputs):
        raise InputError(f"outputs are (members, n, classes), of a member at least, not {tuple(outputs.shape)}")


def _log(probabilities: Tensor) -> Tensor:
    """Returns logarithms, of 2.2e-16 at least (as scikit-learn's `log_loss`), of what it checks to be probabilities."""
    p = probabilities.double()
    if not ((p >= 0).all() and ((p.sum(-1) - 1).abs() <= SUM_WITHIN).all()):  # NaN is neither
        raise InputError("probabilities are at least 0 and each row's sum is 1; pass logits through softmax first")
    return p.clamp_min(LEAST).log()
