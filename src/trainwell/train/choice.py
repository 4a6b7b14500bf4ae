"""What was chosen to be trained of a pretrained model, where that was left open."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from trainwell.train.recipe import Recipe
from trainwell.transfer.cut import Cut

# What a choice changes, and what follows from it: which of these are given decides whether a head is solved for.
ASKED = ("transfer", "augment", "mixup", "backbone_lr", "epochs", "steps", "minutes", "lr", "weight_decay")


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why; JSON can say all of it.

    Attributes:
        asked: the fields of the recipe as they were, of which the choice may change some.
        changes: those that it does.
        cut: where the model is cut, as `trainwell.transfer.cut.Cut` takes it, if it is.
        probes: of each stage: name, accuracy and its interval.
        tried: of each candidate that was tried: name, accuracy, on how many samples, the difference to the plan's first
            and that one's standard error, the seconds that it took.
        reasons: lines that people read.
    """

    asked: dict[str, Any]
    changes: dict[str, Any]
    cut: dict[str, Any] | None = None
    probes: list[dict[str, Any]] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of_all(cls, recipe: Recipe) -> "Choice | None":
        """Returns the choice to train all of a model, for what looks at steps alone; `None` if a recipe says what."""
        return cls({}, {"transfer": "all"}) if recipe.transfer == "auto" else None

    def applied(self, recipe: Recipe) -> Recipe:
        """Returns a recipe with what was chosen."""
        return dataclasses.replace(recipe, **self.changes)

    def as_fields(self) -> dict[str, Any]:
        """Returns fields of a recipe by which another run does the same, with nothing left open.

        >>> probes = [{"stage": "pixels"}, {"stage": "layer1"}, {"stage": "layer2"}]
        >>> Choice({}, {"transfer": "linear"}, {"before": "layer2", "dimensions": 16}, probes).as_fields()
        {'transfer': 'stage', 'transfer_stage': 'layer1'}
        """
        if self.cut is None:
            return self.changes
        stages = [one["stage"] for one in self.probes]
        return {**self.changes, "transfer": "stage", "transfer_stage": stages[stages.index(self.cut["before"]) - 1]}

    def cut_off(self, model: nn.Module, num_classes: int) -> nn.Module:
        """Returns a model, cut in place where it was chosen to be."""
        return model if self.cut is None else Cut(model, **self.cut, num_classes=num_classes)

    def undone(self, recipe: Recipe) -> Recipe:
        """Returns a recipe in which all of it is to be chosen again, as for another part of the data."""
        return dataclasses.replace(recipe, **self.asked)
