"""SOAP: Adam in the eigenvectors of Shampoo's preconditioner."""

import math
from typing import Any

import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.optim.optimizer import Group, Optimizer, check_whole
from trainwell.optim.rules import Pair
from trainwell.optim.schedules import Value


class SOAP(Optimizer):
    """SOAP: Adam whose axes follow the eigenvectors of the gradient's covariance, one set for each dimension.

    Adam has a rate for each element; where the loss is badly conditioned along directions that are no axes, it cannot
    see them. SOAP turns the gradient into the eigenvectors of `E[G Gᵀ]` and `E[Gᵀ G]`, steps there by Adam, and turns
    the step back. The eigenvectors come from a decomposition first, and every `precondition_frequency` steps from one
    step of power iteration and a QR decomposition. The first step only learns them: it moves no parameter.

    A dimension of `n` costs two more arrays of `n²`, and `O(n³)` at each refresh. All state is held in float32 at
    least, also of parameters in half precision. A gradient that is not finite raises nothing: as with Adam, its
    parameter becomes NaN at the next step that it takes.

    Source: Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", arXiv 2409.11321, algorithm 3, with
    the options of the authors' code. There vectors go by plain Adam; here they are preconditioned as well.

    Args:
        params: as in `Optimizer`.
        lr: learning rate; a number or a schedule, like all rates here.
        betas: how much the means of the gradient and of its square keep, from 0 to below 1.
        shampoo_beta: how much the covariance keeps, below 1; a negative number stands for `betas[1]`.
        eps: added to the root of the mean square.
        weight_decay: decoupled: a parameter loses `lr * weight_decay` of itself.
        precondition_frequency: steps from one refresh of the eigenvectors to the next, 1 or more.
        max_precond_dim: a longer dimension is not turned. If none is, this is Adam.
        merge_dims: join neighbouring dimensions as long as their product is at most `max_precond_dim`: fewer, larger
            covariances, as for a convolution's kernel.
        precondition_1d: whether vectors are turned. Adam on rotated axes is what badly scaled vectors suffer from;
            switch it off where memory for `n²` is short.
        normalize_grads: divide each parameter's step by its root mean square, before `lr` and `correct_bias`.
        correct_bias: correct both means for their start at zero.

    Raises:
        InputError: a value is out of its range; a parameter is complex or its gradient sparse; hyper-parameters are
            given per member.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    >>> optimizer = SOAP([weight], lr=0.1, weight_decay=0.0)
    >>> for _ in range(2):
    ...     weight.grad = weight.detach().clone()
    ...     optimizer.step()
    >>> [round(x, 3) for x in weight.tolist()]  # a step of 0.1 along the first gradient, an axis now
    [2.905, 0.968]
    """

    lr: Value = 3e-3
    betas: Pair = (0.95, 0.95)
    shampoo_beta: Value = -1.0
    eps: Value = 1e-8
    weight_decay: Value = 1e-2
    precondition_frequency: int = 10
    max_precond_dim: int = 10000
    merge_dims: bool = False
    precondition_1d: bool = True
    normalize_grads: bool = False
    correct_bias: bool = True

    @staticmethod
    def check(group: Group) -> None:
        """Refuses what is out of its range."""
        check_whole(group, "SOAP")
        if not group["shampoo_beta"] < 1:
            raise InputError(f"shampoo_beta is {group['shampoo_beta']}: it must be below 1; -1 takes betas[1]")
        for name in ("precondition_frequency", "max_precond_dim"):
            if not (isinstance(group[name], int) and group[name] >= 1):
                raise InputError(f"{name} is {group[name]!r}: it must be a whole number, 1 or more")

    def _step(self, group: Group, some: list[Tensor] | None = None) -> None:
        for p in group["params"] if some is None else some:
            if p.grad is None or not p.numel():
                continue
            if p.is_complex() or p.grad.layout != torch.strided:
                what = "complex parameters" if p.is_complex() else "sparse gradients"
                raise InputError(f"SOAP does not support {what}: take Adam for them")
            state = self.state[p]
            shape = _merged(p.shape, group["max_precond_dim"]) if group["merge_dims"] else p.shape
            g = p.grad.to(_precision(p))
            g = -g if group["maximize"] else g
            if "step" not in state:
                _begin(state, g, shape, group)
                continue
            state["step"] += 1
            t = int(state["step"])
            p.sub_(_direction(state, g, shape, group, t), alpha=float(group["lr"]))
            p.mul_(1 - float(group["lr"]) * float(group["weight_decay"]))
            _follow(state, g.reshape(shape), group)
            if t % group["precondition_frequency"] == 0:
                _refresh(state, shape)

    def _after_load(self, saved: dict[int, dict[str, Any]]) -> None:
        super()._after_load(saved)
        keys = [i for group in self.state_dict()["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(keys, parameters, strict=True):  # torch brought them to the parameter's precision
            for name in self.state.get(p, {}).keys() - {"step"}:
                self.state[p][name] = saved[i][name].detach().to(p.device, _precision(p), copy=True)


def _precision(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def _merged(shape: torch.Size, most: int) -> torch.Size:
    """Joins neighbouring dimensions, from the first on, while their product is at most `most`."""
    merged: list[int] = []
    for n in shape:
        if merged and merged[-1] * n <= most:
            merged[-1] *= n
        else:
            merged.append(n)
    return torch.Size(merged)


def _begin(state: dict[str, Any], g: Tensor, shape: torch.Size, group: Group) -> None:
    """Makes the state, with the eigenvectors of the first gradient's covariance."""
    state["step"] = torch.zeros((), device="cpu")
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(g), torch.zeros_like(g)
    turned = g.ndim > 1 or group["precondition_1d"]
    sides = [i for i, n in enumerate(shape) if turned and 1 < n <= group["max_precond_dim"]]
    for i in sides:
        state[f"covariance_{i}"] = g.new_zeros(shape[i], shape[i])
    _follow(state, g.reshape(shape), group)
    for i in sides:
        state[f"basis_{i}"] = _eigenvectors(state[f"covariance_{i}"])


def _follow(state: dict[str, Any], g: Tensor, group: Group) -> None:
    """Moves the covariances to those of a gradient."""
    beta = float(group["betas"][1] if group["shampoo_beta"] < 0 else group["shampoo_beta"])
    for i in range(g.ndim):
        if f"covariance_{i}" in state:
            others = [j for j in range(g.ndim) if j != i]
            state[f"covariance_{i}"].lerp_(torch.tensordot(g, g, dims=(others, others)), 1 - beta)


def _direction(state: dict[str, Any], g: Tensor, shape: torch.Size, group: Group, t: int) -> Tensor:
    """Returns Adam's step, for a rate of 1, in the eigenvectors."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    m = state["exp_avg"].lerp_(g, 1 - beta1)  # not in the eigenvectors, so that it stays right when they change
    v = state["exp_avg_sq"].lerp_(_turned(state, g, shape).square(), 1 - beta2)
    d = _turned(state, _turned(state, m, shape) / (v.sqrt() + float(group["eps"])), shape, back=True)
    if group["normalize_grads"]:
        d = d / (d.square().mean().sqrt() + 1e-30)
    return d * (math.sqrt(1 - beta2**t) / (1 - beta1**t)) if group["correct_bias"] else d


def _turned(state: dict[str, Any], x: Tensor, shape: torch.Size, back: bool = False) -> Tensor:
    """Returns a tensor in the coordinates of the eigenvectors, or back from them."""
    y = x.reshape(shape)
    for i in range(len(shape)):
        if f"basis_{i}" in state:
            y = torch.tensordot(y, state[f"basis_{i}"], dims=([i], [int(back)])).movedim(-1, i)
    return y.reshape(x.shape)


def _eigenvectors(covariance: Tensor) -> Tensor:
    """Returns the eigenvectors as columns, the largest eigenvalue's first; NaN if there are none."""
    if not covariance.isfinite().all():  # eigh would raise
        return torch.full_like(covariance, torch.nan)
    try:
        q: Tensor = torch.linalg.eigh(covariance)[1]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # equal eigenvalues may keep it from converging in float32
        q = torch.linalg.eigh(covariance.double())[1].to(covariance.dtype)
    return q.flip(1).contiguous()


def _refresh(state: dict[str, Any], shape: torch.Size) -> None:
    """Brings the eigenvectors up to date by one step of power iteration, the largest eigenvalue's first."""
    v = state["exp_avg_sq"]
    for i in range(len(shape)):
        if f"basis_{i}" in state:
            basis = state[f"basis_{i}"]
            powered = state[f"covariance_{i}"] @ basis
            order = (basis * powered).sum(0).argsort(descending=True, stable=True)
            # one layout, whatever LAPACK's is: a state that was saved and loaded steps on to the bit
            state[f"basis_{i}"] = torch.linalg.qr(powered[:, order])[0].contiguous()
            v.copy_(v.reshape(shape).index_select(i, order).reshape(v.shape))
