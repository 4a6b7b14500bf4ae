"""What a source of pretrained weights holds, and the small readers of the JSON beside them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from trainwell.errors import InputError, in_one_line

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"

Figures = tuple[float, ...] | None
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation, as torchvision and timm take them


@dataclass(frozen=True, eq=False)
class Found:
    """What a source holds; `left_over` are weights that its own library did not take."""

    source: str
    architecture: str
    weights: Mapping[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    mean: Figures = None
    std: Figures = None
    img_size: int | None = None
    licence: str | None = None
    left_over: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """Returns the table that a file of JSON holds.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({in_one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no table")
    return content


def table_in(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Returns a table within another; an empty one if it is not there.

    Raises:
        InputError: there is something else.
    """
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: {name} is no table")
    return value


def figures_in(content: Mapping[str, Any], name: str, path: Path) -> Figures:
    """Returns a mean or a standard deviation of each channel; None if it is not there.

    Raises:
        InputError: there is something else, or a deviation that is not above 0.
    """
    value = content.get(name)
    if value is None:
        return None
    figures = tuple(value) if isinstance(value, list) else ()
    if not figures or not all(type(x) in (int, float) and math.isfinite(x) for x in figures):
        raise InputError(f"{path} is damaged: {name} is {value!r}, not a number for each channel")
    if name.endswith("std") and min(figures) <= 0:
        raise InputError(f"{path} is damaged: {name} is {value!r}, where deviations are above 0")
    return tuple(float(x) for x in figures)
