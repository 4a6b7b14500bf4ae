"""First-order update rules: each a formula on scalars with its defaults.

A class names its hyper-parameters with their defaults, and its `update` is the formula: from an element of a parameter
`p`, its gradient `g` and its state, to the new `p` and the new state (see `trainwell.optim.Optimizer`). The same text
runs on numbers, as tensor operations, as one compiled pass on the CPU and as one kernel on a GPU. Weight decay is not
in the formulas: it is the same for all.

Names, defaults and state are those of `torch.optim`: a line that was written for it runs here, and a `state_dict`
crosses in both directions.
"""

from typing import Any, ClassVar

from torch import Tensor

from trainwell.errors import InputError
from trainwell.optim.formula import lerp, maximum, sign, sqrt, where
from trainwell.optim.optimizer import Group, Optimizer, option
from trainwell.optim.schedules import Value

Pair = tuple[Value, Value]


def _over(lr: float, root: Any, seen: Any) -> Any:
    """Returns `lr / root`, and 0 where no gradient has been yet (`seen` is 0): there is no scale to shrink by."""
    return where(seen > 0, lr / root, 0.0)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum, and with Nesterov's.

    `v = momentum * v + (1 - dampening) * g; p -= lr * v`, where the first `v` is `g`: Polyak, *Some methods of speeding
    up the convergence of iteration methods* (1964), in the form of Sutskever et al., *On the importance of
    initialization and momentum in deep learning* (2013), with the rate outside the velocity. Nesterov's step is along
    `g + momentum * v`, which is his gradient at the point looked ahead to, in shifted variables.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        momentum: what is kept of the velocity, 0 or more; 0.9 to 0.99 is usual. At 0 there is no state.
        dampening: what is left out of the gradient as it enters the velocity, but for the first.
        weight_decay: L2: this multiple of `p` is added to `g`.
        nesterov: take Nesterov's step; it needs a momentum and no dampening.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([1.0])
    ...     optimizer.step()
    >>> round(weight.item(), 4)  # steps of 0.1 and of 0.19
    0.71
    """

    lr: Value = 1e-3
    momentum: Value = 0.0
    dampening: Value = 0.0
    weight_decay: Value = 0.0
    nesterov: bool = False

    sparse: ClassVar = True

    @staticmethod
    def update(p, g, momentum_buffer, *, first, lr, momentum, dampening, nesterov):
        if not momentum:
            return p - lr * g, momentum_buffer
        v = momentum * momentum_buffer + (g if first or not dampening else (1 - dampening) * g)
        return p - lr * (g + momentum * v if nesterov else v), v

    @staticmethod
    def step_size(*, lr, momentum, dampening):
        return lr * (1 - dampening) / (1 - momentum) if momentum else lr

    @staticmethod
    def check(group: Group) -> None:
        """Refuses what Nesterov's momentum is not defined for."""
        still = group["momentum"] == 0 and "momentum" not in group["schedules"]  # a schedule may begin at 0
        if group["nesterov"] and (still or group["dampening"] != 0):
            raise InputError("Nesterov momentum requires a momentum above 0 and zero dampening")


class Adagrad(Optimizer):
    """AdaGrad: a rate for each number, which falls as its squared gradients add up.

    `s += g * g; p -= lr * g / (sqrt(s) + eps)`: Duchi, Hazan and Singer, *Adaptive subgradient methods* (2011), with a
    diagonal. Under a constant gradient steps fall as `1 / sqrt(t)`; where the way is long they die before its end.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        lr_decay: `k` of a further factor `1 / (1 + k * (t - 1))`.
        weight_decay: L2: this multiple of `p` is added to `g`.
        initial_accumulator_value: what `s` begins with, 0 or more.
        eps: keeps the quotient finite.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> optimizer = Adagrad([weight], lr=1.0)
    >>> for _ in range(2):
    ...     weight.grad = torch.tensor([5.0])
    ...     optimizer.step()
    >>> round(weight.item(), 4)  # -1 - 1 / sqrt(2)
    -1.7071
    """

    lr: Value = 1e-2
    lr_decay: Value = 0.0
    weight_decay: Value = 0.0
    initial_accumulator_value: float = 0.0
    eps: Value = 1e-10

    initial: ClassVar = {"sum": "initial_accumulator_value"}
    sparse: ClassVar = True

    @staticmethod
    def update(p, g, sum, *, t, lr, lr_decay, eps):
        s = sum + g * g
        return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps), s

    @staticmethod
    def step_size(sum, *, t, lr, lr_decay, eps):
        return _over(lr / (1 + (t - 1) * lr_decay), sqrt(sum) + eps, sum)

    def share_memory(self) -> None:
        """Puts the sums into memory that processes share, as torch's does, for training in several of them."""
        for values in self.state.values():
            values["sum"].share_memory_()


class RMSprop(Optimizer):
    """RMSProp: AdaGrad that forgets.

    `s = alpha * s + (1 - alpha) * g * g; p -= lr * g / (sqrt(s) + eps)`: Tieleman and Hinton, *Lecture 6.5* (2012).
    With `centered`, `s` less the square of the mean gradient: Graves, *Generating sequences with recurrent neural
    networks* (2013), equations 38 to 40.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        alpha: what is kept of the mean square, from 0 to 1.
        eps: keeps the quotient finite.
        weight_decay: L2: this multiple of `p` is added to `g`.
        momentum: of a velocity over the quotients.
        centered: divide by an estimate of the deviation instead of the root of the mean square.
        eps_inside: `sqrt(s + eps)`, as TensorFlow has it, in place of torch's `sqrt(s) + eps`.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> weight.grad = torch.tensor([5.0])
    >>> RMSprop([weight], lr=0.01).step()
    >>> round(weight.item(), 4)  # the first step is 1 / sqrt(1 - alpha) = 10 times the rate
    -0.1
    """

    lr: Value = 1e-2
    alpha: Value = 0.99
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    momentum: Value = 0.0
    centered: bool = False
    eps_inside: bool = option(default=False)

    @staticmethod
    def update(p, g, square_avg, grad_avg, momentum_buffer, *, t, lr, alpha, eps, momentum, centered, eps_inside):
        s, mean, v = alpha * square_avg + (1 - alpha) * g * g, grad_avg, momentum_buffer
        if centered:
            mean = lerp(grad_avg, g, 1 - alpha)
        variance = s - mean * mean if centered else s
        root = sqrt(variance + eps) if eps_inside else sqrt(variance) + eps
        if not momentum:
            return p - lr * g / root, s, mean, v
        v = momentum * v + g / root
        return p - lr * v, s, mean, v

    @staticmethod
    def step_size(square_avg, grad_avg, *, lr, eps, momentum, centered, eps_inside):
        variance = square_avg - grad_avg * grad_avg if centered else square_avg
        root = sqrt(variance + eps) if eps_inside else sqrt(variance) + eps
        return _over(lr / (1 - momentum), root, square_avg)


class Adam(Optimizer):
    """Adam: running means of the gradient and of its square, corrected for their start at zero.

    Kingma and Ba, *Adam: a method for stochastic optimization* (2015), algorithm 1; `amsgrad` is algorithm 2 of Reddi,
    Kale and Kumar, *On the convergence of Adam and beyond* (2018).

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more; about the length of a step of each number.
        betas: what is kept of the two means, each from 0 to below 1.
        eps: keeps the quotient finite.
        weight_decay: L2: this multiple of `p` is added to `g`; see `AdamW`.
        amsgrad: divide by the largest mean square so far.
        bias_correction: without it the first step is `(1 - beta1) / sqrt(1 - beta2)` times as long, 3.2 times at the
            defaults, and those about step 12 6.6 times.
        decoupled_weight_decay: what `AdamW` is.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
    >>> weight.grad = torch.tensor([1e-3, -1e3])
    >>> Adam([weight], lr=0.1).step()
    >>> [round(x, 4) for x in weight.tolist()]  # the gradient's size does not count
    [-0.1, 0.1]
    """

    lr: Value = 1e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    amsgrad: bool = False
    bias_correction: bool = option(default=True)
    decoupled_weight_decay: bool = option(default=False)

    @staticmethod
    def update(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, *, t, lr, betas, eps, amsgrad, bias_correction):
        m = lerp(exp_avg, g, 1 - betas[0])
        v = betas[1] * exp_avg_sq + (1 - betas[1]) * g * g
        largest = maximum(max_exp_avg_sq, v) if amsgrad else v
        c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if bias_correction else (1, 1)
        return p - lr / c1 * m / (sqrt(largest) / sqrt(c2) + eps), m, v, largest

    @staticmethod
    def step_size(max_exp_avg_sq, *, t, lr, betas, eps, bias_correction):
        c2 = 1 - betas[1] ** t if bias_correction else 1
        # Which is the mean square itself without amsgrad.
        return _over(lr, sqrt(max_exp_avg_sq) / sqrt(c2) + eps, max_exp_avg_sq)

    @staticmethod
    def check(group: Group) -> None:
        """Refuses what torch refuses, so that a line that runs here runs there."""
        for name in ("lr", "betas"):
            tensors = [isinstance(x, Tensor) for x in (group[name] if name == "betas" else [group[name]])]
            if any(tensors) and group["foreach"] and not group["capturable"]:
                raise InputError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")


class AdamW(Adam):
    """AdamW: Adam whose weight decay shrinks the weights themselves, past the means.

    `p *= 1 - lr * weight_decay`, then Adam's step: Loshchilov and Hutter, *Decoupled weight decay regularization*
    (2019), algorithm 2. The arguments are Adam's. `no_decay_groups` leaves biases and norm scales without decay.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> weight.grad = torch.tensor([0.0])
    >>> AdamW([weight], lr=0.1, weight_decay=0.5).step()
    >>> round(weight.item(), 4)
    0.95
    """

    weight_decay: Value = 1e-2
    decoupled_weight_decay: bool = option(default=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # whatever rule the state comes from
            group["decoupled_weight_decay"] = True


class Adamax(Optimizer):
    """Adamax: Adam with the largest recent gradient in place of the root of the mean square.

    Kingma and Ba (2015), algorithm 2, with torch's place of `eps`: `u = max(beta2 * u, |g| + eps)`.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        betas: what is kept of the mean, and by what the largest gradient fades, each from 0 to below 1.
        eps: keeps the quotient finite.
        weight_decay: L2: this multiple of `p` is added to `g`.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> weight.grad = torch.tensor([-7.0])
    >>> Adamax([weight], lr=0.1).step()
    >>> round(weight.item(), 4)
    0.1
    """

    lr: Value = 2e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0

    @staticmethod
    def update(p, g, exp_avg, exp_inf, *, t, lr, betas, eps):
        m = lerp(exp_avg, g, 1 - betas[0])
        u = maximum(betas[1] * exp_inf, abs(g) + eps)
        return p - lr / (1 - betas[0] ** t) * m / u, m, u

    @staticmethod
    def step_size(exp_inf, *, lr, eps):
        return _over(lr, exp_inf, exp_inf - eps)


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum.

    Dozat, *Incorporating Nesterov momentum into Adam* (2016), with his schedule of the momentum,
    `mu_t = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))`, as in torch; or with a constant one, as in optax.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        betas: what is kept of the two means, each from 0 to below 1.
        eps: keeps the quotient finite.
        weight_decay: L2, or decoupled.
        momentum_decay: how fast the momentum rises from half of `beta1` to all of it; `None` keeps it at `beta1`.
        decoupled_weight_decay: shrink the weights themselves, as `AdamW` does.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> weight.grad = torch.tensor([3.0])
    >>> NAdam([weight], lr=0.1, momentum_decay=None).step()
    >>> round(weight.item(), 4)  # (1 - b1) / (1 - b1) + b1 * (1 - b1) / (1 - b1 ** 2) rates
    -0.1474
    """

    lr: Value = 2e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    momentum_decay: float | None = 4e-3
    decoupled_weight_decay: bool = False

    numbers: ClassVar = {"mu_product": 1.0}

    @staticmethod
    def update(p, g, exp_avg, exp_avg_sq, mu_product, *, t, lr, betas, eps, momentum_decay):
        mu = mu_next = betas[0]
        if momentum_decay is not None:
            mu, mu_next = (betas[0] * (1 - 0.5 * 0.96 ** (k * momentum_decay)) for k in (t, t + 1))
        mu_product *= mu
        m = lerp(exp_avg, g, 1 - betas[0])
        v = betas[1] * exp_avg_sq + (1 - betas[1]) * g * g
        ahead = (1 - mu) / (1 - mu_product) * g + mu_next / (1 - mu_product * mu_next) * m
        return p - lr * ahead / (sqrt(v / (1 - betas[1] ** t)) + eps), m, v, mu_product

    @staticmethod
    def step_size(exp_avg_sq, *, t, lr, betas, eps):
        return _over(lr, sqrt(exp_avg_sq / (1 - betas[1] ** t)) + eps, exp_avg_sq)


class RAdam(Optimizer):
    """RAdam: Adam that waits until its mean square is known well enough.

    Liu et al., *On the variance of the adaptive learning rate and beyond* (2020), algorithm 2: while the length `rho`
    of the average is at most 5, steps go along the mean gradient alone; then the rectifying factor lets them grow to
    Adam's.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more.
        betas: what is kept of the two means, each from 0 to below 1.
        eps: keeps the quotient finite.
        weight_decay: L2, or decoupled.
        decoupled_weight_decay: shrink the weights themselves, as `AdamW` does.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> weight.grad = torch.tensor([3.0])
    >>> RAdam([weight], lr=0.1).step()
    >>> round(weight.item(), 4)  # at first a step of plain gradient descent
    -0.3
    """

    lr: Value = 1e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    decoupled_weight_decay: bool = False

    @staticmethod
    def update(p, g, exp_avg, exp_avg_sq, *, t, lr, betas, eps):
        m = lerp(exp_avg, g, 1 - betas[0])
        v = betas[1] * exp_avg_sq + (1 - betas[1]) * g * g
        lr, rectified = lr / (1 - betas[0] ** t), _rectified(t, betas[1])
        return p - lr * m if rectified is None else p - lr * rectified * m / (sqrt(v) + eps), m, v

    @staticmethod
    def step_size(exp_avg_sq, *, t, lr, betas, eps):
        rectified = _rectified(t, betas[1])
        return lr if rectified is None else _over(lr * rectified, sqrt(exp_avg_sq) + eps, exp_avg_sq)


def _rectified(t: int, beta: float) -> float | None:
    """Returns RAdam's factor, with the correction of the mean square; `None` while that is too short to be used."""
    c2, longest = 1 - beta**t, 2 / (1 - beta) - 1
    rho = longest - 2 * t * beta**t / c2
    if rho <= 5:
        return None
    rectify = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
    return float(sqrt(rectify) * sqrt(c2))


class Lion(Optimizer):
    """Lion: the sign of a mean of gradient and momentum; every number steps by the same length.

    Chen et al., *Symbolic discovery of optimization algorithms* (2023), program 1. A rate three to ten times below
    AdamW's, and a decay as many times above, is what the authors advise.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: rate, 0 or more: the length of the step of each number.
        betas: what is kept of the momentum in the direction, and in the momentum itself, each from 0 to below 1.
        weight_decay: decoupled, as in `AdamW`.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([0.0, 0.0, 0.0]))
    >>> weight.grad = torch.tensor([2.0, -0.001, 0.0])
    >>> Lion([weight], lr=0.5).step()
    >>> weight.tolist()
    [-0.5, 0.5, 0.0]
    """

    lr: Value = 1e-4
    betas: Pair = (0.9, 0.99)
    weight_decay: Value = 0.0
    decoupled_weight_decay: bool = option(default=True)

    @staticmethod
    def update(p, g, exp_avg, *, lr, betas):
        return p - lr * sign(lerp(exp_avg, g, 1 - betas[0])), lerp(exp_avg, g, 1 - betas[1])
