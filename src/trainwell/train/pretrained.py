"""The pretrained model that a run begins as: loaded, kept in the run's folder, and read from there again."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from trainwell.data.dataset import Data
from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.files import write_tensors
from trainwell.images import Images
from trainwell.train.custom import Custom
from trainwell.train.recipe import Recipe
from trainwell.transfer.backbones import Backbone, for_channels, load_backbone, rebuild
from trainwell.transfer.by_default import by_default
from trainwell.transfer.cut import Cut
from trainwell.transfer.found import IMAGENET
from trainwell.transfer.hub import ON_THE_HUB
from trainwell.transfer.state import Match, read_weights

FILE = "pretrained.safetensors"
Figures = npt.NDArray[np.float64]


def named(
    recipe: Recipe,
    data: Data,
    custom: Custom,
    outputs: int,
    say: Callable[[str], object],
    closest: Callable[[list[Backbone], Callable[[str], object]], Backbone],
) -> Backbone | None:
    """Returns the pretrained model that a recipe names, with a new head for the data; `None` if it names none.

    Args:
        recipe: as given.
        data: what it is to be trained on.
        custom: which may hold it already.
        outputs: how many the new head has.
        say: told where it came from, and what of it matched.
        closest: returns of several the one that knows most of the data.

    Raises:
        InputError: it cannot be had, or does not go with the data.
    """
    if custom.backbone is not None:
        return custom.backbone
    images = data.train.inputs if isinstance(data.train.inputs, Images) else None

    def load(source: str) -> Backbone:
        channels = 3 if images is None else images.channels
        return load_backbone(
            source, model=recipe.model, num_classes=outputs, in_chans=channels, partial=recipe.pretrained_partial,
            say=say,
        )  # fmt: skip

    if recipe.pretrained == "auto":
        left_open = custom.model is None and recipe.transfer != "none"
        free = left_open and recipe.model == "auto"
        if left_open and recipe.model in ON_THE_HUB:
            say(f"from scratch: a model is named, and no weights for it (--pretrained hub:timm/{recipe.model}.a1_in1k)")
        backbone = by_default(images, data.train.indices, load, say) if free and images is not None else None
        if backbone is None:
            return None
    elif recipe.pretrained == "none":
        return None
    else:
        if custom.model is not None:
            raise InputError("pretrained and model= each say what is trained: give one of them")
        if images is None:
            raise InputError(
                "pretrained models are for images: leave out pretrained (--pretrained) for feature vectors"
            )
        if recipe.transfer == "none":
            raise InputError(
                f"transfer='none' trains from scratch, and pretrained is {recipe.pretrained!r}: leave transfer out, or "
                "say 'all' to train all of it (--transfer all)"
            )
        sources = sources_in(recipe.pretrained)
        backbone = load(sources[0]) if len(sources) == 1 else closest([load(one) for one in sources], say)
        if len(sources) > 1 and data.options.get("folds", 1) > 1:
            say(
                "notice: the folds begin as that one too, though images on which they are judged had a say in it: "
                "their figures may flatter (name one source, or give --folds 1)"
            )
    licence = f", licence {backbone.licence}" if backbone.licence else ""
    told = (f"pretrained: {backbone.source} ({backbone.architecture}{licence})", backbone.match.sentence())
    say("; ".join([*told, *_how_normalised(backbone)]))
    return backbone


def _how_normalised(backbone: Backbone) -> list[str]:
    """Returns what is to be said of how images are normalised; nothing where the source has figures of its own."""
    if backbone.mean is None or backbone.std is None:
        return ["images are normalised by their own mean and deviation, as none is given there"]
    channels = len(backbone.mean)
    as_imagenet = (backbone.mean, backbone.std) == tuple(for_channels(one, channels) for one in IMAGENET)
    return ["images are normalised as for ImageNet"] if as_imagenet else []


def sources_in(given: str) -> list[str]:
    """Returns the sources in a text with commas between them; a path that exists is one, commas or not."""
    return [given] if Path(given).exists() else [one.strip() for one in given.split(",") if one.strip()] or [given]


def resolved(recipe: Recipe, backbone: Backbone | None, custom: Custom) -> Recipe:
    """Returns the recipe with what the pretrained model decides: its name, its images' size, what of it is trained.

    Raises:
        InputError: the recipe says how to fine-tune, and there is nothing pretrained; or a stage that is not asked for.
    """
    if recipe.transfer_stage != "auto" and recipe.transfer != "stage" and custom.choice is None:
        raise InputError(
            f"transfer_stage={recipe.transfer_stage!r} is for transfer='stage', and transfer is {recipe.transfer!r}: "
            "say transfer='stage' (--transfer stage), or leave the stage out"
        )
    if backbone is not None:
        size = recipe.img_size or backbone.img_size
        return dataclasses.replace(recipe, pretrained=backbone.source, model=backbone.architecture, img_size=size)
    recipe = dataclasses.replace(recipe, pretrained="none")
    if custom.model is not None and recipe.transfer not in ("auto", "stage"):
        return recipe
    if recipe.transfer not in ("auto", "none"):
        raise InputError(
            f"transfer={recipe.transfer!r} says how to train a pretrained model, and there is none: "
            "say which with pretrained (--pretrained), or give one as model="
        )
    plain = Recipe()
    for name in ("l2_sp", "backbone_lr", "layer_decay", "pretrained_partial"):
        if getattr(recipe, name) != getattr(plain, name):
            raise InputError(f"{name} is about pretrained weights, and there are none: leave it out, or say pretrained")
    return dataclasses.replace(recipe, transfer="none")


def normalisation(backbone: Backbone | None) -> tuple[Figures, Figures] | None:
    """Returns by what the pretrained model wants images normalised; `None` if that is not known, or nothing is."""
    if backbone is None or backbone.mean is None or backbone.std is None:
        return None
    return np.asarray(backbone.mean, np.float64), np.asarray(backbone.std, np.float64)


# ---------------------------------------------------------------------- in the run's folder


def about(backbone: Backbone | None, cut: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Returns what `run.json` says of it; `cut` is where the run cut it, as `trainwell.transfer.cut.Cut` takes it."""
    if backbone is None:
        return None
    return {
        "cut": cut,
        "source": backbone.source, "architecture": backbone.architecture, "config": backbone.config,
        "mean": backbone.mean, "std": backbone.std, "img_size": backbone.img_size, "licence": backbone.licence,
        "match": dataclasses.asdict(backbone.match),
    }  # fmt: skip


def keep(folder: Path, backbone: Backbone) -> None:
    """Keeps the weights that a run begins with, so that it needs neither a network nor another folder to go on."""
    write_tensors(folder / FILE, backbone.model.state_dict(), {"source": backbone.source})


def read(folder: Path, told: dict[str, Any] | None, model: dict[str, Any]) -> Backbone | None:
    """Returns what a run began as.

    Args:
        folder: the run directory.
        told: what `run.json` says of it.
        model: what that says of the model.

    Raises:
        InputError: it is damaged.
    """
    if told is None:
        return None
    module = _uncut(told, model)
    try:
        module.load_state_dict(read_weights(folder / FILE))
        figures = {name: None if told[name] is None else tuple(told[name]) for name in ("mean", "std")}
        return Backbone(
            model=module, source=told["source"], architecture=told["architecture"], config=told["config"],
            img_size=told["img_size"], licence=told["licence"], match=Match(**told["match"]), **figures,
        )  # fmt: skip
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE} is damaged ({in_one_line(error)}): start a new run") from None


def rebuilt(told: dict[str, Any] | None, model: dict[str, Any]) -> nn.Module | None:
    """Returns the module that a run trained, without its weights; `None` if it began as nothing pretrained.

    Raises:
        InputError: it cannot be made.
    """
    if told is None:
        return None
    try:
        module, cut = _uncut(told, model), told.get("cut")
        return module if cut is None else Cut(module, str(cut["before"]), int(cut["dimensions"]), model["num_classes"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(f"run.json is damaged: what it says of the backbone makes no model ({in_one_line(error)})"
                         ) from None  # fmt: skip


def _uncut(told: dict[str, Any], model: dict[str, Any]) -> nn.Module:
    architecture, config = told["architecture"], told["config"]
    return rebuild(architecture, config, num_classes=model["num_classes"], in_chans=model["in_chans"])
