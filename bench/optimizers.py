"""The optimizers and schedules of the cards, on the evidence task; each optimizer's rate is looked for first.

    python bench/optimizers.py cifar10/train [--jobs 2]

The evidence task is `rate_decay.py`'s, whose rows are to be there, and rows go where its go. Each optimizer is run with
a cosine at three rates, half a decade apart, with one seed; while the best by *validation* accuracy is at an edge, the
next beyond it is tried. At that rate it is run with ten seeds. Schedules are run with SGD at the rate that was best for
its cosine. Rows are appended as runs end: stop it, and start it again at will.
"""

import argparse
import csv
import json
from pathlib import Path

from evidence import TASK, arguments, run
from rate_decay import best_rates

# Rates to begin with, the middle of three.
OPTIMIZERS = {
    "sgd-plain-cosine": ("optimizer=sgd momentum=0.0 schedule=cosine", 1.0),
    "sgd-heavy-ball": ("optimizer=sgd nesterov=false schedule=cosine", 1.0),
    "adagrad-cosine": ("optimizer=adagrad schedule=cosine", 0.1),
    "rmsprop-cosine": ("optimizer=rmsprop schedule=cosine", 0.003),
    "adamax-cosine": ("optimizer=adamax schedule=cosine", 0.03),
    "nadam-cosine": ("optimizer=nadam schedule=cosine", 0.03),
    "radam-cosine": ("optimizer=radam schedule=cosine", 0.03),
    "lion-cosine": ("optimizer=lion schedule=cosine", 0.001),
    "muon-cosine": ("optimizer=muon schedule=cosine", 0.03),
    "soap-cosine": ("optimizer=soap schedule=cosine", 0.03),
}
SCHEDULES = ("linear", "exponential", "inverse_time", "restarts", "triangular", "one_cycle", "wsd", "plateau")
HALF_DECADES = [digit * 10.0**power for power in range(-5, 2) for digit in (1, 3)]
ADAMW = TASK.replace("weight_decay=0.0", "weight_decay=0.05")  # with which it is more than Adam


def around(rate: float) -> list[float]:
    """Returns a rate and those half a decade below and above it."""
    at = min(range(len(HALF_DECADES)), key=lambda i: abs(HALF_DECADES[i] / rate - 1))
    return [float(f"{value:.0e}") for value in HALF_DECADES[at - 1 : at + 2]]


def best_rate(options: argparse.Namespace, tuning: Path, name: str, fields: str, first: float) -> float:
    """Returns the rate that does best on validation with one seed, and is at no edge of those that were tried."""
    tried = around(first)
    while True:
        run(options, tuning, [f"{name}-{lr}: {fields} lr={lr}" for lr in tried], seeds=1, val=2000)
        with tuning.open(newline="") as file:
            mine = {row["recipe"]: float(row["val_accuracy"]) for row in csv.DictReader(file)}
        best = max(tried, key=lambda lr: mine[f"{name}-{lr}"])
        beyond = [lr for lr in around(best) if lr not in tried]
        if not beyond:
            return best
        tried += beyond


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows, tuning = options.folder / "optimizers.csv", options.folder / "optimizers-rates.csv"
    rate = best_rates(options.folder / "optimizers-tuning.csv")["sgd", "cosine"]
    recipes = [f"sgd-{name}: optimizer=sgd schedule={name} lr={rate} {TASK}" for name in SCHEDULES]
    recipes.append(f"sgd-no-warmup: optimizer=sgd schedule=cosine warmup=0.0 lr={rate} {TASK}")
    cells = {name: (f"{fields} {TASK}", first) for name, (fields, first) in OPTIMIZERS.items()}
    cells["adamw-cosine"] = (f"optimizer=adamw schedule=cosine {ADAMW}", 0.03)
    for name, (fields, first) in cells.items():
        best = best_rate(options, tuning, name, fields, first)
        print(json.dumps({name: best}), flush=True)
        recipes.append(f"{name}: {fields} lr={best}")
        if name == "adamw-cosine":  # and with decay of biases and norms' scales
            recipes.append(f"decay-all: {fields} lr={best} decay_all=true")
    run(options, rows, recipes, options.seeds)


if __name__ == "__main__":
    main()
