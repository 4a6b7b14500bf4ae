"""How many near-duplicates `trainwell.data.duplicates` finds, and how many it reports that were not planted.

    python bench/duplicates.py --folder photographs --folder cifar10/train

Copies of images, changed in one way each, are added to those of a folder, as if they were its test part; a copy is
found if it ends in the cluster of its original. All copies go through a file and are decoded as `tw.load` does. Beside
each share stands Wilson's interval (95 %). Pairs of images reported that nobody planted may be real near-duplicates:
--sheet draws them, to be judged by eye. Last, scikit-learn's handwritten digits, enlarged to 32x32: all are different.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont
from sklearn.datasets import load_digits

import trainwell as tw
from trainwell.data import duplicates
from trainwell.data.decode import decode
from trainwell.images import Images

SHORT_SIDE = 256
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Takes up to 5 % off each of the four edges."""
    left, top, right, bottom = rng.uniform(0, 0.05, 4)
    width, height = image.size
    return image.crop((round(left * width), round(top * height), width - round(right * width),
                       height - round(bottom * height)))  # fmt: skip


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Takes 5 % of the side off in all, anywhere: the crop of which one edge may have all."""
    width, height = image.size
    dx, dy = max(1, round(0.05 * width)), max(1, round(0.05 * height))
    x, y = rng.integers(0, dx + 1), rng.integers(0, dy + 1)
    return image.crop((x, y, x + width - dx, y + height - dy))


def toned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    bright = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    return ImageEnhance.Contrast(bright).enhance(rng.uniform(0.85, 1.15))


def blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8) * max(1, min(image.size) / 128)))


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    return Image.fromarray((pixels + rng.normal(0, rng.uniform(3, 10), pixels.shape)).clip(0, 255).astype(np.uint8))


def marked(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Writes over a photograph, in letters a tenth as high; puts a bar of 8x3 pixels (2 %) on a thumbnail."""
    image, (width, height), ink = image.copy(), image.size, (int(rng.choice([0, 255])),) * 3
    draw = ImageDraw.Draw(image)
    if min(image.size) < 64:
        x, y = rng.integers(0, width - 7), rng.integers(0, height - 2)
        draw.rectangle((x, y, x + 7, y + 2), fill=ink)
    else:
        font = ImageFont.load_default(height // 10)
        draw.text((rng.uniform(0, 0.5) * width, rng.uniform(0, 0.9) * height), "(c) photo 2024", ink, font)
    return image


def several(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return toned(resized(shifted(image, rng), 2 ** rng.uniform(-1, 1)), rng)


TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
# What is done to the picture, and how the file is saved: its ending and Pillow's options.
KINDS: dict[str, tuple[Change, str, tuple[int, int]]] = {
    "same pixels": (lambda image, rng: image, "bmp", (0, 0)),
    "JPEG, quality 30 to 95": (lambda image, rng: image, "jpg", (30, 96)),
    "JPEG, quality 30": (lambda image, rng: image, "jpg", (30, 31)),
    "WebP, quality 40 to 90": (lambda image, rng: image, "webp", (40, 91)),
    "GIF (256 colours)": (lambda image, rng: image.quantize(), "gif", (0, 0)),
    "resized 0.5 to 2": (lambda image, rng: resized(image, 2 ** rng.uniform(-1, 1)), "bmp", (0, 0)),
    "half the size": (lambda image, rng: resized(image, 0.5), "bmp", (0, 0)),
    "grey": (lambda image, rng: image.convert("L"), "bmp", (0, 0)),
    "brightness, contrast ±15 %": (toned, "bmp", (0, 0)),
    "cropped, 0 to 5 % an edge": (cropped, "bmp", (0, 0)),
    "cropped by 5 % of the side": (shifted, "bmp", (0, 0)),
    "blurred": (blurred, "bmp", (0, 0)),
    "noise of 3 to 10 levels": (noisy, "bmp", (0, 0)),
    "marked": (marked, "bmp", (0, 0)),
    "crop, size, tone and JPEG": (several, "jpg", (50, 91)),
    "mirrored": (lambda image, rng: image.transpose(MIRROR), "bmp", (0, 0)),
    "mirrored, JPEG": (lambda image, rng: image.transpose(MIRROR), "jpg", (50, 91)),
    "rotated by 90, 180, 270°": (lambda image, rng: image.transpose(TURNS[rng.integers(3)]), "bmp", (0, 0)),
}


def wilson(found: int, of: int) -> str:
    share, z2 = found / of, 1.96**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = math.sqrt(z2 * (share * (1 - share) / of + z2 / (4 * of**2))) / (1 + z2 / of)
    return f"{share:6.1%} [{max(0.0, middle - half):.1%}, {min(1.0, middle + half):.1%}]"


def copy(path: Path, kind: str, rng: np.random.Generator, scratch: Path) -> npt.NDArray[np.uint8]:
    change, ending, (lowest, above) = KINDS[kind]
    with Image.open(path) as image:
        changed = change(image.convert("RGB"), rng)
    saved = scratch / f"copy.{ending}"
    changed.save(saved, **({"quality": int(rng.integers(lowest, above))} if above else {}))
    return decode(saved, SHORT_SIDE)


def draw_pairs(images: Images, pairs: npt.NDArray[np.int64], target: Path, across: int = 12, side: int = 64) -> None:
    sheet = Image.new("RGB", (across * (2 * side + 8), -(-len(pairs) // across) * (side + 6)), "white")
    for number, pair in enumerate(pairs):
        for half, row in enumerate(pair):
            pixels = images[int(row)]
            picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).resize((side, side))
            y, x = divmod(number, across)
            sheet.paste(picture, (x * (2 * side + 8) + half * (side + 1), y * (side + 6)))
    sheet.save(target)


def folder_report(root: Path, per_kind: int, seed: int, sheet: Path | None, scratch: Path) -> None:
    data = tw.load(root, quiet=True)
    images = data.images
    assert images is not None
    count = len(images)
    per_kind = min(per_kind, count)
    at_once = max(1, count // per_kind)  # an original has one copy, as in a test part
    print(f"\n{root.name}: {count:,} images, {per_kind} copies of each kind, seed {seed}")
    kinds = list(KINDS)
    for start in range(0, len(kinds), at_once):
        rng = np.random.default_rng([seed, start])
        chosen = kinds[start : start + at_once]
        originals = rng.permutation(count)[: per_kind * len(chosen)]
        copies = [copy(root / data.names[row], kind, rng, scratch) for kind, row in
                  zip(np.repeat(chosen, per_kind), originals, strict=True)]  # fmt: skip
        both = Images.from_list([*(images[row] for row in range(count)), *copies])
        began = time.perf_counter()
        found = duplicates.find(both, quiet=True)
        seconds = time.perf_counter() - began
        cluster = duplicates.clusters(len(both), found.pairs)
        hit = (cluster[originals] == cluster[count:]).reshape(len(chosen), per_kind).sum(axis=1)
        for kind, hits in zip(chosen, hit, strict=True):
            print(f"  found, {kind:28} {hits:5} of {per_kind:5}  {wilson(int(hits), per_kind)}", flush=True)
    unplanted = (found.pairs < count).all(axis=1)
    near = found.pairs[unplanted & ~found.exact]
    concerned = len(np.unique(near))
    print(f"  reported, not planted: {len(near)} near pairs, in which {concerned} of {count} images "
          f"{wilson(concerned, count)}; {int((unplanted & found.exact).sum())} exact pairs")  # fmt: skip
    print(f"  {len(both):,} images looked through in {seconds:.1f} s")
    if sheet and len(near):
        some = np.sort(np.random.default_rng(seed).permutation(len(near))[:144])
        draw_pairs(images, near[some], sheet / f"{root.name}.png")
        print(f"  {len(some)} of the pairs drawn, at random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, action="append", required=True, help="class folders; may be repeated")
    parser.add_argument("--per-kind", type=int, default=1_000, help="copies of each kind, at most one an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a folder for pictures of pairs that were not planted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRAINWELL_CACHE"] = scratch + "/cache"
        for root in options.folder:
            folder_report(root, options.per_kind, options.seed, options.sheet, Path(scratch))
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    large = np.stack(
        [np.asarray(Image.fromarray(digit).resize((32, 32), Image.Resampling.BICUBIC)) for digit in digits]
    )
    concerned = len(np.unique(duplicates.find(Images.from_array(large), quiet=True).pairs))
    print(f"\ndigits, enlarged: reported {concerned} of {len(large)} images {wilson(concerned, len(large))}")


if __name__ == "__main__":
    main()
