"""Averages at test: over noise, crops and members, always of probabilities; and averages of the weights of a run."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.ensemble.averaging import EMA, SWA, LatestK, WeightAverage
    from trainwell.ensemble.batchnorm import refresh_batchnorm
    from trainwell.ensemble.combine import mean_of, select, temperature, tempered
    from trainwell.ensemble.marginal import Marginal, marginalize
    from trainwell.ensemble.stacked import Stacked

__all__ = [
    "EMA",
    "SWA",
    "LatestK",
    "Marginal",
    "Stacked",
    "WeightAverage",
    "marginalize",
    "mean_of",
    "refresh_batchnorm",
    "select",
    "temperature",
    "tempered",
]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(["EMA", "SWA", "LatestK", "WeightAverage"], "averaging"),
        "refresh_batchnorm": "batchnorm",
        **dict.fromkeys(["mean_of", "select", "temperature", "tempered"], "combine"),
        **dict.fromkeys(["Marginal", "marginalize"], "marginal"),
        "Stacked": "stacked",
    },
)
