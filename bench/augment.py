"""Augmentation of batches in memory: ours beside kornia, albumentations and a chain of tensor operations by hand.

    pip install kornia albumentations==2.0.8 opencv-python-headless
    python bench/augment.py [--rounds 9] [--threads 1 2] [--keep-memory] [--photo large.jpg]

All make about the same of uint8 RGB images, each drawn anew and normalised to float32: flip, scale, shift, rotation,
stretch, shear, a lens, brightness, contrast, saturation, hue, and a box wiped out of every second image. What is beyond
the border is its reflection, where a library has that.

- ours: `Augment` on a batch whose memory is NHWC, draws included.
- kornia: its layers in a row, on the float batch made from uint8 NCHW.
- albumentations: image by image, and the batch stacked; and in a DataLoader of two workers, each with one thread of
  OpenCV: seconds a batch once it runs.
- torch, by hand: one tensor operation after the other, over the whole batch.
- torchvision (image by image) and fastai (the batch) have no lens; fastai has no shear.

Contenders take turns in an order drawn anew each round. A turn lasts a fifth of a second at least, and its figure is
the median call; a table shows the medians of the rounds, and the medians of the rounds' ratios to ours.

--keep-memory raises glibc's thresholds before all else, as `fit` does; it holds for all contenders in this process.
--photo, of 896×896 pixels or more, adds what it costs to shrink an image, on one thread, beside Pillow's `resize`.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import trainwell as tw
from trainwell.augment import Augment
from trainwell.augment.augment import drawn_keys
from trainwell.augment.warp import warp
from trainwell.train.hardware import keep_freed_memory

SHAPES = ((256, 32), (64, 224))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GEOMETRY = {"scale": 0.1, "translate": 0.1, "rotate": 15, "stretch": 0.1, "shear": 8}
STEPS: dict[str, dict[str, Any]] = {  # what is added, one after the other
    "flip": {"flip": 0.5},
    "+ geometry": GEOMETRY,
    "+ lens": {"lens": 0.1},
    "+ brightness, saturation, hue": {"brightness": 0.2, "saturation": 0.2, "hue": 10},
    "+ contrast": {"contrast": 0.2},
    "+ erase": {"erase": 0.5},
}
FIRST, TAKEN = 4, 12  # batches of the workers: before time is taken, and while it is
SHRUNK = (1, 2, 2.5, 4)  # how many times as long the sides of the source are

Call = Callable[[], object]
BOX, BILINEAR = Image.Resampling.BOX, Image.Resampling.BILINEAR
LIBRARIES = ("torch", "numba", "pillow", "kornia", "albumentations", "opencv-python-headless", "torchvision", "fastai")


def composite(steps: int = len(STEPS)) -> Augment:
    amounts = {name: value for step in list(STEPS.values())[:steps] for name, value in step.items()}
    return Augment(**amounts, mean=MEAN, std=STD, channels_last=True)


def ours(batch: torch.Tensor, augment: Augment) -> Call:
    return lambda: augment(batch)


def kornia(batch: torch.Tensor) -> Call:
    import kornia.augmentation as K

    images, tiny = batch.contiguous(), torch.tensor([-0.1, 0.1])
    augment = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(15, (0.1, 0.1), (0.9, 1.1, 0.9, 1.1), 8, padding_mode="reflection", p=1.0),
        K.RandomFisheye(tiny, tiny, torch.tensor([0.9, 1.1]), p=1.0),
        K.ColorJiggle(0.2, 0.2, 0.2, 10 / 360, p=1.0),
        K.RandomErasing((0.02, 1 / 3), (0.3, 1 / 0.3), p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: augment(images.float() / 255)


def albumentations_chain() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    way = {"border_mode": cv2.BORDER_REFLECT, "p": 1.0}
    shift, lean = (-0.1, 0.1), {"x": (-8, 8), "y": (0, 0)}
    sides = (0.15, 0.55)
    return A.Compose([
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.9, 1.1), translate_percent=shift, rotate=(-15, 15), shear=lean, **way),
        A.OpticalDistortion((-0.1, 0.1), **way),
        A.RandomBrightnessContrast(0.2, 0.2, p=1.0),
        A.HueSaturationValue(5, 25, 0, p=1.0),
        A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=sides, hole_width_range=sides, p=0.5),
        A.Normalize(MEAN, STD),
    ])  # fmt: skip


def albumentations(batch: torch.Tensor) -> Call:
    images, augment = batch.permute(0, 2, 3, 1).numpy(), albumentations_chain()
    return lambda: torch.from_numpy(np.stack([augment(image=image)["image"] for image in images])).permute(0, 3, 1, 2)


class Augmented(Dataset):  # type: ignore[type-arg]
    def __init__(self, batch: torch.Tensor) -> None:
        self.images, self.augment = batch.permute(0, 2, 3, 1).numpy(), albumentations_chain()

    def __len__(self) -> int:
        return len(self.images) * (FIRST + TAKEN)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.augment(image=self.images[row % len(self.images)])["image"])


def one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)


def in_workers(batch: torch.Tensor) -> Callable[[], float]:
    loader = DataLoader(
        Augmented(batch), len(batch), num_workers=2, persistent_workers=True, worker_init_fn=one_thread,
        multiprocessing_context="spawn",
    )  # fmt: skip

    def seconds() -> float:
        began = 0.0
        for number, _ in enumerate(loader, 1):
            if number == FIRST:
                began = time.perf_counter()
        return (time.perf_counter() - began) / TAKEN

    return seconds


def by_hand(batch: torch.Tensor) -> Call:
    images = batch.contiguous()
    count, _, height, width = images.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    places, radius = torch.stack([x, y], -1), ((x**2 + y**2) / 2)[..., None]
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5

    def spread(low: float, high: float) -> torch.Tensor:
        return torch.empty(count).uniform_(low, high)

    def sample(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def call() -> torch.Tensor:
        x = images.float() / 255
        x = torch.where(torch.rand(count, 1, 1, 1) < 0.5, x.flip(3), x)
        angle, lean = torch.deg2rad(spread(-15, 15)), torch.tan(torch.deg2rad(spread(-8, 8)))
        across, down = spread(0.9, 1.1), spread(0.9, 1.1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        first = torch.stack([cos * across, (lean * cos - sin) * down, spread(-0.2, 0.2)], 1)
        second = torch.stack([sin * across, (lean * sin + cos) * down, spread(-0.2, 0.2)], 1)
        x = sample(x, F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False))
        x = sample(x, places * (1 + spread(-0.1, 0.1)[:, None, None, None] * radius))
        x = (x * spread(0.8, 1.2)[:, None, None, None]).clamp(0, 1)
        grey = (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        x = (grey + spread(0.8, 1.2)[:, None, None, None] * (x - grey)).clamp(0, 1)
        grey = (x * luma).sum(1, keepdim=True)
        x = (grey + spread(0.8, 1.2)[:, None, None, None] * (x - grey)).clamp(0, 1)
        hue = torch.deg2rad(spread(-10, 10))[:, None, None]
        turn = torch.eye(3) + torch.sin(hue) * axis + (1 - torch.cos(hue)) * (axis @ axis)
        x = torch.einsum("nij,njhw->nihw", turn, x).clamp(0, 1)
        x = (x - mean) / std
        for i, (erased, area, ratio, top, left) in enumerate(torch.rand(count, 5).tolist()):
            if erased < 0.5:
                area, ratio = 0.02 + area * (1 / 3 - 0.02), 0.3 ** (2 * ratio - 1)
                tall = min(height, round(height * math.sqrt(area * ratio)))
                wide = min(width, round(width * math.sqrt(area / ratio)))
                v, u = int(top * (height - tall + 1)), int(left * (width - wide + 1))
                x[i, :, v : v + tall, u : u + wide] = 0
        return x

    return call


def torchvision(batch: torch.Tensor) -> Call:
    from torchvision.transforms import InterpolationMode, v2

    images = batch.contiguous()
    augment = v2.Compose([
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 8, InterpolationMode.BILINEAR),
        v2.ColorJitter(0.2, 0.2, 0.2, 10 / 360),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(0.5),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    return lambda: torch.stack([augment(image) for image in images])


def fastai(batch: torch.Tensor) -> Call:
    from fastai.vision.augment import Hue, RandomErasing, Saturation, aug_transforms, setup_aug_tfms
    from fastai.vision.core import TensorImage

    images = batch.contiguous()
    steps = [
        *aug_transforms(max_rotate=15, max_zoom=1.1, max_lighting=0.2, max_warp=0, p_affine=1, p_lighting=1),
        Saturation(0.2, p=1), Hue(10 / 360, p=1), RandomErasing(0.5, sl=0.02, sh=1 / 3, max_count=1),
    ]  # fmt: skip
    augment = setup_aug_tfms(steps)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def call() -> object:
        x = TensorImage(images.float() / 255)
        for step in augment:
            x = step(x, split_idx=0)
        return (x - mean) / std

    return call


PEERS: dict[str, tuple[Callable[[torch.Tensor], Call], str]] = {
    "kornia": (kornia, "kornia"),
    "albumentations": (albumentations, "albumentations==2.0.8 opencv-python-headless"),
    "torch, by hand": (by_hand, "torch"),
    "torchvision": (torchvision, "torchvision"),
    "fastai": (fastai, "fastai"),
}


def timed(call: Call, shortest: float = 0.2) -> Callable[[], float]:
    """Returns what makes calls for a while and returns the median seconds of one."""

    def seconds() -> float:
        taken: list[float] = []
        while sum(taken) < shortest:
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    return seconds


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(rounds + 1):
        random.shuffle(order)
        for name in order:
            seconds = contenders[name]()
            if number:  # the first round warms up
                times[name].append(seconds)
    return times


def table(title: str, columns: dict[str, dict[str, list[float]]], ratios: bool = False) -> None:
    print(f"\n{title}\n{'':32}" + "".join(f"{head:>24}" for head in columns))
    for row in dict.fromkeys(name for times in columns.values() for name in times):
        cells = []
        for times in columns.values():
            cell = f"{1e3 * statistics.median(times[row]):.2f} ms" if row in times else "–"
            if ratios:
                ratio = (statistics.median(a / b for a, b in zip(times[row], times["ours"], strict=True))
                         if row in times else math.nan)  # fmt: skip
                cell += f"{ratio:9.1f}×" if row in times else " " * 10
            cells.append(f"{cell:>24}")
        print(f"{row:32}" + "".join(cells), flush=True)


def compared(batch: torch.Tensor, rounds: int, threads: int) -> dict[str, list[float]]:
    contenders = {"ours": timed(ours(batch, composite()))}
    for name, (make, _) in PEERS.items():
        try:
            contenders[name] = timed(make(batch))
            if name == "albumentations" and threads == 2:
                contenders["albumentations, two processes"] = in_workers(batch)
        except (ImportError, RuntimeError):
            continue
    return in_turns(contenders, rounds)


def parts(batch: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    augment, count, size = composite(), len(batch), (batch.shape[2], batch.shape[3])
    shapes = np.tile(np.array(size, np.int32), (count, 1))
    params = augment.params(drawn_keys(count), size)
    views = augment.views(params, shapes, size, 3, 1 / 255)
    calls: dict[str, Call] = {
        "draws: params": lambda: augment.params(drawn_keys(count), size),
        "maps and colours: views": lambda: augment.views(params, shapes, size, 3, 1 / 255),
        "the pass": lambda: warp(batch, views, size, padding_mode="reflection", channels_last=True),
    }
    return in_turns({name: timed(call, 0.1) for name, call in calls.items()}, rounds)


def amounts(batch: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    calls = {name: ours(batch, composite(n)) for n, name in enumerate(STEPS, 1)}
    return in_turns({name: timed(call, 0.1) for name, call in calls.items()}, rounds)


def shrinking(photo: Path, rounds: int) -> None:
    """What it costs that nothing is aliased, and how far that is from Pillow's means of boxes."""
    torch.set_num_threads(1)
    augment, size, many = Augment(size=224, channels_last=True), (224, 224), 8
    with Image.open(photo) as opened:
        whole = opened.convert("RGB")

    def by_pillow(image: Image.Image, kind: Image.Resampling) -> Call:
        return lambda: [image.resize(size, kind) for _ in range(many)]

    def exact(image: Image.Image, kind: Image.Resampling) -> np.ndarray[Any, Any]:
        return np.stack([np.asarray(band.convert("F").resize(size, kind)) for band in image.split()])

    print("\na photograph to 224×224 on one thread: ms an image (ours makes float32, Pillow uint8),")
    print("and by how many grey levels ours and Pillow's BILINEAR differ from Pillow's BOX, none of them rounded")
    print(f"{'from':>10}{'shrunk':>9}{'ours':>10}{'BOX':>10}{'BILINEAR':>10}"
          f"{'ours: mean':>16}{'most':>8}{'BILINEAR: mean':>18}{'most':>8}")  # fmt: skip
    for factor in SHRUNK:
        side = round(224 * factor)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        image = whole.crop((left, top, left + side, top + side))
        batch = torch.from_numpy(np.stack([np.asarray(image)] * many)).permute(0, 3, 1, 2)
        calls = {"ours": ours(batch, augment), "BOX": by_pillow(image, BOX), "BILINEAR": by_pillow(image, BILINEAR)}
        times = in_turns({name: timed(call) for name, call in calls.items()}, rounds)
        cells = "".join(f"{1e3 / many * statistics.median(taken):10.2f}" for taken in times.values())
        box, bilinear = exact(image, BOX), exact(image, BILINEAR)
        off, theirs = np.abs(255 * augment(batch)[0].numpy() - box), np.abs(bilinear - box)
        print(f"{f'{side}×{side}':>10}{f'{factor:g}×':>9}{cells}{off.mean():16.2f}{off.max():8.1f}"
              f"{theirs.mean():18.2f}{theirs.max():8.1f}", flush=True)  # fmt: skip


def versions() -> str:
    told = []
    for name in LIBRARIES:
        try:
            told.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--keep-memory", action="store_true", help="raise glibc's memory thresholds, as fit does")
    parser.add_argument("--photo", type=Path, help="an image of 896×896 pixels or more, to be shrunk")
    options = parser.parse_args()
    kept = options.keep_memory and keep_freed_memory()
    print(f"{options.rounds} rounds; trainwell {tw.__version__}, {versions()}\n"
          f"glibc's memory thresholds: {'raised, as fit does' if kept else 'as they are'}")  # fmt: skip
    rng = np.random.default_rng(0)
    batches = {f"{count}×{side}²": torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
               .permute(0, 3, 1, 2) for count, side in SHAPES}  # fmt: skip
    for name, (make, packages) in PEERS.items():
        try:
            make(next(iter(batches.values())))
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out, it does not import here ({type(error).__name__}): pip install {packages}")
    results: list[dict[str, dict[str, list[float]]]] = [{}, {}, {}]
    with torch.no_grad():
        for name, batch in batches.items():
            for threads in options.threads:
                torch.set_num_threads(threads)
                column = f"{name}, {threads} thread{'s' * (threads > 1)}"
                results[0][column] = compared(batch, options.rounds, threads)
                results[1][column] = parts(batch, options.rounds)
                results[2][column] = amounts(batch, options.rounds)
    table("a batch: milliseconds, and how many times as long as ours", results[0], ratios=True)
    table("where our time goes", results[1])
    table("what each amount costs: ours with all that stands above it", results[2])
    if options.photo:
        shrinking(options.photo, options.rounds)


if __name__ == "__main__":
    main()
