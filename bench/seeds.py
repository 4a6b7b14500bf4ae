"""Compares recipes over seeds: raw rows to a CSV file, means with intervals, paired differences to the first recipe.

    python bench/seeds.py digits --seeds 10 --csv rows.csv "fp32: precision=fp32" "default:"

A recipe is a name, a colon, and fields of `trainwell.Recipe`. Each is run with seeds 0, 1, …; by default the seed also
chooses the split, so that the interval covers the luck of the split too. Rows are appended as runs end, and runs whose
row is there already are not made again: stop it and start it again at will.
"""

import argparse
import csv
import dataclasses
import json
import statistics
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy import stats

import trainwell as tw
from rows import append
from trainwell.data.dataset import Data

FIGURES = ("test_accuracy", "test_loss", "val_accuracy", "best_epoch", "steps", "seconds")


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Reads `name: field=value field=value`; values are TOML, or words as they are."""
    name, _, fields = text.partition(":")
    read: dict[str, Any] = {}
    for field in fields.split():
        key, _, value = field.partition("=")
        try:
            read |= tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            read[key] = value
    tw.Recipe.from_dict(read)  # refuse what is no recipe before hours are spent
    return name.strip(), read


def limited(data: Data, limits: dict[str, int], seed: int) -> Data:
    """Keeps a random few of each part."""
    few = {}
    for name, part in data.parts.items():
        order = tw.random.permutation(len(part), seed, "limit", name)[: limits.get(name, len(part))]
        few[name] = dataclasses.replace(part, indices=part.indices[order])
    return dataclasses.replace(data, **few, source="arrays")


def run(
    source: str,
    fields: dict[str, Any],
    seed: int,
    split_seed: int,
    limits: dict[str, int],
    split: dict[str, float],
    average: str,
) -> dict[str, Any]:
    data = limited(tw.load(source, split_seed=split_seed, quiet=True, **split), limits, split_seed)
    with tempfile.TemporaryDirectory() as folder:
        made = tw.fit(data, out=Path(folder) / "run", quiet=True, save_seconds=1e9, **{"seed": seed, **fields})
        figures = {name: made.result.get(name) for name in FIGURES}
        return figures | (averaged(made, data, average) if average else {})


def averaged(made: tw.Run, data: Data, average: str) -> dict[str, float]:
    """Returns what averaging over views makes of the test part of images of one size."""
    assert data.images is not None
    images = np.stack([data.images[row] for row in data.test.indices])
    targets = data.test.targets[data.test.indices]
    probabilities = made.predict(images, average=average).outputs.astype(np.float64)
    right = probabilities[np.arange(len(targets)), targets]
    return {
        "average_accuracy": float((probabilities.argmax(1) == targets).mean()),
        "average_loss": float(-np.log(right.clip(1e-12)).mean()),
    }


def mean_and_interval(values: list[float]) -> str:
    """Returns the mean with Student's 95 % interval, and the standard deviation."""
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * deviation / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}] sd {deviation:.4f} n {len(values)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("recipes", nargs="+", type=parse, metavar="NAME: FIELD=VALUE …")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, in processes of --threads threads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--same-split", action="store_true", help="split by seed 0 always")
    parser.add_argument("--limit", type=json.loads, default={}, help='such as {"train": 4000, "test": 20000}')
    parser.add_argument("--split", type=json.loads, default={}, help='fractions, such as {"val": 0.04, "test": 0.4}')
    parser.add_argument("--average", default="", help="views that the test part is averaged over too: `shifts`, …")
    options = parser.parse_args()

    rows = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    done = {(row["recipe"], row["fields"], int(row["seed"])) for row in rows}
    wanted = [
        (name, fields, seed)
        for seed in range(options.seeds)
        for name, fields in options.recipes
        if (name, json.dumps(fields), seed) not in done
    ]

    def one(name: str, fields: dict[str, Any], seed: int) -> dict[str, Any]:
        split_seed = 0 if options.same_split else seed
        figures = run(
            options.source, {"threads": options.threads, **fields}, seed, split_seed, options.limit, options.split,
            options.average,
        )  # fmt: skip
        return {"recipe": name, "fields": json.dumps(fields), "seed": seed, "split_seed": split_seed, **figures}

    work = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")
    for row in work(joblib.delayed(one)(*task) for task in wanted):
        append(options.csv, row)
        rows.append({key: str(value) for key, value in row.items()})
        print(f"{len(rows)} rows, the last: {row}", flush=True)

    first = options.recipes[0][0]
    for figure in ("test_accuracy", "test_loss", "seconds"):
        print(f"\n{figure}: mean, 95 % interval, standard deviation; then the paired difference to {first}")
        by_name: dict[str, dict[int, float]] = {name: {} for name, _ in options.recipes}
        for row in rows:
            if (row["recipe"], json.loads(row["fields"])) in options.recipes:
                by_name[row["recipe"]][int(row["seed"])] = float(row[figure])
        for name, values in by_name.items():
            shared = sorted(values.keys() & by_name[first].keys())
            paired = mean_and_interval([values[seed] - by_name[first][seed] for seed in shared])
            print(
                f"  {name:20} {mean_and_interval(list(values.values()))}" + ("" if name == first else f"  |  {paired}")
            )


if __name__ == "__main__":
    main()
