"""Is decay of the rate worth more to SGD than to Adam? {SGD with momentum, Adam} × {no decay, step, cosine}.

    python bench/rate_decay.py cifar10/train [--jobs 2]

The evidence task: 4,000 training images of CIFAR-10, 2,000 for validation, 20,000 for the test, resnet8 (16 base
channels), 40 epochs, batches of 64, no weight decay, the last weights. First each of the six cells is run at three
rates, half a decade apart, with one seed; the best by *validation* accuracy is kept. If that is at an edge, rates
beyond it are tried, for all cells of that optimizer alike. Then each cell is run with ten seeds. Rows are appended as
runs end: stop it, and start it again at will. Those runs look at 200 validation images alone: nothing depends on them.
"""

import csv
import json
from pathlib import Path

from evidence import TASK, arguments, run

RATES = {"sgd": (0.1, 0.03, 0.3), "adam": (0.003, 0.001, 0.01)}
BEYOND = {
    "sgd": {0.03: 0.01, 0.3: 1.0, 1.0: 3.0, 3.0: 10.0},
    "adam": {0.001: 0.0003, 0.01: 0.03, 0.03: 0.1, 0.1: 0.3},
}
CELLS = [(optimizer, schedule) for optimizer in RATES for schedule in ("constant", "step", "cosine")]


def best_rates(rows: Path) -> dict[tuple[str, str], float]:
    """Returns the rate of each cell that did best on validation."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    with rows.open(newline="") as file:
        for row in csv.DictReader(file):
            fields = json.loads(row["fields"])
            cell = fields["optimizer"], fields["schedule"]
            best[cell] = max(best.get(cell, (0.0, 0.0)), (float(row["val_accuracy"]), fields["lr"]))
    return {cell: rate for cell, (_, rate) in best.items()}


def main() -> None:
    options = arguments(__doc__).parse_args()
    tuning, rows = options.folder / "optimizers-tuning.csv", options.folder / "optimizers.csv"
    rates = {optimizer: list(values) for optimizer, values in RATES.items()}
    while True:
        tried = [
            f"{optimizer}-{schedule}-{lr}: optimizer={optimizer} schedule={schedule} lr={lr} {TASK}"
            for optimizer, schedule in CELLS
            for lr in rates[optimizer]
        ]
        run(options, tuning, tried, seeds=1, val=2000)
        best = best_rates(tuning)
        more = {(o, BEYOND[o][lr]) for (o, _), lr in best.items() if BEYOND[o].get(lr) not in (None, *rates[o])}
        if not more:
            break
        for optimizer, lr in more:
            rates[optimizer].append(lr)
    print("best rates:", best, flush=True)
    cells = [f"{o}-{s}: optimizer={o} schedule={s} lr={best[o, s]} {TASK}" for o, s in CELLS]
    run(options, rows, cells, options.seeds)


if __name__ == "__main__":
    main()
