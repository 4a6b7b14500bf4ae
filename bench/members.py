"""Sixteen members: one after the other, in processes, stacked, and what `engine="auto"` takes.

    python bench/members.py [--photos cifar10/train] [--rounds 5] [--precision auto]

Networks of 64-256-256-10 units, with batch norm and without, and resnet8, on digits of 8 by 8 pixels and on images of
32 by 32 (those of CIFAR-10, or digits enlarged), at batches of 32 and 128, as `fit` trains them: a step of all sixteen
with its batches, losses, gradients and optimizers. Rounds are interleaved over the ways; each way's time is the median
over rounds. Auto's is the median of what it chose, in the worst of the rounds.
"""

import argparse
import statistics
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.datasets import load_digits

import trainwell as tw
from trainwell.data.dataset import Data
from trainwell.engines import Members
from trainwell.models import MLP

K = 16
WAYS = ("loop", "processes", "stacked")


def digits() -> Data:
    images, targets = load_digits(return_X_y=True)
    return tw.load(((images * 15.9375).round().astype(np.uint8).reshape(-1, 8, 8), targets), quiet=True)


def enlarged() -> Data:
    data = load_digits()
    images = np.kron(data.images * 15.9375, np.ones((4, 4))).round().astype(np.uint8)
    return tw.load((np.stack([images] * 3, axis=-1), data.target), quiet=True)


def network() -> torch.nn.Module:
    return MLP(64, 10, (256, 256), batch_norm=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="the folder of CIFAR-10's training images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", default="", help="rows whose names begin so")
    options = parser.parse_args()
    small = digits()
    large = tw.load(options.photos, quiet=True) if options.photos else enlarged()
    cores = joblib.cpu_count()
    print(f"torch {torch.__version__}, {cores} cores, precision {options.precision}, {K} members,")
    print(f"median of {options.rounds} rounds: milliseconds a step of all; in brackets the loop's time divided by it")
    print(f"{'':38} {'loop':>15}  {'processes':>15}  {'stacked':>15}   auto")
    for name, data, model in (
        ("MLP with batch norm", small, None),
        ("MLP", small, network),
        ("resnet8, 8 by 8", small, None),
        ("resnet8, 32 by 32", large, None),
    ):
        if not name.startswith(options.only):
            continue
        for batch_size in (32, 128):
            asked = {"batch_size": batch_size, "precision": options.precision, "epochs": 1_000, "augment": "none"}
            if model is None:
                asked["model"] = "mlp" if name.startswith("MLP") else "resnet8"
            plan = {"recipes": [{**asked, "seed": seed} for seed in range(K)], "loading": {}}
            members = Members(Path(), None, plan, model, None, {}, cores, None, 60.0)
            rounds = [members.step_times(data, 1, all_ways=True) for _ in range(options.rounds)]
            medians = {way: statistics.median(found[way] for found in rounds) for way in rounds[0]}
            chosen = [min(found, key=found.__getitem__) for found in rounds]
            worst = max(medians[way] for way in chosen) / min(medians.values())
            told = "  ".join(f"{1e3 * medians[way]:8.2f} ({medians['loop'] / medians[way]:4.2f})" for way in WAYS)
            label = f"{name}, batch {batch_size}"
            print(f"{label:38} {told}   {', '.join(sorted(set(chosen)))}: {worst:.2f} of the best", flush=True)


if __name__ == "__main__":
    main()
