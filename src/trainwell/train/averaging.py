"""The average of the weights that a recipe names, and when it is taken."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainwell.data.batches import Batches
from trainwell.ensemble import EMA, SWA, LatestK, WeightAverage, refresh_batchnorm
from trainwell.train.recipe import Recipe

_REFRESHED_ON = 2_048  # samples, which tell batch norm's statistics to a few percent of a deviation
_LONGEST = 10_000  # steps that an exponential average spans by default


@dataclass
class Averaging:
    """An average beside a run.

    Attributes:
        average: it.
        each_step: whether every step is averaged, or else the ends of epochs.
        first_step: from which step on.
    """

    average: WeightAverage
    each_step: bool
    first_step: int

    def after_step(self, step: int, at_epochs_end: bool) -> None:
        """Takes the weights if it is time."""
        if step >= self.first_step and (self.each_step or at_epochs_end):
            self.average.update()

    def refresh(self, batches: Batches, epoch: int) -> None:
        """Computes batch norm's statistics for the averaged weights, which are in the model, from some of an epoch."""
        few = range(min(len(batches), math.ceil(_REFRESHED_ON / batches.batch_size)))
        refresh_batchnorm(self.average.model, (batches.batch(epoch, number) for number in few), exact=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to go on."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.average.load_state_dict(state)


def make_average(model: nn.Module, recipe: Recipe, total_steps: int, steps_per_epoch: int) -> Averaging | None:
    """Makes the average of a resolved recipe; `None` if it names none.

    An exponential average spans, by default, about a quarter of the steps, at most 10,000.
    """
    epochs = math.ceil(total_steps / steps_per_epoch)
    if recipe.average == "ema":
        decay = recipe.ema_decay
        if decay is None:
            decay = 1 - 1 / max(1, min(_LONGEST, total_steps / 4))
        return Averaging(EMA(model, decay), each_step=True, first_step=0)
    if recipe.average == "swa":
        last = min(recipe.average_epochs or math.ceil(epochs / 4), epochs)
        return Averaging(SWA(model), each_step=False, first_step=total_steps - (last - 1) * steps_per_epoch)
    if recipe.average == "latest":
        return Averaging(LatestK(model, recipe.average_epochs or 5), each_step=False, first_step=0)
    return None
