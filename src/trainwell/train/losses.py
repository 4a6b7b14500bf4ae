"""The loss of each task: what is minimised, and what is reported."""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of outputs and targets that returns the mean loss of a batch."""


def aligned(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns outputs of shape `(n, 1)` as `(n,)` where the targets are `(n,)` real numbers, and others as they are.

    Otherwise every loss and metric that subtracts one from the other would broadcast them to `(n, n)`, and a model
    would learn the mean of its targets without a word.
    """
    single = targets.is_floating_point() and outputs.shape == (*targets.shape, 1)
    return outputs.squeeze(-1) if single else outputs


def for_task(task: str, label_smoothing: float = 0.0) -> tuple[Loss, Loss]:
    """Returns what is minimised and what is reported; they differ only by the label smoothing.

    Smoothed targets put a floor under the loss. The history is about the plain one, so that runs with and without
    smoothing, and training and validation, can be compared.

    Args:
        task: "classification" (logits, int64 classes), "multilabel" (logits, 0 or 1) or "regression".
        label_smoothing: the share of each target that is spread evenly over all classes (classification only).
    """
    if task == "classification":
        smoothed = functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
        return (smoothed, F.cross_entropy) if label_smoothing else (F.cross_entropy, F.cross_entropy)
    loss = F.binary_cross_entropy_with_logits if task == "multilabel" else F.mse_loss
    return loss, loss
