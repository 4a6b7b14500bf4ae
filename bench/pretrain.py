"""Trains a backbone on a folder of small images, and saves what transfer needs of it.

    python bench/pretrain.py cifar10/train backbone.safetensors [--classes airplane automobile …] [--epochs 30]

The one in the package is of all ten classes of CIFAR-10's training images:

    python bench/pretrain.py cifar10/train src/trainwell/transfer/embedded.safetensors --epochs 20 --threads 1

Figures are written beside the file, as `….json`; of that one they are in `docs/evidence/embedded.json`. A twentieth of
the images is for validation, another for the test; the file holds prints of those that were trained on, by which `fit`
tells that it is asked about the same images again.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import trainwell as tw
from trainwell.transfer.embedded import PRINTS, image_prints
from trainwell.transfer.saved import save_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder with one of images a class")
    parser.add_argument("file", type=Path)
    parser.add_argument("--classes", nargs="+", default=None, help="by default all")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="the run's folder; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "images"
        chosen.mkdir()
        for name in options.classes or sorted(path.name for path in options.source.iterdir() if path.is_dir()):
            (chosen / name).symlink_to((options.source / name).resolve(), target_is_directory=True)
        data = tw.load(chosen, val=0.05, test=0.05, folds=1)
        recipe = tw.Recipe(
            model=options.model, epochs=options.epochs, optimizer="sgd", lr=0.2, batch_size=128, augment="standard",
            label_smoothing=0.1, average="ema", pretrained="none", threads=options.threads,
        )  # fmt: skip
        out = options.out or Path(folder) / "run"
        run = tw.fit(data, out=out, recipe=recipe, resume=out.exists())
    assert data.images is not None
    pixels = np.stack([data.images[row] for row in data.train.indices])
    prints = np.unique(image_prints(pixels)).view(np.int32)
    names = ", ".join(data.classes)
    trained_on = f"{len(pixels):,} images of CIFAR-10's training part ({names})"
    save_backbone(
        options.file, run.model, architecture=options.model, mean=tuple(run.info["mean"]), std=tuple(run.info["std"]),
        img_size=data.images.size[0], licence="Apache-2.0", trained_on=trained_on, dtype=torch.float16,
        extra={PRINTS: torch.from_numpy(prints)},
    )  # fmt: skip
    figures = {name: run.result[name] for name in ("test_accuracy", "test_interval", "test_samples", "seconds")}
    told = {"trained_on": trained_on, "epochs": options.epochs, "bytes": options.file.stat().st_size, **figures}
    options.file.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
