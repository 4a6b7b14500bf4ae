"""A model from its name."""

import contextlib
import importlib
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from trainwell.errors import InputError, in_one_line, nearest
from trainwell.models import resnet
from trainwell.models.mlp import MLP
from trainwell.regularize import apply

_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f"resnet{depth}": getattr(resnet, f"resnet{depth}") for depth in (8, 14, 20, 32, 44, 56, 18, 34, 50)
}
NAMES = ("mlp", *_RESNETS)


def default_name(img_size: int | None) -> str:
    """Returns the name of the model that suits the data: images of `img_size` pixels a side, or feature vectors (None).

    >>> default_name(None), default_name(8), default_name(32), default_name(224)
    ('mlp', 'resnet8', 'resnet20', 'resnet18')
    """
    # The aim is a forward and backward pass that a CPU with a few cores can afford: about 1 million multiply-adds an
    # image for the 8 pixels of digits, 41 million for the 32 of CIFAR, 163 million at 64. Beyond that the first stage
    # of the small family, at full resolution, costs more than all of resnet18 (149 million at 64), which halves twice.
    if img_size is None:
        return "mlp"
    if img_size <= 16:
        return "resnet8"
    return "resnet20" if img_size <= 64 else "resnet18"


def create(
    model: str | nn.Module,
    *,
    num_classes: int,
    in_chans: int | None = None,
    img_size: int | None = None,
    in_features: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    drop_map_rate: float = 0.0,
    dropconnect: float = 0.0,
    allow_code: bool = True,
) -> nn.Module:
    """Makes a model for the data, from a name of ours or from a function of yours.

    A function is written `"package.module:function"` (a class does as well), is looked for in the working directory
    too, and is called with those of these arguments that it takes; noise by name alone, and where it is above 0. A
    value that is not known (None) is left to the function's default. Noise that it does not take is put into what it
    makes, as into a module of yours, which keeps it: see `trainwell.regularize.apply`.

    Args:
        model: a name from `NAMES`, a `"package.module:function"`, or a module, to be returned, with noise if asked for.
        num_classes: length of the model's output.
        in_chans: channels of the images; None for feature vectors.
        img_size: height and width of the images; None for feature vectors, or where the model takes any size.
        in_features: numbers a sample; for images it follows from `in_chans` and `img_size`.
        drop_rate: fraction of units that is dropped before the last layer, or where the model has dropout already, from
            0 to below 1.
        drop_path_rate: fraction of the images that skip the last residual block, from 0 to below 1.
        drop_map_rate: fraction of feature maps that is dropped before each convolution but the first and those of one
            pixel.
        dropconnect: fraction of the weights that is dropped in the last linear layer.
        allow_code: import and call functions by name. Set it to False where the name comes from a file of somebody
            else's: a run directory is data, never code.

    Raises:
        InputError: the name is unknown, does not fit the data, is refused, or what it names fails or makes no module;
            or the model has no place for noise that is asked for.

    >>> create("resnet8", num_classes=10, in_chans=1).fc
    Linear(in_features=64, out_features=10, bias=True)
    """
    rates = {
        "drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "drop_map_rate": drop_map_rate,
        "dropconnect": dropconnect,
    }  # fmt: skip
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"{name} is {rate}: it is the fraction dropped, from 0 to below 1")
    if isinstance(model, nn.Module):
        return _with_noise(model, rates)
    for name, size in {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size}.items():
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}: it must be at least 1")
    if in_features is None and in_chans is not None and img_size is not None:
        in_features = in_chans * img_size**2
    if model == "mlp":
        if in_features is None:
            raise InputError("the model 'mlp' needs the length of a sample: give in_features, or in_chans and img_size")
        return _with_noise(MLP(in_features, num_classes), rates)
    if model in _RESNETS:
        if in_chans is None:
            raise InputError(f"the model {model!r} needs images (in_chans): take 'mlp' for feature vectors")
        return _with_noise(_RESNETS[model](in_chans=in_chans, num_classes=num_classes), rates)
    if ":" not in model:
        raise InputError(
            f"unknown model {model!r}{nearest(model, NAMES)}: it is one of {', '.join(NAMES)}, "
            "or a function of yours as 'package.module:function'"
        )
    if not allow_code:
        raise InputError(
            f"the model {model!r} is code that is not part of trainwell and is not run because a file names it: "
            "make the model yourself and pass model="
        )
    known = {"num_classes": num_classes, "in_chans": in_chans, "img_size": img_size, "in_features": in_features}
    with _working_directory_importable():
        made, taken = _call(model, {name: value for name, value in known.items() if value is not None}, rates)
    return _with_noise(made, {name: rate for name, rate in rates.items() if name not in taken})


NOISE = {
    "drop_rate": "dropout", "drop_path_rate": "stochastic_depth", "drop_map_rate": "feature_dropout",
    "dropconnect": "dropconnect",
}  # fmt: skip
"""The arguments of `create` that put noise into a model, which are fields of a recipe; what `apply` calls them."""


def _with_noise(model: nn.Module, rates: dict[str, float]) -> nn.Module:
    """Puts noise into a model; what a layer of the model drops already stays so where nothing is asked for."""
    asked: dict[str, Any] = {NOISE[name]: rate for name, rate in rates.items() if rate}
    try:
        apply(model, **asked)
    except InputError as error:
        word, colon, why = str(error).partition(":")
        name = next((name for name in NOISE if NOISE[name] == word), word)
        raise InputError(f"{name}{colon}{why}; or leave it at 0") from error
    return model


def _call(name: str, known: dict[str, int], rates: dict[str, float]) -> tuple[nn.Module, set[str]]:
    """Imports `package.module:function` and calls it with what it takes; returns also which noise it took."""
    module_name, _, attribute = name.partition(":")
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module_name))
    except Exception as error:
        raise InputError(f"the model {name!r} cannot be imported: {in_one_line(error)}") from error
    if isinstance(function, nn.Module) or not callable(function):
        raise InputError(f"the model {name!r} is no function but of type {type(function).__name__}: pass it as model=")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:  # some functions that are written in C
        raise InputError(f"the model {name!r} does not say what it takes: wrap it in a function of yours") from error
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    arguments: dict[str, float] = {key: value for key, value in known.items() if anything or key in taken}
    noise = {key: rate for key, rate in rates.items() if key in taken and (rate > 0 or taken[key])}
    arguments |= noise
    for needed in [key for key, required in taken.items() if required and key not in arguments]:
        raise InputError(f"the model {name!r} needs {needed!r}, which the data do not give: give it a default")
    try:
        made = function(**arguments)
    except Exception as error:
        raise InputError(f"the model {name!r} failed: {in_one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"the model {name!r} must return a torch.nn.Module, not a {type(made).__name__}")
    return made, set(noise)


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Lets a console script import from the working directory, as `python -m` does.

    It comes last on the path: a file there never hides an installed package.
    """
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
