"""The evidence task: CIFAR-10, 4,000 training images, 20,000 for the test, resnet8, 40 epochs, batches of 64."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EVIDENCE = HERE.parent / "docs" / "evidence"
EPOCHS = 40
SETTINGS = "batch_size=64 weight_decay=0.0 restore_best=false augment=none"
TASK = f"model=resnet8 epochs={EPOCHS} {SETTINGS}"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with what all benchmarks on the task are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the folder of CIFAR-10's training images, a class a folder")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=EVIDENCE, help="where the rows are")
    return parser


def run_budgets(description: str | None, techniques: dict[str, str], rows: str, average: str = "") -> None:
    """Runs techniques, as fields of a recipe beside Adam with a cosine, at one and at three times the budget."""
    parser = arguments(description)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 3], help="in multiples of 40 epochs")
    options = parser.parse_args()
    for budget in options.budgets:
        more = "" if budget == 1 else f"-{budget}x"
        recipes = [
            f"{name}{more}: optimizer=adam schedule=cosine epochs={EPOCHS * budget} {SETTINGS} {fields}"
            for name, fields in techniques.items()
        ]
        run(options, options.folder / rows, recipes, options.seeds, average=average)


def run(
    options: argparse.Namespace, rows: Path, recipes: list[str], seeds: int, val: int = 200, average: str = ""
) -> None:
    """Runs recipes by `seeds.py`, without those whose rows are there."""
    split, limit = {"val": 0.04, "test": 0.4}, {"train": 4000, "val": val, "test": 20000}
    subprocess.run(
        [sys.executable, HERE / "seeds.py", options.source, "--same-split",
         "--split", json.dumps(split), "--limit", json.dumps(limit),
         "--jobs", str(options.jobs), "--csv", rows, "--seeds", str(seeds), "--average", average, *recipes],
        check=True,
    )  # fmt: skip
