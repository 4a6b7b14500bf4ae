"""The learning-rate range test of a trainer, by the very steps that it would take."""

from typing import Any

import torch

from trainwell import random
from trainwell.optim.range_test import RangeTest, lr_range
from trainwell.train.loop import Trainer


def range_test(trainer: Trainer, **options: Any) -> RangeTest:
    """Runs the range test on a trainer that is ready to run, and leaves it so.

    Args:
        trainer: with model, optimizer, batches and recipe; the recipe's own rate and schedule play no part.
        **options: of `trainwell.optim.range_test`: `low`, `high`, `steps`, `trial_steps`, `quiet`.
    """
    train, recipe = trainer.train, trainer.recipe

    def loss_of_step(step: int) -> torch.Tensor:
        random.seed_everything(recipe.seed, "step", step)
        trainer.step = step  # the noise of layers is a function of it
        loss, *_ = trainer.forward_backward(*train.batch(*divmod(step, len(train))))
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(trainer.parameters, recipe.clip_grad)
        return loss

    most = max(options.get("steps", 0), options.get("trial_steps", 0), 100)
    before, groups = trainer.step, trainer.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:  # the test keeps the shares that they have of the highest
        group["lr"] = group.get("lr_scale", 1.0)
    try:
        return lr_range(trainer.model, trainer.optimizer, range(most), closure=loss_of_step, **options)
    finally:
        trainer.step = before
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
