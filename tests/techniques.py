"""Every technique, once: the suites in `test_techniques.py` run over this table, so a new one is proved by a row."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trainwell.models import resnet8
from trainwell.regularize import DropConnect, Dropout, FractionalMaxPool2d
from trainwell.transfer import Cut


class WithOurDropout(nn.Sequential):
    """The same with noise of ours."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Dropout(0.2, maps=True), nn.Flatten(),
            nn.Linear(512, 32), nn.ReLU(), Dropout(0.3, scaling="classic"), nn.Linear(32, 10),
        )  # fmt: skip


class WithDropout(nn.Sequential):
    """A small network with torch's own noise in it, for images of 8 by 8 grey pixels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(),
            nn.Linear(512, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10),
        )  # fmt: skip


class WithDroppedWeights(nn.Sequential):
    """The same with DropConnect and fractional pooling."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), FractionalMaxPool2d(0.7, mode="random"),
            nn.Flatten(), DropConnect(nn.Linear(200, 32), 0.3), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


class Residual(nn.Sequential):
    """A stem, a residual block, and a dense layer, or fractional pooling before that."""

    class Block(nn.Module):
        """Adds a branch to its input."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            """Returns `relu(x + branch(x))`."""
            return nn.functional.relu(x + self.norm(self.conv(x)))

    def __init__(self, pool: type[nn.Module], *arguments: Any) -> None:
        stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        head = [pool(*arguments), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)]
        super().__init__(stem, self.Block(), self.Block(), *head)


@dataclass(frozen=True)
class Technique:
    """A technique and how `fit` switches it on."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module | str] = WithDropout


TECHNIQUES = [
    Technique("plain"),
    Technique("a model by its name", {"drop_rate": 0.2}, model=lambda: "resnet8"),
    Technique("sgd", {"optimizer": "sgd", "lr": 0.05}),
    Technique("adam", {"optimizer": "adam"}),
    Technique("nadam", {"optimizer": "nadam"}),
    Technique("radam", {"optimizer": "radam", "lr": 0.02}),
    Technique("adamax", {"optimizer": "adamax"}),
    Technique("lion", {"optimizer": "lion", "lr": 2e-3}),
    Technique("rmsprop", {"optimizer": "rmsprop"}),
    Technique("adagrad", {"optimizer": "adagrad"}),
    Technique("muon", {"optimizer": "muon", "lr": 0.01}),
    Technique("soap", {"optimizer": "soap"}),
    Technique("constant rate", {"schedule": "constant", "warmup": 0.0}),
    *[
        Technique(f"{name} schedule", {"schedule": name, "lr": 1e-2})
        for name in ("linear", "step", "exponential", "inverse_time", "restarts", "triangular", "one_cycle", "wsd")
    ],
    Technique("plateau schedule", {"schedule": "plateau", "lr": 3e-3}),
    Technique("a schedule written out", {"schedule": "warmup(piecewise(3e-3, {8: 0.1}), steps=2)"}),
    Technique("our dropout", model=WithOurDropout),
    Technique(
        "our dropout, gradient accumulation, bf16",
        {"batch_size": 24, "grad_accum_steps": 3, "precision": "bf16"},
        model=WithOurDropout,
    ),
    Technique("DropConnect and fractional pooling", {"lr": 0.01}, model=WithDroppedWeights),
    Technique(
        "DropConnect and fractional pooling in bf16",
        {"lr": 0.01, "precision": "bf16", "memory_format": "channels_last"},
        model=WithDroppedWeights,
    ),
    Technique("stochastic depth", {"drop_path_rate": 0.3}, model=lambda: "resnet8"),
    Technique("dropout of a recipe, in any model", {"drop_rate": 0.3, "drop_map_rate": 0.1}),
    Technique("DropConnect of a recipe, in any model", {"dropconnect": 0.3}),
    Technique("stochastic depth of a recipe, in any model", {"drop_path_rate": 0.3}, lambda: Residual(nn.MaxPool2d, 2)),
    Technique("L1 with Adam", {"l1": 1e-3, "optimizer": "adam"}),
    Technique("elastic net with SGD", {"l1": 1e-3, "l2": 1e-2, "optimizer": "sgd", "lr": 0.05}),
    Technique("SAM", {"sam": 0.05}),
    Technique(
        "SAM, gradient accumulation, clipping", {"sam": 0.05, "batch_size": 24, "grad_accum_steps": 3, "clip_grad": 0.5}
    ),
    Technique(
        "a new last layer on features computed once",
        {"transfer": "linear", "lr": 0.02},
        model=lambda: Residual(nn.MaxPool2d, 2),
    ),
    Technique(
        "a model cut at a stage, and trained",
        {"transfer": "top1", "lr": 0.01},
        model=lambda: Cut(resnet8(num_classes=10, in_chans=1), "layer3", 32, num_classes=10),
    ),
    Technique("a new last layer below noise", {"transfer": "linear", "lr": 0.2}),
    Technique("gradual unfreezing", {"transfer": "gradual", "backbone_lr": 0.5, "lr": 0.01}),
    Technique(
        "rates that fall with depth, and L2-SP",
        {"transfer": "all", "layer_decay": 0.8, "backbone_lr": 0.5, "l2_sp": 0.01, "lr": 0.01},
        model=WithOurDropout,
    ),
    Technique("mixup", {"mixup": 0.2}),
    Technique("CutMix", {"cutmix": 1.0, "lr": 5e-3}),
    Technique(
        "mixup and CutMix, class weights, smoothing, accumulation",
        {
            "mixup": 0.2,
            "cutmix": 1.0,
            "class_weight": "balanced",
            "label_smoothing": 0.1,
            "batch_size": 24,
            "grad_accum_steps": 3,
        },
    ),
    Technique("augmentation, light", {"augment": "light(flip=0)"}),
    Technique("augmentation, standard", {"augment": "standard(flip=0)"}),
    Technique("augmentation, strong", {"augment": "strong(flip=0)", "lr": 0.02}, model=lambda: "resnet8"),
    Technique("augmentation, chosen by itself, balanced", {"augment": "auto", "sampling": "balanced"}),
    Technique("EMA", {"average": "ema"}),
    Technique(
        "EMA of the last epoch, accumulation",
        {
            "average": "ema",
            "ema_decay": 0.9,
            "restore_best": False,
            "batch_size": 24,
            "grad_accum_steps": 3,
        },
    ),
    Technique("SWA", {"average": "swa", "average_epochs": 3, "schedule": "constant"}),
    Technique("the latest weights' average", {"average": "latest", "average_epochs": 2}, model=lambda: "resnet8"),
    Technique("snapshots", {"snapshots": 2, "schedule": "restarts", "lr": 5e-3}),
    Technique("label smoothing", {"label_smoothing": 0.1}),
    Technique("class weights", {"class_weight": "balanced"}),
    Technique("balanced sampling", {"sampling": "balanced"}),
    Technique("gradient clipping", {"clip_grad": 0.5}),
    Technique("gradient accumulation", {"batch_size": 24, "grad_accum_steps": 3}),
    Technique("early stopping", {"patience": 1}),
    Technique("early stopping by steps", {"patience": 3, "patience_unit": "steps", "monitor": "val_loss"}),
    Technique("halving", {"on_nonfinite": "halve"}),
    Technique("bf16", {"precision": "bf16", "memory_format": "channels_last"}),
    Technique("fp32", {"precision": "fp32", "memory_format": "contiguous"}),
]

_AS_IMAGES = {"precision": "bf16", "memory_format": "channels_last", "batch_size": 50, "epochs": 2, "lr": 0.01}

REGULARIZERS = {
    "dropout": {"drop_rate": 0.3},
    "feature maps": {"drop_map_rate": 0.1},
    "DropConnect": {"dropconnect": 0.3},
    "stochastic depth": {"drop_path_rate": 0.3},
    "fractional pooling": {},
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.2},
    "CutMix": {"cutmix": 1.0},
    "L1": {"l1": 1e-4},
    "L2": {"l2": 1e-2},
    "SAM": {"sam": 0.05},
    "EMA": {"average": "ema"},
    "augmentation": {"augment": "strong(flip=0)"},
}
"""What the techniques against overfitting add to a recipe; pooling is the model's."""

PAIRS = [
    Technique(
        f"{one} and {other}",
        {**_AS_IMAGES, **REGULARIZERS[one], **REGULARIZERS[other]},
        functools.partial(
            Residual, *((FractionalMaxPool2d, 0.7) if "fractional pooling" in (one, other) else (nn.MaxPool2d, 2))
        ),
    )
    for one, other in itertools.combinations(REGULARIZERS, 2)
]
