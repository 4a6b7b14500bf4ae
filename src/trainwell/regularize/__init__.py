"""Randomness in training, averaged out at test: noise layers, and the contract that they keep."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.regularize.apply_to import Change, apply
    from trainwell.regularize.depth import StochasticDepth, depth_rates
    from trainwell.regularize.dropconnect import DropConnect
    from trainwell.regularize.dropout import Dropout, exact_marginal
    from trainwell.regularize.mixing import Mixed, cutmix, mix, mixed_loss, mixup
    from trainwell.regularize.noise import Noise, evaluating, keyed, sampling
    from trainwell.regularize.penalties import L1, L2, ElasticNet, sparsity
    from trainwell.regularize.pooling import FractionalMaxPool2d
    from trainwell.regularize.targets import cross_entropy

__all__ = [
    "L1",
    "L2",
    "Change",
    "DropConnect",
    "Dropout",
    "ElasticNet",
    "FractionalMaxPool2d",
    "Mixed",
    "Noise",
    "StochasticDepth",
    "apply",
    "cross_entropy",
    "cutmix",
    "depth_rates",
    "evaluating",
    "exact_marginal",
    "keyed",
    "mix",
    "mixed_loss",
    "mixup",
    "sampling",
    "sparsity",
]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(["Change", "apply"], "apply_to"),
        **dict.fromkeys(["StochasticDepth", "depth_rates"], "depth"),
        "DropConnect": "dropconnect",
        **dict.fromkeys(["Dropout", "exact_marginal"], "dropout"),
        "FractionalMaxPool2d": "pooling",
        "cross_entropy": "targets",
        **dict.fromkeys(["Mixed", "cutmix", "mix", "mixed_loss", "mixup"], "mixing"),
        **dict.fromkeys(["L1", "L2", "ElasticNet", "sparsity"], "penalties"),
        **dict.fromkeys(["Noise", "evaluating", "keyed", "sampling"], "noise"),
    },
)
