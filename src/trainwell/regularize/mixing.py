"""Mixing of samples: mixup blends pairs of them, CutMix pastes a part of one into the other.

Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: beyond empirical risk minimization* (ICLR 2018). Yun, Han, Oh, Chun, Choe
and Yoo, *CutMix: regularization strategy to train strong classifiers with localizable features* (ICCV 2019).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainwell import random
from trainwell.errors import InputError


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
    x: Tensor, *where: int | str, alpha: float = 0.2, share: Tensor | None = None, partners: Tensor | None = None
) -> Mixed:
    """Returns `share * x + (1 - share) * x[partners]`, with a share for each sample.

    Args:
        x: a batch, `(n, ...)`, of floats.
        where: the place that the draws are a function of, such as the seed and the step.
        alpha: of the Beta distribution, the same on both sides, of the shares; above 0.
        share: in place of drawn ones, `(n,)`.
        partners: in place of a drawn order, int64 `(n,)`.

    Raises:
        InputError: `alpha` is out of its range.

    >>> x = torch.tensor([[0.0], [4.0]])
    >>> mixup(x, share=torch.tensor([0.75, 1.0]), partners=torch.tensor([1, 0])).inputs.tolist()
    [[1.0], [4.0]]
    """
    share, partners = _draws(x, where, alpha, share, partners)
    own = share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return Mixed(own * x + (1 - own) * x[partners], partners, share)


def cutmix(
    x: Tensor,
    *where: int | str,
    alpha: float = 1.0,
    share: Tensor | None = None,
    partners: Tensor | None = None,
    centres: Tensor | None = None,
) -> Mixed:
    """Returns images with a box of each one's partner in it, at the same place; a box for each image.

    A box has the image's proportions and `1 - share` of its area, and is cut off at the border, after which the share
    is what is left (the paper's appendix A).

    Args:
        x: a batch of images, `(n, c, h, w)`.
        where: the place that the draws are a function of, such as the seed and the step.
        alpha: of the Beta distribution, the same on both sides, of the shares; above 0.
        share: in place of drawn ones, `(n,)`.
        partners: in place of a drawn order, int64 `(n,)`.
        centres: of the boxes, row and column from 0 to below 1 of the image, `(n, 2)`, in place of drawn ones.

    Raises:
        InputError: `alpha` is out of its range, or `x` holds no images.

    >>> x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    >>> share, partners, centres = torch.tensor([0.75, 1.0]), torch.tensor([1, 0]), torch.full((2, 2), 0.5)
    >>> mixed = cutmix(x, share=share, partners=partners, centres=centres)
    >>> mixed.inputs.mean((1, 2, 3)), mixed.share
    (tensor([0.2500, 1.0000]), tensor([0.7500, 1.0000]))
    """
    if x.ndim != 4:
        raise InputError(f"an input has shape {tuple(x.shape)}: CutMix is for images, (n, c, h, w)")
    share, partners = _draws(x, where, alpha, share, partners)
    if centres is None:
        centres = torch.from_numpy(random.uniform(random.keys(random.key(*where, "boxes"), np.arange(len(x))), 2))
    size = torch.tensor(x.shape[2:], device=x.device)
    half = ((1 - share.double()).sqrt()[:, None] * size).long() // 2
    middle = (centres.to(x.device) * size).long()
    low, high = (middle - half).clamp(min=0), torch.minimum(middle + half, size)
    row, column = (torch.arange(side, device=x.device) for side in x.shape[2:])
    inside = _within(row, low[:, 0], high[:, 0])[:, :, None] & _within(column, low[:, 1], high[:, 1])[:, None, :]
    left = 1 - (high - low).prod(1) / size.prod()
    return Mixed(torch.where(inside[:, None], x[partners], x), partners, left.to(share.dtype))


def _within(places: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (places >= low[:, None]) & (places < high[:, None])


def _draws(
    x: Tensor, where: tuple[int | str, ...], alpha: float, share: Tensor | None, partners: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}: it must be above 0")
    if share is None:
        generator = np.random.Generator(np.random.Philox(random.key(*where, "shares")))
        share = torch.from_numpy(generator.beta(alpha, alpha, len(x)).astype(np.float32))
    if partners is None:
        partners = torch.from_numpy(random.permutation(len(x), *where, "partners"))
    return share.to(x.device), partners.to(x.device)


def mixed_loss(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor, others: Tensor, share: Tensor
) -> Tensor:
    """Returns the mean over a batch of `share * loss(own target) + (1 - share) * loss(partner's target)`.

    Args:
        loss: a mean over the samples of a batch, of outputs and targets.
        outputs: of the mixed inputs, `(n, ...)`.
        targets: their own, `(n, ...)`.
        others: their partners': `targets[partners]`.
        share: how much of each is its own, `(n,)`.

    >>> outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    >>> loss = torch.nn.functional.cross_entropy
    >>> torch.allclose(mixed_loss(loss, outputs, targets, targets.flip(0), torch.ones(4)), loss(outputs, targets))
    True
    """
    of_each = torch.func.vmap(lambda output, target: loss(output[None], target[None]))
    return (share * of_each(outputs, targets) + (1 - share) * of_each(outputs, others)).mean()


def mix(x: Tensor, *where: int | str, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> Mixed | None:
    """Mixes a batch by mixup or CutMix, whichever has an alpha above 0; with both, by one of them at even chances."""
    if mixup_alpha and cutmix_alpha:
        first = random.uniform(random.keys(random.key(*where), [0]), 1)[0, 0] < 0.5
        mixup_alpha, cutmix_alpha = (mixup_alpha, 0.0) if first else (0.0, cutmix_alpha)
    if mixup_alpha:
        return mixup(x, *where, alpha=mixup_alpha)
    return cutmix(x, *where, alpha=cutmix_alpha) if cutmix_alpha else None
