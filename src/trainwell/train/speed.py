"""How many steps fit a number of minutes."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from trainwell import random
from trainwell.train.loop import Trainer


def steps_within(seconds: float, trainer: Trainer) -> int:
    """Returns how many steps, with a validation after each epoch, fit some seconds; at least 1.

    Steps are taken with a copy of the model, for about a fiftieth of the time, so that the trainer's own model and
    optimizer stay as they are. A duration beside which all others are short is left out: the machine has slept.
    """
    with random.preserved():
        probe, first, steps = _probed(trainer, seconds / 50)
        longest = 1 + 10 * statistics.median(steps)
        per_step = statistics.mean(step for step in steps if step <= longest)
        per_epoch = _timed(Trainer.validate, probe)
        if per_epoch > longest * len(probe.val):  # no batch of it costs more than a step
            per_epoch = _timed(Trainer.validate, probe)
    left = 0.97 * (seconds - min(first, seconds / 4) - len(steps) * per_step - per_epoch)
    return max(1, int(left / max(per_step + per_epoch / len(trainer.train), 1e-6)))


def seconds_per_step(trainer: Trainer, seconds: float = 1.0) -> float:
    """Returns the median time of a step, tried with a copy of the model for about so many seconds."""
    with random.preserved():
        return statistics.median(_probed(trainer, seconds)[2])


def copied(trainer: Trainer, **changes: Any) -> Trainer:
    """Returns a trainer that takes the same steps with a copy of the model, and has no end; `changes` to its recipe."""
    recipe = dataclasses.replace(trainer.recipe, epochs=None, minutes=None, steps=10**9, on_nonfinite="stop")
    recipe = dataclasses.replace(recipe, **changes)
    if recipe.transfer == "gradual":  # whose steps become dearer until all is thawed
        recipe = dataclasses.replace(recipe, transfer="all")
    return Trainer(
        copy.deepcopy(trainer.model), trainer.train, trainer.val, recipe, trainer.hardware,
        (trainer.objective, trainer.reported), metrics=trainer.metrics, classification=trainer.classification,
        from_head=trainer.called is not trainer.model,
    )  # fmt: skip


def _probed(trainer: Trainer, seconds: float) -> tuple[Trainer, float, list[float]]:
    """Returns a trainer of a copy of the model, the time of its first steps, and that of each further one."""
    probe = copied(trainer)
    first = _timed(_take_one, probe) + _timed(_take_one, probe)  # they prepare kernels and memory
    steps: list[float] = []
    while len(steps) < 3 or (sum(steps) < seconds and len(steps) < 200):
        steps.append(_timed(_take_one, probe))
    return probe, first, steps


def _timed(act: Callable[[Trainer], object], probe: Trainer) -> float:
    began = time.monotonic()
    act(probe)
    return time.monotonic() - began


def _take_one(probe: Trainer) -> None:
    probe.batch = probe.step % len(probe.train)
    probe.train_step()
