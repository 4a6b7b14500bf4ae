"""Which augmentation suits the data, and what it needs to know of them."""

import unicodedata
from collections.abc import Sequence

from trainwell.augment import Augment, parse, principal_components
from trainwell.data.dataset import Part
from trainwell.images import Images

_WORDS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


def chosen(task: str, classes: Sequence[str], images: bool) -> tuple[str, str]:
    """Returns the augmentation where nobody says one, and why it is not the usual one, if it is not.

    Args:
        task: "classification", "multilabel" or "regression".
        classes: their names.
        images: whether samples are images.

    >>> chosen("classification", ["cat", "dog"], True)
    ('standard', '')
    >>> chosen("classification", ["0", "1", "2", "none"], True)[0]
    'standard(flip=0.0)'
    """
    if not images:
        return "none", ""
    if task == "regression":
        return "none", (
            "no augmentation, because a number may depend on place, direction or brightness: "
            "say which changes leave it alone, as in augment='standard' or 'standard(rotate=0)'"
        )
    symbols = [name for name in classes if _is_symbol(name)]
    if len(symbols) > 1:  # one alone may be a name: "c" beside "python"
        few = ", ".join(symbols[:3])
        return "standard(flip=0.0)", (
            f"no flips, because classes called {few} … may be digits or letters, which mirrored are others or none: "
            "if they are not, augment='standard'"
        )
    return "standard", ""


def _is_symbol(name: str) -> bool:
    """Says whether a class is called as a digit or a letter is, of any script.

    >>> [_is_symbol(name) for name in ("7", "042", "b_lower", "Digit_7", "é", "あ", "ten", "cat", "100", "+")]
    [True, True, True, True, True, True, True, False, False, False]
    """
    name = unicodedata.normalize("NFC", name.strip().lower())  # folders on a Mac hold é as two characters
    name = name.removeprefix("digit_").removeprefix("letter_").removesuffix("_upper").removesuffix("_lower")
    below_100 = name.isdecimal() and len(name.lstrip("0")) <= 2
    return below_100 or (len(name) == 1 and name.isalnum()) or name in _WORDS


def of_part(text: str, part: Part) -> Augment:
    """Returns an augmentation as it is written in a recipe, for a training part."""
    images = part.inputs
    return parse(text, principal_components(images, part.indices) if isinstance(images, Images) else None)
