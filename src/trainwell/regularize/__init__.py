"""Randomness in training, averaged out at test: noise layers, and the contract that they keep."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.regularize.depth import StochasticDepth, depth_rates
    from trainwell.regularize.dropout import Dropout, exact_marginal
    from trainwell.regularize.noise import Noise, keyed, sampling

__all__ = ["Dropout", "Noise", "StochasticDepth", "depth_rates", "exact_marginal", "keyed", "sampling"]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(["StochasticDepth", "depth_rates"], "depth"),
        **dict.fromkeys(["Dropout", "exact_marginal"], "dropout"),
        **dict.fromkeys(["Noise", "keyed", "sampling"], "noise"),
    },
)
