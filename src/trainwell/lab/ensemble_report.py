"""An ensemble's folder as one page: how much better its members are together; a pure function of the folder's files."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError
from trainwell.lab import charts
from trainwell.lab.charts import percent
from trainwell.lab.page import write_page
from trainwell.lab.reading import Table, check, finite, load, run_facts
from trainwell.metrics.calibration import BINS, SUM_WITHIN
from trainwell.train.ensemble_file import FILE, name_of, read, sentence
from trainwell.train.ensemble_result import answers_of, combined
from trainwell.train.recipe import Recipe

FIGURES = {"accuracy": "accuracy", "log_loss": "log loss", "brier_score": "Brier score",
           "calibration_error": "calibration error"}  # fmt: skip


def write_report(folder: Path | str) -> Path:
    """Writes `report.html` into an ensemble's folder, or `ensemble.html` if that is the folder of a run with snapshots.

    Args:
        folder: The ensemble's.

    Returns:
        The path of the report.

    Raises:
        InputError: If there is no finished ensemble, or a file that the report needs is missing or damaged.
    """
    place = Path(folder)
    about = read(place)
    if "result" not in about:
        raise InputError(f"{place} is not finished: an ensemble has a report when all of its members are trained")
    found = load(place / FILE, lambda path: _read(path.parent, about))
    assert found is not None  # as `read` found it
    said, result = sentence(about), about["result"]
    numbers = charts.by_number(result["by_number"], len(about["kept"]), result["ensemble"])
    sure = [charts.reliability(*found.answers, BINS)] if found.answers else []
    return write_page(
        place / ("ensemble.html" if found.of_one_run else "report.html"),
        "ensemble.html.jinja",
        found.facts["source"],
        numbers + sure,
        ensemble=found,
        version=about["trainwell"],
        sentence=f"{said[0].upper()}{said[1:]}.",
        aside=f"Who answers{'' if found.names == ['loss'] else ', and how sure the answer is,'} was chosen on the "
        "validation part; every figure here is of samples that had no say in it."
        f"{'' if found.names == ['loss'] else ' The gain is beside one member with a temperature of its own.'}",
        key_facts=_key_facts(found),
        columns=[FIGURES.get(name, name) for name in found.names],
        rows=_rows(found),
        gain=_gain(found),
        numbers=numbers,
        sure=sure,
        fields=_fields(found),
    )


# --- Reading. ---


@dataclass(frozen=True)
class _Member:
    name: str
    order: int | None  # when it was chosen, from 1 on; None if it does not answer
    facts: Table  # of its run's run.json
    recipe: Table  # what was given
    link: str | None  # to its own report


@dataclass(frozen=True)
class _Ensemble:
    about: Table
    members: list[_Member]
    answers: tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]] | None  # probabilities for the test part; the truth

    @property
    def facts(self) -> Table:
        return self.members[0].facts

    @property
    def names(self) -> list[str]:
        """What is measured."""
        return list(FIGURES) if self.facts["task"] == "classification" else ["loss"]

    @property
    def best(self) -> _Member:
        """The one that is best on validation."""
        first: int = self.about["kept"][0]
        return self.members[first]

    @property
    def of_one_run(self) -> bool:
        """Whether its members are moments of a run, in whose folder it is."""
        return any(PurePosixPath(member["run"]) == PurePosixPath() for member in self.about["members"])


def _read(folder: Path, about: Table) -> _Ensemble:
    facts = functools.cache(functools.partial(_facts, folder))
    members = [_member(folder, about, at, facts(one["run"])) for at, one in enumerate(about["members"])]
    found = _Ensemble(about, members, None)
    _check(about, found.names)
    if found.facts["task"] != "classification":
        return found
    return _Ensemble(about, members, _answers(folder, found))


def _facts(folder: Path, run: str) -> Table:
    found: Table | None = load(folder / run / "run.json", run_facts)
    if found is None:
        raise InputError(f"{folder / run}: a member of the ensemble is missing, there is no run.json; restore it.")
    return found


def _member(folder: Path, about: Table, at: int, facts: Table) -> _Member:
    member, kept = about["members"][at], about["kept"]
    run, name = PurePosixPath(member["run"]), name_of(member, at + 1)
    numbered = re.fullmatch("member ([0-9]+)", name)  # some others may have failed
    recipes = about.get("recipes", [])
    number = int(numbered[1]) if numbered else 0
    recipe = recipes[number - 1] if 1 <= number <= len(recipes) else facts["given"]["recipe"]
    check({"recipe": recipe}, recipe=dict)
    linked = run != PurePosixPath() and (folder / run / "report.html").is_file()
    link = quote(f"{run}/report.html", errors="surrogateescape") if linked else None
    return _Member(name, kept.index(at) + 1 if at in kept else None, facts, recipe, link)


def _check(about: Table, names: list[str]) -> None:
    """Checks all that the page shows; of one member, or of a mean, a figure may be None, if it was not finite."""
    about.setdefault("failed", {})
    check(about, trainwell=str, failed=dict)
    for why in about["failed"].values():
        check({"failed": why}, failed=str)
    result, classes = about["result"], "accuracy" in names
    check(result, test_samples=int, ensemble=dict, single=list, by_number=list)
    if len(result["single"]) != len(about["members"]) or not result["test_samples"] > 0:
        raise ValueError(f"{len(result['single'])} members are judged on {result['test_samples']} samples")
    for name in names:
        _check_figure(result["ensemble"][name], finite, finite if classes else _finite_or_none)
    if classes:
        for name in names:
            _check_figure(result["gain"][name], finite)
        _check_figure({"value": result["test_accuracy"], "interval": result["test_interval"]}, finite)
    elif "gain" in result:
        raise ValueError("there is a gain where there are no classes")
    for row in result["single"]:
        for name in names:
            _check_figure(row[name], _finite_or_none)
    for row in result["by_number"]:
        check(row, members=int, ensembles=int)
        if not all(_finite_or_none(row[name]) for name in (["accuracy", "loss"] if classes else ["loss"])):
            raise ValueError(f"the figures of {row['members']} members are no numbers")


def _finite_or_none(value: object) -> bool:
    return value is None or finite(value)


def _check_figure(
    figure: Mapping[str, Any], known: Callable[[object], bool], known_ends: Callable[[object], bool] | None = None
) -> None:
    low, high = figure["interval"]  # of one sample or group there is none
    if not known(figure["value"]) or not all((known_ends or known)(end) for end in (low, high)):
        raise ValueError(f"{figure} is no figure with an interval")


def _answers(folder: Path, ensemble: _Ensemble) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Returns what the one best on validation and the ensemble say of the test part: probabilities, and the truth."""
    about, said = ensemble.about, []
    shape = (about["result"]["test_samples"], len(ensemble.facts["classes"]))
    for at in about["kept"]:
        weights = folder / about["members"][at]["run"] / about["members"][at]["weights"]
        found = answers_of(weights, "classification")
        p, truth = found.test, found.test_targets.numpy()
        sound = p.shape == shape and bool((p >= 0).all()) and bool(((p.sum(1) - 1).abs() <= SUM_WITHIN).all())
        sound = sound and truth.shape == shape[:1] and truth.dtype.kind in "iu"
        if not sound or truth.min() < 0 or truth.max() >= shape[1]:
            raise InputError(f"{weights}: what is written down of its answers does not fit {FILE}; restore the files.")
        said.append(p)
    together = combined(said, about["mean"], float(about["temperature"]))
    return {ensemble.best.name: said[0].numpy(), "the ensemble": together.numpy()}, truth


# --- Words. ---


def _key_facts(ensemble: _Ensemble) -> list[tuple[str, str]]:
    about = ensemble.about
    facts = [("members", f"{len(ensemble.members):,}"), ("that answer", f"{len(about['kept']):,}")]
    if about["failed"]:
        facts.append(("that failed", f"{len(about['failed']):,}"))
    facts.append((f"mean of their {'answers' if ensemble.names == ['loss'] else 'probabilities'}", about["mean"]))
    if ensemble.facts["task"] == "classification":
        T = float(about["temperature"])
        words = "as sure as the mean" if T == 1 else f"made {'less sure' if T > 1 else 'surer'} than the mean"
        facts.append((f"temperature: {words}", f"{T:.3g}"))
    return [*facts, ("test samples", f"{about['result']['test_samples']:,}")]


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "accuracy":
        return percent(value)
    return f"{value:.4g}" if name == "loss" else f"{value:.4f}"  # a loss has any unit


def _cell(name: str, figure: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a figure and its interval, as a table shows them."""
    low, high = (_value(name, end) for end in figure["interval"])
    return _value(name, figure["value"]), f"{low.removesuffix(chr(160) + '%')} to {high}"


def _rows(ensemble: _Ensemble) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Returns name, note and figures of each member, of their mean, and of the ensemble."""
    rows, result, names = [], ensemble.about["result"], ensemble.names
    for member, figures in zip(ensemble.members, result["single"], strict=True):
        note = "does not answer" if member.order is None else "best on validation" if member.order == 1 else "answers"
        rows.append((member.name, note, [_cell(name, figures[name]) for name in names]))
    means = []
    for name in names:
        values = [figures[name]["value"] for figures in result["single"]]
        means.append((_value(name, None if None in values else float(np.mean(values))), ""))
    own = [_cell(name, result["ensemble"][name]) for name in names]
    return [*rows, ("a member on average", "", means), ("the ensemble", "those that answer, together", own)]


def _gain(ensemble: _Ensemble) -> list[tuple[str, str, bool]]:
    """Returns by how much the ensemble differs from the best single member, with interval, and whether that is sure."""
    gains = []
    for name in ensemble.names if "gain" in ensemble.about["result"] else []:
        figure = ensemble.about["result"]["gain"][name]
        value, low, high = (_signed(name, number) for number in (figure["value"], *figure["interval"]))
        unit = " points" if name == "accuracy" else ""
        gains.append((value + unit, f"{low} to {high}", not figure["interval"][0] <= 0 <= figure["interval"][1]))
    return gains


def _signed(name: str, value: float) -> str:
    return f"{100 * value:+.1f}" if name == "accuracy" else f"{value:+.4f}"


def _fields(ensemble: _Ensemble) -> list[tuple[str, list[str]]]:
    """Returns the fields of the recipe in which members differ, each with all members' values."""
    recipes = [asdict(Recipe()) | member.recipe for member in ensemble.members]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    columns = [(name, [_given(recipe.get(name)) for recipe in recipes]) for name in names]
    return [(name, values) for name, values in columns if len(set(values)) > 1]


def _given(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, default=str)
