"""With little data: ways to begin with a pretrained network, and from scratch, on four classes that it has not seen.

    python bench/transfer.py cifar10/train docs/evidence/six.safetensors [--jobs 2] [--sizes 10 50 250 1000]

`six.safetensors` is a resnet20 that was trained on six classes of CIFAR-10 (its figures are beside it):

    python bench/pretrain.py cifar10/train six.safetensors --classes airplane automobile bird cat deer dog

The other four (frog, horse, ship, truck) are learnt from so many images a class, a fifth more for validation, and
judged on 1,000 others a class, which are the same in all runs. Fine-tuning takes 300 steps and learning from scratch
900; a seed chooses the images and all else. Rows are appended as runs end: stop it, and start it again at will.
"""

import argparse
import csv
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np

import trainwell as tw
from evidence import EVIDENCE
from rows import append
from trainwell.data.dataset import Data

CLASSES = ("frog", "horse", "ship", "truck")
TESTED = 1_000  # images a class
SEEDS = {10: 20, 50: 20, 250: 10, 1000: 10}
STEPS = {"steps": 300}
RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {"pretrained": "none", "model": "resnet20", "steps": 900},
    "linear": {"transfer": "linear"},
    "stage": {"transfer": "stage"},
    "all": {"transfer": "all", **STEPS},
    "lp_ft": {"transfer": "lp_ft", **STEPS},
    "l2_sp": {"transfer": "all", "l2_sp": 0.01, **STEPS},
    "plan": {"transfer": "auto", "transfer_minutes": 10.0, **STEPS},
}


def read(source: Path) -> Data:
    with tempfile.TemporaryDirectory() as folder:
        for name in CLASSES:
            (Path(folder) / name).symlink_to((source / name).resolve(), target_is_directory=True)
        data = tw.load(folder, folds=1, quiet=True)
        assert data.images is not None
        images = np.stack([data.images[row] for row in range(len(data.images))])  # the folder is gone soon
    return tw.load((images, data.train.targets), folds=1, quiet=True)


def few(data: Data, a_class: int, seed: int) -> Data:
    """Returns so many images a class to train on, a fifth of that for validation, and the test images of all runs."""
    train, val, test = [], [], []
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(data.train.targets == label)
        rows = rows[tw.random.permutation(len(rows), 0, "tested")]
        test.append(rows[:TESTED])
        rows = rows[TESTED:]
        rows = rows[tw.random.permutation(len(rows), seed, "learnt")]
        train.append(rows[:a_class])
        val.append(rows[a_class : a_class + -(-a_class // 5)])
    parts = {name: dataclasses.replace(data.train, indices=np.concatenate(rows))
             for name, rows in (("train", train), ("val", val), ("test", test))}  # fmt: skip
    return dataclasses.replace(data, **parts, source="arrays")


def one(data: Data, weights: Path, name: str, a_class: int, seed: int) -> dict[str, Any]:
    fields = {"pretrained": str(weights), "seed": seed, "threads": 1, **RECIPES[name]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = tw.fit(few(data, a_class, seed), out=Path(folder) / "run", quiet=True, save_seconds=1e9, **fields)
        choice = run.info.get("choice")
        return {
            "recipe": name, "per_class": a_class, "seed": seed, "test_accuracy": run.result["test_accuracy"],
            "test_loss": run.result["test_loss"], "seconds": round(time.monotonic() - began, 1),
            "transfer": choice["reasons"][-1].partition(": ")[2] if choice else run.recipe.transfer,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of CIFAR-10's training images, a class a folder")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*SEEDS])
    parser.add_argument("--csv", type=Path, default=EVIDENCE / "transfer.csv")
    options = parser.parse_args()
    rows = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    done = {(row["recipe"], int(row["per_class"]), int(row["seed"])) for row in rows}
    wanted = [(name, size, seed) for size in options.sizes for seed in range(SEEDS[size]) for name in RECIPES]
    left = [task for task in wanted if task not in done]
    data = read(options.source)
    work = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")
    for number, row in enumerate(work(joblib.delayed(one)(data, options.weights, *task) for task in left), 1):
        append(options.csv, row)
        print(f"{number} of {len(left)}: {row}", flush=True)


if __name__ == "__main__":
    main()
