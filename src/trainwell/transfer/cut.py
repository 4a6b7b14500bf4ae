"""A model that ends early: up to one of its stages, with a last layer of its own there."""

from typing import Any

from torch import Tensor, nn

from trainwell.errors import InputError
from trainwell.transfer.features import pooled
from trainwell.transfer.surgery import Reached, stage_names, stages


class _End(nn.Module):
    """Stands where the first layer beyond the cut was."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise Reached(args, kwargs)


class Cut(nn.Module):
    """A model up to the end of one of its stages, the mean over all positions, and a linear layer.

    Where data are unlike those of the pretrained network, what an earlier stage knows may tell more of them.

    Args:
        model: is taken over and cut in place: what lies beyond has no weights any more.
        before: name of the module that is the first beyond the cut.
        dimensions: how many features come to it.
        num_classes: length of the output. The new layer is 0.

    Raises:
        InputError: no stage begins there.
    """

    def __init__(self, model: nn.Module, before: str, dimensions: int, num_classes: int) -> None:
        super().__init__()
        starts = stage_names(model)
        if before not in starts[1:-1]:
            raise InputError(f"a model is cut before {' or '.join(starts[1:-1])}, not before {before!r}")
        modules = dict(model.named_modules(remove_duplicate=False))
        for names in stages(model)[starts.index(before) :]:
            for name in names:
                if name in modules:  # and no parameter that stands alone, which is left and has no effect
                    model.set_submodule(name, _End() if name == before else nn.Identity())
        self.body = model
        self.head = nn.Linear(dimensions, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(n, num_classes)`."""
        try:
            self.body(x)
        except Reached as reached:
            logits: Tensor = self.head(pooled(reached.value))
            return logits
        raise InputError("the pass through the model does not come to the stage that it was cut after")


def cut_point(model: nn.Module, stage: str) -> str:
    """Returns the name of the module before which a model is cut that is to end with a stage.

    Args:
        model: it.
        stage: as `trainwell.transfer.stage_features` names it; not the last one below the head, after which nothing is
            to be cut.

    Raises:
        InputError: there is no such stage.

    >>> import torch
    >>> from trainwell.models import create
    >>> model = create("resnet8", num_classes=10, in_chans=3)
    >>> cut_point(model, "layer1")
    'layer2'
    >>> Cut(model, "layer2", 16, num_classes=5)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 5])
    """
    names = stage_names(model)
    if stage not in names[:-2]:
        raise InputError(f"a model is cut after {' or '.join(names[:-2])}, not after {stage!r}")
    return names[names.index(stage) + 1]
