"""Targets that are weighted and smoothed: the cross-entropy that is a plain mean over samples.

Weights: G. King and L. Zeng, *Logistic regression in rare events data* (2001).
Smoothing: Szegedy et al., *Rethinking the Inception architecture for computer vision* (2016), section 7.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainwell.errors import InputError


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Returns the mean over the samples of each one's cross-entropy times the weight of its class.

    Without weights it is torch's. torch's own weighted mean divides by the weights in the batch, so that a step depends
    on which classes happen to be in it, pieces of a batch do not add up, and of one sample the weight cancels, as in
    `mixed_loss`; and its smoothing weighs the classes that a target is spread over.

    Args:
        outputs: logits, `(n, classes)`, or `(n, classes, ...)` for a class at each place.
        targets: int64 classes, `(n,)` or `(n, ...)`.
        weight: one for each class, on the device of the outputs; `None` for 1.
        label_smoothing: the share of each target that is spread evenly over all classes, from 0 to 1.
        ignore_index: the target that counts for nothing: the mean is over the others, and 0 if there are none.

    Returns:
        The loss, a tensor of one number.

    Raises:
        InputError: targets are no int64 classes, there is not one weight for each class, or the smoothing is out of
            its range.

    >>> outputs, targets = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, -100])
    >>> cross_entropy(outputs, targets, weight=torch.tensor([1.0, 10.0]))  # (0.1269 + 10 * 0.6931) / 2
    tensor(3.5292)
    """
    _refuse_misfits(outputs, targets, weight, label_smoothing)
    each = F.cross_entropy(
        outputs, targets, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    counted = targets != ignore_index
    if weight is not None:
        each = weight[torch.where(counted, targets, 0)] * each
    return each.sum() / counted.sum().clamp(min=1)


def _refuse_misfits(outputs: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> None:
    if outputs.ndim < 2:
        raise InputError(f"outputs have shape {tuple(outputs.shape)}: logits are (n, classes)")
    if targets.dtype != torch.int64:
        raise InputError(f"targets are {targets.dtype}: give the numbers of the classes, int64")
    if weight is not None and tuple(weight.shape) != (outputs.shape[1],):
        raise InputError(f"weight has shape {tuple(weight.shape)}: give one for each of {outputs.shape[1]} classes")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing is {label_smoothing}: it is a share, from 0 to 1")
