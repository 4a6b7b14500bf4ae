"""How fast images reach the training for the first time, and how much memory that takes: ours beside a DataLoader.

    python bench/input_cold.py --folder cifar10/train --folder photographs:224

- DataLoader: the Dataset of the tutorials. Each file is opened with Pillow, converted to RGB, resized to the short
  side of the batch, cropped at its centre, made a float tensor and normalised; two workers collate.
- ours: `tw.load` with an empty cache, then the batches of its three parts, normalised by figures that it finds itself.
- decoding: the same without the search for duplicates and for images that are no photographs, which a DataLoader does
  not do either.

All go through all images once (the first epoch) and once more (the second), in batches of float32 in memory; that
they see the same pictures is checked by the mean of all pixels. Each measurement is a process of its own, contenders
in turn, round after round; a figure is the median of its rounds, a ratio the median of the rounds' ratios. Imports are
not timed. All files are read once before, so that the page cache is the same for both. Memory is the highest sum of
the PSS (proportional set size, /proc/*/smaps_rollup) of the process and those it started, sampled every 50 ms; what
is memory-mapped or shared counts in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

BATCH = 128
MEAN, STD = 0.47, 0.25  # of the DataLoader; ours takes each channel's own
CONTENDERS = ("DataLoader", "decoding", "ours")  # decoding: ours, but for the search for duplicates and odd images


class Folder(Dataset):  # type: ignore[type-arg]
    """Images in class folders, opened one by one."""

    def __init__(self, root: Path, size: int | None) -> None:
        labels = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.files = [(path, k) for k, label in enumerate(labels) for path in sorted((root / label).iterdir())
                      if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif")]  # fmt: skip
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[row]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if self.size is not None:
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        # As torchvision's ToTensor and Normalize do it.
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
        return pixels.permute(2, 0, 1).contiguous().float().div_(255).sub_(MEAN).div_(STD), label


def measure(contender: str, root: Path, size: int | None, workers: int) -> None:
    """Goes through the images twice; prints seconds, how many images, and the mean of all pixels."""
    import trainwell as tw
    from trainwell.data import inspect, sources

    nothing = inspect.Seen(np.zeros((0, 2), np.int64), np.zeros(0, bool), [])
    look = (lambda *_: nothing) if contender == "decoding" else sources.look
    epochs: list[float] = []
    count, total = 0, 0.0
    began = time.perf_counter()
    if contender != "DataLoader":
        with mock.patch.object(sources, "look", look):
            data = tw.load(root, quiet=True)
        mean, std = tw.data.statistics(data.train)
        shape = None if size is None else (size, size)
        parts = [tw.data.Batches(part, BATCH, size=shape, mean=mean, std=std, shuffle=part is data.train)
                 for part in data.parts.values()]  # fmt: skip
        scale, shift = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (std, mean))
    else:
        loader = DataLoader(Folder(root, size), BATCH, shuffle=True, num_workers=workers)
        scale, shift = torch.tensor(STD), torch.tensor(MEAN)
    for epoch in range(2):
        batches = (
            (batch for part in parts for batch in part.epoch(epoch)) if contender != "DataLoader" else iter(loader)
        )
        for x, _ in batches:
            if epoch == 0:
                count += len(x)
                total += float((x.mean((0, 2, 3), keepdim=True)[0] * scale + shift).mean()) * len(x)
        epochs.append(time.perf_counter() - began)
        began = time.perf_counter()
    print(json.dumps({"seconds": epochs, "images": count, "mean": total / count}))


def family(pid: int) -> Iterator[int]:
    """Yields a process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(path.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, [])


def pss(pid: int) -> int:
    """Returns the bytes that a process takes, those it shares divided by how many share them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def run(contender: str, root: Path, size: int | None, workers: int, threads: int) -> dict[str, float]:
    """Measures in a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        # No more processes may decode for ours than the DataLoader has workers.
        settings = {"TRAINWELL_CACHE": scratch, "OMP_NUM_THREADS": str(threads), "LOKY_MAX_CPU_COUNT": str(workers)}
        command = [sys.executable, "-P", __file__, "--measure", contender, "--folder", f"{root}:{size or ''}",
                   "--workers", str(workers)]  # fmt: skip
        process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.05):
                peak = max(peak, sum(map(pss, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output = process.communicate()[0]
        ended.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"{contender} failed on {root}")
    result = json.loads(output.splitlines()[-1])
    first, second = (result["images"] / seconds for seconds in result["seconds"])
    return {"first": first, "second": second, "peak": peak / 1e6, "images": result["images"], "mean": result["mean"]}


def folder_and_size(text: str) -> tuple[Path, int | None]:
    path, _, size = text.rpartition(":")
    return (Path(path), int(size) if size else None) if path else (Path(text), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=folder_and_size, action="append", required=True,
                        help="class folders; PATH:224 for batches of 224x224, else of the images' own")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the process that takes the batches")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, *options.folder[0], options.workers)
        return
    print(f"{options.rounds} rounds, {options.workers} workers, {options.threads} threads, batches of {BATCH}; "
          f"torch {torch.__version__}, Pillow {Image.__version__}")  # fmt: skip
    print(f"{'folder':14} {'contender':10} {'first epoch':>24} {'second epoch':>24} {'peak memory':>12}")
    for root, size in options.folder:
        for path, _ in Folder(root, size).files:
            path.read_bytes()
        rounds = [{name: run(name, root, size, options.workers, options.threads) for name in CONTENDERS}
                  for _ in range(options.rounds)]  # fmt: skip
        for one in rounds:
            if len({one[name]["images"] for name in CONTENDERS}) > 1:
                sys.exit(f"{root}: not the same number of images")
            if abs(one["ours"]["mean"] - one["DataLoader"]["mean"]) > 0.005:
                sys.exit(f"{root}: not the same pictures; the mean pixels are {one}")
        for name in CONTENDERS:
            cells = []
            for epoch in ("first", "second"):
                speeds = [one[name][epoch] for one in rounds]
                ratio = statistics.median(one[name][epoch] / one["DataLoader"][epoch] for one in rounds)
                cells.append(f"{statistics.median(speeds):8,.0f} images/s {ratio:5.2f}x")
            peak = statistics.median(one[name]["peak"] for one in rounds)
            print(f"{root.parent.name[:14]:14} {name:10} {cells[0]:>24} {cells[1]:>24} {peak:9,.0f} MB")
        lowest, highest = (extreme(one["ours"]["first"] / one["DataLoader"]["first"] for one in rounds)
                           for extreme in (min, max))  # fmt: skip
        print(f"{root.parent.name[:14]:14} {rounds[0]['ours']['images']:,} images; ratios of the first epoch "
              f"{lowest:.2f} to {highest:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
