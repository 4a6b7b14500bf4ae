"""Which augmentation suits the data, and what it needs to know of them."""

import string
from collections.abc import Sequence

from trainwell.augment import Augment, parse, principal_components
from trainwell.data.dataset import Part
from trainwell.images import Images

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_SYMBOLS = {*string.ascii_lowercase, *(str(number) for number in range(100)), *_WORDS}


def chosen(task: str, classes: Sequence[str], images: bool) -> tuple[str, str]:
    """Returns the augmentation where nobody says one, and why it is not the usual one, if it is not.

    Args:
        task: "classification", "multilabel" or "regression".
        classes: their names.
        images: whether samples are images.

    >>> chosen("classification", ["cat", "dog"], True)
    ('standard', '')
    >>> chosen("classification", ["0", "1", "2"], True)[0]
    'standard(flip=0.0)'
    """
    if not images:
        return "none", ""
    if task == "regression":
        return "none", (
            "no augmentation, because a number may depend on place, direction or brightness: "
            "say which changes leave it alone, as in augment='standard' or 'standard(rotate=0)'"
        )
    if classes and all(name.strip().lower() in _SYMBOLS for name in classes):
        few = ", ".join(classes[:3])
        return "standard(flip=0.0)", (
            f"no flips, because classes called {few} … may be digits or letters, which mirrored are others or none: "
            "if they are not, augment='standard'"
        )
    return "standard", ""


def of_part(text: str, part: Part) -> Augment:
    """Returns an augmentation as it is written in a recipe, for a training part."""
    images = part.inputs
    return parse(text, principal_components(images, part.indices) if isinstance(images, Images) else None)
