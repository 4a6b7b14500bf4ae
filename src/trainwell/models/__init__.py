"""Models: a multilayer perceptron for feature vectors, residual networks for images, and any of them by name."""

from trainwell.models.create import NAMES, NOISE, create, default_name
from trainwell.models.mlp import MLP
from trainwell.models.resnet import (
    ResNet,
    resnet8,
    resnet14,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
)

__all__ = [
    "MLP",
    "NAMES",
    "NOISE",
    "ResNet",
    "create",
    "default_name",
    "resnet8",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
]
