"""Mixing of samples: mixup blends pairs of them, CutMix pastes a part of one into the other.

Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: beyond empirical risk minimization* (ICLR 2018). Yun, Han, Oh, Chun, Choe
and Yoo, *CutMix: regularization strategy to train strong classifiers with localizable features* (ICCV 2019).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainwell import random
from trainwell.errors import InputError
from trainwell.regularize.targets import cross_entropy

Numbers: TypeAlias = float | Sequence[Any] | Tensor
"""A number, a list of them, or a tensor."""


class Mixed(NamedTuple):
    """Mixed inputs, and what each is made of.

    Attributes:
        inputs: the shape of the batch.
        partners: the number of the sample that each was mixed with, int64 `(n,)`.
        share: how much of each is still its own, `(n,)`, from 0 to 1.
    """

    inputs: Tensor
    partners: Tensor
    share: Tensor


def mixup(
    x: Tensor, *where: int | str, alpha: float = 0.2, share: Numbers | None = None, partners: Numbers | None = None
) -> Mixed:
    """Returns `share * x + (1 - share) * x[partners]`, with a share for each sample.

    Args:
        x: a batch, `(n, ...)`, of floats.
        where: the place that the draws are a function of, such as the seed and the step, of whole numbers and words;
            without one they follow torch's generator.
        alpha: of the Beta distribution, the same on both sides, of the shares; above 0.
        share: in place of drawn ones, `(n,)`; or one number for all.
        partners: in place of a drawn order, the samples' numbers, `(n,)`.

    Raises:
        InputError: `alpha` is out of its range, `x` holds whole numbers, the place is none, or what is given is not one
            for each sample.

    >>> x = torch.tensor([[0.0], [4.0]])
    >>> mixup(x, share=0.75, partners=[1, 0]).inputs.tolist()
    [[1.0], [3.0]]
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise InputError(f"an input is of {x.dtype}, and mixup blends numbers: give floats, as x.float() / 255")
    share, partners = _draws(x, where or _drawn_place(), alpha, share, partners)
    own = share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return Mixed(own * x + (1 - own) * x[partners], partners, share)


def cutmix(
    x: Tensor,
    *where: int | str,
    alpha: float = 1.0,
    share: Numbers | None = None,
    partners: Numbers | None = None,
    centres: Numbers | None = None,
) -> Mixed:
    """Returns images with a box of each one's partner in it, at the same place; a box for each image.

    A box has the image's proportions and `1 - share` of its area, and is cut off at the border, after which the share
    is what is left (the paper's appendix A).

    Args:
        x: a batch of images, `(n, c, h, w)`.
        where: the place that the draws are a function of, such as the seed and the step, of whole numbers and words;
            without one they follow torch's generator.
        alpha: of the Beta distribution, the same on both sides, of the shares; above 0.
        share: in place of drawn ones, `(n,)`; or one number for all.
        partners: in place of a drawn order, the samples' numbers, `(n,)`.
        centres: of the boxes, row and column from 0 to below 1 of the image, `(n, 2)`, in place of drawn ones; or one
            pair for all.

    Raises:
        InputError: `alpha` is out of its range, `x` holds no images, the place is none, or what is given is not one for
            each sample.

    >>> x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    >>> mixed = cutmix(x, share=[0.75, 1.0], partners=[1, 0], centres=[0.5, 0.5])
    >>> mixed.inputs.mean((1, 2, 3)), mixed.share
    (tensor([0.2500, 1.0000]), tensor([0.7500, 1.0000]))
    """
    if x.ndim != 4:
        raise InputError(f"an input has shape {tuple(x.shape)}: CutMix is for images, (n, c, h, w)")
    where = where or _drawn_place()
    share, partners = _draws(x, where, alpha, share, partners)
    if centres is None:
        centres = torch.from_numpy(random.uniform(random.keys(random.key(*where, "boxes"), np.arange(len(x))), 2))
    elif not _within_one(centres, below=True):
        raise InputError("centres lie outside of the image: they are row and column, from 0 to below 1 of it")
    size = torch.tensor(x.shape[2:], device=x.device)
    half = ((1 - share.double()).sqrt()[:, None] * size).long() // 2
    middle = (_of_each("centres", centres, x, 2) * size).long()
    low, high = (middle - half).clamp(min=0), torch.minimum(middle + half, size)
    row, column = (torch.arange(side, device=x.device) for side in x.shape[2:])
    inside = _within(row, low[:, 0], high[:, 0])[:, :, None] & _within(column, low[:, 1], high[:, 1])[:, None, :]
    left = 1 - (high - low).prod(1) / size.prod()
    return Mixed(torch.where(inside[:, None], x[partners], x), partners, left.to(share.dtype))


def mix(x: Tensor, *where: int | str, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> Mixed | None:
    """Mixes a batch by mixup or CutMix, whichever has an alpha above 0; with both, by one of them at even chances.

    Args:
        x: a batch, `(n, ...)`, of floats; for CutMix of images, `(n, c, h, w)`.
        where: the place that the draws are a function of, such as the seed and the step, of whole numbers and words;
            without one they follow torch's generator.
        mixup_alpha: alpha of `mixup`; 0 for none.
        cutmix_alpha: alpha of `cutmix`; 0 for none.

    Returns:
        The mixed batch; `None` if neither is on.

    Raises:
        InputError: as `mixup` and `cutmix` do.

    >>> x = torch.randn(4, 3, 8, 8)
    >>> mixed = mix(x, 0, 12, mixup_alpha=0.2, cutmix_alpha=1.0)  # seed and step
    >>> mixed.inputs.shape, mixed.partners.shape, mixed.share.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4]), torch.Size([4]))
    """
    if not mixup_alpha and not cutmix_alpha:
        return None
    where = where or _drawn_place()
    if mixup_alpha and cutmix_alpha:
        first = random.uniform(random.keys(random.key(*where), [0]), 1)[0, 0] < 0.5
        mixup_alpha, cutmix_alpha = (mixup_alpha, 0.0) if first else (0.0, cutmix_alpha)
    return mixup(x, *where, alpha=mixup_alpha) if mixup_alpha else cutmix(x, *where, alpha=cutmix_alpha)


def _drawn_place() -> tuple[int]:
    """Returns a place that is drawn from torch's generator, as the noise of layers is without `keyed`."""
    return (int(torch.randint(2**63 - 1, ())),)


def _within(places: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (places >= low[:, None]) & (places < high[:, None])


def _draws(
    x: Tensor, where: tuple[int | str, ...], alpha: float, share: Numbers | None, partners: Numbers | None
) -> tuple[Tensor, Tensor]:
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha is {alpha}: it must be above 0, and finite")
    if share is None:
        generator = np.random.Generator(np.random.Philox(random.key(*where, "shares")))
        share = torch.from_numpy(generator.beta(alpha, alpha, len(x)).astype(np.float32))
    elif not _within_one(share):
        raise InputError("a share is below 0, above 1 or NaN: it is how much of a sample is its own")
    if partners is None:
        partners = torch.from_numpy(random.permutation(len(x), *where, "partners"))
    share = _of_each("share", share, x)
    return share if share.is_floating_point() else share.float(), _of_each("partners", partners, x)


def _within_one(given: Numbers, *, below: bool = False) -> bool:
    values = torch.as_tensor(given)
    return bool(((values >= 0) & ((values < 1) if below else (values <= 1))).all())


def _of_each(name: str, given: Numbers, x: Tensor, *shape: int) -> Tensor:
    """Returns a tensor beside `x`, `(n, *shape)`, of one for each sample, or one for all."""
    values = torch.as_tensor(given, device=x.device)
    try:
        return values.expand(len(x), *shape)
    except RuntimeError as error:
        told = f"{name} has shape {tuple(values.shape)}: give one for each of {len(x)} samples, {(len(x), *shape)}"
        raise InputError(told) from error


def mixed_loss(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor, others: Tensor, share: Tensor
) -> Tensor:
    """Returns the mean over a batch of `share * loss(own target) + (1 - share) * loss(partner's target)`.

    It takes the loss of each sample: what `loss` returns if that is one number for each (`reduction="none"`), and else
    what `loss` makes of each sample alone, which is right if it is the plain mean over samples. torch's mean with class
    weights is another: it divides by the weights in the batch, so that of one sample they cancel; and its mean over a
    single ignored target is NaN. For these give a loss with `reduction="none"`, or
    `trainwell.regularize.cross_entropy`; ignored targets then add 0 to the mean over all samples.

    Args:
        loss: a function of outputs and targets, of one number for each sample or of the mean over the samples.
        outputs: of the mixed inputs, `(n, ...)`.
        targets: their own, `(n, ...)`.
        others: their partners': `targets[partners]`.
        share: how much of each is its own, `(n,)`.

    Returns:
        The loss, a tensor of one number.

    Raises:
        InputError: the loss returns neither; or its attributes, or its keywords as a `functools.partial`, show class
            weights and no reduction but the mean, as with `nn.CrossEntropyLoss(weight=…)`.

    >>> outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    >>> loss = torch.nn.functional.cross_entropy
    >>> torch.allclose(mixed_loss(loss, outputs, targets, targets.flip(0), torch.ones(4)), loss(outputs, targets))
    True
    """
    if share.shape not in [(), (len(outputs),)]:
        raise InputError(
            f"share has shape {tuple(share.shape)}: give one for each of {len(outputs)} samples, or for all"
        )
    _refuse_weighted_mean(loss)
    own = loss(outputs, targets)
    if own.shape == (len(outputs),):
        other = loss(outputs, others)
    elif own.ndim == 0:
        of_each = torch.func.vmap(lambda output, target: loss(output[None], target[None]))
        own, other = of_each(outputs, targets), of_each(outputs, others)
    else:
        raise InputError(f"the loss has shape {tuple(own.shape)} for {len(outputs)} samples: it must be their mean, or "
                         f"one number for each, ({len(outputs)},)")  # fmt: skip
    return (share * own + (1 - share) * other).mean()


# What takes weights and does not divide by their sum.
_PLAIN_MEANS = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.MultiMarginLoss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.multi_margin_loss, cross_entropy,
)  # fmt: skip


def _refuse_weighted_mean(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Refuses class weights that would cancel, as far as a loss shows them."""
    if isinstance(loss, functools.partial):
        kind, weight, reduction = loss.func, loss.keywords.get("weight"), loss.keywords.get("reduction", "mean")
    else:
        kind, weight, reduction = type(loss), getattr(loss, "weight", None), getattr(loss, "reduction", None)
    if weight is not None and reduction == "mean" and kind not in _PLAIN_MEANS:
        raise InputError("the loss divides by the class weights in a batch, and of one sample they would cancel: take "
                         "functools.partial(tw.regularize.cross_entropy, weight=…), or, in a loop of your own, "
                         "reduction='none'")  # fmt: skip
