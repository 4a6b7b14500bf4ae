"""Images a second from a folder of photographs to augmented float batches of 224×224: ours beside a DataLoader.

    pip install albumentations==2.0.8 opencv-python-headless
    python bench/input_pipeline.py --folder photographs/train

- ours: `tw.data.load` and the batches of all its parts, of the images that it has decoded once, with a short side of
  256 pixels; `augment.standard` but for the principal components. How long loading takes, with the search for
  duplicates and the compiled pass's start, is told beside.
- cv2: a DataLoader of two workers, which stay, each with one thread of OpenCV. Each image is read by `cv2.imread`, and
  goes through albumentations: the short side to 256 pixels, a crop, flip, scale, shift, rotation, stretch, brightness,
  contrast, saturation, normalisation. Its batches are NHWC, which is the faster way for it.

Both go through all images several times without a pause, so that the workers start once; turns are interleaved in an
order drawn anew, the first is not counted. A figure is the median of its rounds, a ratio the median of the rounds'
ratios. The files are read once before, so that the page cache is warm.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import trainwell as tw
from trainwell.train.hardware import keep_freed_memory

BATCH, SIZE, WORKERS = 32, 224, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def chain() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network
    import albumentations as A
    import cv2

    shift = (-0.1, 0.1)
    return A.Compose([
        A.SmallestMaxSize(256),
        A.RandomCrop(SIZE, SIZE),
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.9, 1.1), translate_percent=shift, rotate=(-10, 10), border_mode=cv2.BORDER_REFLECT, p=1.0),
        A.RandomBrightnessContrast(0.2, 0.2, p=1.0),
        A.HueSaturationValue(0, 50, 0, p=1.0),
        A.Normalize(MEAN, STD),
    ])  # fmt: skip


class Folder(Dataset):  # type: ignore[type-arg]
    """Images in class folders, opened one by one, some times over."""

    def __init__(self, files: list[tuple[str, int]], passes: int) -> None:
        self.files, self.augment = files * passes, chain()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        import cv2

        path, label = self.files[row]
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(self.augment(image=image)["image"]), label


def one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)


def by_cv2(files: list[tuple[str, int]], passes: int) -> Callable[[], int]:
    loader = DataLoader(
        Folder(files, passes), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True,
        worker_init_fn=one_thread, multiprocessing_context="spawn",
    )  # fmt: skip

    def turn() -> int:
        return sum(len(x.permute(0, 3, 1, 2)) for x, _ in loader)

    return turn


def by_ours(parts: list[tw.data.Part], passes: int) -> Callable[[], int]:
    augment = tw.augment.standard(pca=0.0)
    mean, std = tw.data.statistics(parts[0])
    batches = [tw.data.Batches(part, BATCH, size=(SIZE, SIZE), shuffle=True, augment=augment, mean=mean, std=std)
               for part in parts]  # fmt: skip
    epochs = iter(range(10**9))

    def turn() -> int:
        return sum(len(x) for epoch, _ in zip(epochs, range(passes), strict=False) for one in batches
                   for x, _ in one.epoch(epoch))  # fmt: skip

    return turn


def speed(turn: Callable[[], int]) -> float:
    """Returns images a second."""
    began = time.perf_counter()
    return turn() / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="photographs in class folders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=4, help="how many times a turn goes through all images")
    parser.add_argument("--threads", type=int, default=2, help="of ours; the DataLoader has two workers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    labels = sorted(path.name for path in options.folder.iterdir() if path.is_dir())
    files = [(str(path), k) for k, label in enumerate(labels) for path in sorted((options.folder / label).iterdir())
             if path.suffix.lower() in (".jpg", ".jpeg")]  # fmt: skip
    for path, _ in files:
        Path(path).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRAINWELL_CACHE"] = scratch
        began = time.perf_counter()
        data = tw.data.load(options.folder, quiet=True)
        loading = time.perf_counter() - began
        parts = list(data.parts.values())
        began = time.perf_counter()
        by_ours(parts, 1)()
        first = time.perf_counter() - began
        contenders = {"ours": by_ours(parts, options.passes)}
        try:
            contenders["cv2"] = by_cv2(files, options.passes)
            import albumentations
            import cv2

            peers = f", albumentations {albumentations.__version__}, OpenCV {cv2.__version__}"
        except ImportError as error:
            peers = f"; without the DataLoader ({error}): pip install albumentations==2.0.8 opencv-python-headless"
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        order = list(contenders)
        for number in range(options.rounds + 1):
            random.shuffle(order)
            for name in order:
                images = speed(contenders[name])
                if number:
                    speeds[name].append(images)
    assert data.images is not None
    height, width = np.median([sorted(shape[:2]) for shape in data.images.shapes.tolist()], axis=0)
    print(f"{len(data.images)} photographs, kept with sides of {height:.0f} and {width:.0f} pixels (medians); "
          f"torch {torch.__version__}{peers}\n{options.rounds} rounds of {options.passes} passes, batches of {BATCH}; "
          f"{options.threads} threads, {WORKERS} workers; glibc's memory thresholds "
          f"{'raised, as fit does' if kept else 'as they are'}")  # fmt: skip
    for name, taken in speeds.items():
        ratio = statistics.median(own / other for own, other in zip(speeds["ours"], taken, strict=True))
        print(f"{name:8} {statistics.median(taken):8,.0f} images/s ({min(taken):,.0f} to {max(taken):,.0f}); "
              f"ours is {ratio:.2f}× as fast")  # fmt: skip
    print(f"once: loading {len(data.images)} photographs from an empty cache {loading:.1f} s, "
          f"the first epoch then {first:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
