"""DropConnect: random weights are zero in training.

Wan, Zeiler, Zhang, LeCun and Fergus, *Regularization of neural networks using DropConnect* (ICML 2013).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from trainwell.errors import InputError
from trainwell.regularize import masks
from trainwell.regularize.dropout import check_fraction, dropped
from trainwell.regularize.noise import Noise

_KINDS = (nn.Linear, NonDynamicallyQuantizableLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class DropConnect(Noise):
    """Takes a linear or convolutional layer's place: in training each weight and bias is zero with probability `p`.

    Every row of the batch has a mask of its own (algorithm 1), so that memory for as many weights as there are rows is
    taken. In `sampling` the pre-activations are drawn from the Gaussian of the same mean and variance (algorithm 2).
    Evaluation gives their mean, exactly; after the next nonlinearity that is approximate. In a convolution one mask
    holds for all places of an image, where the Gaussian's draws are independent.

    Args:
        layer: an `nn.Linear`, or an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`. Its parameters, by their names, and its
            attributes become this layer's.
        p: the fraction of weights that is dropped, from 0 to below 1.
        scaling: "inverted" multiplies by `1 / (1 - p)` in training; "classic", as in the paper, by `1 - p` in
            evaluation.

    Shape: that of the layer, with rows first: `(n, ..., in)` or `(n, in, ...)`.

    Raises:
        InputError: the layer is another or does more than it says (hooks, parametrizations), or `p` out of its range.

    >>> layer = DropConnect(nn.Linear(8, 3), p=0.3)
    >>> layer(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    average = "exact"
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, layer: nn.Module, p: float = 0.5, *, scaling: Literal["inverted", "classic"] = "inverted"
    ) -> None:
        super().__init__()
        check_fraction(p, below_1=True)
        _refuse_other_than_plain(layer)
        if scaling not in ("inverted", "classic"):
            raise InputError(f"scaling is {scaling!r}: it is inverted or classic")
        self.p, self.scaling = p, scaling
        for name, parameter in layer._parameters.items():
            self.register_parameter(name, parameter)
        # What torch counts as its constants: in_features, stride, …
        constants: list[str] = layer.__constants__  # type: ignore[assignment]
        self._attributes = {name: value for name, value in vars(layer).items() if name in constants}
        vars(self).update(self._attributes)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        shown = "".join(f"{name}={value!r}, " for name, value in self._attributes.items())
        return f"{shown}p={self.p}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output with dropped weights in training, its mean in evaluation, or a sample of it."""
        noisy = self.noisy and self.p > 0 and len(x) > 0
        if noisy and self.training:
            return self._masked(x)
        keep = 1 - self.p
        mean = self._computed(x, self.weight, self.bias)
        if self.scaling == "classic":
            mean = mean * keep
        if not noisy:
            return mean
        spread = self.p * keep if self.scaling == "classic" else self.p / keep
        variance = spread * self._computed(x**2, self.weight**2, None if self.bias is None else self.bias**2)
        normal = masks.gaussian(self.row_keys(x), mean[0].numel()).view_as(mean)
        varies = variance > 0  # where it is 0, its root has no derivative
        return mean + torch.where(varies, torch.where(varies, variance, 1).sqrt() * normal, 0).to(mean.dtype)

    def _masked(self, x: Tensor) -> Tensor:
        n = len(x)
        scale = 1.0 if self.scaling == "classic" else 1 / (1 - self.p)
        parts = [self.weight] if self.bias is None else [self.weight, self.bias]
        flat = torch.cat([part.reshape(1, -1) for part in parts], 1).expand(n, -1)
        weights = dropped(flat, self.row_keys(x), self.p, scale)
        weight = weights[:, : self.weight.numel()].reshape(n, *self.weight.shape)
        bias = None if self.bias is None else weights[:, self.weight.numel() :]
        if self.weight.ndim == 2:
            inner = x.reshape(n, -1, x.shape[-1]) @ weight.transpose(1, 2)
            inner = inner if bias is None else inner + bias[:, None].to(inner.dtype)  # a lower one under autocast
            return inner.reshape(*x.shape[:-1], -1)
        # Each row's own kernels are a group's of one convolution.
        joined = x.reshape(1, -1, *x.shape[2:])
        weight = weight.flatten(0, 1)
        out = self._computed(joined, weight, None if bias is None else bias.reshape(-1), rows=n)
        return out.reshape(n, -1, *out.shape[2:])

    def _computed(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int = 1) -> Tensor:
        """Returns what the layer computes, with other weights."""
        if self.weight.ndim == 2:
            return F.linear(x, weight, bias)
        own: Any = self
        padding = own.padding
        if own.padding_mode != "zeros":
            x, padding = F.pad(x, own._reversed_padding_repeated_twice, mode=own.padding_mode), 0
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(own.kernel_size)]
        return convolve(x, weight, bias, own.stride, padding, own.dilation, rows * own.groups)


def _refuse_other_than_plain(layer: nn.Module) -> None:
    """Refuses a layer that computes something else than a linear or convolutional one of torch's."""
    if type(layer) not in _KINDS:
        raise InputError(f"DropConnect is for linear and convolutional layers, not for a {type(layer).__name__}")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError("DropConnect uses a layer's weights without calling it, and this layer has hooks, as spectral "
                         "or weight normalisation has: take them off first")  # fmt: skip
