"""What was measured by scripts of their own: the range test, and co-adaptation with and without dropout."""

import csv
import statistics
import textwrap
from pathlib import Path

from scipy import stats

from compared import FOLDER, interval, told

RANGE_TEST = FOLDER / "lr-range.csv"
COADAPTATION = FOLDER / "coadaptation.csv"


def range_test(path: Path) -> str:
    """Returns the section of the range test's card: how often a suggestion is near the best rate."""
    if not path.exists():
        return "Not measured yet."
    rows = [row for row in _rows(path) if row["part"] == "held out"]
    lines = [
        textwrap.fill(
            "On planted problems that had no say in how it was made: how often a suggested rate is within a factor of "
            "3 of the best rate of a grid, with Wilson's 95 % interval (no suggestion counts as a miss); the median of "
            "suggested over best; the steps it took. The other rules read the curve of one sweep alone.",
            118,
        ),
        "",
        "| rule | n | within a factor of 3, % | suggested / best | steps |",
        "|---|---|---|---|---|",
    ]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        mine = [row for row in rows if row["rule"] == rule]
        right = sum(row["right"] == "1" for row in mine)
        interval = stats.binomtest(right, len(mine)).proportion_ci(method="wilson")
        share = f"{100 * right / len(mine):.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
        ratio = statistics.median(float(row["ratio"]) for row in mine if row["ratio"] != "nan")
        steps = statistics.mean(float(row["steps"]) for row in mine)
        name = f"**{rule}**" if rule.startswith("lr_range") else rule
        lines.append(f"| {name} | {len(mine)} | {share} | {ratio:.2g} | {steps:.0f} |")
    command = f"$ python bench/lr_range.py --csv {path.name}"
    return "\n".join([*lines, "", "```console", command, "```", "", f"[The raw rows](../evidence/{path.name})."])


def coadaptation(path: Path) -> str:
    """Returns a part of dropout's card: how much single units are missed, without dropout and with it."""
    if not path.exists():
        return "Co-adaptation: not measured yet."
    by_rate: dict[str, dict[str, dict[str, str]]] = {}
    for row in _rows(path):
        by_rate.setdefault(row["drop_rate"], {})[row["seed"]] = row
    [(low, without), (high, dropped)] = sorted(by_rate.items(), key=lambda item: float(item[0]))
    seeds = sorted(without.keys() & dropped.keys(), key=int)
    command = f"python bench/coadaptation.py --csv {path.name}"
    lines = [
        textwrap.fill(
            f"Co-adaptation: the held-out loss of an MLP with two layers of 64 units, on scikit-learn's digits, and "
            f"how much it rises when single units of the last are silenced: means over {len(seeds)} seeds, 95 % "
            "intervals, paired.",
            118,
        ),
        f"By `{command}`; [the rows](../evidence/{path.name}).",
        "",
        f"| loss | dropout {float(low):g} | dropout {float(high):g} | difference |",
        "|---|---|---|---|",
    ]
    for figure, words in (
        ("loss", "with all units"),
        ("mean_rise", "rise, mean"),
        ("largest_rise", "rise, largest"),
    ):
        values = [[float(part[seed][figure]) for seed in seeds] for part in (without, dropped)]
        differences = [after - before for before, after in zip(*values, strict=True)]
        _, least, most = interval(differences)
        beside = told(differences, "{:+.4f}") + (", a tie" if least <= 0 <= most else "")
        lines.append(f"| {words} | {told(values[0], '{:.4f}')} | {told(values[1], '{:.4f}')} | {beside} |")
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
