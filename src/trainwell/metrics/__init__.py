"""How good answers and probabilities are, each figure with its interval."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.metrics.calibration import brier_score, calibration_error, gain, log_loss, scores
    from trainwell.metrics.correctness import (
        accuracy,
        accuracy_interval,
        average_precision,
        balanced_accuracy,
        balanced_accuracy_interval,
        bootstrap_interval,
        indistinguishable,
        recalls,
        smallest_difference,
        wilson_interval,
    )

_CALIBRATION = ("brier_score", "calibration_error", "gain", "log_loss", "scores")
_CORRECTNESS = (
    "accuracy", "accuracy_interval", "average_precision", "balanced_accuracy", "balanced_accuracy_interval",
    "bootstrap_interval", "indistinguishable", "recalls", "smallest_difference", "wilson_interval",
)  # fmt: skip
__all__ = [
    "accuracy",
    "accuracy_interval",
    "average_precision",
    "balanced_accuracy",
    "balanced_accuracy_interval",
    "bootstrap_interval",
    "brier_score",
    "calibration_error",
    "gain",
    "indistinguishable",
    "log_loss",
    "recalls",
    "scores",
    "smallest_difference",
    "wilson_interval",
]

__getattr__ = attributes(
    __name__,
    {**dict.fromkeys(_CALIBRATION, "calibration"), **dict.fromkeys(_CORRECTNESS, "correctness")},
)
