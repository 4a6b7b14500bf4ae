"""Writes into the cards what can go stale: what was measured, from the raw rows, and the defaults, from the code.

    python docs/cards/tables.py           # after new rows, or a new default
    python docs/cards/tables.py --check   # names the cards that are not up to date, and leaves with 1

What is between two marks, `<!-- measured -->` and `<!-- /measured -->`, is written anew; the rest of a card is left.
"""

import csv
import inspect
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from trainwell import optim
from trainwell.optim import schedules
from trainwell.train.optimizers import make_optimizer, make_schedule
from trainwell.train.recipe import SCHEDULES, Recipe

HERE = Path(__file__).parent
EVIDENCE = HERE.parent / "evidence" / "optimizers.csv"
TASK = "CIFAR-10 with 4,000 training and 20,000 test images, a resnet8 of 16 base channels, 40 epochs, batches of 64"
SPLIT = """--same-split --split '{"val": 0.04, "test": 0.4}' --limit '{"train": 4000, "val": 200, "test": 20000}'"""
RANGE_TEST = HERE.parent / "evidence" / "lr-range.csv"
ENOUGH = 10  # seeds

# The recipe that all others are compared with: the first of these that has rows.
REFERENCES = ("adam-cosine", "adam", "default", "adamw-cosine", "adamw")

# Which recipes a card shows; those without rows are left out. `fit`'s sgd has Nesterov's momentum of 0.9.
RECIPES: dict[str, tuple[str, ...]] = {
    "sgd": ("sgd-plain", "sgd-plain-cosine", "sgd-plain-step", "sgd-plain-constant"),
    "momentum": ("sgd-heavy-ball", "momentum", "momentum-cosine"),
    "nesterov": ("nesterov", "sgd", "sgd-cosine", "sgd-step", "sgd-constant"),
    "adam": ("adam", "adam-cosine", "adam-step", "adam-constant"),
    **{
        name: (name, f"{name}-cosine", f"{name}-step", f"{name}-constant")
        for name in ("adagrad", "rmsprop", "adamw", "adamax", "nadam", "radam", "lion", "muon", "soap")
    },
    **{
        name: (name, f"sgd-{name}", f"adam-{name}", f"adamw-{name}", "sgd-constant", "adam-constant")
        for name in SCHEDULES
    },
    "constant": ("constant", "sgd-constant", "sgd-cosine", "sgd-step", "adam-constant", "adam-step"),
    "warmup": ("warmup", "no-warmup", "sgd-no-warmup", "adam-no-warmup", "adamw-no-warmup"),
    "groups": ("groups", "layer-decay", "decay-all"),
    "lr_range": (),  # has rows of its own
}

# The class of each optimizer's card, and the recipe with which `fit` makes it, if it does.
RULES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "sgd": ("SGD", {"optimizer": "sgd", "momentum": 0.0}),
    "momentum": ("SGD", None),
    "nesterov": ("SGD", {"optimizer": "sgd"}),
    "adagrad": ("Adagrad", {"optimizer": "adagrad"}),
    "rmsprop": ("RMSprop", {"optimizer": "rmsprop"}),
    "adam": ("Adam", {"optimizer": "adam"}),
    "adamw": ("AdamW", {"optimizer": "adamw"}),
    "adamax": ("Adamax", {"optimizer": "adamax"}),
    "nadam": ("NAdam", {"optimizer": "nadam"}),
    "radam": ("RAdam", {"optimizer": "radam"}),
    "lion": ("Lion", {"optimizer": "lion"}),
    "muon": ("Muon", {"optimizer": "muon"}),
    "soap": ("SOAP", {"optimizer": "soap"}),
}

# What the cards of functions and of other classes are about.
OTHERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "step": (schedules.step, schedules.piecewise),
    "plateau": (optim.Plateau,),
    "groups": (optim.no_decay_groups, optim.layer_decay_groups),
}

Row = dict[str, str]


# ---------------------------------------------------------------------- what was measured


def read(path: Path) -> list[Row]:
    """Reads the raw rows; none if there is no file.

    Raises:
        ValueError: a recipe stands for two things, was run twice with a seed, or is in no card.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {name for names in RECIPES.values() for name in names} | set(REFERENCES)
    fields: dict[str, str] = {}
    seen = set()
    for row in rows:
        name, key = row["recipe"], (row["recipe"], row["seed"])
        if name not in shown:
            raise ValueError(f"the recipe {name!r} in {path.name} is in no card: put it into RECIPES of tables.py")
        if fields.setdefault(name, row["fields"]) != row["fields"]:
            raise ValueError(f"the recipe {name!r} in {path.name} has fields {row['fields']} and {fields[name]}")
        if key in seen:
            raise ValueError(f"the recipe {name!r} in {path.name} has seed {row['seed']} twice")
        seen.add(key)
    return rows


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and Student's 95 % interval for it; NaN for the interval of a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    deviation = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
    return mean, mean - half, mean + half


def measured(card: str, rows: list[Row]) -> str:
    """Returns the section of a card about what was measured."""
    by_recipe: dict[str, list[Row]] = {}
    for row in rows:
        by_recipe.setdefault(row["recipe"], []).append(row)
    mine = [name for name in RECIPES[card] if name in by_recipe]
    if not mine:
        return textwrap.fill(f"Not measured yet on the evidence task: {TASK}.", 118)
    reference = next((name for name in REFERENCES if name in by_recipe), None)
    shown = list(dict.fromkeys(([reference] if reference else []) + mine))
    lines = [
        textwrap.fill(
            f"{TASK}. Means over n seeds, with 95 % intervals (Student's); differences are paired by seed, and those "
            "whose interval holds 0 are ties. The intervals are not widened for how many recipes were compared.",
            118,
        ),
        "",
        f"| recipe | n | test accuracy, % | against {reference or 'nothing'}, points | seconds a run, median |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(name, by_recipe, reference) for name in shown]
    if card == "constant":
        lines += what_decay_gives(by_recipe)
    fewest = min(len(by_recipe[name]) for name in shown)
    if fewest < ENOUGH:
        lines += ["", f"**Fewer than {ENOUGH} seeds so far**: take it as a first look."]
    # A quoted argument may go on in the next line.
    recipes = [
        textwrap.fill(f"'{name}: {_fields(by_recipe[name][0])}'", 112, subsequent_indent="      ") for name in shown
    ]
    seeds = max(len(by_recipe[name]) for name in shown)
    command = ["python bench/seeds.py CIFAR10_FOLDER", f"--seeds {seeds} --csv rows.csv", SPLIT]
    lines += ["", "```sh", " \\\n    ".join([*command, *recipes]), "```", ""]
    return "\n".join([*lines, f"[The raw rows](../evidence/{EVIDENCE.name})."])


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
        lines.append(f"- {optimizer}: {_told(list(gains[-1].values()), '{:+.2f}')}, n {len(gains[-1])}")
    more = [gains[0][key] - gains[1][key] for key in gains[0].keys() & gains[1].keys()]
    return [*lines, f"- more with the first: {_told(more, '{:+.2f}')}, n {len(more)}"]


def _line(name: str, by_recipe: dict[str, list[Row]], reference: str | None) -> str:
    rows = by_recipe[name]
    accuracy = _told([100 * float(row["test_accuracy"]) for row in rows], "{:.2f}")
    seconds = statistics.median(float(row["seconds"]) for row in rows)  # some runs were paused
    beside = "–"
    if reference and name != reference:
        theirs = {_key(row): float(row["test_accuracy"]) for row in by_recipe[reference]}
        pairs = [100 * (float(row["test_accuracy"]) - theirs[_key(row)]) for row in rows if _key(row) in theirs]
        if pairs:
            _, low, high = interval(pairs)
            beside = _told(pairs, "{:+.2f}") + (", a tie" if low <= 0 <= high else "")
            beside += f"; n {len(pairs)}" if len(pairs) < len(rows) else ""
    return f"| {name} | {len(rows)} | {accuracy} | {beside} | {seconds:.0f} |"


def _key(row: Row) -> tuple[str, str]:
    return row["seed"], row["split_seed"]


def _told(values: Sequence[float], form: str) -> str:
    mean, low, high = interval(values)
    if len(values) < 2:
        return form.format(mean).replace("-", "−") + " (one seed: no interval)"
    return f"{form} ({form} to {form})".format(mean, low, high).replace("-", "−")


def _fields(row: Row) -> str:
    given = json.loads(row["fields"])
    return " ".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()
    )


def measured_range_test(path: Path) -> str:
    """Returns the section of the range test's card: how often a suggestion is near the best rate."""
    if not path.exists():
        return "Not measured yet."
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "held out"]
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


# ---------------------------------------------------------------------- defaults


def defaults(card: str) -> str:
    """Returns the section of a card about the defaults."""
    if card == "lr_range":
        return _of_functions((optim.lr_range,))
    if card in RULES:
        return _of_rule(*RULES[card])
    made = OTHERS.get(card) or (getattr(schedules, card),)
    text = _of_functions(made)
    if card in SCHEDULES:
        name = repr(make_schedule(Recipe(schedule=card, lr=0.1), 1000))
        name = textwrap.fill(name, 110, subsequent_indent="    ")
        text += f"\n\nOver 1,000 steps with `lr=0.1`, `fit` makes of the name `{card}`:\n\n```text\n{name}\n```"
    return text


def _of_rule(kind: str, fields: dict[str, Any] | None) -> str:
    """Returns a table of hyper-parameters: a rule's own defaults, and what `fit` gives it."""
    own = getattr(optim, kind)([torch.nn.Parameter(torch.zeros(2, 2))])
    names = [name for name in own.defaults if name not in optim.Optimizer.fields]
    lines = ["| | in your own loop | in `fit` |", "|---|---|---|"]
    if fields is None:
        return "\n".join(
            ["| | in your own loop |", "|---|---|", *(f"| `{n}` | {_shown(own.defaults[n])} |" for n in names)]
        )
    sizes = {"train": 4000, "val": 1000, "test": 1000}
    recipe = Recipe(**fields).resolve(task="classification", sizes=sizes, side=(32, 32), images=True)
    group = make_optimizer(torch.nn.Linear(2, 2), recipe).param_groups[0]
    for name in names:
        in_fit = "the same" if group[name] == own.defaults[name] else _shown(group[name])
        lines.append(f"| `{name}` | {_shown(own.defaults[name])} | {in_fit} |")
    return "\n".join(lines)


def _of_functions(functions: tuple[Callable[..., Any], ...]) -> str:
    """Returns each function's arguments with their defaults."""
    return "\n\n".join(
        f"```text\n{textwrap.fill(_signature(function), 110, subsequent_indent='    ')}\n```" for function in functions
    )


def _signature(function: Callable[..., Any]) -> str:
    name = function.__name__
    known = [key for key, value in vars(schedules).items() if value is function and key.islower()]
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        given = parameter.default is not inspect.Parameter.empty
        arguments.append(f"{parameter.name}={parameter.default!r}" if given else parameter.name)
    return f"{known[0] if known else name}({', '.join(arguments)})"


def _shown(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{value!r}`"


# ---------------------------------------------------------------------- the cards


def filled(card: str, text: str, rows: list[Row]) -> str:
    """Returns a card's text with what is between the marks written anew."""
    told = measured_range_test(RANGE_TEST) if card == "lr_range" else measured(card, rows)
    for mark, content in (("measured", told), ("defaults", defaults(card))):
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{card}.md must have the marks <!-- {mark} --> and <!-- /{mark} --> once")
        text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def main() -> None:
    rows, stale = read(EVIDENCE), []
    for path in sorted(HERE.glob("*.md")):
        if path.stem == "index":
            continue
        old = path.read_text(encoding="utf-8")
        new = filled(path.stem, old, rows)
        if new != old:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'none'}")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
