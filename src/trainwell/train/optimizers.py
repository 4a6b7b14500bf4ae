"""The optimizer and the schedule that a recipe names."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainwell import optim
from trainwell.optim import no_decay_groups, schedules
from trainwell.train.recipe import OWN_RISE, Recipe
from trainwell.train.tuning import Tuning

_CLASSES = {
    "adagrad": "Adagrad", "adam": "Adam", "adamax": "Adamax", "adamw": "AdamW", "lion": "Lion", "muon": "Muon",
    "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop", "sgd": "SGD", "soap": "SOAP",
}  # fmt: skip


def make_optimizer(model: nn.Module, recipe: Recipe, tuning: Tuning | None = None) -> torch.optim.Optimizer:
    """Makes the optimizer of a resolved recipe; biases and norm scales have no penalty.

    Args:
        model: what it trains.
        recipe: resolved.
        tuning: of a pretrained model: by what each stage's learning rate is multiplied, which its groups keep as
            `lr_scale`; the head's come first.
    """
    assert recipe.weight_decay is not None
    options: dict[str, Any] = {}
    if recipe.lr is not None:  # else the schedule is written out, and says the rates itself
        options["lr"] = recipe.lr
    if recipe.optimizer in ("sgd", "rmsprop"):
        options["momentum"] = recipe.momentum
    if recipe.optimizer == "sgd":
        options["nesterov"] = recipe.nesterov and recipe.momentum > 0
    if recipe.optimizer == "muon":  # so that one rate fits matrices and, by AdamW, the rest
        options["adjust_lr_fn"] = "match_rms_adamw"
    make: Callable[..., torch.optim.Optimizer] = getattr(optim, _CLASSES[recipe.optimizer])
    groups = no_decay_groups(model, recipe.weight_decay, l1=recipe.l1, l2=recipe.l2)
    if recipe.decay_all:
        for group in groups:
            group["weight_decay"] = recipe.weight_decay
    if tuning is not None:
        groups = [part for group in groups for part in _by_depth(group, tuning)]
    return make(groups, **options)


def _by_depth(group: dict[str, Any], tuning: Tuning) -> list[dict[str, Any]]:
    """Splits a group by stage, from the head down; what is pulled toward the pretrained weights does not decay too."""
    parts: dict[int, dict[str, Any]] = {}
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        depth = tuning.depth(name)
        part = parts.setdefault(depth, {**group, "params": [], "param_names": [], "lr_scale": tuning.rate(name)})
        part["params"].append(parameter)
        part["param_names"].append(name)
        if tuning.recipe.l2_sp and depth > 0:
            part["weight_decay"] = 0.0
    return [parts[depth] for depth in sorted(parts)]


def make_schedule(recipe: Recipe, total_steps: int) -> Callable[[int], float]:
    """Makes the schedule of the learning rate of a resolved recipe, over `total_steps` steps."""
    if recipe.schedule not in _SHAPES:
        return schedules.parse(recipe.schedule)
    assert recipe.lr is not None
    rise = 0 if recipe.schedule in OWN_RISE else round(recipe.warmup * total_steps)
    if rise and recipe.schedule in _FALL_AT_ONCE:
        falls = _SHAPES[recipe.schedule](recipe.lr, max(1, total_steps - rise))
        return schedules.then(schedules.warmup(recipe.lr, steps=rise), falls, at=rise)
    schedule = _SHAPES[recipe.schedule](recipe.lr, total_steps)
    if recipe.schedule == "restarts" and recipe.snapshots:
        schedule = schedules.restarts(recipe.lr, steps=cycle(recipe, total_steps))
    if rise:
        schedule = schedules.warmup(schedule, steps=rise)
    if recipe.schedule == "plateau":
        patience = max(2, math.ceil((recipe.epochs or 20) / 20))
        return optim.Plateau(schedule, patience=patience, min_lr=recipe.lr * 1e-3)
    return schedule


def cycle(recipe: Recipe, total_steps: int) -> int:
    """Returns how many steps a cycle has, if there is one for each snapshot (Huang et al. 2017, equation 2)."""
    return math.ceil(total_steps / recipe.snapshots)


def _falls_to(lr: float, share: float, steps: int) -> schedules.Schedule:
    return schedules.exponential(lr, rate=-math.log(share) / steps)


def _part(steps: int, share: float) -> int:
    return max(1, round(steps * share))


_FALL_AT_ONCE = ("exponential", "inverse_time")  # multiplied by the ramp, they would never be at their highest

# What each name means over a whole run. A decay that never ends of itself ends at a hundredth.
_SHAPES: dict[str, Callable[[float, int], schedules.Schedule]] = {
    "constant": lambda lr, steps: schedules.constant(lr),
    "cosine": lambda lr, steps: schedules.cosine(lr, steps=steps),
    "exponential": lambda lr, steps: _falls_to(lr, 0.01, steps),
    "inverse_time": lambda lr, steps: schedules.inverse_time(lr, rate=99 / steps),
    "linear": lambda lr, steps: schedules.linear(lr, steps=steps),
    "one_cycle": lambda lr, steps: schedules.one_cycle(lr, steps=steps),
    "plateau": lambda lr, steps: schedules.constant(lr),
    "restarts": lambda lr, steps: schedules.restarts(lr, steps=_part(steps, 1 / 7), mult=2),
    "step": lambda lr, steps: schedules.piecewise(lr, {_part(steps, 0.5): 0.1, _part(steps, 0.75): 0.1}),
    "triangular": lambda lr, steps: schedules.triangular(lr / 10, lr, steps=_part(steps, 1 / 4)),
    "wsd": lambda lr, steps: schedules.wsd(lr, steps=steps, decay=_part(steps, 0.2)),
}
