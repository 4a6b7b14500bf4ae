"""What was measured of averages of weights, snapshots and members, from the rows of `bench/ensembles.py`."""

import csv
import statistics
import textwrap
from pathlib import Path

from compared import ENOUGH, FOLDER, TASK, Row, few_seeds, interval, told

PATH = FOLDER / "ensembles.csv"
ON = f"{TASK.format('40 epochs')}, Adam with a cosine, and 200 images for validation"
MOST = 8  # members

# What each card shows beside a single run, and what that is.
ARMS: dict[str, tuple[str, ...]] = {
    "ema": ("ema", "constant", "constant-ema"),
    "swa": ("swa",),
    "snapshots": ("snapshots",),
    "members": ("members-2-all", "members-5-all", "members-5", "members-8-all", "members-8"),
}
WORDS = {
    "ema": "`ema` is the same run with the average of the default decay, handed over if validation favours it; "
    "`constant` and `constant-ema` likewise at a rate that does not fall.",
    "swa": "`swa` is the same run, but with a constant rate over the last quarter of the epochs, whose average is "
    "handed over if validation favours it.",
    "snapshots": "`snapshots` is a run of the same length in three cycles, and the ensemble of it.",
    "members": "`members-n-all` is the mean of n runs; `members-n` that of those chosen on validation, with a "
    "temperature.",
}
# Each figure's column, its unit, and how it is written.
FIGURES = (
    ("accuracy, %", "accuracy", 100, ".2f"),
    ("log loss", "log_loss", 1, ".4f"),
    ("calibration error, %", "calibration_error", 100, ".2f"),
)
AVERAGED = ("ema", "constant-ema", "swa")
_OTHERS = {f"members-{count}{end}" for count in range(2, MOST + 1) for end in ("-all", "")}


def read(path: Path = PATH) -> list[Row]:
    """Reads the raw rows; none if there is no file.

    Raises:
        ValueError: an arm is in no card, or was run twice with a seed.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {"single", *_OTHERS}.union(*ARMS.values())
    seen = set()
    for row in rows:
        key = row["arm"], row["seed"], _member(row)
        if row["arm"] not in known:
            raise ValueError(f"{row['arm']!r} in {path.name} is in no card: put it into docs/cards/ensembles_table.py")
        if key in seen:
            raise ValueError(f"{row['arm']!r} in {path.name} has seed {row['seed']} twice")
        seen.add(key)
    return rows


def measured(card: str, rows: list[Row]) -> str:
    """Returns the section of a card about what was measured."""
    by_arm: dict[str, dict[str, Row]] = {}
    for row in rows:
        if _member(row) == 0:
            by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    shown = [arm for arm in ARMS[card] if arm in by_arm]
    if not shown or "single" not in by_arm:
        return textwrap.fill(f"Not measured yet on the evidence task: {ON}.", 118)
    lines = [
        textwrap.fill(
            f"{ON}. {WORDS[card]} Means over n seeds, with 95 % intervals (Student's); differences to `single` are "
            "paired by seed, and those whose interval holds 0 are ties. Time of training over `single`'s: the median.",
            118,
        )
    ]
    arms = ["single", *shown]
    for name, column, unit, form in FIGURES:
        first = column == "accuracy"
        heads = [name, "mean", "more than single", *(["n", "kept", "time"] if first else [])]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for arm in arms:
            values = {seed: unit * float(row[column]) for seed, row in by_arm[arm].items()}
            single = {seed: unit * float(row[column]) for seed, row in by_arm["single"].items()}
            cells = [arm, told(list(values.values()), f"{{:{form}}}"), _beside(arm, values, single, form)]
            if first:
                cells += [str(len(values)), _kept(arm, list(by_arm[arm].values())), _time(arm, rows)]
            lines.append(f"| {' | '.join(cells)} |")
    if {"constant", "constant-ema"} <= {*shown}:
        lines += ["", "What the average gives at a constant rate:", ""]
        for name, column, unit, form in FIGURES:
            plain, averaged = (
                {seed: unit * float(row[column]) for seed, row in by_arm[arm].items()}
                for arm in ("constant", "constant-ema")
            )
            lines.append(f"- {name}: {_beside('constant-ema', averaged, plain, form)}")
    if min(len(by_arm[arm]) for arm in arms) < ENOUGH:
        lines += few_seeds()
    return "\n".join(
        [*lines, "", f"By `python bench/ensembles.py CIFAR10_FOLDER`; [the raw rows](../evidence/{PATH.name})."]
    )


def _beside(arm: str, values: dict[str, float], single: dict[str, float], form: str) -> str:
    """Returns the paired difference in words."""
    pairs = [values[seed] - single[seed] for seed in values if seed in single]
    if arm == "single" or not pairs:
        return "–"
    _, low, high = interval(pairs)
    few = f"; n {len(pairs)}" if len(pairs) < len(values) else ""
    return told(pairs, f"{{:+{form}}}") + (", a tie" if low <= 0 <= high else "") + few


def _kept(arm: str, rows: list[Row]) -> str:
    """Returns which weights were handed over, or how many members answer, on average."""
    if arm in ("single", "constant"):
        return "–"
    if arm in AVERAGED:
        return f"the average in {sum(row['kept'] != 'raw' for row in rows)} of {len(rows)}"
    of = 3 if arm == "snapshots" else int(arm.split("-")[1])
    return f"{statistics.mean(int(row['kept']) for row in rows):.3g} of {of}"


def _time(arm: str, rows: list[Row]) -> str:
    """Returns the median over the seeds of the training's seconds over those of a single run; members' are added up."""
    seconds = {(row["arm"], row["seed"], _member(row)): float(row["seconds"]) for row in rows if row["seconds"]}
    ratios = []
    for (of, seed, member), alone in seconds.items():
        if of != "single" or member:
            continue
        count = int(arm.split("-")[1]) if arm.startswith("members") else 1
        own = [seconds.get(("single" if arm.startswith("members") else arm, seed, k)) for k in range(count)]
        known = [one for one in own if one is not None]
        if len(known) == count:
            ratios.append(sum(known) / alone)
    return f"{statistics.median(ratios):.2f}" if ratios else "–"


def _member(row: Row) -> int:
    return int(row["member"] or 0)
