"""Lowering a hyper-parameter when the loss stops falling: the one schedule with a state."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat

from trainwell.errors import InputError
from trainwell.optim.checks import as_count, as_number, one_of
from trainwell.optim.schedules import Value, as_schedule

_STATE = ("scale", "best", "bad", "cooling")  # the names of what changes


@dataclass(eq=False)
class Plateau:
    """Multiplies a schedule by `factor` each time that the loss has not improved for more than `patience` updates.

    Give it to an optimizer as a hyper-parameter, and tell it the loss with `update`, once an epoch as a rule. What it
    returns depends on the losses it was told, so its state belongs into a checkpoint; other schedules have none. Groups
    that hold the same plateau, also inside `scaled` or `warmup`, fall together.

    It takes the course of torch's `ReduceLROnPlateau` with `eps=0`, except where `threshold_mode` is "rel" and losses
    are below zero. Torch multiplies the best by `1 - threshold` even then, so that a slightly worse loss counts as an
    improvement; here the threshold is a part of the best loss's size.

    A loss of NaN is no improvement and counts as one more bad update; it never becomes the best.

    Args:
        schedule: what is lowered: a number or a schedule.
        factor: what it is multiplied by at each reduction, at least 0 and below 1.
        patience: how many updates without improvement are borne; the next one reduces.
        threshold: what an improvement must exceed, 0 or more.
        threshold_mode: the threshold is a part of the best loss ("rel") or in the loss's unit ("abs").
        mode: "min" if less is better (a loss), "max" if more is (accuracy).
        cooldown: how many updates after a reduction are not counted.
        min_lr: no reduction goes below it; a schedule that is below it by itself is not raised.

    Attributes:
        scale: product of the reductions so far, 1 at first.
        best: the best loss so far, `None` at first.

    Raises:
        InputError: an argument is out of its range.

    >>> rate = Plateau(0.1, factor=0.5, patience=1)
    >>> [rate.update(loss) for loss in (3.0, 2.0, 2.0, 2.0)]
    [False, False, False, True]
    >>> rate(step=4)
    0.05
    """

    schedule: Value
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    mode: Literal["min", "max"] = "min"
    cooldown: int = 0
    min_lr: float = 0.0
    scale: float = field(default=1.0, init=False)
    best: float | None = field(default=None, init=False)
    bad: int = field(default=0, init=False, repr=False)
    cooling: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.schedule = as_schedule(self.schedule)
        for name in ("factor", "threshold", "min_lr"):
            setattr(self, name, as_number(getattr(self, name), f"Plateau.{name}"))
        for name in ("patience", "cooldown"):
            setattr(self, name, as_count(getattr(self, name), f"Plateau.{name}", least=0))
        if not 0 <= self.factor < 1:
            raise InputError(f"Plateau.factor is {self.factor}: it must be at least 0 and below 1")
        if self.threshold < 0:
            raise InputError(f"Plateau.threshold is {self.threshold}: it must be 0 or more")
        one_of(("rel", "abs"), self.threshold_mode, "Plateau.threshold_mode")
        one_of(("min", "max"), self.mode, "Plateau.mode")

    def __call__(self, step: int) -> float:
        """Returns the value at the step, after the reductions so far."""
        value = as_schedule(self.schedule)(step)
        return max(value * self.scale, min(value, self.min_lr))

    def update(self, loss: SupportsFloat) -> bool:
        """Takes the next loss, a number or a tensor of one; returns whether it led to a reduction."""
        try:
            improved = self._improves(float(loss))
        except (TypeError, ValueError, RuntimeError):  # torch's, for a tensor of several
            raise InputError(f"the loss for Plateau is of type {type(loss).__name__}: give one number") from None
        if improved:
            self.best = float(loss)
        self.bad = 0 if improved or self.cooling > 0 else self.bad + 1
        self.cooling = max(self.cooling - 1, 0)
        if self.bad <= self.patience:
            return False
        self.scale *= self.factor
        self.bad, self.cooling = 0, self.cooldown
        return True

    def _improves(self, loss: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.best is None:
            limit = -math.inf * sign
        elif self.threshold_mode == "abs":
            limit = self.best + sign * self.threshold
        else:
            limit = self.best * (1 + math.copysign(self.threshold, sign * self.best))
        return sign * loss > sign * limit

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to go on: plain numbers, and `None` for `best` before the first loss."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; the arguments stay those of this plateau.

        Raises:
            InputError: the state is not that of a plateau.
        """
        if set(state) != set(_STATE):
            raise InputError(
                f"the state of Plateau has {sorted(state)}: it must have {sorted(_STATE)}, and nothing else"
            )
        for name in _STATE:
            setattr(self, name, state[name])
