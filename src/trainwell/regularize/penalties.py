"""Penalties on large weights, as a term of the loss: L1, L2 and the elastic net.

The optimizers have them in proximal form, which makes zeros exact: `trainwell.optim.no_decay_groups(model, l1=…)`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainwell.errors import InputError
from trainwell.weights import trained


class ElasticNet:
    """A term of the loss: `l1 * sum(|w|) + l2 / 2 * sum(w**2)` over the weights.

    Zou and Hastie, *Regularization and variable selection via the elastic net* (2005), equation 3, with the half that
    makes `l2` what `weight_decay` is in SGD: it adds `l2 * w` to the gradient. The gradient of `|w|` at 0 is taken as
    0, and weights jump around 0 by about `lr * l1`: for exact zeros take the proximal form, an optimizer's `l1`, `l2`.

    Args:
        l1: strength of the absolute values, 0 or more.
        l2: strength of the squares, 0 or more.

    Raises:
        InputError: a strength is negative, or there is nothing to penalise.

    >>> model = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(model.weight, -3.0)
    >>> ElasticNet(l1=0.1, l2=0.01)(model)  # 0.1 * 6 + 0.005 * 18
    tensor(0.6900, grad_fn=<AddBackward0>)
    """

    def __init__(self, l1: float, l2: float) -> None:
        for name, value in (("l1", l1), ("l2", l2)):
            if not value >= 0:
                raise InputError(f"{name} is {value}: it must be 0 or more")
        self.l1, self.l2 = l1, l2

    def __repr__(self) -> str:
        return f"ElasticNet(l1={self.l1}, l2={self.l2})"

    def __call__(self, on: nn.Module | Iterable[Tensor]) -> Tensor:
        """Returns the term, a tensor of one number.

        Args:
            on: a model, whose weights are penalised and neither its biases nor its norms' scales, as with
                `no_decay_groups`; or the parameters themselves.
        """
        if isinstance(on, nn.Module):
            weights: list[Tensor] = [parameter for _, parameter, weight in trained(on) if weight]
        else:
            weights = [on] if isinstance(on, Tensor) else list(on)
        if not weights:
            raise InputError("there is no weight to penalise: give a model that has some, or parameters")
        terms = []
        if self.l1:
            terms.append(self.l1 * torch.stack([w.abs().sum() for w in weights]).sum())
        if self.l2 or not terms:
            terms.append(self.l2 / 2 * torch.stack([_real(w).square().sum() for w in weights]).sum())
        return terms[0] + terms[1] if len(terms) > 1 else terms[0]


def _real(w: Tensor) -> Tensor:
    return torch.view_as_real(w) if w.is_complex() else w


class L1(ElasticNet):
    """The lasso's term of the loss: `l1 * sum(|w|)`. See `ElasticNet`.

    Tibshirani, *Regression shrinkage and selection via the lasso* (1996).

    >>> L1(0.5)([torch.tensor([1.0, -2.0])])
    tensor(1.5000)
    """

    def __init__(self, l1: float) -> None:
        super().__init__(l1, 0.0)

    def __repr__(self) -> str:
        return f"L1({self.l1})"


class L2(ElasticNet):
    """Ridge regression's term of the loss: `l2 / 2 * sum(w**2)`. See `ElasticNet`.

    Hoerl and Kennard, *Ridge regression* (1970).

    >>> L2(0.5)([torch.tensor([1.0, -2.0])])
    tensor(1.2500)
    """

    def __init__(self, l2: float) -> None:
        super().__init__(0.0, l2)

    def __repr__(self) -> str:
        return f"L2({self.l2})"


def sparsity(model: nn.Module) -> float:
    """Returns the fraction of the trained weights that are exactly 0; NaN if the model has none.

    >>> layer = nn.Linear(4, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 1.0, 0.0, -2.0]]))
    >>> sparsity(layer)
    0.5
    """
    weights = [parameter for _, parameter, weight in trained(model) if weight]
    count = sum(w.numel() for w in weights)
    return sum(int((w == 0).sum()) for w in weights) / count if count else float("nan")
