"""A run directory as one page: self-contained, interactive, offline; a pure function of the run's files."""

import base64
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError
from trainwell.lab import charts, transfer_charts
from trainwell.lab.charts import interval, percent
from trainwell.lab.page import write_page
from trainwell.lab.reading import NUMBER, Table, check, finite, load, run_facts
from trainwell.lab.transfer_charts import FeatureMap
from trainwell.train import history
from trainwell.train.cross_validation import chosen_otherwise
from trainwell.train.display import duration
from trainwell.train.recipe import AVERAGES, Recipe
from trainwell.transfer.state import Match

_LARGEST = 5_000  # pixels of a side of what shows augmentation
_SHARP_BELOW = 100  # pixels; smaller pictures are enlarged with their pixels showing
_MOST_STAGES = 500  # of a network, candidates or reasons; a page with more of them is none of ours
_MOST_MAPPED, _LARGEST_MAPPED = 1_000, 100  # images on a map, and the pixels of a side of them


def write_report(run: Path | str) -> Path:
    """Writes `report.html` into a run's directory, from what the directory holds so far.

    Args:
        run: The run's directory. Of a run that is still going, `run.json` and `recipe.toml` are enough.

    Returns:
        The path of the report.

    Raises:
        InputError: If a file that the report needs is missing, or one is damaged.
    """
    found = _read(Path(run))
    learning = charts.learning(found.history, found.kept_epoch, "kept" if found.result else "best so far")
    testing = _testing(found)
    probed, maps = _probed(found), _maps(found)
    sentence, aside = _headline(found)
    return write_page(
        Path(run) / "report.html",
        "report.html.jinja",
        found.facts["source"],
        learning + testing + probed + maps,
        run=found,
        version=found.facts["trainwell"],
        sentence=sentence,
        aside=aside,
        key_facts=_key_facts(found),
        learning=learning,
        testing=testing,
        probed=probed,
        maps=maps,
        recipe=_recipe(found),
    )


# --- Reading. ---


@dataclass(frozen=True)
class _Run:
    facts: Table  # of run.json
    recipe: Recipe
    history: list[Table]  # finite numbers, or None
    result: Table  # empty while the run is going
    evaluation: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None  # outputs and targets of the test part
    mistakes: list[Table] | None
    augmentation: str | None  # a picture
    beginning: Table | None  # of a pretrained model
    trained: str  # which of its stages were
    feature_map: FeatureMap | None

    @property
    def noun(self) -> str:
        return "image" if self.facts["model"].get("img_size") else "sample"

    @property
    def tested(self) -> int:
        """How many samples the result is about."""
        return int(self.result.get("test_samples", self.facts["sizes"]["test"]))

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights are kept; while the run is going, the best one so far."""
        if self.result:
            return int(self.result["kept_epoch"])
        monitor = self.recipe.monitor
        least = self.recipe.monitor_mode == "min" or (self.recipe.monitor_mode == "auto" and monitor.endswith("loss"))
        sign = 1 if least else -1
        scores = [
            (sign * row[monitor], _number(row.get("val_loss")), row["epoch"])  # ties go to the lower loss
            for row in self.history
            if row.get(monitor) is not None
        ]
        return min(scores)[2] if scores else None


def _read(folder: Path) -> _Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such directory; give the directory of a run (what `--out` named).")
    for name in ("run.json", "recipe.toml"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a run's directory, it has no {name}; give what `--out` named.")
    facts = load(folder / "run.json", run_facts) or {}
    trained, feature_map = load(folder / "transfer.json", lambda path: _transfer(path, facts["classes"])) or ("", None)
    return _Run(
        facts,
        Recipe.load(folder / "recipe.toml"),
        load(folder / "history.jsonl", _history) or [],
        load(folder / "result.json", lambda path: _result(path, facts["task"])) or {},
        load(folder / "evaluation.safetensors", lambda path: _evaluation(path, facts)),
        load(folder / "mistakes.json", lambda path: _mistakes(path, facts["classes"])),
        load(folder / "augmentation.png", _sheet),
        load(folder / "run.json", lambda path: _beginning(facts, folder)),
        trained,
        feature_map,
    )


def _history(path: Path) -> list[Table]:
    rows = [{name: value if finite(value) else None for name, value in row.items()} for row in history.read(path)]
    for row in rows:
        check(row, epoch=int, step=int)
    return rows


def _result(path: Path, task: str) -> Table:
    result: Table = json.loads(path.read_bytes())
    check(result, stop_reason=str, metrics=dict, kept_epoch=int, epochs=int, halvings=int, test_loss=NUMBER | None)
    result["test_loss"] = _number(result["test_loss"])
    result["test_interval"] = [_number(end) for end in result["test_interval"]]
    for name in ("seconds", "test_accuracy") if task == "classification" else ("seconds",):
        if not finite(result[name]):
            raise ValueError(f"{name!r} is not a finite number")
    for metric in result["metrics"].values():
        check(metric, value=NUMBER | None)
    by_class, by_label = result.setdefault("by_class", []), result.setdefault("by_label", [])
    ends = [result["test_interval"]]
    ends += [one["interval"] for one in result["metrics"].values() if one["interval"] != [None, None]]
    ends += [row["interval"] for row in by_class if row["samples"]]
    ends += [result["test_balanced_interval"]] if "test_balanced_accuracy" in result else []
    ends += [result["indistinguishable"]] if "indistinguishable" in result else []
    for pair in ends:
        if len(pair) != 2 or not all(isinstance(end, NUMBER) for end in pair):
            raise ValueError(f"{pair} is no interval")
    for row in (*by_class, *by_label, *result.setdefault("folds", [])):
        for name, value in row.items():
            if name != "interval" and value is not None and not isinstance(value, NUMBER):
                raise ValueError(f"{name!r} is not a number")
    for name in ("test_balanced_accuracy", "mean_average_precision", "exact_match"):
        if not isinstance(result.get(name, 0.0), NUMBER | None):
            raise ValueError(f"{name!r} is not a number")
    check({"test_samples": 1} | result, test_samples=int)
    return result


def _tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _evaluation(path: Path, facts: Table) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    tensors = _tensors(path)
    outputs, targets = tensors["test_outputs"], tensors["test_targets"]
    if not 0 < len(targets) == len(outputs):
        raise ValueError(f"{len(outputs)} outputs for {len(targets)} targets")
    if facts["task"] == "classification":
        count = len(facts["classes"])
        whole = targets.ndim == 1 and targets.dtype.kind in "iu"
        if not whole or outputs.shape != (len(targets), count) or targets.min() < 0 or targets.max() >= count:
            raise ValueError(f"it does not fit the {count} classes of run.json")
    return outputs, targets


def _number(value: Any) -> Any:
    """Returns a number, of which a file holds nothing where a model answered with NaN: JSON has no word for it."""
    return math.nan if value is None else value


def _mistakes(path: Path, classes: list[str]) -> list[Table]:
    pictures = load(path.with_suffix(".safetensors"), _tensors) or {}
    mistakes = []
    for number, row in enumerate(json.loads(path.read_bytes())):
        check(row, name=str, true=int, predicted=int, confidence=NUMBER | None)
        if not all(0 <= row[key] < len(classes) for key in ("true", "predicted")):
            raise ValueError(f"entry {number} names a class that run.json does not have")
        named = {key: classes[row[key]] for key in ("true", "predicted")}
        picture = pictures.get(str(number))
        if picture is not None:
            named |= {"picture": _png(picture), "sharp": max(picture.shape) < _SHARP_BELOW}
        confidence = percent(_number(row["confidence"]))
        mistakes.append({"name": row["name"], "confidence": confidence} | named)
    return mistakes


def _beginning(facts: Table, folder: Path) -> Table | None:
    """Returns what the run began as, if that was pretrained, and how it was chosen what of it is trained."""
    about = facts.get("backbone")
    if about is None:
        return None
    check(about, source=str, architecture=str, licence=str | None)
    choice = facts.get("choice") or {}
    reasons, tried, probes = (_few(choice.get(name, [])) for name in ("reasons", "tried", "probes"))
    for row in tried:
        check(row, name=str, samples=int)
        beside = ("difference", "error") if "difference" in row else ()
        if not all(finite(row[name]) for name in ("accuracy", "seconds", *beside)):
            raise ValueError("a candidate's figure is not a finite number")
    for row in probes:
        check(row, stage=str, samples=int)
        low, high = row["interval"]
        if not all(finite(share) and 0 <= share <= 1 for share in (row["accuracy"], low, high)):
            raise ValueError("a probe's accuracy is not between 0 and 1")
    if not all(isinstance(reason, str) for reason in reasons) or (probes and not facts["classes"]):
        raise ValueError("the choice of what is trained is of a wrong kind")
    reasons += filter(None, [chosen_otherwise(folder)] if reasons else [])
    stages = [row["stage"] for row in probes]
    head, features = stages[-1] if stages else None, None
    if cut := about.get("cut"):
        check(cut, before=str, dimensions=int)
        head, features = stages[stages.index(cut["before"]) - 1], cut["dimensions"]
    return {
        "source": about["source"], "architecture": about["architecture"], "licence": about["licence"],
        "match": Match(**about["match"]).sentence(), "head": head, "features": features,
        "reasons": reasons, "tried": tried, "probes": probes,
    }  # fmt: skip


def _few(rows: Any) -> list[Any]:
    if not isinstance(rows, list) or len(rows) > _MOST_STAGES:
        raise ValueError(f"no list of at most {_MOST_STAGES}")
    return rows


def _transfer(path: Path, classes: list[str]) -> tuple[str, FeatureMap | None]:
    """Returns what of a pretrained model was trained, and where its features put images, if it says so."""
    about = json.loads(path.read_bytes())
    check(about, trained=str)
    tensors = load(path.with_name("feature_map.safetensors"), _tensors) if "part" in about else None
    if tensors is None:
        return about["trained"], None
    check(about, part=str, names=list)
    return about["trained"], _feature_map(tensors, about, len(classes))


def _feature_map(tensors: dict[str, npt.NDArray[Any]], about: Table, classes: int) -> FeatureMap:
    names, after, before = about["names"], tensors["after"], tensors.get("before")
    if not 0 < len(names) <= _MOST_MAPPED or not all(isinstance(name, str) for name in names):
        raise ValueError(f"no names of at most {_MOST_MAPPED} images")
    for points in (after, after if before is None else before):
        if points.shape != (len(names), 2) or points.dtype.kind != "f" or not (np.abs(points) <= 1).all():
            raise ValueError("a map is no point within -1 and 1 an image")
    for labels in (tensors["targets"], tensors["predicted"]):
        whole = labels.shape == (len(names),) and labels.dtype.kind in "iu"
        if not whole or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"the map does not fit the {classes} classes of run.json")
    pictures = [tensors[str(number)] for number in range(len(names))]
    if any(max(picture.shape) > _LARGEST_MAPPED for picture in pictures):
        raise ValueError(f"an image on the map has more than {_LARGEST_MAPPED} pixels a side")
    return FeatureMap(
        before, after, tensors["targets"].tolist(), tensors["predicted"].tolist(), names, about["part"],
        [_png(picture) for picture in pictures],
    )  # fmt: skip


def _sheet(path: Path) -> str:
    """Reads a picture and writes it anew: nothing of a stranger's file gets into the page but its pixels."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if max(picture.size) > _LARGEST:
                raise ValueError(f"a picture of {picture.size} pixels")
            return _png(np.asarray(picture.convert("RGB")))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's words for a damaged file
        raise ValueError(f"no picture: {error}") from error


def _png(pixels: npt.NDArray[Any]) -> str:
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ValueError("a picture is not uint8 of shape (h, w, 1 or 3)")
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# --- Words and charts. ---


def _testing(run: _Run) -> list[charts.Chart]:
    if run.evaluation is not None and run.facts["task"] == "classification":
        ends = [row["interval"] for row in run.result.get("by_class", [])]
        return charts.by_class(run.facts["classes"], *run.evaluation, ends or None)
    if run.evaluation is not None and run.facts["task"] == "regression":
        return charts.against_truth(*run.evaluation)
    return []


def _probed(run: _Run) -> list[charts.Chart]:
    if run.beginning is None or not run.beginning["probes"]:
        return []
    return [transfer_charts.probes(run.beginning["probes"], run.beginning["head"], len(run.facts["classes"]))]


def _maps(run: _Run) -> list[charts.Chart]:
    if run.beginning is None or run.feature_map is None:
        return []
    return transfer_charts.feature_maps(run.feature_map, run.facts["classes"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _headline(run: _Run) -> tuple[str, str]:
    """Returns the result as one sentence, and what is to be said beside it."""
    if not run.result:
        return _headline_in_progress(run)
    result, size = run.result, run.tested
    unseen, aside = _count(size, run.noun), ""
    words = interval(result["test_interval"], fractions=run.facts["task"] == "classification")
    if result["folds"]:
        aside = (
            f"By cross-validation: {len(result['folds'])} models learned by one recipe, each without a fold of the "
            f"{run.noun}s, and were asked about that fold alone. The model kept here learned from all {run.noun}s."
        )
    if run.facts["task"] != "classification":
        whose = "each judged by a model that has not seen it" if result["folds"] else "it has never seen"
        return (
            f"On {unseen} {whose} {'the' if result['folds'] else 'its'} loss is {result['test_loss']:.4g} ({words}).",
            aside,
        )
    right = round(result["test_accuracy"] * size)
    names = f"all {right:,}" if right == size > 1 else f"{right:,}"
    if ends := result.get("indistinguishable"):
        low, high = (percent(end) for end in ends)
        aside += f" Another model with {low} to {high} on as many other {run.noun}s could be just as good."
    if result["folds"]:
        verb = "was" if right == 1 else "were"
        return f"Of {unseen}, each asked of a model that had not seen it, {names} {verb} named right ({words}).", aside
    return f"Of {unseen} it has never seen it names {names} right ({words}).", aside.strip()


def _headline_in_progress(run: _Run) -> tuple[str, str]:
    done = _count(len(run.history), "epoch")
    aside = "There is no result: the run is going on, was interrupted, or met a loss that was not finite."
    if run.history and run.recipe.steps:
        done += f", {run.history[-1]['step']:,} of {_count(run.recipe.steps, 'step')},"
    if best := next((row for row in run.history if row["epoch"] == run.kept_epoch), None):
        figure = f"{best['val_loss']:.4g} validation loss" if best.get("val_loss") is not None else "not a finite loss"
        if best.get("val_accuracy") is not None:
            figure = f"{percent(best['val_accuracy'])} of the validation {run.noun}s right"
        aside = f"At best {figure}, after epoch {best['epoch']}. {aside}"
    return f"In progress: {done} done.", aside


def _key_facts(run: _Run) -> list[tuple[str, str]]:
    sizes, result, model = run.facts["sizes"], run.result, run.facts["model"]
    purposes = {"train": "to learn from", "val": "to choose by", "test": "kept for the end"}
    facts = [(purpose, _count(sizes[part], run.noun)) for part, purpose in purposes.items() if sizes[part]]
    if result and result["folds"]:
        facts.append(("judged, by fold", _count(run.tested, run.noun)))
    if run.facts["classes"]:
        facts.append(("classes", str(len(run.facts["classes"]))))
    facts += [("model", model["name"]), ("parameters", f"{model['parameters']:,}")]
    if not result:
        return facts
    if (average := result.get("kept_weights")) in AVERAGES:
        facts.append(("weights handed over", f"their average ({average})"))
    for part, name in (("val", "validation"), ("test", "test")):
        if finite(accuracy := result.get(f"{part}_accuracy")):
            facts.append((f"{name} accuracy", percent(accuracy)))
        if finite(loss := result.get(f"{part}_loss")):
            facts.append((f"{name} loss", f"{loss:.4g}"))
    if finite(balanced := result.get("test_balanced_accuracy")):
        words = interval(result["test_balanced_interval"], fractions=True)
        facts.append((f"balanced accuracy (each class counts the same), {words}", percent(balanced)))
    for name in ("mean_average_precision", "exact_match"):
        if finite(share := result.get(name)):
            facts.append((name.replace("_", " "), percent(share)))
    for name, metric in result["metrics"].items():
        what, value = name.replace("test_", "test ", 1), metric["value"]
        if None not in metric["interval"]:
            what += f", {interval(metric['interval'], fractions=False)}"
        facts.append((what, "–" if value is None else f"{value:.4g}"))
    facts += [
        ("trained for", _count(result["epochs"], "epoch")),
        ("weights kept from", f"epoch {result['kept_epoch']}"),
        ("time", duration(result["seconds"])),
        ("stopped because", result["stop_reason"]),
    ]
    if result["halvings"]:
        facts.append(("learning rate halved", _count(result["halvings"], "time")))
    return facts


def _recipe(run: _Run) -> list[tuple[str, str, bool]]:
    """Returns name, value and whether it was given; what was given comes first, as it was given."""
    about = run.facts["given"]
    given = about["recipe"] | {name: "your own" for name in ("model", "loss") if about.get(name) is True}
    fields = [(name, value, True) for name, value in given.items()]
    chosen = {name: value for name, value in asdict(run.recipe).items() if value is not None}
    fields += [(name, value, False) for name, value in chosen.items() if name not in given]
    return [
        (name, value if isinstance(value, str) else json.dumps(value, default=str), by) for name, value, by in fields
    ]
