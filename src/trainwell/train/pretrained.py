"""The pretrained model that a run begins as: loaded, kept in the run's folder, and read from there again."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from trainwell.data.dataset import Data
from trainwell.errors import InputError, in_one_line
from trainwell.files import write_tensors
from trainwell.images import Images
from trainwell.train.recipe import Recipe
from trainwell.transfer.backbones import Backbone, load_backbone, rebuild
from trainwell.transfer.state import Match, read_weights

if TYPE_CHECKING:
    from trainwell.train.prepare import Custom

FILE = "pretrained.safetensors"
Figures = npt.NDArray[np.float64]


def named(recipe: Recipe, data: Data, custom: "Custom", outputs: int, say: Callable[[str], object]) -> Backbone | None:
    """Returns the pretrained model that a recipe names, with a new head for the data; `None` if it names none.

    Args:
        recipe: as given.
        data: what it is to be trained on.
        custom: which may hold it already.
        outputs: how many the new head has.
        say: told where it came from, and what of it matched.

    Raises:
        InputError: it cannot be had, or does not go with the data.
    """
    if custom.backbone is not None:
        return custom.backbone
    if recipe.pretrained == "none":
        return None
    if custom.model is not None:
        raise InputError("pretrained and model= each say what is trained: give one of them")
    if not isinstance(data.train.inputs, Images):
        raise InputError("pretrained models are for images: leave out pretrained (--pretrained) for feature vectors")
    backbone = load_backbone(
        recipe.pretrained, model=recipe.model, num_classes=outputs, in_chans=data.train.inputs.channels,
        say=lambda text: say(text),
    )  # fmt: skip
    licence = f", licence {backbone.licence}" if backbone.licence else ""
    say(f"pretrained: {backbone.source} ({backbone.architecture}{licence}); {backbone.match.sentence()}")
    return backbone


def resolved(recipe: Recipe, backbone: Backbone | None, custom: "Custom") -> Recipe:
    """Returns the recipe with what the pretrained model decides: its name, its images' size, what of it is trained.

    Raises:
        InputError: the recipe says how to fine-tune, and there is nothing pretrained.
    """
    if backbone is not None:
        way = "all" if recipe.transfer == "auto" else recipe.transfer
        if way == "none":
            way = "all"
        size = recipe.img_size or backbone.img_size
        return dataclasses.replace(recipe, model=backbone.architecture, img_size=size, transfer=way)
    if custom.model is not None and recipe.transfer != "auto":
        return recipe
    if recipe.transfer not in ("auto", "none"):
        raise InputError(
            f"transfer={recipe.transfer!r} says how to train a pretrained model, and there is none: "
            "say which with pretrained (--pretrained), or give one as model="
        )
    if recipe.l2_sp:
        raise InputError("l2_sp pulls toward pretrained weights, and there are none: leave it at 0, or say pretrained")
    return dataclasses.replace(recipe, transfer="none")


def normalisation(backbone: Backbone | None) -> tuple[Figures, Figures] | None:
    """Returns by what the pretrained model wants images normalised; `None` if that is not known, or nothing is."""
    if backbone is None or backbone.mean is None or backbone.std is None:
        return None
    return np.asarray(backbone.mean, np.float64), np.asarray(backbone.std, np.float64)


# ---------------------------------------------------------------------- in the run's folder


def about(backbone: Backbone | None) -> dict[str, Any] | None:
    """Returns what `run.json` says of it."""
    if backbone is None:
        return None
    return {
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
    module = rebuilt(told, model)
    if told is None or module is None:
        return None
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
    """Returns the module of what a run began as, without its weights; `None` if that was nothing.

    Raises:
        InputError: it cannot be made.
    """
    if told is None:
        return None
    try:
        architecture, config = told["architecture"], told["config"]
    except (KeyError, TypeError) as error:
        raise InputError(f"run.json is damaged: what it says of the backbone lacks {error}") from None
    return rebuild(architecture, config, num_classes=model["num_classes"], in_chans=model["in_chans"])
