"""A sheet of pictures: what an augmentation does to one's own images."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainwell import random
from trainwell.augment.augment import Augment, Params
from trainwell.augment.warp import warp
from trainwell.images import Images

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS = 6
_TILE, _LABEL, _GAP = 96, 132, 4  # pixels
_ENLARGED = 1.25  # what crops are shown at, at least: of a square image that just covers the tile there is but one


def pictures(augment: Augment, images: Any, rows: npt.ArrayLike | None = None, seed: int = 0) -> "Image":
    """Returns a sheet: a row for each amount alone, from its one end to its other, and rows of all of them, drawn.

    Args:
        augment: what is shown; amounts that are 0 are left out.
        images: `tw.data.Images`, or a uint8 array or tensor of shape `(n, h, w[, c])` or `(n, c, h, w)`.
        rows: which of them are shown; by default the first two.
        seed: of the draws.

    Raises:
        InputError: the images are no such array, or `pca` lacks its `components`.

    >>> pictures(Augment(rotate=20), np.zeros((2, 32, 32, 3), np.uint8)).size  # .save("sheet.png"), .show()
    (732, 300)
    """
    from PIL import Image as Picture
    from PIL import ImageDraw

    images = Images.of(images)
    chosen = np.arange(min(2, len(images))) if rows is None else np.asarray(rows, np.int64)
    lines = [(name, each, params) for each in chosen[:1] for name, params in _alone(augment)]
    for each in chosen:
        keys = random.keys(random.key(seed, "pictures", int(each)), np.arange(_COLUMNS))
        lines.append(("all together", each, augment.params(keys)))
    sheet = Picture.new("RGB", (_LABEL + _COLUMNS * (_TILE + _GAP), len(lines) * (_TILE + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, each, params) in enumerate(lines):
        top = number * (_TILE + _GAP)
        pen.multiline_text((6, top + _TILE // 3), label.replace(" ", "\n", 1), fill="black")
        for column, tile in enumerate(_tiles(augment, images, int(each), params)):
            sheet.paste(Picture.fromarray(tile), (_LABEL + column * (_TILE + _GAP), top))
    return sheet


def _alone(augment: Augment) -> list[tuple[str, Params]]:
    """Returns a label and the draws for each amount that is on: from its one end to its other."""
    ends = np.linspace(-1, 1, _COLUMNS)
    low, high = augment.scales
    large = max(high, _ENLARGED)
    ways = np.stack([ends, np.zeros(_COLUMNS)], 1)
    names: dict[str, tuple[str, dict[str, Any]]] = {
        "flip": (f"flip {augment.flip:.0%}", {"flip": np.arange(_COLUMNS) % 2.0}),
        "flip_vertical": (f"flip_vertical {augment.flip_vertical:.0%}", {"flip_vertical": np.arange(_COLUMNS) % 2.0}),
        "crop": (
            f"crop {augment.crop:g} at scale {large:g}",
            {"position": augment.crop * np.stack([ends, ends], 1), "scale": np.full(1, large)},
        ),
        "scale": (f"scale {low:g} to {high:g}", {"scale": np.linspace(low, high, _COLUMNS)}),
        "translate": (f"translate ±{augment.translate:.0%}", {"translate": augment.translate * ways}),
        "rotate": (f"rotate ±{augment.rotate:g}°", {"rotate": augment.rotate * ends}),
        "stretch": (f"stretch {augment.stretch:.0%}", {"stretch": (1 + augment.stretch) ** ends}),
        "shear": (f"shear ±{augment.shear:g}°", {"shear": augment.shear * ends}),
        "lens": (f"lens ±{augment.lens:.0%}", {"lens": augment.lens * ends}),
        "brightness": (f"brightness ±{augment.brightness:.0%}", {"brightness": 1 + augment.brightness * ends}),
        "contrast": (f"contrast ±{augment.contrast:.0%}", {"contrast": 1 + augment.contrast * ends}),
        "saturation": (f"saturation ±{augment.saturation:.0%}", {"saturation": 1 + augment.saturation * ends}),
        "hue": (f"hue ±{augment.hue:g}°", {"hue": augment.hue * ends}),
        "pca": (f"pca {augment.pca:g}", {"pca": 3 * augment.pca * np.stack([ends, 0 * ends, 0 * ends], 1)}),
    }
    lines = [(label, Params(**params)) for name, (label, params) in names.items() if getattr(augment, name)]
    for name in ("erase", "cutout"):
        if amount := getattr(augment, name):
            wiped = Augment(erase=1.0) if name == "erase" else Augment(cutout=amount)
            boxes = wiped.params(random.keys(random.key(0, name), np.arange(_COLUMNS))).boxes
            lines.append((f"{name} {amount:.0%}", Params(boxes=boxes)))
    return lines


def _tiles(augment: Augment, images: Images, row: int, params: Params) -> npt.NDArray[np.uint8]:
    rows = np.full(_COLUMNS, row)
    views = augment.views(params, images.shapes[rows], (_TILE, _TILE), 3, 1 / 255)
    seen = warp(images, views, (_TILE, _TILE), rows=rows, padding_mode=augment.padding_mode)
    # Normalised and back, so that what is wiped out shows as what the model sees there: the mean.
    tiles = seen.permute(0, 2, 3, 1).numpy() * np.array(augment.std or 1) + np.array(augment.mean or 0)
    return np.asarray((255 * tiles).clip(0, 255).round(), np.uint8)
