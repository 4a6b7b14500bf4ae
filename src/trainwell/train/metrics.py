"""How good answers are, and how far to trust the number."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from trainwell.random import key, keys, uniform


def accuracy(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Returns the fraction of samples whose largest output is at the true class; among equal outputs the first counts.

    Args:
        outputs: Scores, logits or probabilities, shape `(n, classes)`.
        targets: The true classes, integers, shape `(n,)`.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the shapes do not fit, or there are no samples.

    >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    0.5
    """
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(f"outputs are (n, classes) and targets (n,), not {outputs.shape} and {targets.shape}")
    if not len(targets):
        raise ValueError("accuracy needs at least one sample")
    return float((outputs.argmax(axis=1) == targets).mean())


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
        ValueError: If an argument is out of range.

    >>> low, high = wilson_interval(98, 100)
    >>> round(low, 3), round(high, 3)
    (0.93, 0.994)
    """
    if n < 1:
        raise ValueError(f"an interval needs at least one try, not n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes are between 0 and n={n}, not {successes}")
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, not {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the formula gives exactly 0 and 1; rounding must not spoil that.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def bootstrap_interval(
    metric: Callable[[torch.Tensor, torch.Tensor], float],
    outputs: torch.Tensor,
    targets: torch.Tensor,
    level: float = 0.95,
    resamples: int = 1_000,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of any metric (B. Efron, *Bootstrap methods*, 1979).

    The metric is computed on `resamples` samples of the same size, drawn with replacement. The draws are the same
    at every call.

    Args:
        metric: A function of outputs and targets.
        outputs: Of all samples, shape `(n, …)`.
        targets: Of all samples, shape `(n, …)`.
        level: How often such an interval should hold the true value, strictly between 0 and 1.
        resamples: How many samples are drawn.
    """
    size = len(targets)
    values = []
    for draw in range(resamples):
        rows = torch.from_numpy((uniform(keys(key("bootstrap"), [draw]), size)[0] * size).astype(np.int64))
        values.append(float(metric(outputs[rows], targets[rows])))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
