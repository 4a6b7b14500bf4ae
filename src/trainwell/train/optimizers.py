"""The optimizer and the schedule that a recipe names."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from trainwell.optim import no_decay_groups
from trainwell.optim.schedules import as_schedule, cosine, warmup
from trainwell.train.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Makes the optimizer of a resolved recipe; biases and norm scales do not decay."""
    assert recipe.lr is not None
    assert recipe.weight_decay is not None
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": functools.partial(torch.optim.AdamW, fused=True),
        "adam": functools.partial(torch.optim.Adam, fused=True),
        "adagrad": functools.partial(torch.optim.Adagrad, fused=True),
        "rmsprop": functools.partial(torch.optim.RMSprop, momentum=recipe.momentum),
        "sgd": functools.partial(torch.optim.SGD, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True),
    }
    return make[recipe.optimizer](no_decay_groups(model, recipe.weight_decay), lr=recipe.lr)


def make_schedule(recipe: Recipe, total_steps: int) -> Callable[[int], float]:
    """Makes the schedule of the learning rate of a resolved recipe, over `total_steps` steps."""
    assert recipe.lr is not None
    schedule = cosine(recipe.lr, steps=total_steps) if recipe.schedule == "cosine" else as_schedule(recipe.lr)
    rise = round(recipe.warmup * total_steps)
    return warmup(schedule, steps=rise) if rise else schedule
