"""Training: the recipe, the loop, and what is kept of a run."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.train.checkpoint import Checkpoint
    from trainwell.train.checkpoint_folder import CheckpointFolder
    from trainwell.train.early_stopping import EarlyStopping
    from trainwell.train.history import History
    from trainwell.train.loop import Trainer
    from trainwell.train.recipe import Recipe

__all__ = ["Checkpoint", "CheckpointFolder", "EarlyStopping", "History", "Recipe", "Trainer"]

__getattr__ = attributes(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "CheckpointFolder": "checkpoint_folder",
        "EarlyStopping": "early_stopping",
        "History": "history",
        "Recipe": "recipe",
        "Trainer": "loop",
    },
)
