"""Named strengths of augmentation, and reading one from text."""

import ast
import dataclasses
from typing import Any

from trainwell.augment.augment import Augment
from trainwell.augment.colour import Components
from trainwell.errors import InputError, nearest

_DRAWN = {field.name for field in dataclasses.fields(Augment)} - {
    "size", "mean", "std", "components", "dtype", "channels_last",
}  # fmt: skip


_PCA = 0.1  # AlexNet's
_STANDARD: dict[str, Any] = {
    "flip": 0.5, "crop": 1.0, "scale": (0.9, 1.25), "translate": 0.1, "rotate": 10.0, "stretch": 0.1,
    "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
}  # fmt: skip
_STRONG: dict[str, Any] = {
    "flip": 0.5, "crop": 1.0, "scale": (0.8, 1.5), "translate": 0.15, "rotate": 20.0, "stretch": 0.2, "shear": 8.0,
    "lens": 0.15, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 10.0, "erase": 0.25,
}  # fmt: skip


def none(**changes: Any) -> Augment:
    """Returns an augmentation that does nothing but what `changes` say.

    >>> none(rotate=5)
    Augment(rotate=5)
    """
    return Augment(**changes)


def light(**changes: Any) -> Augment:
    """Returns flips, and crops that are moved about a little.

    >>> light(rotate=5)
    Augment(flip=0.5, crop=1.0, translate=0.1, rotate=5)
    """
    return Augment(**{"flip": 0.5, "crop": 1.0, "translate": 0.1} | changes)


def standard(**changes: Any) -> Augment:
    """Returns a mix of small distortions and changes of colour, which suits most photographs; what `fit` does.

    With the training set's `components` also `pca=0.1`.

    >>> standard(flip=0.0, size=224).flip
    0.0
    """
    return Augment(**_STANDARD | _pca(changes) | changes)


def strong(**changes: Any) -> Augment:
    """Returns all of it, for long training and few images; with the training set's `components` also `pca=0.1`.

    >>> strong(erase=0.0).scale
    (0.8, 1.5)
    """
    return Augment(**_STRONG | _pca(changes) | changes)


def _pca(changes: dict[str, Any]) -> dict[str, float]:
    return {"pca": _PCA} if changes.get("components") else {}


PRESETS = {"none": none, "light": light, "standard": standard, "strong": strong}


def parse(text: str, components: Components | None = None) -> Augment:
    """Reads an augmentation from text, without running any of it: a preset, with changes if any, or amounts.

    Args:
        text: such as `standard`, `standard(flip=0.0)` or `Augment(rotate=10, scale=(1.0, 1.5))`.
        components: of the training set's colours, for `pca`.

    Raises:
        InputError: the text is nothing of that kind, or an amount is out of its range.

    >>> parse("light(translate=0.2)")
    Augment(flip=0.5, crop=1.0, translate=0.2)
    """
    names = [*PRESETS, "Augment"]
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    match node:
        case ast.Name(id=name):
            changes: list[ast.keyword] = []
        case ast.Call(func=ast.Name(id=name), args=[], keywords=changes):
            pass
        case _:
            raise InputError(
                f"augment must be one of {', '.join(PRESETS)}, or amounts as in standard(flip=0); it is {text!r}"
            )
    if name not in names:
        hint = nearest(name, names)
        raise InputError(
            f"augment must be one of {', '.join(PRESETS)}, or amounts as in standard(flip=0); it is {text!r}{hint}"
        )
    values = {}
    for change in changes:
        if change.arg not in _DRAWN or change.arg in values:
            known = nearest(change.arg or "**", sorted(_DRAWN))
            raise InputError(f"augment: {change.arg!r} is none of the amounts (size and normalisation are set by fit), "
                             f"or there twice{known}")  # fmt: skip
        try:
            values[change.arg] = ast.literal_eval(change.value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise InputError(f"augment: {change.arg} must be a number; it is {ast.unparse(change.value)}") from None
    return PRESETS.get(name, Augment)(components=components, **values)
