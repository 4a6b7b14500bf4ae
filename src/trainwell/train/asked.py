"""What a call of `fit` asks for: a recipe, options of loading, and the data that they give."""

import dataclasses
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainwell.data.dataset import Data, Notice, Samples
from trainwell.data.divide import divide, usual_folds
from trainwell.data.sources import absolute, load, read
from trainwell.errors import InputError, nearest
from trainwell.train.recipe import Recipe

_LOADING = {name: parameter.default for name, parameter in inspect.signature(load).parameters.items()
            if name not in ("source", "folds", "fold", "quiet")}  # fmt: skip


def told_apart(
    given: Recipe | Path | str | None, options: dict[str, Any], also: Iterable[str]
) -> tuple[Recipe, dict[str, Any]]:
    """Returns the recipe with some fields changed, and the options of loading.

    Args:
        given: the recipe, a file of one, or nothing.
        options: fields of a recipe, which take the place of the recipe's own, and options of `trainwell.load`. A length
            among the fields (`epochs`, `steps`, `minutes`) takes the place of any other.
        also: other names that may have been meant by one that is mistyped.

    Raises:
        InputError: a name is neither, or the recipe is none.
    """
    recipe = Recipe.load(given) if isinstance(given, Path | str) else given or Recipe()
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe must be a Recipe or the path of one, not a {type(given).__name__}")
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in options:
        if name not in known and name not in _LOADING:
            hint = nearest(name, [*known, *_LOADING, *also])
            raise InputError(f"neither fit, nor a recipe, nor load has {name!r}{hint}")
    fields = {name: value for name, value in options.items() if name in known}
    recipe = recipe.but(**fields)
    loading = {name: value for name, value in options.items() if name in _LOADING}
    if loading.get("images") is not None:
        loading["images"] = str(absolute(loading["images"]))
    return recipe, loading


def check_save_seconds(save_seconds: float) -> None:
    """Refuses what is no time between two saves."""
    if not save_seconds >= 0:
        raise InputError(f"save_seconds must be at least 0; it is {save_seconds}")


def changed(loading: dict[str, Any], folds: int | None) -> dict[str, Any]:
    """Returns the options of loading that are not at their defaults; asking for a test part asks for no folds."""
    asked = {name: value for name, value in loading.items() if value != _LOADING[name] or name == "test"}
    return asked | ({} if folds is None else {"folds": folds})


def read_data(source: Any, asked: dict[str, Any], folds: int | None, quiet: bool) -> tuple[Samples | None, Data]:
    """Returns what a source holds, if it is not divided already, and the data of the model that is kept."""
    if isinstance(source, Data):
        names = [name for name in asked if name != "folds" or folds != 1]
        if names:
            listed = " and ".join(names)
            raise InputError(f"{listed} cannot change data that are loaded already; give them to trainwell.load")
        if len(source.test) == 0:
            raise InputError("the data have no test part; give fit the source itself, and folds=")
        return None, source
    samples, options = read(source, {**_LOADING, **asked, "folds": 1 if folds is None else folds, "fold": None}, quiet)
    if folds is None and "test" not in asked:
        options["folds"], why = usual_folds(samples)
        if why:
            told = Notice("folds", f"one split, and no cross-validation, because {why}")
            samples = dataclasses.replace(samples, notices=(*samples.notices, told))
    return samples, divide(samples, options)
