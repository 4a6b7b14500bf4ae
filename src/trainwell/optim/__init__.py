"""How a step is taken: update rules, schedules of hyper-parameters, and groups of parameters."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.optim import schedules
    from trainwell.optim.groups import layer_decay_groups, no_decay_groups
    from trainwell.optim.muon import Muon
    from trainwell.optim.optimizer import Optimizer, option
    from trainwell.optim.plateau import Plateau
    from trainwell.optim.range_test import RangeTest, lr_range
    from trainwell.optim.rules import SGD, Adagrad, Adam, Adamax, AdamW, Lion, NAdam, RAdam, RMSprop
    from trainwell.optim.sam import SAM
    from trainwell.optim.soap import SOAP

__all__ = [
    "SAM",
    "SGD",
    "SOAP",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "Plateau",
    "RAdam",
    "RMSprop",
    "RangeTest",
    "layer_decay_groups",
    "lr_range",
    "no_decay_groups",
    "option",
    "schedules",
]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop"], "rules"),
        **dict.fromkeys(["layer_decay_groups", "no_decay_groups"], "groups"),
        **dict.fromkeys(["Optimizer", "option"], "optimizer"),
        "Muon": "muon",
        "Plateau": "plateau",
        "SAM": "sam",
        "SOAP": "soap",
        **dict.fromkeys(["RangeTest", "lr_range"], "range_test"),
        "schedules": "schedules",
    },
)
