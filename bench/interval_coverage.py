"""How often our 95 % intervals hold what they are about, in simulation; the bar is 95 ± 2 %.

    python bench/interval_coverage.py --csv docs/evidence/coverage.csv > docs/evidence/coverage.txt

What can be summed over all outcomes is exact, the rest has the Monte Carlo error that is printed (two standard errors).
Everything depends on `--seed` alone. Takes a quarter of an hour on one thread; `--replicates 50` shows that it runs.
"""

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy import stats
from scipy.stats import qmc
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from trainwell.data.split import folds
from trainwell.metrics.correctness import (
    accuracy_interval,
    balanced_accuracy_interval,
    indistinguishable,
    smallest_difference,
    wilson_interval,
)

GRID = np.arange(60, 99) / 100  # true accuracies
FEW = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
Row = dict[str, Any]


def wald_interval(p: float, n: float, quantile: float = stats.norm.ppf(0.975)) -> tuple[float, float]:
    half = quantile * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def share(hits: np.ndarray[Any, Any]) -> dict[str, float]:
    """Returns the share of hits in per cent and two standard errors of it."""
    mean, n = float(np.mean(hits)), len(hits)
    return {"percent": 100 * mean, "error": 200 * math.sqrt(max(mean * (1 - mean), 1 / n) / n), "replicates": n}


def hold_out() -> Iterator[Row]:
    """Of independent test samples, exactly: the sum over all numbers of right answers."""
    for n in (40, 120, 400, 1500):
        count = np.arange(n + 1)
        chance = stats.binom.pmf(count[:, None], n, GRID)
        for name, interval in (
            ("Wilson (ours)", lambda k, n=n: wilson_interval(k, n)),
            ("textbook p ± z·se", lambda k, n=n: wald_interval(k / n, n)),
        ):
            low, high = np.array([interval(int(k)) for k in count]).T
            inside = (low[:, None] <= GRID) & (high[:, None] >= GRID)
            covered = 100 * (chance * inside).sum(axis=0)
            for p, percent in zip(GRID, covered, strict=True):
                yield {"part": "hold-out", "setting": f"n = {n}", "what": name, "p": p, "percent": percent}


LEARNERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(),
    "Gaussian naive Bayes": lambda: GaussianNB(),
    "5 nearest neighbours": lambda: KNeighborsClassifier(5, algorithm="brute"),
    "decision tree": lambda: DecisionTreeClassifier(random_state=0),
}
CENTRES = np.array([[0.0, 0.0], [2.2, 0.0], [1.1, 2.0]])  # of three classes with unit variance
WEIGHTS = np.array([0.5, 0.3, 0.2])


def fresh(points: int = 2048) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns new samples that fill the classes evenly (quasi-random), as many of each; they are weighted later."""
    normal = stats.norm.ppf(qmc.Sobol(2, rng=np.random.default_rng(0)).random(points))
    return np.concatenate([normal + centre for centre in CENTRES]), np.repeat(np.arange(3), points)


FRESH = fresh()


def one_cross_validation(learner: str, n: int, seed: int, replicate: int) -> list[float]:
    """Returns the pooled share of right answers, the fold's shares, and the true accuracies that they may be about."""
    rng = np.random.default_rng([seed, n, replicate])
    y = rng.choice(3, n, p=WEIGHTS)
    y[:6] = [0, 0, 1, 1, 2, 2]  # two of each, as folds asks for
    x = CENTRES[y] + rng.standard_normal((n, 2))
    new_x, new_y = FRESH

    def truth(model: Any) -> float:
        return float(WEIGHTS @ (model.predict(new_x) == new_y).reshape(3, -1).mean(axis=1))

    right, true = [], []
    for test in folds(y, 5, seed=replicate):
        train = np.delete(np.arange(n), test)
        model = LEARNERS[learner]().fit(x[train], y[train])
        right.append((model.predict(x[test]) == y[test]).astype(float))
        true.append(truth(model))
    whole = truth(LEARNERS[learner]().fit(x, y))
    return [np.concatenate(right).mean(), float(np.mean(true)), whole, *(fold.mean() for fold in right)]


def cross_validation(replicates: int, seed: int, jobs: int) -> Iterator[Row]:
    for learner in LEARNERS:
        for n in (120,) if learner.endswith("neighbours") else (120, 600):  # which would take as long as all others
            work = joblib.Parallel(n_jobs=jobs, batch_size=20)
            found = np.array(
                work(
                    joblib.delayed(one_cross_validation)(learner, n, seed, replicate) for replicate in range(replicates)
                )
            )
            pooled, models, whole, by_fold = found[:, 0], found[:, 1], found[:, 2], found[:, 3:]
            ours = np.array([wilson_interval(round(p * n), n) for p in pooled])
            half = stats.t.ppf(0.975, 4) * by_fold.std(axis=1, ddof=1) / math.sqrt(5)
            usual = np.stack([by_fold.mean(axis=1) - half, by_fold.mean(axis=1) + half], axis=1)
            setting = f"{learner}, n = {n}"
            for target, true in (
                ("the five models' mean accuracy", models),
                ("the model trained on all", whole),
                ("expected over training sets", np.full(replicates, models.mean())),
            ):
                for name, (low, high) in (("Wilson, pooled (ours)", ours.T), ("t over 5 fold figures", usual.T)):
                    yield {
                        "part": f"5-fold cross-validation: {target}",
                        "setting": setting,
                        "what": name,
                        "p": float(models.mean()),
                        **share((low <= true) & (true <= high)),
                        "width": float((high - low).mean()),
                    }


def clustered(
    rng: np.random.Generator, groups: int, p: float, alike: float, smallest: int = 4, largest: int = 20
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns right answers and groups: each group has its own chance, with mean p and within-group correlation."""
    group_of = np.repeat(np.arange(groups), rng.integers(smallest, largest + 1, groups))
    scale = (1 - alike) / alike if alike else math.inf
    chance = rng.beta(p * scale, (1 - p) * scale, groups) if alike else np.full(groups, p)
    return rng.random(len(group_of)) < chance[group_of], group_of


def korn_graubard(right: np.ndarray[Any, Any], group_of: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Wilson's interval with the design effect as it is estimated, and at least 1."""
    n, p, groups = len(right), right.mean(), int(group_of.max()) + 1
    residual = np.bincount(group_of, right - p)
    effect = max(groups / (groups - 1) * (residual**2).sum() / n / (p * (1 - p)), 1) if 0 < p < 1 else 1
    a = stats.t.ppf(0.975, groups - 1) ** 2 * effect / n
    half = math.sqrt(a * p * (1 - p) + a * a / 4)
    return (p + a / 2 - half) / (1 + a), (p + a / 2 + half) / (1 + a)


def grouped(replicates: int, seed: int) -> Iterator[Row]:
    for groups in (10, 30, 100):
        for alike in (0.0, 0.1, 0.3, 0.6):
            for p in FEW:
                rng = np.random.default_rng([seed, groups, int(10 * alike), int(100 * p)])
                hits: dict[str, list[bool]] = {}
                widths: dict[str, list[float]] = {}
                for _ in range(replicates):
                    right, group_of = clustered(rng, groups, p, alike)
                    for name, (low, high) in (
                        ("with groups (ours)", accuracy_interval(right, group_of)),
                        ("design effect as estimated", korn_graubard(right, group_of)),
                        ("groups ignored", wilson_interval(int(right.sum()), len(right))),
                    ):
                        hits.setdefault(name, []).append(low <= p <= high)
                        widths.setdefault(name, []).append(high - low)
                for name, inside in hits.items():
                    yield {
                        "part": "grouped data",
                        "setting": f"{groups} groups of 4 to 20, correlation {alike}",
                        "what": name,
                        "p": p,
                        **share(np.array(inside)),
                        "width": float(np.mean(widths[name])),
                    }


def balanced(replicates: int, seed: int) -> Iterator[Row]:
    pairs = [(0.95, 0.6), (0.9, 0.8), (0.98, 0.5), (0.8, 0.8), (0.98, 0.9), (0.99, 0.7), (0.7, 0.95)]
    for n in (120, 600):
        for common, rare in pairs:
            rng = np.random.default_rng([seed, n, int(100 * common), int(100 * rare)])
            truth, inside, naive = (common + rare) / 2, [], []
            for _ in range(replicates):
                targets = (np.arange(n) < max(rng.binomial(n, 0.1), 1)).astype(int)
                right = rng.random(n) < np.where(targets == 1, rare, common)
                low, high = balanced_accuracy_interval(right, targets)
                inside.append(low <= truth <= high)
                value = (right[targets == 0].mean() + right[targets == 1].mean()) / 2
                low, high = wilson_interval(round(value * n), n)
                naive.append(low <= truth <= high)
            for name, hits in (("combined Wilson (ours)", inside), ("Wilson as if of all n", naive)):
                yield {
                    "part": "balanced accuracy",
                    "setting": f"classes 90 % and 10 %, n = {n}",
                    "what": name,
                    "p": truth,
                    **share(np.array(hits)),
                }
    for alike in (0.1, 0.3):
        for common, rare in pairs:
            rng = np.random.default_rng([seed, int(10 * alike), int(100 * common), int(100 * rare)])
            truth, inside = (common + rare) / 2, []
            for _ in range(replicates):
                # Each group has samples of both classes, and its difficulty moves both.
                group_of = np.repeat(np.arange(40), rng.integers(4, 21, 40))
                targets = (rng.random(len(group_of)) < 0.1).astype(int)
                level, scale = rng.random(40), (1 - alike) / alike
                chance = [stats.beta.ppf(level, p * scale, (1 - p) * scale) for p in (common, rare)]
                right = rng.random(len(group_of)) < np.choose(targets, [one[group_of] for one in chance])
                low, high = balanced_accuracy_interval(right, targets, group_of)
                inside.append(low <= truth <= high)
            yield {
                "part": "balanced accuracy",
                "setting": f"the same in 40 groups of 4 to 20, correlation {alike}",
                "what": "combined Wilson (ours)",
                "p": truth,
                **share(np.array(inside)),
            }


def differences(replicates: int, seed: int) -> Iterator[Row]:
    """How often two equally good models are told apart; exactly where they are measured on different samples."""
    for n in (40, 120, 400, 1500):
        shares = np.arange(n + 1) / n
        low, high = np.array([indistinguishable(p, n) for p in shares]).T
        one = np.array([smallest_difference(p, n) for p in shares])
        apart = (shares < low[:, None] - 1e-12) | (shares > high[:, None] + 1e-12)
        far = np.abs(shares - shares[:, None]) > one[:, None] + 1e-12
        textbook = (
            np.abs(shares - shares[:, None]) > np.array([wald_interval(p, n / 2)[1] - p for p in shares])[:, None]
        )
        for p in GRID:
            chance = stats.binom.pmf(np.arange(n + 1), n, p)
            both = np.outer(chance, chance)
            for name, told in (
                ("outside of indistinguishable (ours)", apart),
                ("farther than smallest_difference (ours)", far),
                ("textbook z·sqrt(2p(1-p)/n)", textbook),
            ):
                yield {
                    "part": "false alarms, other samples",
                    "setting": f"n = {n}",
                    "what": name,
                    "p": p,
                    "percent": 100 * both[told].sum(),
                }
        for p in FEW:  # the same samples: where both models tend to be right, and a correlation of 0.5
            rng = np.random.default_rng([seed, n, int(100 * p)])
            both_right = p * p + 0.5 * p * (1 - p)
            counts = rng.multinomial(
                n, [both_right, p - both_right, p - both_right, 1 - 2 * p + both_right], 10 * replicates
            )
            first, second = counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]
            yield {
                "part": "false alarms, the same samples (correlation 0.5)",
                "setting": f"n = {n}",
                "what": "outside of indistinguishable (ours)",
                "p": p,
                **share(apart[first, second]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2_000, help="for each row of the CSV file that is not exact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = [
        *hold_out(),
        *cross_validation(options.replicates, options.seed, options.jobs),
        *grouped(options.replicates, options.seed),
        *balanced(options.replicates, options.seed),
        *differences(options.replicates, options.seed),
    ]
    if options.csv:
        with options.csv.open("w", newline="") as file:
            fields = ["part", "setting", "what", "p", "percent", "error", "replicates", "width"]
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
                )
    tell(rows, options.seed)


def tell(rows: list[Row], seed: int) -> None:
    """Prints one line for each setting, averaged over true accuracies."""
    print(f"Per cent of 95 % intervals that hold the true value (of false alarms: of comparisons), seed {seed}.")
    print("Mean over true accuracies (0.60 to 0.98; balanced 0.74 to 0.94; cross-validation 0.71 to 0.80), ± two Monte")
    print("Carlo standard errors of it, the range over the accuracies, and the mean width in points.")
    for part in dict.fromkeys(row["part"] for row in rows):
        print(f"\n{part}")
        for setting, what in dict.fromkeys((row["setting"], row["what"]) for row in rows if row["part"] == part):
            own = [row for row in rows if (row["part"], row["setting"], row["what"]) == (part, setting, what)]
            percent = np.array([row["percent"] for row in own])
            alarms = part.startswith("false")
            error = math.sqrt(sum(row.get("error", 0) ** 2 for row in own)) / len(own)
            count = sum(row.get("replicates", 0) for row in own)
            told = f"± {error:.1f}, {count:,} replicates" if count else "exact"
            span = f"{percent.min():5.1f} to {percent.max():5.1f}" if len(own) > 1 else ""
            width = [row["width"] for row in own if "width" in row]
            size = f"width {100 * np.mean(width):4.1f}" if width else ""
            off = float(percent.mean()) - (5 if alarms else 95)
            verdict = (
                "" if abs(off) <= 2 else (" fewer", "TOO MANY")[off > 0] if alarms else ("TOO SHORT", "long")[off > 0]
            )
            line = f"  {setting:50} {what:41} {percent.mean():5.1f} {told:26} {span:14} {size:10} {verdict}"
            print(line.rstrip())


if __name__ == "__main__":
    main()
