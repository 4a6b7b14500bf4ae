"""Sharpness-aware minimization: the gradient is taken where the loss is highest nearby."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainwell.errors import InputError
from trainwell.unchanged import is_expanded

_HALF = (torch.float16, torch.bfloat16)  # in which the norm of gradients may overflow, or vanish


class SAM:
    """Sharpness-aware minimization, around any optimizer: minima in whose neighbourhood the loss is low too.

    `w' = w + rho * g / |g|`, with the gradient `g` of all parameters, and the step from `w` is along the gradient at
    `w'`: Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-aware minimization for efficiently improving generalization*
    (ICLR 2021), algorithm 1 and equation 2. `adaptive` measures the distance by the weights' own sizes,
    `w' = w + rho * w² g / |w g|`: Kwon, Kim, Park and Choi, *ASAM* (ICML 2021), without their `eta`.

    It costs a second pass forward and backward a step, and one copy of the weights.

    Args:
        model: whose parameters with a gradient are moved.
        rho: the distance, 0 or more; 0.05 is the authors' first choice, and for `adaptive` ten times as much.
        adaptive: take ASAM's distance, which a rescaling of the layers leaves alone.

    Raises:
        InputError: `rho` is negative, not finite, or the model has no gradient when `ascended` is entered.

    >>> weight = nn.Linear(1, 1, bias=False)
    >>> optimizer, sam = torch.optim.SGD(weight.parameters(), lr=0.1), SAM(weight, rho=0.5)
    >>> def loss():
    ...     return weight.weight.square().sum()
    >>> _ = nn.init.ones_(weight.weight)
    >>> loss().backward()
    >>> with sam.ascended():  # at 1.5, where the gradient is 3
    ...     loss().backward()
    >>> optimizer.step()
    >>> round(weight.weight.item(), 4)
    0.7
    """

    def __init__(self, model: nn.Module, rho: float = 0.05, *, adaptive: bool = False) -> None:
        if not 0 <= rho < float("inf"):
            raise InputError(f"rho is {rho}: it is a distance, 0 or more")
        self.model, self.rho, self.adaptive = model, rho, adaptive

    @contextlib.contextmanager
    def ascended(self) -> Iterator[None]:
        """Moves the weights up the gradient and clears that; afterwards they are back, to the bit, with a new one.

        Within it the model trains as outside, but what it does to its buffers is undone: batch norm's statistics come
        from the first pass alone. The gradient may have been summed up over several batches; then go through the same
        ones again. Clip after it, and unscale after it where a GradScaler scales both losses.
        """
        moved = [p for p in self.model.parameters() if p.grad is not None and p.requires_grad]
        if not moved:
            raise InputError("SAM: there is no gradient to go up: call loss.backward() before ascended()")
        if any(p.grad is not None and p.grad.layout != torch.strided for p in moved):
            raise InputError("SAM: a gradient is sparse: leave sparse=False in the embedding")
        before = [p.detach().clone() for p in moved]
        with _buffers_kept(self.model):
            try:
                self._ascend(moved, before)
                self.model.zero_grad()
                torch.clear_autocast_cache()  # which holds the weights of before, if both passes are within one block
                yield
            finally:
                with torch.no_grad():
                    for p, values in zip(moved, before, strict=True):
                        p.copy_(values)
                torch.clear_autocast_cache()

    @torch.no_grad()
    def _ascend(self, moved: list[nn.Parameter], weights: list[Tensor]) -> None:
        slopes = [p.grad.float() if p.grad.dtype in _HALF else p.grad for p in moved if p.grad is not None]
        if self.adaptive:
            slopes = [slope * weight for slope, weight in zip(slopes, weights, strict=True)]
        length = torch.nn.utils.get_total_norm(slopes)
        if self.adaptive:
            slopes = [slope * weight for slope, weight in zip(slopes, weights, strict=True)]
        # Where the gradient is 0 there is no way up, and the weights stay.
        scale = torch.where(length > 0, self.rho / length, 0)
        for p, slope in zip(moved, slopes, strict=True):
            p.add_((slope * scale.to(slope.device)).to(p.dtype))


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Gives all buffers back what they held: running statistics, and whatever else a pass in training changes."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_expanded(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                setattr(module, name, buffer.copy_(values))
