"""What was measured of transfer learning: means, paired differences, and what the plan chose, from the raw rows."""

import csv
import statistics
import textwrap
from collections import Counter
from pathlib import Path

from compared import ENOUGH, FOLDER, Row, few_seeds, interval, told

PATH = FOLDER / "transfer.csv"
ON = (
    "a resnet20 of 16 base channels that was pretrained on six classes of CIFAR-10 (airplane, automobile, bird, cat, "
    "deer, dog) and transferred to the other four (frog, horse, ship, truck), with 10 to 1,000 images a class to learn "
    "from and a fifth more for validation, and 4,000 test images in all; fine-tuning takes 300 steps, from scratch 900"
)
WORDS = {
    "pretrained": "`linear` is a new last layer alone, `all` trains everything, the pretrained stages at a tenth of "
    "the rate.",
    "linear_head": "`linear` is a new last layer alone, solved for.",
    "fine_tuning": "`all` trains everything, the pretrained stages at a tenth of the rate.",
    "lp_ft": "`lp_ft` begins with the best linear head and then trains everything.",
    "l2_sp": "`l2_sp` trains everything, with an alpha of 0.01.",
    "probes": "`stage` is a linear head on the stage whose probe is best.",
    "plan": "`plan` is `--transfer auto` with 10 minutes for trials; the order of its candidates was settled after a "
    "look at seeds 0 and 1.",
}
PER_CLASS = (10, 50, 250, 1_000)
SCRATCH, PLAN = "scratch", "plan"

# What each card shows beside training from scratch.
RECIPES: dict[str, tuple[str, ...]] = {
    "pretrained": ("linear", "all"),
    "linear_head": ("linear",),
    "fine_tuning": ("all",),
    "lp_ft": ("lp_ft",),
    "l2_sp": ("l2_sp",),
    "probes": ("stage",),
    PLAN: (PLAN,),
}
BySeed = dict[str, Row]


def read(path: Path = PATH) -> list[Row]:
    """Reads the raw rows; none if there is no file.

    Raises:
        ValueError: a recipe or a number of images is in no card, or was run twice with a seed.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {SCRATCH}.union(*RECIPES.values())
    seen = set()
    for row in rows:
        key = row["recipe"], int(row["per_class"]), row["seed"]
        if key[0] not in known or key[1] not in PER_CLASS:
            raise ValueError(
                f"{key[0]!r} with {key[1]} images a class in {path.name} is in no card: put it into "
                "docs/cards/transfer_table.py"
            )
        if key in seen:
            raise ValueError(f"{key[0]!r} with {key[1]} images a class in {path.name} has seed {key[2]} twice")
        seen.add(key)
    return rows


def measured(card: str, rows: list[Row]) -> str:
    """Returns the section of a card about what was measured."""
    by_size: dict[int, dict[str, BySeed]] = {}
    for row in sorted(rows, key=lambda row: int(row["per_class"])):
        by_size.setdefault(int(row["per_class"]), {}).setdefault(row["recipe"], {})[row["seed"]] = row
    shown = {
        per_class: [name for name in (SCRATCH, *RECIPES[card]) if name in by_recipe]
        for per_class, by_recipe in by_size.items()
        if SCRATCH in by_recipe and any(name in by_recipe for name in RECIPES[card])
    }
    if not shown:
        return textwrap.fill(f"Not measured yet on the evidence task: {ON}.", 118)
    lines = [
        textwrap.fill(
            f"{ON[0].upper()}{ON[1:]}. {WORDS[card]} Means over n seeds, with 95 % intervals (Student's); differences "
            "are paired by seed, and those whose interval holds 0 are ties.",
            118,
        ),
        "",
        "| images a class | recipe | n | test accuracy, % | more than scratch, points | seconds, mean |",
        "|---|---|---|---|---|---|",
    ]
    for per_class, names in shown.items():
        for name in names:
            by_seed = by_size[per_class][name]
            seconds = statistics.mean(float(row["seconds"]) for row in by_seed.values())
            beside = "–" if name == SCRATCH else _beside(by_seed, by_size[per_class][SCRATCH])
            accuracy = told([*_accuracies(by_seed).values()], "{:.2f}")
            lines.append(f"| {per_class:,} | {name} | {len(by_seed)} | {accuracy} | {beside} | {seconds:.0f} |")
    if card == PLAN:
        lines += _of_the_plan({per_class: by_size[per_class] for per_class in shown})
    if min(len(by_size[per_class][name]) for per_class, names in shown.items() for name in names) < ENOUGH:
        lines += few_seeds()
    command = "python bench/transfer.py CIFAR10_FOLDER six.safetensors"
    return "\n".join([*lines, "", f"By `{command}`; [the raw rows](../evidence/{PATH.name})."])


def _of_the_plan(by_size: dict[int, dict[str, BySeed]]) -> list[str]:
    """Returns lines on what the plan chose, beside the single way that turned out best."""
    lines = [
        "",
        "Beside the one of the other recipes with the highest mean, which nobody knows beforehand:",
        "",
        "| images a class | the best other | plan more than it, points |",
        "|---|---|---|",
    ]
    chosen = []
    for per_class, by_recipe in by_size.items():
        means = {name: statistics.mean(_accuracies(found).values()) for name, found in by_recipe.items()}
        best = max((name for name in means if name != PLAN), key=lambda name: means[name])
        lines.append(f"| {per_class:,} | {best} | {_beside(by_recipe[PLAN], by_recipe[best])} |")
        ways = Counter(row["transfer"] for row in by_recipe[PLAN].values()).most_common()
        chosen.append(f"with {per_class:,} images a class {', '.join(f'{way} ({count})' for way, count in ways)}")
    return [*lines, "", *textwrap.wrap(f"It chose, so many times: {'; '.join(chosen)}.", 118)]


def _accuracies(by_seed: BySeed) -> dict[str, float]:
    return {seed: 100 * float(row["test_accuracy"]) for seed, row in by_seed.items()}


def _beside(by_seed: BySeed, reference: BySeed) -> str:
    """Returns the paired difference in words."""
    mine, theirs = _accuracies(by_seed), _accuracies(reference)
    pairs = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not pairs:
        return "–"
    _, low, high = interval(pairs)
    few = f"; n {len(pairs)}" if len(pairs) < len(mine) else ""
    return told(pairs, "{:+.2f}") + (", a tie" if low <= 0 <= high else "") + few
