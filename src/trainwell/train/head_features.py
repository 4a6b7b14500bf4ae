"""A head alone, trained on what comes to it, which is computed once."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainwell import models
from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.errors import InputError
from trainwell.regularize import evaluating
from trainwell.regularize.noise import noise_layers
from trainwell.train.hardware import Hardware
from trainwell.train.recipe import Recipe
from trainwell.transfer.features import cached, inputs_of, key_of
from trainwell.transfer.linear import best_l2, fit_linear
from trainwell.transfer.surgery import find_head, head_inputs

Progress = Callable[..., Iterable[Any]]

_PROBED = 4  # rows that tell one module from another of the same weights


@dataclass
class HeadFeatures:
    """What comes to a model's head, for some rows of the data; computed when it is first asked for.

    Not before: a run that goes on gets its weights only after its batches are made.

    Attributes:
        model: on its device; what lies below its head does not change any more.
        like: batches of the data, whose settings are taken.
        rows: of the data's inputs, in rising order.
        hardware: what the model is called with.
        digest: of the data's inputs.
        progress: goes through something and shows how far it is, as `trainwell.progress.track`.
    """

    model: nn.Module
    like: Batches
    rows: npt.NDArray[np.int64]
    hardware: Hardware
    digest: str
    progress: Progress

    def of(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Returns the features of some of the rows, `(n, d)`, on the CPU."""
        return self._all[torch.from_numpy(np.searchsorted(self.rows, rows))]

    @cached_property
    def _all(self) -> torch.Tensor:
        like = self.like
        settings = (
            type(self.model).__qualname__,
            self.digest,
            like.size,
            like.mean.tolist(),
            like.std.tolist(),
            dataclasses.astuple(self.hardware),
            self._computed(self.rows[:_PROBED]).tolist(),  # a module computes what its code says, not its weights alone
        )
        key = key_of(self.model, repr(settings), self.rows.tobytes().hex())
        return cached(key, lambda: {"features": self._computed(self.rows, self.progress)})["features"]

    def _computed(self, rows: npt.NDArray[np.int64], progress: Progress | None = None) -> torch.Tensor:
        like = self.like
        plain = like.plain(dataclasses.replace(like.part, indices=rows), min(64, like.batch_size))
        shown = progress(plain, len(plain), "computing features") if progress else plain
        return inputs_of(self.model, find_head(self.model), shown, autocast=self.hardware.autocast())


class FeatureBatches(Batches):
    """Batches in the same order, of features in place of what those are computed from."""

    def __init__(self, batches: Batches, features: HeadFeatures) -> None:
        self.__dict__.update(batches.__dict__)
        self._features = features

    def _inputs(self, rows: npt.NDArray[np.int64], epoch: int, number: int) -> torch.Tensor:
        return self._features.of(rows)


def possible(model: nn.Module, recipe: Recipe, batches: Batches, hardware: Hardware) -> bool:
    """Says whether what comes to the head is the same in each epoch, and the head's output the model's.

    Args:
        model: on its device.
        recipe: a resolved recipe.
        batches: some of the data.
        hardware: what the model is called with.
    """
    changing = recipe.augment != "none" or recipe.mixup or recipe.cutmix or noise_layers(model)
    if recipe.transfer != "linear" or changing or any(getattr(recipe, name) for name in models.NOISE):
        return False
    x = batches.batch(0, 0)[0][:2]
    with torch.no_grad(), evaluating(model), hardware.autocast():
        seen = head_inputs(model, x)
        return seen.ndim == 2 and torch.equal(model.get_submodule(find_head(model))(seen), model(x))


# Fields that say of an objective that it is another than cross-entropy, or want steps; and how steps are taken.
_OF_OBJECTIVE = ("l1", "l2", "sam", "label_smoothing", "average", "snapshots", "class_weight", "sampling")
_OF_STEPS = ("epochs", "steps", "minutes", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "decay_all",
             "schedule", "warmup", "clip_grad", "patience")  # fmt: skip


def may_be_solved(recipe: Recipe, task: str, own_loss: bool, chosen: bool) -> bool:
    """Says whether a head on features that are computed once is solved for, in place of being trained in steps.

    It is where its objective is plain cross-entropy, and nothing says how to step.

    Args:
        recipe: before its choices were made.
        task: as in the data.
        own_loss: whether the user gave a loss.
        chosen: whether what the recipe says of steps is for whatever might have been chosen.
    """
    if task != "classification" or own_loss or recipe.transfer != "linear":
        return False
    plain, told = Recipe(), _OF_OBJECTIVE if chosen or recipe.steps == 0 else (*_OF_OBJECTIVE, *_OF_STEPS)
    return all(getattr(recipe, name) == getattr(plain, name) for name in told)


def fit_head(model: nn.Module, train: Batches, data: Data, hardware: Hardware, progress: Progress) -> float:
    """Puts the linear classifier into the head that is best on the training part's features; returns its penalty.

    The first half of LP-FT: A. Kumar et al., *Fine-tuning can distort pretrained features and underperform
    out-of-distribution* (2022), section 3.4.

    Args:
        model: on its device.
        train: the training part.
        data: what it is of.
        hardware: what the model is called with.
        progress: as in `HeadFeatures`.

    Raises:
        InputError: there are no classes to tell apart.
    """
    if data.task != "classification":
        raise InputError("transfer='lp_ft' begins with a linear classifier, which needs classes: take all, or gradual")
    rows = train.part.indices
    features = HeadFeatures(model, train, np.sort(rows), hardware, data.inputs_digest, progress).of(rows)
    targets = torch.from_numpy(train.part.targets[rows])
    groups = None if data.groups is None else data.groups[rows]
    l2 = best_l2(features, targets, num_classes=len(data.classes), groups=groups, standardize=True)
    layer = fit_linear(features, targets, num_classes=len(data.classes), l2=l2, standardize=True)
    head = model.get_submodule(find_head(model))
    with torch.no_grad():
        for mine, fitted in zip(head.parameters(), layer.parameters(), strict=True):
            mine.copy_(fitted.reshape(mine.shape))
    return l2
