"""First-order update rules: each a formula on scalars with its defaults.

A class names its hyper-parameters with their defaults, and its `update` is the formula: from an element of a parameter
`p`, its gradient `g` and its state, to the new `p` and the new state. `t` counts the parameter's steps from 1, `first`
says that it is the first. The same text runs on numbers, as tensor operations, as one compiled pass on the CPU and as
one kernel on a GPU (see `trainwell.optim.formula`). State that the formula does not read is not kept.

Names, defaults and state are those of `torch.optim`: a line written for it runs here, and a `state_dict` crosses in
both directions.
"""

from typing import ClassVar

from trainwell.errors import InputError
from trainwell.optim.formula import lerp, maximum, sign, sqrt
from trainwell.optim.optimizer import Group, Optimizer, option
from trainwell.optim.schedules import Value

Pair = tuple[Value, Value]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum, and with Nesterov's."""

    lr: Value = 1e-3
    momentum: Value = 0.0
    dampening: Value = 0.0
    weight_decay: Value = 0.0
    nesterov: bool = False

    sparse: ClassVar = True

    @staticmethod
    def update(p, g, momentum_buffer, *, first, lr, momentum, dampening, weight_decay, nesterov):
        g, v = g + weight_decay * p if weight_decay else g, momentum_buffer
        if momentum:
            v = momentum * v + (g if first or not dampening else (1 - dampening) * g)
            g = g + momentum * v if nesterov else v
        return p - lr * g, v

    @staticmethod
    def check(group: Group) -> None:
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise InputError("Nesterov momentum requires a momentum above 0 and zero dampening")


class Adagrad(Optimizer):
    """AdaGrad: a rate for each parameter, which falls as its squared gradients add up."""

    lr: Value = 1e-2
    lr_decay: Value = 0.0
    weight_decay: Value = 0.0
    initial_accumulator_value: float = 0.0
    eps: Value = 1e-10

    initial: ClassVar = {"sum": "initial_accumulator_value"}
    sparse: ClassVar = True

    @staticmethod
    def update(p, g, sum, *, t, lr, lr_decay, weight_decay, eps):
        g = g + weight_decay * p if weight_decay else g
        sum = sum + g * g
        return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(sum) + eps), sum


class RMSprop(Optimizer):
    """RMSProp: AdaGrad that forgets."""

    lr: Value = 1e-2
    alpha: Value = 0.99
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    momentum: Value = 0.0
    centered: bool = False
    eps_inside: bool = option(default=False)

    @staticmethod
    def update(
        p, g, square_avg, grad_avg, momentum_buffer, *,
        t, lr, alpha, eps, weight_decay, momentum, centered, eps_inside,
    ):  # fmt: skip
        g = g + weight_decay * p if weight_decay else g
        square_avg = lerp(square_avg, g * g, 1 - alpha)
        variance, v = square_avg, momentum_buffer
        if centered:
            grad_avg = lerp(grad_avg, g, 1 - alpha)
            variance = square_avg - grad_avg * grad_avg
        root = sqrt(variance + eps) if eps_inside else sqrt(variance) + eps
        if not momentum:
            return p - lr * g / root, square_avg, grad_avg, v
        v = momentum * v + g / root
        return p - lr * v, square_avg, grad_avg, v


class Adam(Optimizer):
    """Adam: running means of the gradient and of its square, corrected for their start at zero."""

    lr: Value = 1e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    amsgrad: bool = False
    bias_correction: bool = option(default=True)
    decoupled_weight_decay: bool = option(default=False)

    @staticmethod
    def update(
        p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, *,
        t, lr, betas, eps, weight_decay, amsgrad, bias_correction, decoupled_weight_decay,
    ):  # fmt: skip
        p, g = decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m = lerp(exp_avg, g, 1 - betas[0])
        v = lerp(exp_avg_sq, g * g, 1 - betas[1])
        largest = maximum(max_exp_avg_sq, v) if amsgrad else v
        c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if bias_correction else (1, 1)
        return p - lr / c1 * m / (sqrt(largest) / sqrt(c2) + eps), m, v, largest


class AdamW(Adam):
    """AdamW: Adam whose weight decay does not pass through its means."""

    weight_decay: Value = 1e-2
    decoupled_weight_decay: bool = option(default=True)


class Adamax(Optimizer):
    """Adamax: Adam with the largest recent gradient in place of the root of its mean square."""

    lr: Value = 2e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0

    @staticmethod
    def update(p, g, exp_avg, exp_inf, *, t, lr, betas, eps, weight_decay):
        g = g + weight_decay * p if weight_decay else g
        exp_avg = lerp(exp_avg, g, 1 - betas[0])
        exp_inf = maximum(betas[1] * exp_inf, abs(g) + eps)
        return p - lr / (1 - betas[0] ** t) * exp_avg / exp_inf, exp_avg, exp_inf


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum."""

    lr: Value = 2e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    momentum_decay: float | None = 4e-3
    decoupled_weight_decay: bool = False

    numbers: ClassVar = {"mu_product": 1.0}

    @staticmethod
    def update(
        p, g, exp_avg, exp_avg_sq, mu_product, *,
        t, lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay,
    ):  # fmt: skip
        p, g = decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        mu = mu_next = betas[0]
        if momentum_decay is not None:
            mu, mu_next = (betas[0] * (1 - 0.5 * 0.96 ** (k * momentum_decay)) for k in (t, t + 1))
        mu_product *= mu
        m = lerp(exp_avg, g, 1 - betas[0])
        v = lerp(exp_avg_sq, g * g, 1 - betas[1])
        root = sqrt(v / (1 - betas[1] ** t)) + eps
        p = p - lr * (1 - mu) / (1 - mu_product) * g / root - lr * mu_next / (1 - mu_product * mu_next) * m / root
        return p, m, v, mu_product


class RAdam(Optimizer):
    """RAdam: Adam that waits for its mean square to be known well enough."""

    lr: Value = 1e-3
    betas: Pair = (0.9, 0.999)
    eps: Value = 1e-8
    weight_decay: Value = 0.0
    decoupled_weight_decay: bool = False

    @staticmethod
    def update(p, g, exp_avg, exp_avg_sq, *, t, lr, betas, eps, weight_decay, decoupled_weight_decay):
        p, g = decayed(p, g, lr, weight_decay, decoupled_weight_decay)
        m = lerp(exp_avg, g, 1 - betas[0])
        v = lerp(exp_avg_sq, g * g, 1 - betas[1])
        step, c2 = lr / (1 - betas[0] ** t), 1 - betas[1] ** t
        most = 2 / (1 - betas[1]) - 1
        rho = most - 2 * t * betas[1] ** t / c2
        if rho <= 5:
            return p - step * m, m, v
        rectified = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        return p - step * rectified * sqrt(c2) * m / (sqrt(v) + eps), m, v


class Lion(Optimizer):
    """Lion: the sign of a mean of momentum and gradient."""

    lr: Value = 1e-4
    betas: Pair = (0.9, 0.99)
    weight_decay: Value = 0.0

    @staticmethod
    def update(p, g, exp_avg, *, lr, betas, weight_decay):
        direction = sign(lerp(exp_avg, g, 1 - betas[0]))
        p = p * (1 - lr * weight_decay) if weight_decay else p
        return p - lr * direction, lerp(exp_avg, g, 1 - betas[1])


def decayed(p, g, lr, weight_decay, decoupled):
    """Returns parameter and gradient with weight decay: of the parameter itself, or through the gradient."""
    if not weight_decay:
        return p, g
    return (p * (1 - lr * weight_decay), g) if decoupled else (p, g + weight_decay * p)
