"""trainwell shows which training techniques help on your data, with error bars, and hands you the model."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trainwell import augment, data, ensemble, errors, lab, models, optim, random, regularize, train
    from trainwell.api import dry_run, fit, lr_range, resume
    from trainwell.data import load
    from trainwell.errors import InputError
    from trainwell.optim import schedules
    from trainwell.run import Run
    from trainwell.train.recipe import Recipe

__all__ = [
    "InputError",
    "Recipe",
    "Run",
    "augment",
    "data",
    "dry_run",
    "ensemble",
    "errors",
    "fit",
    "lab",
    "load",
    "lr_range",
    "models",
    "optim",
    "random",
    "regularize",
    "resume",
    "schedules",
    "train",
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
                "models",
                "optim",
                "random",
                "regularize",
                "train",
            )
        },
        "InputError": "errors",
        "Recipe": "train.recipe",
        "Run": "run",
        "dry_run": "api",
        "fit": "api",
        "load": "data.sources",
        "lr_range": "api",
        "resume": "api",
        "schedules": "optim",
    },
)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
