"""A pretrained model from where its weights are: a run, a file, the Hugging Face hub, timm or transformers."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainwell.errors import InputError, nearest
from trainwell.models import NAMES, resnet
from trainwell.transfer.embedded import NAME as EMBEDDED
from trainwell.transfer.embedded import read_embedded
from trainwell.transfer.found import CONFIG, IMAGENET, WEIGHTS, Figures, Found, figures_in, read_json, table_in
from trainwell.transfer.hub import ON_THE_HUB, from_hub
from trainwell.transfer.libraries import from_timm, from_transformers, timm_model, transformers_model
from trainwell.transfer.saved import about_file, read_saved
from trainwell.transfer.state import Match, load_into, read_weights
from trainwell.transfer.surgery import find_head, replace_head
from trainwell.weights import is_within

_RESNETS = tuple(name for name in NAMES if name.startswith("resnet"))
_FORMS = "embedded, a run's folder, a .safetensors file, hub:NAME, timm:NAME or transformers:NAME"
_LARGE = {"2222": "resnet18", "3463": "resnet34", "3463 deep": "resnet50"}  # by the blocks of the stages
_OF_IMAGENET = 1_000  # classes
_OF_A_BLOCK = re.compile(r"(?:^|\.)layer(\d)\.(\d{1,2})\.(conv[123]|bn[123]|downsample\.[01])\.\w+$")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A model with pretrained weights and a new last layer.

    Attributes:
        model: takes images `(n, in_chans, height, width)` and returns logits `(n, num_classes)`, which are 0 as yet.
        source: where the weights came from, so that they can be had again; a file of the hub with its commit.
        architecture: what `rebuild` makes it from again: "resnet18", "timm:NAME" or "transformers:NAME".
        mean: what images of values from 0 to 1 were normalised by, of each channel; None if that is not known.
        std: likewise.
        img_size: height and width of the images that it was trained on; None if that is not known.
        licence: of the weights, as the hub says it.
        match: how the weights went into the model.
        config: what else `rebuild` needs; JSON can say it.
    """

    model: nn.Module
    source: str
    architecture: str
    mean: Figures
    std: Figures
    img_size: int | None
    licence: str | None
    match: Match
    config: dict[str, Any] = field(default_factory=dict)


def load_backbone(
    source: str | Path,
    *,
    model: str = "auto",
    num_classes: int,
    in_chans: int = 3,
    partial: bool = False,
    offline: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> Backbone:
    """Loads a pretrained model and gives it a new last layer.

    Weights are read from safetensors alone, and no code that comes with them is run.

    Args:
        source: "embedded", the small network that comes with the package; a run's folder; a `.safetensors` file, of
            `save_backbone` or of one of our ResNets, whose names are torchvision's; `hub:NAME`, such a ResNet of the
            Hugging Face hub in timm's layout, such as `hub:timm/resnet18.a1_in1k`; `timm:NAME` or `transformers:NAME`,
            through that library, where NAME may be a local folder. A name on the hub may end in `@` and a revision.
            With a file of a ResNet-18, 34 or 50 for 1,000 classes go ImageNet's mean and deviation.
        model: the architecture of a file, one of ours or `timm:NAME`; "auto" finds ours by the weights' names.
        num_classes: length of the model's output.
        in_chans: channels of the images; see `load_into` for another number than that of the weights.
        partial: take what fits, if not all does.
        offline: take what is on this machine alone.
        say: is told size and licence before a download.

    Raises:
        InputError: there is nothing there, it cannot be had or made, or the weights do not fit.
    """
    found = _find(str(source), model, offline, say)
    if model not in ("auto", found.architecture):
        raise InputError(f"{found.source} holds {found.architecture}, not {model!r}: leave out the model's name")
    width, told = _width(found.weights), found.config.get("width")
    if found.architecture in _RESNETS and None not in (width, told) and width != told:  # before much memory is taken
        raise InputError(f"{found.source} is damaged: it says that its width is {told} channels, and it is {width}")
    made = _make(found.architecture, found.config, num_classes, in_chans)
    head = find_head(made)
    match = load_into(made, found.weights, head=head, partial=partial)
    replace_head(made, num_classes)
    return Backbone(
        made, found.source, found.architecture, for_channels(found.mean, in_chans), for_channels(found.std, in_chans),
        found.img_size, found.licence, _with_new_head(match, made, head, found.left_over), found.config,
    )  # fmt: skip


def rebuild(architecture: str, config: Mapping[str, Any], *, num_classes: int, in_chans: int) -> nn.Module:
    """Makes the model of a `Backbone` again, without its weights and without a network.

    Args:
        architecture: as of the backbone.
        config: likewise. It may come from somebody else: nothing in it is run.
        num_classes: length of the output; the last layer is 0.
        in_chans: channels of the images.

    Raises:
        InputError: it cannot be made.

    >>> rebuild("resnet8", {"width": 4}, num_classes=3, in_chans=1).fc
    Linear(in_features=16, out_features=3, bias=True)
    """
    made = _make(architecture, config, num_classes, in_chans)
    replace_head(made, num_classes)
    return made


def _with_new_head(match: Match, made: nn.Module, head: str, left_over: tuple[str, ...]) -> Match:
    """Returns how the weights went into the model once its last layer was replaced."""
    body = tuple(name for name in match.matched if not is_within(name, head))
    lacking = tuple(name for name in match.reinitialised if not is_within(name, head))
    new = tuple(name for name in made.state_dict() if is_within(name, head))
    return dataclasses.replace(match, matched=body, reinitialised=lacking + new, left_over=match.left_over + left_over)


def for_channels(figures: Figures, channels: int) -> Figures:
    """Returns figures of each channel for another number of them, as the first convolution's weights are adapted.

    >>> for_channels((0.25, 0.5, 0.75), 1), for_channels((0.25, 0.5, 0.75), 4)
    ((0.5,), (0.25, 0.5, 0.75, 0.25))
    """
    if figures is None or len(figures) == channels:
        return figures
    if channels == 1:
        return (sum(figures) / len(figures),)
    return (figures * -(-channels // len(figures)))[:channels]


def _make(architecture: str, config: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """Makes a model by its name, with random weights."""
    kind, _, name = architecture.partition(":")
    if kind == "timm":
        return timm_model(name, config, num_classes, in_chans)
    if kind == "transformers":
        return transformers_model(config, num_classes, in_chans)
    if architecture not in _RESNETS:
        raise InputError(
            f"there are no pretrained weights for a model {architecture!r}{nearest(architecture, _RESNETS)}: "
            f"it is one of {', '.join(_RESNETS)}, or comes from timm:NAME or transformers:NAME"
        )
    width = config.get("width")
    if width is not None and not (isinstance(width, int) and 0 < width <= 4096):
        raise InputError(f"the width of {architecture} is {width!r}: it is a number of channels, up to 4096")
    make: Callable[..., nn.Module] = getattr(resnet, architecture)
    return make(num_classes=num_classes, in_chans=in_chans, **({} if width is None else {"width": width}))


def _find(source: str, model: str, offline: bool, say: Callable[[str], object]) -> Found:
    kind, _, name = source.partition(":")
    if source == EMBEDDED:
        return read_embedded()
    if kind == "hub":
        return from_hub(name, offline, say)
    if kind == "timm":
        return from_timm(name, offline, say)
    if kind == "transformers":
        return from_transformers(name, offline, say)
    path = Path(source)
    if path.is_dir():
        return _from_run(path)
    if path.exists():
        return _from_file(path, model)
    raise InputError(f"there is nothing at {source}: pretrained weights are in {_FORMS}")


# ---------------------------------------------------------------------- what is on this machine


def _from_run(folder: Path) -> Found:
    """Reads a run that `fit` has made."""
    if not (folder / "run.json").exists():
        hint = f"; for a model's folder say transformers:{folder}" if (folder / CONFIG).exists() else ""
        raise InputError(f"{folder} holds no run: pretrained weights are in {_FORMS}{hint}")
    info = read_json(folder / "run.json")
    about, given, backbone = (table_in(info, name, folder / "run.json") for name in ("model", "given", "backbone"))
    if given.get("model"):
        raise InputError(
            f"{folder} was trained with a model of yours: put its weights into it yourself, by "
            "load_into(model, read_weights(…))"
        )
    if backbone.get("cut"):
        raise InputError(
            f"{folder} is a last layer on an early stage of {backbone.get('source')}, which it left alone: give that"
        )
    img_size = about.get("img_size")
    return Found(
        str(folder), str(about.get("name")), read_weights(folder / WEIGHTS),
        config=table_in(backbone, "config", folder / "run.json"), mean=figures_in(info, "mean", folder / "run.json"),
        std=figures_in(info, "std", folder / "run.json"), img_size=img_size if isinstance(img_size, int) else None,
    )  # fmt: skip


def _from_file(path: Path, model: str) -> Found:
    """Reads a file of weights, whose architecture it says itself, or is named or found."""
    about = about_file(path)
    if about:
        return read_saved(path, about)
    weights = read_weights(path)
    width = _width(weights)
    if model == "auto":
        model = _resnet_of(weights, path)
    mean, std = IMAGENET if _of_imagenet(weights, model) else (None, None)
    config = {"width": width} if width and model in _RESNETS else {}
    return Found(str(path), model, weights, config=config, mean=mean, std=std)


def _of_imagenet(weights: Mapping[str, Tensor], model: str) -> bool:
    """Says whether a ResNet is one of those for ImageNet, all of which torchvision and timm normalise alike.

    Its images' size is not taken with that: these networks see any, and small images made so large take long.
    """
    heads = [value for name, value in weights.items() if f".{name}".endswith(".fc.weight")]
    return model in ON_THE_HUB and any(head.ndim == 2 and len(head) == _OF_IMAGENET for head in heads)


def _width(weights: Mapping[str, Tensor]) -> int | None:
    """Returns how many channels the first convolution of a ResNet gives; None where there is none of that name."""
    names = [name for name, value in weights.items() if f".{name}".endswith(".conv1.weight") and value.ndim == 4]
    width = weights[min(names, key=len)].shape[0] if names else 0
    return width if 0 < width <= 4096 else None


def _resnet_of(weights: Mapping[str, Tensor], path: Path) -> str:
    """Returns the name of the ResNet whose blocks the weights' names tell; `load_into` sees to the shapes."""
    in_stages = [name for name in weights if re.search(r"(^|\.)layer\d+\.", name)]
    told = [_OF_A_BLOCK.search(name) for name in in_stages]
    blocks = {match.group(1, 2) for match in told if match}
    depths = Counter(stage for stage, _ in sorted(blocks)).values()
    deep = " deep" if any(match and match[3] == "conv3" for match in told) else ""
    large = _LARGE.get("".join(map(str, depths)) + deep, "")
    name = f"resnet{2 + 2 * sum(depths)}" if len(depths) == 3 and not deep else large
    if name not in _RESNETS or not all(told):
        raise InputError(
            f"the architecture of {path} is not to be seen by its weights' names: it is none of "
            f"{', '.join(_RESNETS)}; say which with model=, or take timm:NAME or transformers:NAME"
        )
    return name
