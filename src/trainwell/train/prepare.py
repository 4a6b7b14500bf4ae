"""From data and a recipe to a trainer that is ready to run."""

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainwell import models, random
from trainwell.data.batches import Batches, statistics
from trainwell.data.dataset import Data
from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.freezing import is_frozen
from trainwell.images import Images
from trainwell.progress import track
from trainwell.regularize import Noise, evaluating, mixed_loss
from trainwell.train import augmentation, choosing, hardware, head_features, losses, pretrained
from trainwell.train.choice import Choice
from trainwell.train.display import Display
from trainwell.train.loop import Metric, Trainer
from trainwell.train.recipe import Recipe
from trainwell.train.speed import steps_within
from trainwell.transfer.backbones import Backbone

_MOST_TOLD = 10  # of the files that were left out
_MOST_TRIED = 1000  # of the classes, with the loss


@dataclass(frozen=True)
class Custom:
    """What a recipe cannot say: code of the user's own.

    Raises:
        InputError: one of them is not what it should be.
    """

    model: nn.Module | None = None
    loss: losses.Loss | None = None
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


@contextlib.contextmanager
def prepared(data: Data, recipe: Recipe, custom: Custom, display: Display | None = None) -> Iterator[Trainer]:
    """Yields the trainer of a recipe, in a process that is set up for it; puts the process back afterwards.

    Args:
        data: what to train on.
        recipe: how; the trainer's own recipe is this one with every choice made.
        custom: the user's model, loss and metrics.
        display: told what was chosen, if given.

    Raises:
        InputError: data, recipe and model do not go together.
    """
    say = display.say if display is not None else lambda _: None
    if recipe.label_smoothing and (custom.loss is not None or data.task != "classification"):
        raise InputError("label_smoothing is for the classification loss; leave it at 0 beside a loss of your own")
    if recipe.class_weight == "balanced" and (custom.loss is not None or data.task == "regression"):
        raise InputError("class_weight is for the loss of classes or labels; leave it at 'none' beside another")
    if recipe.sampling == "balanced" and data.task != "classification":
        raise InputError("sampling='balanced' needs one class a sample; for several labels there is class_weight")
    images = data.images
    look = functools.partial(_look, data, recipe, display)
    backbone = pretrained.named(
        recipe, data, custom, _outputs(data), say, lambda several, say: choosing.closest(data, several, look, say)
    )
    recipe = pretrained.resolved(recipe, backbone, custom)
    choice = custom.choice if backbone is not None else None
    if choice is None and backbone is not None and recipe.transfer in ("auto", "stage"):
        again = dataclasses.replace(custom, backbone=backbone)
        with look(backbone) as seen:
            choice = choosing.choose(data, recipe, seen, lambda part, how: prepared(part, how, again), say)
    asked = recipe = choice.applied(recipe) if choice is not None else recipe
    if recipe.cutmix and images is None:
        raise InputError("cutmix pastes parts of images: leave it at 0 for feature vectors; mixup takes any")
    if recipe.augment not in ("auto", "none") and images is None:
        raise InputError(f"augment={recipe.augment!r} changes images: leave it at 'auto' for feature vectors")
    size = images.size if images is not None else None
    why = ""
    if recipe.augment == "auto":
        augment, why = augmentation.chosen(data.task, data.classes, images is not None)
        if recipe.transfer == "linear":
            augment, why = "none", "no augmentation: features are computed once (augment='standard' computes them anew)"
        recipe = dataclasses.replace(recipe, augment=augment)
    recipe = recipe.resolve(task=data.task, sizes=data.sizes, side=size, images=images is not None)
    if images is not None and recipe.img_size is not None:
        size = (recipe.img_size, recipe.img_size)
    machine = hardware.choose(recipe, images=images is not None)
    if custom.model is not None:
        recipe = dataclasses.replace(recipe, model="custom")
    elif recipe.model == "custom":
        raise InputError("the recipe is one of a model of your own; give the model too: model=…")
    recipe = dataclasses.replace(recipe, precision=machine.precision, memory_format=machine.memory_format)
    assert recipe.batch_size is not None
    with random.preserved(), hardware.applied(recipe.threads):
        hardware.keep_freed_memory()
        model = _on(machine, _initialised(recipe, data, size, custom, backbone, choice))
        if not model.training:  # as a whole; parts that were put in evaluation stay there
            model.train()
        mean, std = pretrained.normalisation(backbone) or statistics(data.train)
        batches = functools.partial(
            Batches, size=size, mean=mean, std=std, channels_last=machine.channels_last, device=machine.device
        )
        train = batches(
            data.train, recipe.batch_size * recipe.grad_accum_steps, shuffle=True, drop_last=True, seed=recipe.seed,
            balanced=recipe.sampling == "balanced", augment=augmentation.of_part(recipe.augment, data.train),
        )  # fmt: skip
        val = batches(data.val, recipe.batch_size)
        progress = functools.partial(track, quiet=display is None or display.quiet)
        from_head = head_features.possible(model, recipe, val, machine)
        if from_head:
            parts = [data.train, data.val, *([data.test] if data.options["folds"] > 1 else [])]  # the same in each fold
            rows = np.sort(np.concatenate([part.indices for part in parts]))
            features = head_features.HeadFeatures(model, val, rows, machine, data.inputs_digest, progress)
            train, val = (head_features.FeatureBatches(part, features) for part in (train, val))
        if from_head and head_features.may_be_solved(asked, data.task, custom.loss is not None, choice is not None):
            recipe = dataclasses.replace(recipe, steps=0, epochs=None, minutes=None)
        elif recipe.steps == 0:
            raise InputError(
                "steps=0 solves for the best linear classifier, which needs transfer='linear', classes, and nothing "
                "that is random or weighted: give steps, epochs or minutes"
            )
        if recipe.transfer == "lp_ft" or recipe.steps == 0:
            l2 = head_features.fit_head(model, train, data, machine, progress)
            say(f"the head {'begins as' if recipe.steps != 0 else 'is'} the best linear classifier (l2 {l2:g}, by "
                "cross-validation)")  # fmt: skip
        trainer = functools.partial(
            Trainer,
            model,
            train,
            val,
            hardware=machine,
            from_head=from_head,
            losses=_losses(data, recipe, custom, machine),
            metrics=custom.metrics,
            classification=data.task == "classification",
        )
        probe = trainer(dataclasses.replace(recipe, epochs=None, minutes=None, steps=10**9))
        _refuse_misfits(probe, dimensions(data, size)["num_classes"], custom)
        count = sum(parameter.numel() for parameter in model.parameters())
        say(
            f"{model_name(recipe, custom)}, {count:,} parameters; "
            f"{', '.join(f'{n:,} to {part}' for part, n in data.sizes.items() if n)}; "
            f"on {machine.device} in {machine.precision}, {machine.memory_format}, {hardware.threads()}"
        )
        if recipe.augment != "none":
            say(f"augmentation: {recipe.augment}, another for each image in each epoch")
        if why:
            say(why)
        if probe.tuning is not None:
            say(probe.tuning.sentence())
        if noise := _noise_of(model):
            say(f"noise in training: {noise}")
        if recipe.minutes is not None:
            say("measuring the speed …")
            steps = steps_within(60 * recipe.minutes, probe)
            say(f"{steps:,} steps ({steps / len(train):.1f} epochs) fit {recipe.minutes:g} minutes")
            recipe = dataclasses.replace(recipe, steps=steps, minutes=None)
        ready = trainer(recipe)
        ready.backbone, ready.choice = backbone, choice
        yield ready


@contextlib.contextmanager
def _look(data: Data, recipe: Recipe, display: Display | None, backbone: Backbone) -> Iterator[choosing.Seen]:
    """Yields a pretrained model on its device, with batches of the training part as it sees them."""
    recipe = dataclasses.replace(pretrained.resolved(recipe, backbone, Custom()), augment="none")
    images = data.images
    assert images is not None
    recipe = recipe.resolve(task=data.task, sizes=data.sizes, side=images.size, images=True)
    machine = hardware.choose(recipe, images=True)
    with random.preserved(), hardware.applied(recipe.threads):
        hardware.keep_freed_memory()
        model = _on(machine, copy.deepcopy(backbone.model))
        mean, std = pretrained.normalisation(backbone) or statistics(data.train)
        batches = Batches(
            data.train, recipe.batch_size or 1, size=None if recipe.img_size is None else (recipe.img_size,) * 2,
            mean=mean, std=std, channels_last=machine.channels_last, device=machine.device,
        )  # fmt: skip
        progress = functools.partial(track, quiet=display is None or display.quiet)
        yield choosing.Seen(model, batches, machine, progress)


def _noise_of(model: nn.Module) -> str:
    """Returns which layers of ours are random in training, how many of them, and the fractions that they drop."""
    rates: dict[str, list[float | None]] = {}
    for module in model.modules():
        p = getattr(module, "p", None)
        if isinstance(module, Noise) and p != 0:
            rates.setdefault(type(module).__name__, []).append(p)
    told = []
    for name, values in rates.items():
        known = sorted({f"{p:.3g}" for p in values if p is not None}, key=float)
        span = f" of {known[0]}" + (f" to {known[-1]}" if len(known) > 1 else "") if known else ""
        told.append(f"{name}{span}" + (f" in {len(values)} places" if len(values) > 1 else ""))
    return ", ".join(told)


def tell(data: Data, display: Display) -> None:
    """Shows what a person should know of the data: what was left out, and what was noticed."""
    for notice in data.notices[:_MOST_TOLD]:
        display.say(f"notice: {notice.text}")
    if len(data.notices) > _MOST_TOLD:
        display.say(f"and {len(data.notices) - _MOST_TOLD:,} notices more, all of which the report holds")
    for item in data.skipped[:_MOST_TOLD]:
        display.warn(f"left out {item.path}: {item.reason}")
    if len(data.skipped) > _MOST_TOLD:
        display.warn(f"and {len(data.skipped) - _MOST_TOLD:,} more, all of which the report names")


def dimensions(data: Data, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns what a model must know of the data: the arguments of `trainwell.models.create`.

    Args:
        data: the data.
        size: height and width of the images in a batch; `None` for features.
    """
    outputs = _outputs(data)
    if isinstance(data.train.inputs, Images):
        assert size is not None
        channels = data.train.inputs.channels
        features = channels * size[0] * size[1]
        return {"num_classes": outputs, "in_chans": channels, "img_size": max(size), "in_features": features}
    features = int(data.train.inputs[0].size)
    return {"num_classes": outputs, "in_chans": None, "img_size": None, "in_features": features}


def _outputs(data: Data) -> int:
    return len(data.classes) or (data.train.targets.shape[1] if data.train.targets.ndim == 2 else 1)


def model_name(recipe: Recipe, custom: Custom) -> str:
    """Returns what to call the model."""
    return recipe.model if custom.model is None else type(custom.model).__name__


def _initialised(
    recipe: Recipe,
    data: Data,
    size: tuple[int, int] | None,
    custom: Custom,
    backbone: Backbone | None,
    choice: Choice | None,
) -> nn.Module:
    random.seed_everything(recipe.seed, "init")
    noise = {name: getattr(recipe, name) for name in models.NOISE}
    model = custom.model if custom.model is not None else recipe.model
    if backbone is not None:
        model = copy.deepcopy(backbone.model)
        if choice is not None:
            model = choice.cut_off(model, _outputs(data))
    return models.create(model, **dimensions(data, size), **noise)


def _losses(data: Data, recipe: Recipe, custom: Custom, machine: hardware.Hardware) -> tuple[losses.Loss, losses.Loss]:
    """Returns what is minimised and what is reported."""
    if custom.loss is not None:
        return custom.loss, custom.loss
    weight = None
    if recipe.class_weight == "balanced":
        weights = losses.balanced_weights(data.train.targets[data.train.indices], data.task)
        weight = torch.from_numpy(weights).to(machine.device)
    return losses.for_task(data.task, recipe.label_smoothing, weight)


def _on(machine: hardware.Hardware, model: nn.Module) -> nn.Module:
    model = model.to(machine.device)
    if machine.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _uses_its_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and not is_frozen(module)


def _refuse_misfits(trainer: Trainer, outputs: int, custom: Custom) -> None:
    """Tries model and loss on two samples, in evaluation, so that what cannot work is told before anything is done."""
    piece = -(-trainer.train.batch_size // trainer.recipe.grad_accum_steps)
    smallest = trainer.train.batch_size % piece or piece
    if smallest == 1 and any(_uses_its_batch(module) for module in trainer.model.modules()):
        raise InputError("batch norm needs at least 2 samples at once; change batch_size or grad_accum_steps")
    few = Batches(
        dataclasses.replace(trainer.val.part, indices=trainer.val.part.indices[:2]), 2, size=trainer.val.size,
        mean=trainer.val.mean, std=trainer.val.std, device=trainer.val.device,
        channels_last=trainer.val.channels_last,
    )  # fmt: skip
    x, y = few.batch(0, 0)
    shape = tuple(x.shape)
    try:
        with torch.no_grad(), evaluating(trainer.model), trainer.hardware.autocast():
            out = trainer.model(x)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the model cannot take a float32 batch of shape {shape} ({in_one_line(error)})") from error
    if not isinstance(out, torch.Tensor):
        raise InputError(f"the model must return a tensor, not a {type(out).__name__}")
    if custom.loss is None and tuple(out.shape) not in [(len(y), outputs), tuple(y.shape)]:
        raise InputError(f"the model returns shape {tuple(out.shape)} for a batch of {len(y)}, not {(len(y), outputs)}")
    try:
        with torch.no_grad():
            loss = trainer.reported(losses.aligned(out.float(), y), y)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the loss cannot take outputs of shape {tuple(out.shape)} ({in_one_line(error)})") from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise InputError("the loss must return a tensor with one number, the mean over the batch (reduction='mean')")
    if trainer.recipe.mixup or trainer.recipe.cutmix:
        if trainer.classification:  # one sample of each class, from 0 to 1: as logits and as probabilities
            y = torch.arange(min(outputs, _MOST_TRIED), device=y.device)
            out = torch.rand(len(y), *out.shape[1:], generator=torch.Generator().manual_seed(0)).to(y.device)
        _refuse_unmixable(trainer.objective, losses.aligned(out.float(), y), y, plain=trainer.classification)


def _refuse_unmixable(loss: losses.Loss, outputs: torch.Tensor, targets: torch.Tensor, plain: bool) -> None:
    """Refuses a loss that cannot be taken of each sample, or, if it is to be `plain`, is not the mean of those."""
    try:
        with torch.no_grad():
            of_each = mixed_loss(loss, outputs, targets, targets, torch.ones(len(targets), device=targets.device))
            of_all = loss(outputs, targets)
    except InputError:
        raise
    except Exception as error:
        why = in_one_line(error)
        raise InputError(f"mixup and cutmix take the loss of each sample, and this one cannot ({why})") from error
    if plain and not math.isclose(float(of_each), float(of_all), rel_tol=1e-3):
        raise InputError(
            "mixup and cutmix take the loss of each sample, and this one is not the mean of those, as with class "
            "weights: take functools.partial(tw.regularize.cross_entropy, weight=…), or class_weight='balanced'"
        )
