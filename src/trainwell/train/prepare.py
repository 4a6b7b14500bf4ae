"""From data and a recipe to a trainer that is ready to run."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwell import models, random
from trainwell.data.batches import Batches, statistics
from trainwell.data.dataset import Data
from trainwell.data.images import Images
from trainwell.train import hardware, losses
from trainwell.train.checkpoint import Checkpoints
from trainwell.train.display import Display
from trainwell.train.history import History
from trainwell.train.loop import Metric, Trainer
from trainwell.train.recipe import Recipe
from trainwell.train.speed import steps_within


@dataclass(frozen=True)
class Custom:
    """What a recipe cannot say: code of the user's own."""

    model: nn.Module | None = None
    loss: losses.Loss | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)


@contextlib.contextmanager
def prepared(data: Data, recipe: Recipe, custom: Custom, folder: Path | None, display: Display) -> Iterator[Trainer]:
    """Yields the trainer of a recipe, in a process that is set up for it; puts the process back afterwards.

    Args:
        data: what to train on.
        recipe: how; the trainer's own recipe is this one with every choice made.
        custom: the user's model, loss and metrics.
        folder: where history and checkpoints go; `None` keeps nothing.
        display: told what was chosen.
    """
    if data.skipped:
        some = "; ".join(f"{item.path}: {item.reason}" for item in data.skipped[:3])
        display.say(f"left out {len(data.skipped):,} files ({some}{'; …' if len(data.skipped) > 3 else ''})")
    images = data.images
    size = images.size if images is not None else None
    recipe = recipe.resolve(task=data.task, sizes=data.sizes, side=size, images=images is not None)
    if images is not None and recipe.img_size is not None:
        size = (recipe.img_size, recipe.img_size)
    machine = hardware.choose(recipe, images=images is not None)
    recipe = dataclasses.replace(recipe, precision=machine.precision, memory_format=machine.memory_format)
    with random.preserved(), hardware.applied(recipe.threads):
        hardware.keep_freed_memory()
        if custom.model is not None:
            recipe = dataclasses.replace(recipe, model=f"custom {type(custom.model).__name__}")
        model = _on(machine, custom.model or _initialised(recipe, data, size))
        mean, std = statistics(data.train)
        batches = functools.partial(
            Batches, size=size, mean=mean, std=std, channels_last=machine.channels_last, device=machine.device
        )
        train = batches(
            data.train, recipe.batch_size * recipe.grad_accum_steps, shuffle=True, drop_last=True, seed=recipe.seed
        )
        trainer = functools.partial(
            Trainer,
            model,
            train,
            batches(data.val, recipe.batch_size),
            hardware=machine,
            losses=(custom.loss, custom.loss) if custom.loss else losses.for_task(data.task, recipe.label_smoothing),
            metrics=custom.metrics,
            classification=data.task == "classification",
        )
        count = sum(parameter.numel() for parameter in model.parameters())
        display.say(
            f"{recipe.model}, {count:,} parameters; {', '.join(f'{n:,} to {part}' for part, n in data.sizes.items())}; "
            f"on {machine.device} in {machine.precision}, {machine.memory_format}, {torch.get_num_threads()} threads"
        )
        steps = recipe.steps or (recipe.epochs or 1) * len(train)
        if recipe.minutes is not None:
            steps = steps_within(60 * recipe.minutes, trainer(dataclasses.replace(recipe, minutes=None, steps=10**9)))
            display.say(f"{steps:,} steps ({steps / len(train):.1f} epochs) fit {recipe.minutes:g} minutes")
        yield trainer(
            dataclasses.replace(recipe, steps=steps, epochs=None, minutes=None),
            history=History(folder and folder / "history.jsonl"),
            checkpoints=Checkpoints(folder / "checkpoints") if folder else None,
        )


def dimensions(data: Data, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns what a model must know of the data: the arguments of `trainwell.models.create`.

    Args:
        data: the data.
        size: height and width of the images in a batch; `None` for features.
    """
    outputs = len(data.classes) or (data.train.targets.shape[1] if data.train.targets.ndim == 2 else 1)
    if isinstance(data.train.inputs, Images):
        assert size is not None
        channels = data.train.inputs.channels
        features = channels * size[0] * size[1]
        return {"num_classes": outputs, "in_chans": channels, "img_size": max(size), "in_features": features}
    features = int(data.train.inputs[0].size)
    return {"num_classes": outputs, "in_chans": None, "img_size": None, "in_features": features}


def _initialised(recipe: Recipe, data: Data, size: tuple[int, int] | None) -> nn.Module:
    random.seed_everything(recipe.seed, "init")
    return models.create(recipe.model, **dimensions(data, size), drop_rate=recipe.drop_rate)


def _on(machine: hardware.Hardware, model: nn.Module) -> nn.Module:
    model = model.to(machine.device)
    if machine.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
