"""A new last layer on a frozen network: features computed once, beside the network run in each epoch.

    python bench/linear_head.py cifar10/train [--images 10000] [--model resnet20] [--size 32] [--rounds 5] [--threads 1]

Both train the same head by the same steps, as `fit` does with `transfer="linear"`, in batches of 128 without
augmentation; they differ in whether what comes to the head is kept. Epochs are interleaved, and the first of each, in
which the features are computed, is told apart. Accuracy says nothing here: the network's weights are random.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

import trainwell as tw
from trainwell.train.custom import Custom
from trainwell.train.loop import Trainer
from trainwell.train.prepare import prepared


def epoch(trainer: Trainer) -> float:
    """Returns the seconds of an epoch with its validation."""
    began = time.perf_counter()
    trainer.begin()
    for batch in range(len(trainer.train)):
        trainer.batch = batch
        trainer.train_step()
    trainer.validate()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"TRAINWELL_CACHE": folder}):
        weights = Path(folder) / "weights.safetensors"
        save_file(tw.models.create(options.model, num_classes=10, in_chans=3).state_dict(), weights)
        data = tw.load(options.source, val=2_000, test=0.5, quiet=True)
        few = data.train.indices[: options.images]
        data = dataclasses.replace(data, train=dataclasses.replace(data.train, indices=few))
        recipe = tw.Recipe(
            pretrained=str(weights), transfer="linear", batch_size=128, epochs=100, threads=options.threads,
            img_size=options.size, augment="none",
        )  # fmt: skip
        anew = mock.patch("trainwell.train.head_features.possible", return_value=False)
        with prepared(data, recipe, Custom()) as once, anew, prepared(data, recipe, Custom()) as each:
            first = {"features once": epoch(once), "the network each time": epoch(each)}
            rounds = [(epoch(once), epoch(each)) for _ in range(options.rounds)]
    print(
        f"torch {torch.__version__}, {options.threads} threads, {options.model} at {options.size} pixels, "
        f"{options.images:,} images, median of {options.rounds} epochs"
    )
    for name, later in zip(first, zip(*rounds, strict=True), strict=True):
        print(f"{name:24} first epoch {first[name]:8.2f} s, each further one {statistics.median(later):8.3f} s")
    ratio = statistics.median(b / a for a, b in rounds)
    print(f"from the second epoch on features computed once are {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
