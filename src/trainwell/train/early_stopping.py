"""Early stopping: keep what did best on validation, stop when nothing better comes."""

from dataclasses import dataclass, field
from typing import Any

from trainwell.errors import InputError


@dataclass
class EarlyStopping:
    """Watches a value: says when it is the best so far, and when to stop.

    A value is a gain if it beats the best by more than `min_delta`. Training should stop when, for `patience` units
    of time, there was no gain; the unit is whatever the caller counts in (epochs, steps). NaN is never a gain.

    Args:
        patience: how long to go on without a gain; `None` never stops.
        min_delta: what a gain must exceed, at least 0.
        mode: "max" if more is better (accuracy), "min" if less is (loss).

    Attributes:
        best: the best value so far.
        best_at: when it was seen.

    Example:
        >>> stopping = EarlyStopping(patience=2, mode="min")
        >>> for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.4, 1.0]):
        ...     improved = stopping.update(loss, at=epoch)
        ...     if stopping.should_stop(at=epoch):
        ...         break
        >>> epoch, stopping.best, stopping.best_at
        (3, 2.0, 1)
    """

    patience: int | None = None
    min_delta: float = 0.0
    mode: str = "min"
    best: float | None = field(default=None, init=False)
    best_at: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be at least 1, or None to never stop; it is {self.patience}")
        if self.min_delta < 0:
            raise InputError(f"min_delta must be at least 0; it is {self.min_delta}")
        if self.mode not in ("min", "max"):
            raise InputError(f"mode must be 'min' or 'max', not {self.mode!r}")

    def update(self, value: float, at: int) -> bool:
        """Takes the value seen at a time; returns whether it is a gain over the best before it."""
        if value != value:  # NaN
            return False
        sign = 1 if self.mode == "max" else -1
        if self.best is not None and not sign * (value - self.best) > self.min_delta:
            return False
        self.best, self.best_at = value, at
        return True

    def should_stop(self, at: int) -> bool:
        """Returns whether `patience` has passed without a gain."""
        return self.patience is not None and at - self.best_at >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to go on."""
        return {"best": self.best, "best_at": self.best_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.best, self.best_at = state["best"], state["best_at"]
