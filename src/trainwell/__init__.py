"""trainwell shows which training techniques help on your data, with error bars, and hands you the model."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trainwell import (
        augment,
        data,
        ensemble,
        errors,
        lab,
        metrics,
        models,
        optim,
        random,
        regularize,
        train,
        transfer,
    )
    from trainwell.api import dry_run, fit, lr_range, resume
    from trainwell.data import load
    from trainwell.errors import InputError
    from trainwell.members import fit_members
    from trainwell.optim import schedules
    from trainwell.run import Run
    from trainwell.run_ensemble import Ensemble
    from trainwell.train.recipe import Recipe

__all__ = [
    "Ensemble",
    "InputError",
    "Recipe",
    "Run",
    "augment",
    "data",
    "dry_run",
    "ensemble",
    "errors",
    "fit",
    "fit_members",
    "lab",
    "load",
    "lr_range",
    "metrics",
    "models",
    "optim",
    "random",
    "regularize",
    "resume",
    "schedules",
    "train",
    "transfer",
]

__getattr__ = attributes(
    __name__,
    {
        **{
            package: package
            for package in (
                "augment",
                "data",
                "ensemble",
                "errors",
                "lab",
                "metrics",
                "models",
                "optim",
                "random",
                "regularize",
                "train",
                "transfer",
            )
        },
        "Ensemble": "run_ensemble",
        "InputError": "errors",
        "Recipe": "train.recipe",
        "Run": "run",
        "dry_run": "api",
        "fit": "api",
        "fit_members": "members",
        "load": "data.sources",
        "lr_range": "api",
        "resume": "api",
        "schedules": "optim",
    },
)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
