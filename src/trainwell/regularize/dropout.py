"""Dropout: units, or whole feature maps, are zero at random in training.

Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, *Dropout: a simple way to prevent neural networks from
overfitting* (JMLR 15, 2014); feature maps: Tompson et al., *Efficient object localization using convolutional networks*
(CVPR 2015), section 3.2.
"""

import contextlib
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainwell import jit
from trainwell.errors import InputError
from trainwell.regularize import masks
from trainwell.regularize.noise import Noise, noise_layers, sampling


class Dropout(Noise):
    """Zeroes each unit with probability `p` in training, independently in each row of the batch.

    Evaluation gives a unit's mean over the noise, exactly; after the next nonlinearity that is approximate. It is
    `torch.nn.Dropout` with noise that is a function of the place within `trainwell.regularize.keyed`; on a CPU it is
    faster for units, and not for feature maps.

    Args:
        p: the fraction of units that is dropped, from 0 to 1.
        maps: drop whole feature maps, `x[i, j]` for `x` of shape `(n, c, ...)`, as `torch.nn.Dropout2d` does: in a
            convolutional network neighbours tell what a single dropped number was.
        scaling: "inverted" multiplies by `1 / (1 - p)` in training; "classic", as in the paper, by `1 - p` in
            evaluation.

    Shape: `(n, ...)`, of rows; the result has the same shape and dtype, and is contiguous or channels_last as `x` is.

    Raises:
        InputError: `p` is out of its range, or feature maps are to be dropped where there are none.

    >>> layer = Dropout(0.5)
    >>> sorted(set(layer(torch.ones(100, 100)).flatten().tolist()))
    [0.0, 2.0]
    >>> layer.eval()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    average = "exact"

    def __init__(
        self, p: float = 0.5, *, maps: bool = False, scaling: Literal["inverted", "classic"] = "inverted"
    ) -> None:
        super().__init__()
        check_fraction(p)
        if scaling not in ("inverted", "classic"):
            raise InputError(f"scaling is {scaling!r}: it is inverted or classic")
        self.p, self.maps, self.scaling = p, maps, scaling

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        return f"p={self.p}, maps={self.maps}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with units dropped in training, or scaled in evaluation."""
        if self.maps and x.ndim < 3:
            raise InputError(f"an input of shape {tuple(x.shape)} has no feature maps: it is to be (n, c, ...)")
        if not self.noisy:
            return x * (1 - self.p) if self.scaling == "classic" else x
        if self.p == 0:
            return x
        if self.p == 1:
            return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, 0)
        return dropped(x, self.row_keys(x), self.p, self.scale, maps=self.maps)

    @property
    def scale(self) -> float:
        """What kept units are multiplied by in training; `p` is below 1."""
        return 1 / (1 - self.p) if self.scaling == "inverted" else 1.0


def check_fraction(p: float, *, name: str = "p", below_1: bool = False) -> None:
    """Refuses what is no fraction."""
    if not 0 <= p <= 1 or (below_1 and p == 1):
        raise InputError(f"{name} is {p}: it is the fraction that is dropped, from 0 to {'below ' if below_1 else ''}1")


def dropped(x: Tensor, keys: Tensor, p: float, scale: float, *, maps: bool = False) -> Tensor:
    """Drops by the rows' keys, see `masks.drop`, with derivatives."""
    if jit.is_traced():
        return masks.drop(x, keys, p, scale, maps=maps, kernel="reference")
    result: Tensor = _Drop.apply(x, keys, p, scale, maps)  # type: ignore[no-untyped-call]
    return result


class _Drop(torch.autograd.Function):
    """Draws the same words again in the backward pass: no mask is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, p: float, scale: float, maps: bool) -> Tensor:
        ctx.how = keys, p, scale, maps
        return masks.drop(x, keys, p, scale, maps=maps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Drop.apply(grads[0], *ctx.how), None, None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Drop.apply(tangents[0], *ctx.how)  # type: ignore[no-untyped-call]
        return result


# ---------------------------------------------------------------------- over all masks


def exact_marginal(model: nn.Module, x: Tensor, *, probabilities: bool = True, limit: int = 1 << 16) -> Tensor:
    """Returns the mean of a small model's outputs over all masks of its dropout layers, each as likely as it is.

    The sum is in float64, and so is the result, whatever the model computes in.

    Args:
        model: with `Dropout` layers, each called once, and no other noise; those that are frozen drop nothing.
        x: what the model is called with.
        probabilities: average softmax of the outputs over their second dimension, and not the outputs.
        limit: how many masks there may be, 2 to the number of units.

    Raises:
        InputError: there are more masks, or other noise.

    >>> model = nn.Sequential(Dropout(0.5), nn.Linear(3, 2))
    >>> x = torch.randn(4, 3)
    >>> torch.allclose(exact_marginal(model, x, probabilities=False), model.eval()(x).double(), atol=1e-6)
    True
    """
    layers = [layer for layer in _dropouts(model) if layer.p < 1]
    kept: dict[nn.Module, Tensor] = {}
    with torch.no_grad(), sampling(model), contextlib.ExitStack() as hooks:
        shapes = _unit_shapes(model, layers, x)
        counts = [math.prod(shape) for shape in shapes]
        if 2 ** sum(counts) > limit:
            raise InputError(f"{sum(counts)} units have 2**{sum(counts)} masks, more than the limit of {limit}: sample "
                             "instead")  # fmt: skip
        for layer in layers:
            handle = layer.register_forward_hook(lambda layer, xs, _: torch.where(kept[layer], xs[0] * layer.scale, 0))
            hooks.callback(handle.remove)
        total: Tensor | None = None
        for number in range(2 ** sum(counts)):
            bits = [bool(number >> k & 1) for k in range(sum(counts))]
            weight, start = 1.0, 0
            for layer, shape, count in zip(layers, shapes, counts, strict=True):
                mine = bits[start : start + count]
                weight *= (1 - layer.p) ** sum(mine) * layer.p ** (count - sum(mine))
                kept[layer] = torch.tensor(mine, device=x.device).view(shape)
                start += count
            output = model(x).double()
            output = output.softmax(1) if probabilities else output
            total = weight * output if total is None else total + weight * output
    assert total is not None
    return total


def _dropouts(model: nn.Module) -> list[Dropout]:
    """Returns the dropout layers that drop something, and refuses other noise."""
    layers = []
    for layer in noise_layers(model):
        if not isinstance(layer, Dropout):
            raise InputError(f"{type(layer).__name__} is random too: only trainwell's Dropout is averaged exactly")
        layers.append(layer)
    return layers


def _unit_shapes(model: nn.Module, layers: list[Dropout], x: Tensor) -> list[tuple[int, ...]]:
    """Returns the shape of each layer's mask, to be the same for all rows."""
    shapes: dict[Dropout, list[tuple[int, ...]]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Dropout)
        shape = inputs[0].shape
        shapes[layer].append((1, shape[1], *[1] * (len(shape) - 2)) if layer.maps else (1, *shape[1:]))

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(seen) != 1 for seen in shapes.values()):
        raise InputError("a dropout layer is called more than once, or not at all: its masks cannot be enumerated")
    return [shapes[layer][0] for layer in layers]
