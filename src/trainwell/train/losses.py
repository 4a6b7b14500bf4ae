"""The loss of each task: what is minimised, and what is reported."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from trainwell.regularize import cross_entropy

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of outputs and targets that returns the mean loss of a batch."""

_BCE = F.binary_cross_entropy_with_logits


def aligned(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns outputs of shape `(n, 1)` as `(n,)` where the targets are `(n,)` real numbers, and others as they are.

    Otherwise every loss and metric that subtracts one from the other would broadcast them to `(n, n)`, and a model
    would learn the mean of its targets without a word.
    """
    single = targets.is_floating_point() and outputs.shape == (*targets.shape, 1)
    return outputs.squeeze(-1) if single else outputs


def balanced_weights(targets: npt.NDArray[Any], task: str) -> npt.NDArray[np.float32]:
    """Returns by how much each class, or each label where there are several, is to count so that all count the same.

    Classes: `n / (classes · count)`, which averages 1 over the samples (G. King and L. Zeng, *Logistic regression in
    rare events data*, 2001). Labels: how many samples lack it for one that has it, the weight of those that have it.

    Args:
        targets: int64 classes `(n,)`, each at least once; or 0 and 1, shape `(n, labels)`.
        task: "classification" or "multilabel".

    >>> balanced_weights(np.array([0, 1, 1, 1, 1]), "classification").tolist()
    [2.5, 0.625]
    """
    if task == "classification":
        balanced: npt.NDArray[np.float64] = len(targets) / (targets.max() + 1) / np.bincount(targets)
        return balanced.astype(np.float32)
    present = targets.sum(axis=0)
    weights: npt.NDArray[np.float32] = np.where(present > 0, (len(targets) - present) / np.maximum(present, 1), 1)
    return weights.astype(np.float32)


def for_task(task: str, label_smoothing: float = 0.0, weight: torch.Tensor | None = None) -> tuple[Loss, Loss]:
    """Returns what is minimised and what is reported; they differ only by label smoothing and weights.

    Smoothed targets put a floor under the loss. The history is about the plain one, so that runs with and without
    smoothing, and training and validation, can be compared.

    Args:
        task: "classification" (logits, int64 classes), "multilabel" (logits, 0 or 1) or "regression".
        label_smoothing: the share of each target that is spread evenly over all classes (classification only).
        weight: of each class or label (see `balanced_weights`), on the device of the outputs.
    """
    if weight is not None and task == "multilabel":
        return functools.partial(F.binary_cross_entropy_with_logits, pos_weight=weight), _BCE
    if weight is not None:
        weighted = functools.partial(cross_entropy, weight=weight, label_smoothing=label_smoothing)
        return weighted, F.cross_entropy
    if task == "classification":
        smoothed = functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
        return (smoothed, F.cross_entropy) if label_smoothing else (F.cross_entropy, F.cross_entropy)
    loss = _BCE if task == "multilabel" else F.mse_loss
    return loss, loss
