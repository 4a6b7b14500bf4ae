"""How many steps fit a number of minutes."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable

from trainwell import random
from trainwell.train.loop import Trainer


def steps_within(seconds: float, trainer: Trainer) -> int:
    """Returns how many steps, with a validation after each epoch, fit some seconds; at least 1.

    Steps are taken with a copy of the model, for about a fiftieth of the time, so that the trainer's own model and
    optimizer stay as they are. A duration beside which all others are short is left out: the machine has slept.
    """
    recipe = dataclasses.replace(trainer.recipe, steps=10**9, on_nonfinite="stop")
    probe = Trainer(
        copy.deepcopy(trainer.model), trainer.train, trainer.val, recipe, trainer.hardware,
        (trainer.objective, trainer.reported), metrics=trainer.metrics, classification=trainer.classification,
    )  # fmt: skip
    with random.preserved():
        first = _timed(_take_one, probe) + _timed(_take_one, probe)  # they prepare kernels and memory
        steps: list[float] = []
        while len(steps) < 3 or (sum(steps) < seconds / 50 and len(steps) < 200):
            steps.append(_timed(_take_one, probe))
        longest = 1 + 10 * statistics.median(steps)
        per_step = statistics.mean(step for step in steps if step <= longest)
        per_epoch = _timed(Trainer.validate, probe)
        if per_epoch > longest * len(probe.val):  # no batch of it costs more than a step
            per_epoch = _timed(Trainer.validate, probe)
    left = 0.97 * (seconds - min(first, seconds / 4) - len(steps) * per_step - per_epoch)
    return max(1, int(left / max(per_step + per_epoch / len(trainer.train), 1e-6)))


def _timed(act: Callable[[Trainer], object], probe: Trainer) -> float:
    began = time.monotonic()
    act(probe)
    return time.monotonic() - began


def _take_one(probe: Trainer) -> None:
    probe.batch = probe.step % len(probe.train)
    probe.train_step()
