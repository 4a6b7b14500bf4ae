"""Augmentation of images: any mix of distortions and colours in one pass, in training and averaged at test."""

from typing import TYPE_CHECKING

from trainwell._lazy import attributes

if TYPE_CHECKING:
    from trainwell.augment.augment import Augment, Params
    from trainwell.augment.colour import Components, principal_components
    from trainwell.augment.presets import PRESETS, light, none, parse, standard, strong
    from trainwell.augment.sheet import pictures
    from trainwell.augment.views import View, flips, multi_scale, parse_views, samples, shifts, ten_crop

__all__ = [
    "PRESETS",
    "Augment",
    "Components",
    "Params",
    "View",
    "flips",
    "light",
    "multi_scale",
    "none",
    "parse",
    "parse_views",
    "pictures",
    "principal_components",
    "samples",
    "shifts",
    "standard",
    "strong",
    "ten_crop",
]

__getattr__ = attributes(
    __name__,
    {
        **dict.fromkeys(("Augment", "Params"), "augment"),
        **dict.fromkeys(("Components", "principal_components"), "colour"),
        **dict.fromkeys(("View", "flips", "multi_scale", "parse_views", "samples", "shifts", "ten_crop"), "views"),
        "pictures": "sheet",
        **dict.fromkeys(("PRESETS", "light", "none", "parse", "standard", "strong"), "presets"),
    },
)
