"""Techniques against overfitting, each against none, on the evidence task: at one and at three times the budget.

    python bench/regularizers.py cifar10/train [--jobs 2] [--budgets 1 3]

The evidence task is `rate_decay.py`'s, with Adam and a cosine at the rate that was best there. Strengths are usual ones
and were not tuned; the model without batch norm has a tenth of the rate, at which it learns. Run it from the
repository's folder. Rows are appended as runs end: stop it, and start it again at will.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROWS = HERE.parent / "docs" / "evidence" / "regularizers.csv"
TASK = "optimizer=adam schedule=cosine batch_size=64 weight_decay=0.0 restore_best=false"
EPOCHS = 40
TECHNIQUES = {
    "none": "lr=0.03 model=resnet8",
    "dropout": "lr=0.03 model=resnet8 drop_rate=0.3",
    "dropout-maps": "lr=0.03 model=resnet8 drop_map_rate=0.1",
    "dropconnect": "lr=0.03 model=resnet8 dropconnect=0.3",
    "fractional-pooling": "lr=0.03 model=bench.architectures:fractional",
    "stochastic-depth": "lr=0.03 model=resnet8 drop_path_rate=0.2",
    "label-smoothing": "lr=0.03 model=resnet8 label_smoothing=0.1",
    "mixup": "lr=0.03 model=resnet8 mixup=0.2",
    "cutmix": "lr=0.03 model=resnet8 cutmix=1.0",
    "l1": "lr=0.03 model=resnet8 l1=1e-5",
    "sam": "lr=0.03 model=resnet8 sam=0.05",
    "no-batch-norm": "lr=0.003 model=bench.architectures:without_batch_norm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the folder of CIFAR-10's training images, a class a folder")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 3], help="in multiples of 40 epochs")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", nargs="+", default=list(TECHNIQUES), choices=TECHNIQUES)
    options = parser.parse_args()
    for budget in options.budgets:
        more = "" if budget == 1 else f"-{budget}x"
        recipes = [f"{name}{more}: {TECHNIQUES[name]} {TASK} epochs={EPOCHS * budget}" for name in options.only]
        subprocess.run(
            [sys.executable, HERE / "seeds.py", options.source, "--same-split",
             "--split", json.dumps({"val": 0.04, "test": 0.4}),
             "--limit", json.dumps({"train": 4000, "val": 200, "test": 20000}),
             "--jobs", str(options.jobs), "--csv", options.rows, "--seeds", str(options.seeds), *recipes],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
