"""Muon: momentum whose matrices are made orthogonal, with AdamW beside it for what is no matrix."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.optim.optimizer import Group, Optimizer, check_whole, option
from trainwell.optim.rules import Adam, Pair
from trainwell.optim.schedules import Value

_adam: Callable[..., Any] = Adam.update
_SCALES = (None, "original", "match_rms_adamw")


class Muon(Optimizer):
    """Muon: momentum orthogonalised by Newton–Schulz for matrices, AdamW for the rest, in one optimizer.

    Every direction of a matrix gets a step of about the same length: if `M = U S Vᵀ` is the momentum, the step is along
    `U Vᵀ`. A parameter of two or more dimensions is a matrix; a convolution's kernel is one of `(out, in · height ·
    width)`. Vectors and scalars step by AdamW, the *companion*, and so do the parameters of a group with
    `use_muon=False`: put embeddings and the head there. Both take the group's `lr` and `weight_decay`, unless the
    companion is given its own.

    On matrices it is `torch.optim.Muon`, to the bit, with the same names, defaults and state. That one
    orthogonalises in bfloat16, which is fast on a GPU and leaves about two digits; `ns_dtype="parameter"` computes in
    the parameter's own precision.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the companion and "match_rms_adamw" are from
    Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2.

    Args:
        params: as in `Optimizer`.
        lr: length of the step, before it is adjusted to the shape; a number or a schedule, like all rates here.
        weight_decay: decoupled: a parameter loses `lr * weight_decay` of itself, with `lr` as it is given.
        momentum: how much of the momentum is kept, from 0 to 1.
        nesterov: look one step ahead.
        ns_coefficients: `a, b, c` of the iteration `X ← aX + b(XXᵀ)X + c(XXᵀ)²X`.
        eps: a matrix of a smaller Frobenius norm is divided by this, not by its norm.
        ns_steps: iterations, from 0 to 99.
        adjust_lr_fn: "original", also `None`: `lr · √max(1, rows / columns)`; "match_rms_adamw": `lr · 0.2 √max(rows,
            columns)`, so that steps are as long as AdamW's, and its `lr` and `weight_decay` can be kept.
        use_muon: whether the group's matrices go by Muon.
        ns_dtype: "bfloat16", or "parameter" for the precision of the parameter itself.
        adamw_lr: the companion's rate; `None` for that of the group. Schedulers of torch move `lr` alone.
        adamw_betas: the companion's.
        adamw_eps: the companion's.
        adamw_weight_decay: the companion's; `None` for that of the group.

    Raises:
        InputError: a value is out of its range; a matrix is complex or its gradient sparse; hyper-parameters are given
            per member.

    >>> _ = torch.manual_seed(0)
    >>> layer = torch.nn.Linear(3, 2)
    >>> optimizer = Muon(layer.parameters(), lr=0.1, weight_decay=0.0, ns_steps=20, ns_coefficients=(2, -1.5, 0.5))
    >>> before = layer.weight.detach().clone()
    >>> layer(torch.randn(8, 3)).square().sum().backward()
    >>> optimizer.step()
    >>> step = (layer.weight.detach() - before) / 0.1
    >>> (step @ step.T).round(decimals=1)  # its rows are orthogonal and of length 1
    tensor([[1., 0.],
            [0., 1.]])
    >>> sorted(optimizer.state[layer.weight]), sorted(optimizer.state[layer.bias])
    (['momentum_buffer'], ['exp_avg', 'exp_avg_sq', 'step'])
    """

    lr: Value = 1e-3
    weight_decay: Value = 0.1
    momentum: Value = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None
    use_muon: bool = option(default=True)
    ns_dtype: Literal["bfloat16", "parameter"] = option(default="bfloat16")
    adamw_lr: Value | None = option(default=None)
    adamw_betas: Pair = option(default=(0.9, 0.999))
    adamw_eps: Value = option(default=1e-8)
    adamw_weight_decay: Value | None = option(default=None)

    @staticmethod
    def update(
        p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, *, t: int, lr: float, weight_decay: float,
        adamw_lr: float | None, adamw_betas: tuple[float, float], adamw_eps: float, adamw_weight_decay: float | None,
    ) -> Any:  # fmt: skip
        """The companion: AdamW."""
        lr = lr if adamw_lr is None else adamw_lr
        decay = weight_decay if adamw_weight_decay is None else adamw_weight_decay
        p = p * (1 - lr * decay) if decay else p
        new = _adam(
            p, g, exp_avg, exp_avg_sq, 0, t=t, lr=lr, betas=adamw_betas, eps=adamw_eps, amsgrad=False,
            bias_correction=True,
        )  # fmt: skip
        return new[:3]

    @staticmethod
    def check(group: Group) -> None:
        """Refuses what is no choice here; three coefficients may be a list."""
        group["ns_coefficients"] = coefficients = tuple(group["ns_coefficients"])
        check_whole(group, "Muon")
        if len(coefficients) != 3:
            raise InputError(f"ns_coefficients has {len(coefficients)} values: Newton–Schulz takes three, a, b and c")
        if not 0 <= group["momentum"] <= 1:
            raise InputError(f"momentum is {group['momentum']}: it must be from 0 to 1")
        if not 0 <= group["ns_steps"] < 100:
            raise InputError(f"ns_steps is {group['ns_steps']}: it must be from 0 to 99; 5 are usual")
        if group["adjust_lr_fn"] not in _SCALES:
            raise InputError(f"Adjust learning rate function {group['adjust_lr_fn']} is not supported: "
                             "take 'original' or 'match_rms_adamw'")  # fmt: skip
        if group["ns_dtype"] not in ("bfloat16", "parameter"):
            raise InputError(f"ns_dtype is {group['ns_dtype']!r}: it is 'bfloat16' or 'parameter'")

    def _step(self, group: Group, some: list[Tensor] | None = None) -> None:
        parameters = group["params"] if some is None else some
        others = []
        for p in parameters:
            if p.ndim < 2 or not group["use_muon"]:
                others.append(p)
            elif p.grad is not None and p.numel():
                self._step_matrix(p, p.grad, group)
        super()._step(group, others)

    def _step_matrix(self, p: Tensor, g: Tensor, group: Group) -> None:
        if p.is_complex():
            raise InputError("Muon does not support complex parameters: set use_muon=False for their group")
        if g.layout != torch.strided:
            raise InputError("Muon does not support sparse gradients")
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        lr, decay, momentum = (float(group[name]) for name in ("lr", "weight_decay", "momentum"))
        g = -g if group["maximize"] else g
        v = state["momentum_buffer"].lerp_(g, 1 - momentum)
        matrix = (torch.lerp(g, v, momentum) if group["nesterov"] else v).flatten(1)
        matrix = matrix.bfloat16() if group["ns_dtype"] == "bfloat16" else matrix
        step = orthogonalized(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"])
        p.mul_(1 - lr * decay)
        p.add_(step.reshape(p.shape), alpha=-lr * _scale(group["adjust_lr_fn"], *matrix.shape))


def orthogonalized(
    matrix: Tensor,
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    steps: int = 5,
    eps: float = 1e-7,
) -> Tensor:
    """Returns a matrix with its singular values moved towards 1, by Newton–Schulz iteration.

    It is divided by its Frobenius norm, or by `eps` if that is greater; then each step sends every singular value `s`
    to `as + bs³ + cs⁵`. With the coefficients of Jordan et al. 2024 they end between 0.7 and 1.2, soon, rather than
    at 1; with `(2, -1.5, 0.5)` they converge to 1, slowly.

    Args:
        matrix: of any shape and real type, in which it is computed.
        coefficients: `a, b, c`.
        steps: iterations.
        eps: the least that is divided by.

    >>> x = torch.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    >>> u, s, vt = torch.linalg.svd(x)
    >>> torch.allclose(orthogonalized(x, (2, -1.5, 0.5), steps=12), u @ vt)
    True
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # x xᵀ is the smaller of the two products then
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _scale(adjust: str | None, rows: int, columns: int) -> float:
    return 0.2 * math.sqrt(max(rows, columns)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
