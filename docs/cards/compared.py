"""What was measured of recipes: means, paired differences, and the command that made them, from the raw rows."""

import csv
import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from trainwell.train.recipe import SCHEDULES

Row = dict[str, str]

FOLDER = Path(__file__).parent.parent / "evidence"
TASK = "CIFAR-10 with 4,000 training and 20,000 test images, a resnet8 of 16 base channels, {}, batches of 64"
SPLIT = """--same-split --split '{"val": 0.04, "test": 0.4}' --limit '{"train": 4000, "val": 200, "test": 20000}'"""
ENOUGH = 10  # seeds


@dataclass(frozen=True)
class Evidence:
    """The raw rows of one comparison, and what its cards show of them.

    Attributes:
        path: the file, which `bench/seeds.py` wrote.
        task: what was trained on what, in words.
        references: by how a recipe's name ends, what it is compared with: the first of these that has rows.
        recipes: which recipes each card shows; those without rows are left out.
        beside: others that it shows beside them, and that say nothing about the card where its own have no rows.
        command: what made the rows, if not `bench/seeds.py` with the recipes.
    """

    path: Path
    task: str
    references: dict[str, tuple[str, ...]]
    recipes: dict[str, tuple[str, ...]]
    beside: dict[str, tuple[str, ...]] = field(default_factory=dict)
    command: str = ""

    def ending(self, name: str) -> str:
        return max((end for end in self.references if name.endswith(end)), key=len)


OPTIMIZERS = Evidence(
    path=FOLDER / "optimizers.csv",
    task=TASK.format("40 epochs"),
    references={"": ("adam-cosine", "adam", "default", "adamw-cosine", "adamw"), "sgd-no-warmup": ("sgd-cosine",)},
    recipes={  # `fit`'s sgd has Nesterov's momentum of 0.9
        "sgd": ("sgd-plain", "sgd-plain-cosine", "sgd-plain-step", "sgd-plain-constant"),
        "momentum": ("sgd-heavy-ball",),
        "nesterov": ("nesterov", "sgd", "sgd-cosine", "sgd-step", "sgd-constant"),
        "adam": ("adam", "adam-cosine", "adam-step", "adam-constant"),
        **{
            name: (name, f"{name}-cosine", f"{name}-step", f"{name}-constant")
            for name in ("adagrad", "rmsprop", "adamw", "adamax", "nadam", "radam", "lion", "muon", "soap")
        },
        **{name: (name, f"sgd-{name}", f"adam-{name}", f"adamw-{name}") for name in SCHEDULES},
        "constant": ("constant", "sgd-constant", "sgd-cosine", "sgd-step", "adam-constant", "adam-step"),
        "warmup": ("warmup", "no-warmup", "sgd-no-warmup", "adam-no-warmup", "adamw-no-warmup"),
        "groups": ("decay-all",),
    },
    beside={
        **{name: ("sgd-constant", "adam-constant") for name in SCHEDULES if name != "constant"},
        "momentum": ("sgd-plain-cosine", "sgd-cosine"),
        "groups": ("adamw-cosine",),
    },
)

_REGULARIZERS = {
    "dropout": ("dropout", "dropout-maps"),
    "dropconnect": ("dropconnect",),
    "stochastic_depth": ("stochastic-depth",),
    "fractional_pooling": ("fractional-pooling",),
    "label_smoothing": ("label-smoothing",),
    "mixup": ("mixup",),
    "cutmix": ("cutmix",),
    "penalties": ("l1",),
    "sam": ("sam",),
    "batch_norm": ("no-batch-norm",),
    "marginalize": (),
}

REGULARIZERS = Evidence(
    path=FOLDER / "regularizers.csv",
    task=TASK.format("40 epochs (120 where a name ends in -3x, which is compared with none-3x)"),
    references={"": ("none",), "-3x": ("none-3x",)},
    recipes={card: (*names, *(f"{name}-3x" for name in names)) for card, names in _REGULARIZERS.items()},
)

_AUGMENTATIONS = {
    "augmentation": ("light", "standard", "strong"),
    "geometry": ("light",),  # has nothing else
    "colour": (),
    "erasing": (),
    "test_time": ("none", "light", "standard", "strong"),
}

AUGMENTATIONS = Evidence(
    path=FOLDER / "augmentation.csv",
    task=REGULARIZERS.task,
    references=REGULARIZERS.references,
    recipes={card: (*names, *(f"{name}-3x" for name in names)) for card, names in _AUGMENTATIONS.items()},
    command="python bench/augmentation.py CIFAR10_FOLDER",
)

ALL = (OPTIMIZERS, REGULARIZERS, AUGMENTATIONS)


def evidence_of(card: str) -> Evidence:
    [mine] = [evidence for evidence in ALL if card in evidence.recipes]
    return mine


def read(evidence: Evidence, path: Path | None = None) -> list[Row]:
    """Reads the raw rows, from the evidence's own file if no other is named; none if there is no file.

    Raises:
        ValueError: a recipe stands for two things, was run twice with a seed, or is in no card.
    """
    path = path or evidence.path
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    listed = (evidence.recipes, evidence.beside, evidence.references)
    shown = {name for cards in listed for names in cards.values() for name in names}
    fields: dict[str, str] = {}
    seen = set()
    for row in rows:
        name, key = row["recipe"], (row["recipe"], row["seed"])
        if name not in shown:
            raise ValueError(f"the recipe {name!r} in {path.name} is in no card: put it into docs/cards/compared.py")
        if fields.setdefault(name, row["fields"]) != row["fields"]:
            raise ValueError(f"the recipe {name!r} in {path.name} has fields {row['fields']} and {fields[name]}")
        if key in seen:
            raise ValueError(f"the recipe {name!r} in {path.name} has seed {row['seed']} twice")
        seen.add(key)
    return rows


def measured(card: str, rows: list[Row]) -> str:
    """Returns the section of a card about what was measured."""
    evidence = evidence_of(card)
    by_recipe: dict[str, list[Row]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(row)
    if card == "test_time":
        by_recipe = {
            name: few
            for name, rows in by_recipe.items()
            if (few := [row for row in rows if row.get("average_accuracy")])
        }
    own = evidence.recipes[card]
    against = _shown(evidence, (*own, *evidence.beside.get(card, ())), by_recipe)
    if not any(name in by_recipe for name in own):
        return textwrap.fill(f"Not measured yet on the evidence task: {evidence.task}.", 118)
    if card == "test_time":
        return "\n".join(what_averaging_gives(evidence, {name: by_recipe[name] for name in against}))
    references = " or ".join(dict.fromkeys(filter(None, against.values()))) or "nothing"
    lines = [
        textwrap.fill(
            f"{evidence.task}. Means over n seeds, with 95 % intervals (Student's); differences are paired by seed, "
            "and those whose interval holds 0 are ties. The intervals are not widened for how many recipes were "
            "compared. Seconds are of a shared machine on several days, and do not compare recipes run on "
            "different ones.",
            118,
        ),
        "",
        f"| recipe | n | test accuracy, % | against {references}, points | seconds a run, median |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(name, by_recipe, reference) for name, reference in against.items()]
    if card == "constant":
        lines += what_decay_gives(by_recipe)
    fewest = min(len(by_recipe[name]) for name in against)
    if fewest < ENOUGH:
        lines += few_seeds()
    if evidence.command:
        return "\n".join([*lines, "", *_made_by(evidence)])
    # A quoted argument may go on in the next line.
    recipes = [
        textwrap.fill(f"'{name}: {_fields(by_recipe[name][0])}'", 112, subsequent_indent="      ") for name in against
    ]
    seeds = max(len(by_recipe[name]) for name in against)
    command = ["python bench/seeds.py CIFAR10_FOLDER", f"--seeds {seeds} --csv rows.csv", SPLIT]
    lines += ["", "```sh", " \\\n    ".join([*command, *recipes]), "```", ""]
    return "\n".join([*lines, f"[The raw rows](../evidence/{evidence.path.name})."])


def few_seeds() -> list[str]:
    """Returns lines that say so."""
    return ["", f"**Fewer than {ENOUGH} seeds so far**: take it as a first look."]


def _made_by(evidence: Evidence) -> list[str]:
    return [f"By `{evidence.command}`; [the raw rows](../evidence/{evidence.path.name})."]


def what_averaging_gives(evidence: Evidence, by_recipe: dict[str, list[Row]]) -> list[str]:
    """Returns lines on how much better the mean over views is than images as they are, by the same models."""
    lines = [
        textwrap.fill(
            f"{evidence.task}. Means over n seeds, with 95 % intervals (Student's); each model asked about images "
            "as they are, and averaged over the ten views of `shifts`. Differences are paired, and those whose "
            "interval holds 0 are ties.",
            118,
        ),
        "",
        "| recipe | n | test accuracy as it is, % | averaged, points more | loss, averaged, more |",
        "|---|---|---|---|---|",
    ]
    for name, rows in by_recipe.items():
        cells = [name, str(len(rows))]
        for figure, unit, form in (("accuracy", 100, "{:.2f}"), ("loss", 1, "{:.3f}")):
            plain = [unit * float(row[f"test_{figure}"]) for row in rows]
            more = [unit * float(row[f"average_{figure}"]) - p for row, p in zip(rows, plain, strict=True)]
            _, low, high = interval(more)
            tie = ", a tie" if low <= 0 <= high else ""
            cells += [told(plain, form)] if figure == "accuracy" else []
            cells.append(told(more, form.replace(":", ":+")) + tie)
        lines.append(f"| {' | '.join(cells)} |")
    if min(map(len, by_recipe.values())) < ENOUGH:
        lines += few_seeds()
    return [*lines, "", *_made_by(evidence)]


def _shown(evidence: Evidence, names: Sequence[str], by_recipe: dict[str, list[Row]]) -> dict[str, str | None]:
    """Returns each recipe of a table, references first, and what it is compared with."""
    against: dict[str, str | None] = {}
    for end in sorted(evidence.references):
        mine = [name for name in names if name in by_recipe and evidence.ending(name) == end]
        reference = next((name for name in evidence.references[end] if name in by_recipe), None)
        if mine:
            against |= dict.fromkeys([*([reference] if reference else []), *mine], reference)
    return against


# Without decay and with it.
DECAYS = {"SGD with momentum": ("sgd-constant", "sgd-cosine"), "Adam": ("adam-constant", "adam-cosine")}


def what_decay_gives(by_recipe: dict[str, list[Row]]) -> list[str]:
    """Returns lines on how much decay gives with each optimizer, and how much more with the first."""
    if any(name not in by_recipe for names in DECAYS.values() for name in names):
        return []
    lines, gains = ["", "What a cosine gives over no decay, in points:", ""], []
    for optimizer, names in DECAYS.items():
        without, decayed = ({_key(row): 100 * float(row["test_accuracy"]) for row in by_recipe[name]} for name in names)
        gains.append({key: decayed[key] - without[key] for key in without.keys() & decayed.keys()})
        lines.append(f"- {optimizer}: {told(list(gains[-1].values()), '{:+.2f}')}, n {len(gains[-1])}")
    more = [gains[0][key] - gains[1][key] for key in gains[0].keys() & gains[1].keys()]
    return [*lines, f"- more with the first: {told(more, '{:+.2f}')}, n {len(more)}"]


def _line(name: str, by_recipe: dict[str, list[Row]], reference: str | None) -> str:
    rows = by_recipe[name]
    accuracy = told([100 * float(row["test_accuracy"]) for row in rows], "{:.2f}")
    seconds = statistics.median(float(row["seconds"]) for row in rows)  # some runs were paused
    beside = "–"
    if reference and name != reference:
        theirs = {_key(row): float(row["test_accuracy"]) for row in by_recipe[reference]}
        pairs = [100 * (float(row["test_accuracy"]) - theirs[_key(row)]) for row in rows if _key(row) in theirs]
        if pairs:
            _, low, high = interval(pairs)
            beside = told(pairs, "{:+.2f}") + (", a tie" if low <= 0 <= high else "")
            beside += f"; n {len(pairs)}" if len(pairs) < len(rows) else ""
    return f"| {name} | {len(rows)} | {accuracy} | {beside} | {seconds:.0f} |"


def _key(row: Row) -> tuple[str, str]:
    return row["seed"], row["split_seed"]


def _fields(row: Row) -> str:
    given = json.loads(row["fields"])
    return " ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()
    )


# ---------------------------------------------------------------------- intervals


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and Student's 95 % interval for it; NaN for the interval of a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    deviation = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean, mean - half, mean + half


def told(values: Sequence[float], form: str) -> str:
    """Returns the mean and its interval in words."""
    mean, low, high = interval(values)
    if len(values) < 2:
        return form.format(mean).replace("-", "−") + " (one seed: no interval)"
    return f"{form} ({form} to {form})".format(mean, low, high).replace("-", "−")
