"""Training: the recipe, the loop, and what is kept of a run."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.train.checkpoint import Checkpoints
    from trainwell.train.early_stopping import EarlyStopping
    from trainwell.train.history import History
    from trainwell.train.loop import Trainer
    from trainwell.train.recipe import Recipe

__all__ = ["Checkpoints", "EarlyStopping", "History", "Recipe", "Trainer"]

__getattr__ = attributes(
    __name__,
    {
        "Checkpoints": "checkpoint",
        "EarlyStopping": "early_stopping",
        "History": "history",
        "Recipe": "recipe",
        "Trainer": "loop",
    },
)
