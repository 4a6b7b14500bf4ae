"""What a recipe cannot say: a model, a loss or metrics of the user's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from trainwell.errors import InputError
from trainwell.train.choice import Choice
from trainwell.train.loop import Metric
from trainwell.train.losses import Loss
from trainwell.transfer.backbones import Backbone


@dataclass(frozen=True)
class Custom:
    """What a recipe cannot say: code of the user's own.

    Raises:
        InputError: one of them is not what it should be.
    """

    model: nn.Module | None = None
    loss: Loss | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    backbone: Backbone | None = None
    """the pretrained model that the recipe names, where it is loaded already"""
    choice: Choice | None = None
    """what of that is trained, where it was chosen already"""

    def __post_init__(self) -> None:
        if self.model is not None and not isinstance(self.model, nn.Module):
            hint = "; make an instance of it" if isinstance(self.model, type) else ""
            raise InputError(f"model must be a torch.nn.Module or a name, not {self.model!r}{hint}")
        if self.loss is not None and not callable(self.loss):
            raise InputError(f"loss must be a function of outputs and targets, not {self.loss!r}")
        if not isinstance(self.metrics, Mapping) or not all(callable(metric) for metric in self.metrics.values()):
            raise InputError("metrics must map names to functions of outputs and targets")
        for name in ("loss", "accuracy", "balanced_accuracy"):
            if name in self.metrics:
                raise InputError(f"a metric cannot be called {name!r}, which every history has; choose another name")
