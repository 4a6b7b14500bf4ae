"""How many steps fit a number of minutes."""

import copy
import dataclasses
import time

from trainwell import random
from trainwell.train.loop import Trainer


def steps_within(seconds: float, trainer: Trainer) -> int:
    """Returns how many steps, with a validation after each epoch, fit some seconds; at least 1.

    Steps are taken with a copy of the model, for about a fiftieth of the time, so that the trainer's own model and
    optimizer stay as they are.
    """
    began = time.monotonic()
    recipe = dataclasses.replace(trainer.recipe, steps=10**9, on_nonfinite="stop")
    probe = Trainer(
        copy.deepcopy(trainer.model), trainer.train, trainer.val, recipe, trainer.hardware,
        (trainer.objective, trainer.reported), classification=trainer.classification,
    )  # fmt: skip
    with random.preserved():
        _take(probe, 2)  # the first steps prepare kernels and memory
        warm, taken = time.monotonic(), 0
        while taken < 3 or (time.monotonic() - warm < seconds / 50 and taken < 200):
            _take(probe, 1)
            taken += 1
        per_step = (time.monotonic() - warm) / taken
        warm = time.monotonic()
        probe.validate()
        per_epoch = time.monotonic() - warm
    left = 0.97 * (seconds - (time.monotonic() - began))
    return max(1, int(left / (per_step + per_epoch / len(trainer.train))))


def _take(probe: Trainer, count: int) -> None:
    for _ in range(count):
        probe.batch = probe.step % len(probe.train)
        probe.train_step()
