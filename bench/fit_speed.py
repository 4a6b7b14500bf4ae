"""How fast `fit` trains: images a second, beside a plain PyTorch loop and beside the bare step, in one run.

    python bench/fit_speed.py --data path/to/folder-of-class-folders

- plain: the loop of the tutorials. A Dataset that opens each file with Pillow, DataLoader with shuffle and two
  workers, fp32, AdamW as it comes.
- plain, bf16: the same with bf16 autocast and channels_last, so that only the loop differs from ours.
- bare: forward, backward and step on one batch that is ready in memory, fp32, or bf16 with channels_last.
- ours: the training loop of `fit` over the decoded store, without augmentation, as the others.
- ours, standard: the same with the augmentation that `fit` does by default.

All contenders take the same steps of the same size with the same model, in turn, round after round; a figure is the
median of its rounds, a ratio the median of the rounds' ratios. Without --data a folder of random images is made.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

import trainwell as tw
from trainwell.train.custom import Custom
from trainwell.train.display import Display
from trainwell.train.loop import Trainer
from trainwell.train.prepare import prepared

BATCH = 128


class Folder(Dataset):  # type: ignore[type-arg]
    """Images in class folders, opened one by one, as the tutorials do."""

    def __init__(self, root: Path) -> None:
        labels = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.files = [(path, k) for k, label in enumerate(labels) for path in sorted((root / label).iterdir())]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[row]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
        return (x - 0.47) / 0.25, label


def make_folder(root: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % 10}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root


def plain_epoch(data: Dataset, fast: bool) -> Callable[[], None]:  # type: ignore[type-arg]
    model = tw.models.create("resnet8", num_classes=10, in_chans=3)
    if fast:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> None:
        total = 0.0
        for x, y in DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True):
            if fast:
                x = x.to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()

    return epoch


def bare_epoch(steps: int, fast: bool) -> Callable[[], None]:
    model = tw.models.create("resnet8", num_classes=10, in_chans=3)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    if fast:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def epoch() -> None:
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                out = model(x)
            F.cross_entropy(out.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of class folders of small images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="steps of 128 images a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=12_000, help="how many random images are made without --data")
    parser.add_argument("--no-mallopt", action="store_true", help="leave glibc's memory thresholds alone")
    options = parser.parse_args()
    if options.no_mallopt:
        from trainwell.train import hardware

        hardware.keep_freed_memory = lambda: False  # type: ignore[assignment]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRAINWELL_CACHE"] = scratch + "/cache"
        root = options.data or make_folder(Path(scratch), options.images)
        files = Folder(root)
        rows = torch.randperm(len(files))[: options.steps * BATCH].tolist()

        began = time.perf_counter()
        plain_epoch(files, fast=False)()
        cold_plain = time.perf_counter() - began
        began = time.perf_counter()
        data = tw.load(root, val=BATCH, test=BATCH, quiet=True)
        recipe = tw.Recipe(model="resnet8", batch_size=BATCH, steps=10**9, threads=options.threads, augment="none")
        changing = dataclasses.replace(recipe, augment="standard")
        with (
            prepared(data, recipe, Custom(), Display(quiet=True)) as trainer,
            prepared(data, changing, Custom(), Display(quiet=True)) as augmented,
        ):

            def our_epoch(steps: int, trainer: Trainer = trainer) -> Callable[[], None]:
                def epoch() -> None:
                    for _ in range(steps):
                        trainer.epoch, trainer.batch = divmod(trainer.step, len(trainer.train))
                        trainer.train_step()

                return epoch

            our_epoch(len(trainer.train))()
            cold_ours = time.perf_counter() - began
            contenders = {
                "plain fp32": plain_epoch(Subset(files, rows), fast=False),
                "plain bf16": plain_epoch(Subset(files, rows), fast=True),
                "bare fp32": bare_epoch(options.steps, fast=False),
                "bare bf16": bare_epoch(options.steps, fast=True),
                "ours": our_epoch(options.steps),
                "ours, standard": our_epoch(options.steps, augmented),
            }
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for round_ in range(options.rounds + 1):
                for name, epoch in contenders.items():
                    began = time.perf_counter()
                    epoch()
                    if round_:  # the first one warms up
                        seconds[name].append(time.perf_counter() - began)

    machine = trainer.hardware
    print(f"{options.rounds} rounds of {options.steps} steps of {BATCH}; {options.threads} threads; "
          f"torch {torch.__version__}; ours in {machine.precision}, {machine.memory_format}")  # fmt: skip
    for name, times in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(times, seconds["ours"], strict=True))
        speeds = [options.steps * BATCH / one for one in times]
        print(f"{name:15} {statistics.median(speeds):8,.0f} images/s ({min(speeds):,.0f} to {max(speeds):,.0f});  "
              f"ours is {ratio:.2f}x as fast")  # fmt: skip
    print(f"first epoch of {len(files):,} files from a cold cache: plain fp32 {cold_plain:.1f} s, "
          f"ours {cold_ours:.1f} s with decoding and compiling: {cold_plain / cold_ours:.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
