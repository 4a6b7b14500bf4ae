"""Pictures of augmentation, made by the package itself from a drawn image and from digits. See `pictures.py`."""

import dataclasses
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, legend, panels
from regularizer_pictures import bare, digits, histogram
from trainwell import augment, ensemble, optim, random
from trainwell.augment import Augment, Params
from trainwell.data import Images

SIDE = 60  # pixels of an image in a picture


# ---------------------------------------------------------------------- tools


def drawn(width: int = SIDE, height: int = SIDE) -> Tensor:
    """Draws an image with a grid, the letter R and a disc: uint8, (1, 3, height, width)."""
    times = 4  # drawn large and averaged, so that edges are smooth
    picture = Image.new("RGB", (width * times, height * times), "#f4ead6")
    pen, unit = ImageDraw.Draw(picture), height * times / 60
    for at in range(0, 60 * width // height + 1, 12):
        pen.line((at * unit, 0, at * unit, height * times), "#b9c6d2", round(unit))
    for at in range(0, 61, 12):
        pen.line((0, at * unit, width * times, at * unit), "#b9c6d2", round(unit))
    middle = width * times / 2 - 30 * unit
    strokes = [(14, 50), (14, 12), (27, 12), (32, 16), (33, 21), (32, 26), (27, 30), (14, 30)]
    pen.line([(middle + x * unit, y * unit) for x, y in strokes], "#24405e", round(5.5 * unit), joint="curve")
    pen.line([(middle + 22 * unit, 30 * unit), (middle + 34 * unit, 50 * unit)], "#24405e", round(6 * unit))
    pen.ellipse((middle + 38 * unit, 8 * unit, middle + 55 * unit, 25 * unit), "#d8502f")
    pen.ellipse((middle + 41 * unit, 36 * unit, middle + 53 * unit, 48 * unit), "#3f9a5a")
    pixels = np.array(picture.resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def photograph() -> tuple[Tensor, augment.Components]:
    """Returns the drawn image, and the principal components of its colours."""
    image = drawn()
    return image, augment.principal_components(Images.from_array(image.numpy()))


def shown(
    axis: Any, rows: list[list[Tensor]], words: list[list[str]], gap: int = 6, names: tuple[str, ...] = ()
) -> None:
    """Shows rows of images of one size, (3, h, w) from 0 to 1, with words below each, and names on their left."""
    height, width = rows[0][0].shape[1:]
    across, down = width + gap, height + (gap if not any(map(any, words)) else 11 * height // 60)
    whole = np.full((len(rows) * down, max(map(len, rows)) * across - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for k, image in enumerate(row):
            pixels = (255 * image).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
            whole[r * down : r * down + height, k * across : k * across + width] = pixels
            at = k * across + width / 2 - 0.5, r * down + height + 1
            axis.text(*at, words[r][k] if words else "", ha="center", va="top", fontsize=7.5, color="#444")
        if names:
            axis.text(-gap, r * down + height / 2, names[r], ha="right", va="center", fontsize=9, color="#444")
    bare(axis).imshow(whole, interpolation="none")


def many(image: Tensor, aug: Augment, count: int, *where: int | str) -> list[Tensor]:
    return list(aug(image.expand(count, -1, -1, -1), keys=random.keys(random.key(*where), range(count))))


def one(image: Tensor, **params: Any) -> Tensor:
    """Returns an image with something done to it, by what `Params` calls it."""
    given = Params(**{name: np.atleast_1d(np.array(value, np.float64)) for name, value in params.items()})
    return Augment()(image, params=given)[0]


# ---------------------------------------------------------------------- the cards


GREYED = {"mean": (0.5,) * 3, "std": (1.0,) * 3}  # what is wiped out is 0 after normalisation: here mid-grey


def augmentation() -> None:
    axis = panels("", height=2.9)
    image, components = photograph()
    rows = []
    for name in ("light", "standard", "strong"):
        aug = augment.PRESETS[name](components=components, **GREYED)
        rows.append([changed + 0.5 for changed in many(image, aug, 7, 0, "picture")])
    shown(axis, rows, [], names=("light", "standard", "strong"))


def geometry() -> None:
    top, bottom = _stacked((1, 1.55), height=3.5)
    image = drawn()
    kinds: dict[str, dict[str, Any]] = {
        "flip": {"flip": 1}, "scale 1.5": {"scale": 1.5}, "the same, crop": {"scale": 1.5, "position": [[1, -1]]},
        "translate 0.2": {"translate": [[0.2, 0]]}, "rotate 20": {"rotate": 20}, "stretch 1.4": {"stretch": 1.4},
        "shear 20": {"shear": 20}, "lens 0.33": {"lens": 0.33},
    }  # fmt: skip
    shown(top, [[one(image, **params) for params in kinds.values()]], [list(kinds)])
    rings = _rings(480)
    thrice = image / 255
    for params in ({"rotate": 20}, {"rotate": -3, "scale": 0.95}, {"rotate": -12, "scale": 1 / 0.95}):
        thrice = one(thrice, **params)[None]
    wide, near = slice(None), slice(10, 40)
    row = [
        _enlarged(rings[0, :, 4::8, 4::8] / 255, wide), _enlarged(Augment(size=SIDE)(rings)[0], wide),
        _enlarged(one(image, rotate=5), near), _enlarged(thrice[0], near),
    ]  # fmt: skip
    words = ["480 to 60 pixels: every eighth", "to the means of blocks", "turned by 20, −3, −12: one pass",
             "the same in three passes"]  # fmt: skip
    shown(bottom, [row], [words], gap=16)


def _enlarged(image: Tensor, part: slice) -> Tensor:
    """Returns a part of an image, 120 pixels wide, with every pixel as a square."""
    few = image[:, part, part]
    times = 120 // few.shape[1]
    return few.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _rings(side: int) -> Tensor:
    """Draws rings that get narrower outwards: uint8, (1, 3, side, side)."""
    x = (torch.arange(side) + 0.5) / side - 0.5
    squared = x[None] ** 2 + x[:, None] ** 2
    grey = (127.5 + 127.5 * torch.cos(2 * torch.pi * 90 * squared)).round().byte()
    return grey.expand(1, 3, side, side).contiguous()


def _stacked(heights: tuple[float, float], height: float) -> Any:
    from matplotlib import pyplot as plt

    _, axes = plt.subplots(2, 1, figsize=(7.6, height), layout="constrained", height_ratios=heights)
    return axes


def colour() -> None:
    left, right = panels("", "pca=0.1: what is added, of 255", widths=(2.4, 1), height=2.3)
    image, components = photograph()
    aug = Augment(components=components)
    names = ("brightness", "contrast", "saturation", "hue", "pca")
    rows, words = [], []
    for values in ((0.7, 0.6, 0.3, -40, [[-1, 0, 0]]), (1.3, 1.4, 1.7, 40, [[1, 0, 0]])):
        changes = [
            {name: np.atleast_1d(np.array(value, np.float64))} for name, value in zip(names, values, strict=True)
        ]
        rows.append([aug(image, params=Params(**change))[0] for change in changes])
        words.append([f"{name} {value:g}".replace("-", "−") for name, value in zip(names, values[:4], strict=False)])
        words[-1].append(f"pca {values[4][0][0]}, 0, 0".replace("-", "−"))
    shown(left, rows, words)
    alphas = dataclasses.replace(aug, pca=0.1).params(random.keys(random.key(0), range(20_000))).pca
    added = 255 * (alphas * np.array(components.values)) @ np.array(components.vectors)
    for channel, (name, color) in enumerate((("red", ORANGE), ("green", GREEN), ("blue", BLUE))):
        histogram(right, added[:, channel], np.linspace(-16, 16, 33), name, color)
    legend(right, loc="upper left")


def erasing() -> None:
    left, right = panels("", "part of the area that is wiped out", widths=(2.3, 1), height=2.2)
    image = drawn()
    rows = [[x + 0.5 for x in many(image, Augment(**options, **GREYED), 5, 1, "picture")]
            for options in ({"erase": 1.0}, {"cutout": 0.5})]  # fmt: skip
    shown(left, rows, [], names=("erase", "cutout 0.5"))
    keys = random.keys(random.key(0), range(20_000))
    for options, name, color in (({"erase": 1.0}, "erase", BLUE), ({"cutout": 0.5}, "cutout 0.5", ORANGE)):
        top, leftmost, bottom, rightmost = Augment(**options).params(keys, (32, 32)).boxes[:, 0].T
        histogram(right, (bottom - top) * (rightmost - leftmost), np.linspace(0, 0.4, 41), name, color)
    right.set(xlabel="of the image")
    legend(right, loc="upper left")


def test_time() -> None:
    left, right = panels("ten crops: five, and their mirror images", "digits not seen: averaged over views",
                         widths=(1, 1.25), height=2.9)  # fmt: skip
    wide = drawn(90, 60)
    bare(left).imshow(wide[0].permute(1, 2, 0).numpy(), interpolation="none")
    size = 40
    corners = [(0, 0), (90 - size, 0), (0, 60 - size), (90 - size, 60 - size), ((90 - size) / 2, (60 - size) / 2)]
    for (x, y), color in zip(corners, (BLUE, ORANGE, GREEN, PURPLE, "black"), strict=True):
        left.add_patch(Rectangle((x - 0.5, y - 0.5), size, size, fill=False, edgecolor=color, linewidth=1.6))
    x, y, others, answers = digits()
    aug = augment.none(rotate=10, shear=10, translate=0.06, padding_mode="zeros")
    model = _network(x, y, aug)
    counts = [1, 2, 4, 8, 16, 32]
    losses = [_loss(model, others, answers, augment.samples(aug, count)) for count in counts]
    right.semilogx(counts, losses, color=BLUE, marker="o", markersize=3, label="draws of the training's augmentation")
    for name, views, color in (
        ("flips: as they are, and mirrored", augment.flips(), ORANGE),
        ("as they are", [], GREY),
    ):
        right.axhline(_loss(model, others, answers, views), color=color, linestyle="--", linewidth=1.2, label=name)
    right.set(xlabel="draws", ylabel="loss", xticks=counts, xticklabels=counts, ylim=(0, 0.6))
    right.minorticks_off()
    legend(right, fontsize=8)


def _network(x: Tensor, y: Tensor, aug: Augment) -> nn.Module:
    """Trains a small convolutional network on digits that are changed by an augmentation."""
    random.seed_everything(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(40):
        for rows in np.array_split(random.permutation(len(x), epoch), 12):
            optimizer.zero_grad()
            seen = aug(x[rows], keys=random.keys(random.key(0, "augment", epoch), rows))
            cross_entropy(model(seen), y[rows]).backward()
            optimizer.step()
    return model.eval()


def _loss(model: nn.Module, x: Tensor, y: Tensor, views: list[augment.View]) -> float:
    p = ensemble.marginalize(model, x, crops=views).probabilities
    return float(-p[torch.arange(len(y)), y].log().mean())


PICTURES = (augmentation, geometry, colour, erasing, test_time)
