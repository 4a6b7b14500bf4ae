"""DropConnect: random weights are zero in training.

Wan, Zeiler, Zhang, LeCun and Fergus, *Regularization of neural networks using DropConnect* (ICML 2013).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainwell.errors import InputError
from trainwell.regularize import masks
from trainwell.regularize.dropout import check_fraction, dropped
from trainwell.regularize.noise import Noise


class DropConnect(Noise):
    """Wraps a linear or convolutional layer: in training each weight and bias is zero with probability `p`.

    Every row of the batch has a mask of its own (algorithm 1), so that memory for as many weights as there are rows is
    taken. In `sampling` the pre-activations are drawn from the Gaussian of the same mean and variance (algorithm 2).
    Evaluation gives their mean, exactly; after the next nonlinearity that is approximate. In a convolution one mask
    holds for all places of an image, where the Gaussian's draws are independent.

    Args:
        layer: an `nn.Linear`, or an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`. It stays a child named `layer`; the
            `state_dict` has its weights under the layer's own names, so that they cross between model and model.
        p: the fraction of weights that is dropped, from 0 to below 1.
        scaling: "inverted" multiplies by `1 / (1 - p)` in training; "classic", as in the paper, by `1 - p` in
            evaluation.

    Shape: that of the layer, with rows first: `(n, ..., in)` or `(n, in, ...)`.

    Raises:
        InputError: the layer is another, or `p` out of its range.

    >>> layer = DropConnect(nn.Linear(8, 3), p=0.3)
    >>> layer(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    average = "exact"

    def __init__(
        self, layer: nn.Module, p: float = 0.5, *, scaling: Literal["inverted", "classic"] = "inverted"
    ) -> None:
        super().__init__()
        check_fraction(p, below_1=True)
        if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise InputError(f"DropConnect is for linear and convolutional layers, not for a {type(layer).__name__}")
        if scaling not in ("inverted", "classic"):
            raise InputError(f"scaling is {scaling!r}: it is inverted or classic")
        self.layer, self.p, self.scaling = layer, p, scaling
        self.register_state_dict_post_hook(_as_of_the_layer)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_as_of_the_child)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        return f"p={self.p}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output with dropped weights in training, its mean in evaluation, or a sample of it."""
        if self.training and self.p > 0:
            return self._masked(x)
        keep = 1 - self.p
        mean: Tensor = self.layer(x) * (keep if self.scaling == "classic" else 1)
        if not self.noisy or self.p == 0:
            return mean
        spread = self.p * keep if self.scaling == "classic" else self.p / keep
        variance = spread * _apply(self.layer, x**2, self.layer.weight**2, _squared(self.layer.bias))
        normal = masks.gaussian(self.row_keys(x), mean[0].numel()).view_as(mean)
        return mean + variance.clamp(min=0).sqrt() * normal.to(mean.dtype)

    def _masked(self, x: Tensor) -> Tensor:
        layer, n = self.layer, len(x)
        scale = 1.0 if self.scaling == "classic" else 1 / (1 - self.p)
        parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        flat = torch.cat([part.reshape(1, -1) for part in parts], 1).expand(n, -1)
        weights = dropped(flat, self.row_keys(x), self.p, scale)
        weight = weights[:, : layer.weight.numel()].reshape(n, *layer.weight.shape)
        bias = None if layer.bias is None else weights[:, layer.weight.numel() :]
        if isinstance(layer, nn.Linear):
            inner = x.reshape(n, -1, x.shape[-1]) @ weight.transpose(1, 2)
            inner = inner if bias is None else inner + bias[:, None]
            return inner.reshape(*x.shape[:-1], -1)
        # Each row's own kernels are a group's of one convolution.
        joined = x.reshape(1, -1, *x.shape[2:])
        weight = weight.flatten(0, 1)
        out = _apply(layer, joined, weight, None if bias is None else bias.reshape(-1), groups=n * layer.groups)
        return out.reshape(n, -1, *out.shape[2:])


def _as_of_the_layer(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}layer.")]:
        state[prefix + name.removeprefix(f"{prefix}layer.")] = state.pop(name)


def _as_of_the_child(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, DropConnect)
    for name in module.layer.state_dict():
        if f"{prefix}{name}" in state:
            state[f"{prefix}layer.{name}"] = state.pop(f"{prefix}{name}")


def _squared(x: Tensor | None) -> Tensor | None:
    return None if x is None else x**2


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
    """Applies a layer's operation with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0  # type: ignore[assignment]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(layer.kernel_size)]
    return convolve(x, weight, bias, layer.stride, padding, layer.dilation, groups or layer.groups)
