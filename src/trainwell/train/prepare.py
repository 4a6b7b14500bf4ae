"""From data and a recipe to a trainer that is ready to run."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainwell import models, random
from trainwell.data.batches import Batches, statistics
from trainwell.data.dataset import Data
from trainwell.data.divide import cross_validates
from trainwell.errors import InputError
from trainwell.images import Images
from trainwell.progress import track
from trainwell.regularize import Noise
from trainwell.train import augmentation, choosing, hardware, head_features, losses, pretrained
from trainwell.train.choice import Choice
from trainwell.train.custom import Custom
from trainwell.train.display import Display
from trainwell.train.loop import Trainer
from trainwell.train.misfits import refuse_misfits, refuse_unaveraged
from trainwell.train.recipe import Recipe
from trainwell.train.speed import steps_within
from trainwell.transfer.backbones import Backbone

_MOST_TOLD = 10  # of the files that were left out

Say = Callable[[str], object]


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
    say: Say = display.say if display is not None else lambda _: None
    progress = functools.partial(track, quiet=display is None or display.quiet)
    _refuse_unfit(data, recipe, custom)
    backbone, choice, recipe = _pretrained(data, recipe, custom, display, say)
    asked = recipe
    recipe, size, machine, why = _resolved(data, recipe, custom)
    with random.preserved(), hardware.applied(recipe.threads):
        hardware.keep_freed_memory()
        model = _on(machine, _initialised(recipe, data, size, custom, backbone, choice))
        if not model.training:  # as a whole; parts that were put in evaluation stay there
            model.train()
        train, val = _batches(data, recipe, size, machine, backbone)
        from_head = head_features.possible(model, recipe, val, machine)
        if from_head:
            features = head_features.HeadFeatures(model, val, _all_rows(data), machine, data.inputs_digest, progress)
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
            Trainer, model, train, val, hardware=machine, losses=_losses(data, recipe, custom, machine),
            metrics=custom.metrics, classification=data.task == "classification", from_head=from_head,
        )  # fmt: skip
        probe = trainer(dataclasses.replace(recipe, epochs=None, minutes=None, steps=10**9))
        refuse_misfits(probe, wanted_outputs(data), custom)
        if recipe.snapshots:
            refuse_unaveraged(probe, wanted_outputs(data))
        _announce(probe, data, custom, why, say)
        if recipe.minutes is not None:
            recipe = _within_minutes(recipe, probe, say)
        ready = trainer(recipe)
        ready.backbone, ready.choice = backbone, choice
        yield ready


def _refuse_unfit(data: Data, recipe: Recipe, custom: Custom) -> None:
    """Refuses what a recipe asks of data, or beside a loss, where it has no meaning."""
    if recipe.label_smoothing and (custom.loss is not None or data.task != "classification"):
        raise InputError("label_smoothing is for the classification loss; leave it at 0 beside a loss of your own")
    if recipe.class_weight == "balanced" and (custom.loss is not None or data.task == "regression"):
        raise InputError("class_weight is for the loss of classes or labels; leave it at 'none' beside another")
    if recipe.sampling == "balanced" and data.task != "classification":
        raise InputError("sampling='balanced' needs one class a sample; for several labels there is class_weight")
    if recipe.snapshots and cross_validates(data):
        raise InputError("snapshots are judged on a test part, not by cross-validation: give folds=1 (--folds 1)")
    if recipe.cutmix and data.images is None:
        raise InputError("cutmix pastes parts of images: leave it at 0 for feature vectors; mixup takes any")
    if recipe.augment not in ("auto", "none") and data.images is None:
        raise InputError(f"augment={recipe.augment!r} changes images: leave it at 'auto' for feature vectors")


def _pretrained(
    data: Data, recipe: Recipe, custom: Custom, display: Display | None, say: Say
) -> tuple[Backbone | None, Choice | None, Recipe]:
    """Returns the pretrained model, if there is one, what of it is trained, and the recipe with what they decide."""
    look = functools.partial(_look, data, recipe, display)
    backbone = pretrained.named(
        recipe, data, custom, wanted_outputs(data), say, lambda several, say: choosing.closest(data, several, look, say)
    )
    recipe = pretrained.resolved(recipe, backbone, custom)
    choice = custom.choice if backbone is not None else None
    if choice is None and backbone is not None and recipe.transfer in ("auto", "stage"):
        again = dataclasses.replace(custom, backbone=backbone)
        with look(backbone) as seen:
            choice = choosing.choose(data, recipe, seen, lambda part, how: prepared(part, how, again), say)
    return backbone, choice, choice.applied(recipe) if choice is not None else recipe


def _resolved(
    data: Data, recipe: Recipe, custom: Custom
) -> tuple[Recipe, tuple[int, int] | None, hardware.Hardware, str]:
    """Returns the recipe with every choice made, the images' size, the machine, and why images are changed as they are.

    The reason is "" where it is the usual one.
    """
    images = data.images
    why = ""
    if recipe.augment == "auto":
        augment, why = augmentation.chosen(data.task, data.classes, images is not None)
        if recipe.transfer == "linear":
            augment, why = "none", "no augmentation: features are computed once (augment='standard' computes them anew)"
        recipe = dataclasses.replace(recipe, augment=augment)
    size = images.size if images is not None else None
    recipe = recipe.resolve(task=data.task, sizes=data.sizes, side=size, images=images is not None)
    if images is not None and recipe.img_size is not None:
        size = (recipe.img_size, recipe.img_size)
    machine = hardware.choose(recipe, images=images is not None)
    recipe = dataclasses.replace(recipe, precision=machine.precision, memory_format=machine.memory_format)
    if custom.model is not None:
        recipe = dataclasses.replace(recipe, model="custom")
    elif recipe.model == "custom":
        raise InputError("the recipe is one of a model of your own; give the model too: model=…")
    return recipe, size, machine, why


def _batches(
    data: Data, recipe: Recipe, size: tuple[int, int] | None, machine: hardware.Hardware, backbone: Backbone | None
) -> tuple[Batches, Batches]:
    """Returns the batches of the training and of the validation part."""
    assert recipe.batch_size is not None
    mean, std = pretrained.normalisation(backbone) or statistics(data.train)
    train = Batches(
        data.train, recipe.batch_size * recipe.grad_accum_steps, size=size, mean=mean, std=std, shuffle=True,
        balanced=recipe.sampling == "balanced", drop_last=True, seed=recipe.seed,
        augment=augmentation.of_part(recipe.augment, data.train), channels_last=machine.channels_last,
        device=machine.device,
    )  # fmt: skip
    return train, train.plain(data.val, recipe.batch_size)


def _all_rows(data: Data) -> npt.NDArray[np.int64]:
    """Returns the rows that a run looks at more than once, in order; with folds those of all of them, for each."""
    parts = [data.train, data.val, *([data.test] if data.options["folds"] > 1 else [])]
    return np.sort(np.concatenate([part.indices for part in parts]))


def _announce(trainer: Trainer, data: Data, custom: Custom, why: str, say: Say) -> None:
    """Says what is trained on what, and how; `why` images are changed as they are."""
    recipe, machine = trainer.recipe, trainer.hardware
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    say(
        f"{model_name(recipe, custom)}, {count:,} parameters; "
        f"{', '.join(f'{n:,} to {part}' for part, n in data.sizes.items() if n)}; "
        f"on {machine.device} in {machine.precision}, {machine.memory_format}, {hardware.threads()}"
    )
    if recipe.augment != "none":
        say(f"augmentation: {recipe.augment}, another for each image in each epoch")
    if why:
        say(why)
    if trainer.tuning is not None:
        say(trainer.tuning.sentence())
    if noise := _noise_of(trainer.model):
        say(f"noise in training: {noise}")


def _within_minutes(recipe: Recipe, probe: Trainer, say: Say) -> Recipe:
    """Returns the recipe with as many steps as fit its minutes."""
    assert recipe.minutes is not None
    say("measuring the speed …")
    steps = steps_within(60 * recipe.minutes, probe)
    say(f"{steps:,} steps ({steps / len(probe.train):.1f} epochs) fit {recipe.minutes:g} minutes")
    return dataclasses.replace(recipe, steps=steps, minutes=None)


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
    outputs = wanted_outputs(data)
    if isinstance(data.train.inputs, Images):
        assert size is not None
        channels = data.train.inputs.channels
        features = channels * size[0] * size[1]
        return {"num_classes": outputs, "in_chans": channels, "img_size": max(size), "in_features": features}
    features = int(data.train.inputs[0].size)
    return {"num_classes": outputs, "in_chans": None, "img_size": None, "in_features": features}


def wanted_outputs(data: Data) -> int:
    """Returns how many outputs data want of a model: one a class, label or value."""
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
            model = choice.cut_off(model, wanted_outputs(data))
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
