"""A run directory as one page: self-contained, interactive, offline.

The page is a pure function of the files of the run. Charts are described here as plain plotly figures; the page's
script fills in the colours of the reader's light or dark theme and the sizes of the reader's screen.
"""

import base64
import hashlib
import html
import io
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError
from trainwell.files import write_atomically
from trainwell.train.metrics import wilson_interval

# A chart of more classes than this shows the ones with the most mistakes.
_MOST_CLASSES = 100
# More classes than this need the page's whole width for a chart.
_HALF_WIDTH_CLASSES = 14
_MOST_POINTS = 2_000
_PICTURE_SIDE = 256
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_SPACE = "\u00a0"  # no line ends between a number and its unit

_Figure = dict[str, Any]


def write_report(run: Path | str) -> Path:
    """Writes `report.html` into a run's directory, from what the directory holds so far.

    Args:
        run: The run's directory. `run.json` and `history.jsonl` must be there; whatever else is missing (no test part,
            no pictures, a run that is still going) is left out of the page.

    Returns:
        The path of the report.

    Raises:
        InputError: If a file that the report needs is missing, or one is damaged.
    """
    run = Path(run)
    path = run / "report.html"
    # File names that are no valid Unicode come as lone surrogates; a page cannot hold those.
    write_atomically(path, _page(_read(run)).encode("utf-8", "replace"))
    return path


# --- Reading. A run may come from a stranger: everything is checked here, nothing is run or unpickled. ---


@dataclass(frozen=True)
class _Mistake:
    name: str
    true: str
    predicted: str
    confidence: float
    picture: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Run:
    path: Path
    facts: dict[str, Any]
    recipe: dict[str, Any]
    history: list[dict[str, Any]]
    result: dict[str, Any] | None  # None while the run is going
    part: str  # which samples the outputs belong to: "test", or "val" when there is no test part
    outputs: npt.NDArray[Any] | None
    targets: npt.NDArray[Any] | None
    mistakes: list[_Mistake] | None  # None where the run has kept none, [] where it made none

    @property
    def classes(self) -> list[str]:
        return list(self.facts["classes"])

    @property
    def noun(self) -> str:
        return "image" if self.facts["model"].get("img_size") else "sample"

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights are kept; while the run is going, the best one so far."""
        if self.result is not None:
            best = self.result.get("best_epoch")
            return best if isinstance(best, int) else None
        for name, sign in (("val_accuracy", -1.0), ("val_loss", 1.0)):
            scored = [(sign * row[name], row["epoch"]) for row in self.history if row.get(name) is not None]
            if scored:
                return int(min(scored)[1])
        return None


def _read(run: Path) -> _Run:
    if not run.is_dir():
        raise InputError(f"{run}: there is no such directory; give the directory of a run (what `--out` named).")
    for name in ("run.json", "history.jsonl"):
        if not (run / name).is_file():
            raise InputError(f"{run}: not a run's directory, it has no {name}; give what `--out` named.")
    facts = _read_json(run / "run.json")
    if not isinstance(facts, dict):
        raise _damaged(run / "run.json", "not an object")
    facts = {
        "task": "",
        "source": "",
        "classes": [],
        "sizes": {},
        "skipped": [],
        "model": {},
        "environment": {},
    } | facts
    for name, kind in {"classes": list, "sizes": dict, "skipped": list, "model": dict, "environment": dict}.items():
        if not isinstance(facts[name], kind):
            raise _damaged(run / "run.json", f"{name!r} is not a {kind.__name__}")
    classes = [str(name) for name in facts["classes"]]
    facts["classes"] = classes
    facts["skipped"] = [item for item in facts["skipped"] if isinstance(item, dict)]
    result = _read_json(run / "result.json") if (run / "result.json").is_file() else None
    if not isinstance(result, dict | None):
        raise _damaged(run / "result.json", "not an object")
    part, outputs, targets = _read_evaluation(run / "evaluation.safetensors", facts)
    return _Run(
        run,
        facts,
        _read_recipe(run / "recipe.toml"),
        _read_history(run / "history.jsonl"),
        result,
        part,
        outputs,
        targets,
        _read_mistakes(run, classes),
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged ({why}); restore the file, or train again.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or brackets without end
        raise _damaged(path, str(error)) from error


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _read_history(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            # Not-a-number and infinity have no place in a chart: a gap stands for them.
            row = {name: value if _is_number(value) else None for name, value in row.items()}
            rows.append(row | {"epoch": int(row["epoch"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number < len(lines):  # the last line may be half-written: the run is going, or was killed
                raise _damaged(path, f"line {number}") from error
    return rows


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path)) if path.is_file() else {}
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, str(error)) from error


def _read_evaluation(
    path: Path, facts: Mapping[str, Any]
) -> tuple[str, npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    tensors = _read_tensors(path)
    for part in ("test", "val"):
        outputs, targets = tensors.get(f"{part}_outputs"), tensors.get(f"{part}_targets")
        if outputs is None or targets is None or not len(targets):
            continue
        if len(outputs) != len(targets):
            raise _damaged(path, f"{len(outputs)} {part} outputs for {len(targets)} targets")
        if facts["task"] == "classification":
            count = len(facts["classes"])
            whole = targets.ndim == 1 and targets.dtype.kind in "iu"
            if not whole or outputs.shape != (len(targets), count) or targets.min() < 0 or targets.max() >= count:
                raise _damaged(path, f"the {part} part does not fit the {count} classes of run.json")
        return part, outputs, targets
    return "test", None, None


def _read_mistakes(run: Path, classes: Sequence[str]) -> list[_Mistake] | None:
    path = run / "mistakes.json"
    if not path.is_file():
        return None
    rows = _read_json(path)
    pictures = _read_tensors(run / "mistakes.safetensors")
    mistakes = []
    try:
        for number, row in enumerate(rows):
            true, predicted, confidence = int(row["true"]), int(row["predicted"]), float(row["confidence"])
            if not (0 <= true < len(classes) and 0 <= predicted < len(classes)):
                raise ValueError(f"entry {number} names a class that run.json does not have")
            picture = pictures.get(str(number))
            if picture is not None and (
                picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3)
            ):
                raise ValueError(f"picture {number} is not uint8 of shape (h, w, 1 or 3)")
            mistakes.append(_Mistake(str(row["name"]), classes[true], classes[predicted], confidence, picture))
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, str(error)) from error
    return mistakes


# --- Words. ---


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}{_SPACE}%"


def _decimal(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _range(interval: Any, percent: bool) -> str:
    """Returns "95 % interval 93.0 to 99.4 %", or nothing where there is no interval."""
    if not (isinstance(interval, list | tuple) and len(interval) == 2 and all(map(_is_number, interval))):
        return ""
    low, high = interval
    ends = f"{100 * low:.1f} to {_percent(high)}" if percent else f"{_decimal(low)} to {_decimal(high)}"
    return f"95{_SPACE}% interval {ends}"


def _headline(run: _Run) -> tuple[str, str]:
    """Returns the result as one sentence, and what is to be said beside it."""
    if run.result is None:
        return _headline_in_progress(run)
    part = "test" if run.result.get("test_loss") is not None or run.result.get("test_accuracy") is not None else "val"
    samples = run.facts["sizes"].get(part)
    accuracy, loss = run.result.get(f"{part}_accuracy"), run.result.get(f"{part}_loss")
    interval = run.result.get(f"{part}_interval")
    unseen = "it has never seen" if part == "test" else "it was chosen by"
    aside = "" if part == "test" else "There was no test part: expect a little less on data it has never met."
    if _is_number(accuracy) and isinstance(samples, int) and samples > 0:
        right = round(accuracy * samples)
        words = _range(interval or wilson_interval(right, samples), percent=True)
        names = f"all {right:,}" if right == samples > 1 else f"{right:,}"
        return f"Of {_count(samples, run.noun)} {unseen} it names {names} right ({words}).", aside
    if _is_number(loss):
        words = _range(interval, percent=False)
        what = f"On {_count(samples, run.noun)}" if isinstance(samples, int) else f"On {run.noun}s"
        return f"{what} {unseen} its loss is {_decimal(loss)}{f' ({words})' if words else ''}.", aside
    return "The run ended before it could be tested.", str(run.result.get("stop_reason", ""))


def _headline_in_progress(run: _Run) -> tuple[str, str]:
    planned = run.recipe.get("epochs")
    done = _count(len(run.history), "epoch")
    if isinstance(planned, int) and planned >= len(run.history) > 0:
        done = f"{len(run.history)} of {_count(planned, 'epoch')}"
    aside = "There is no result yet: the run is still going, or it was interrupted."
    best = next((row for row in run.history if row["epoch"] == run.kept_epoch), {})
    if best.get("val_accuracy") is not None:
        right = f"{_percent(best['val_accuracy'])} of the validation {run.noun}s right"
        aside = f"At best {right}, after epoch {best['epoch']}. {aside}"
    elif best.get("val_loss") is not None:
        aside = f"Lowest validation loss {_decimal(best['val_loss'])}, after epoch {best['epoch']}. {aside}"
    return f"In progress: {done} done.", aside


def _key_facts(run: _Run) -> list[tuple[str, str]]:
    sizes, result, model = run.facts["sizes"], run.result or {}, run.facts["model"]
    purposes = {"train": "to learn from", "val": "to choose by", "test": "kept for the end"}
    facts = [(purposes[part], _count(sizes[part], run.noun)) for part in purposes if isinstance(sizes.get(part), int)]
    if run.classes:
        facts.append(("classes", str(len(run.classes))))
    if model.get("name"):
        facts.append(("model", str(model["name"])))
    if isinstance(model.get("parameters"), int):
        facts.append(("parameters", f"{model['parameters']:,}"))
    for part, name in (("val", "validation"), ("test", "test")):
        if _is_number(result.get(f"{part}_accuracy")):
            facts.append((f"{name} accuracy", _percent(result[f"{part}_accuracy"])))
        if _is_number(result.get(f"{part}_loss")):
            facts.append((f"{name} loss", _decimal(result[f"{part}_loss"])))
    metrics = result.get("metrics")
    for name, metric in (metrics if isinstance(metrics, dict) else {}).items():
        if isinstance(metric, dict):
            words = _range(metric.get("interval"), percent=False)
            label = name.replace("test_", "test ", 1)
            facts.append((f"{label}, {words}" if words else label, _decimal(metric.get("value"))))
    if isinstance(result.get("epochs"), int):
        facts.append(("trained for", _count(result["epochs"], "epoch")))
        if run.kept_epoch is not None:
            facts.append(("weights kept from", f"epoch {run.kept_epoch}"))
    if _is_number(result.get("seconds")):
        facts.append(("time", _duration(result["seconds"])))
    if result.get("stop_reason"):
        facts.append(("stopped because", str(result["stop_reason"])))
    return facts


# --- Charts: plain plotly figures. `_css(name)` stands for a colour that the page's theme decides. ---


@dataclass(frozen=True)
class _Chart:
    name: str
    title: str
    caption: str
    figure: _Figure
    height: int = 300
    square: bool = False  # as high as it is wide, but no higher than `height`
    labels: Mapping[str, Sequence[str]] | None = None  # axis -> names at 0, 1, …; thinned out to what the screen holds
    wide: bool = False


def _css(name: str) -> dict[str, str]:
    return {"css": f"--{name}"}


def _layout(**changes: Any) -> dict[str, Any]:
    axis = {
        "gridcolor": _css("line"),
        "linecolor": _css("line"),
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8},
    }
    layout: dict[str, Any] = {
        "font": {
            "family": _FONT,
            "size": 12,
            "color": _css("soft"),
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "hoverlabel": {
            "bgcolor": _css("card"),
            "bordercolor": _css("line"),
            "font": {"color": _css("ink"), "family": _FONT},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis,
        "yaxis": axis,
        "uirevision": "kept",
    }
    for name, change in changes.items():
        layout[name] = layout[name] | change if isinstance(change, dict) and name in layout else change
    return layout


def _epoch_axis(run: _Run) -> dict[str, Any]:
    epochs = [row["epoch"] for row in run.history]
    axis: dict[str, Any] = {"title": {"text": "epoch", "standoff": 8}, "showgrid": False}
    axis["unifiedhovertitle"] = {"text": "epoch %{x}"}
    if epochs:
        margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
        axis["range"] = [epochs[0] - margin, epochs[-1] + margin]
    return axis | ({"dtick": 1} if len(epochs) <= 10 else {})


def _kept_marker(run: _Run, values: Sequence[float | None]) -> dict[str, Any]:
    """A dotted line at the kept epoch, its word at the top or the bottom, away from the curve of these values."""
    kept, epochs = run.kept_epoch, [row["epoch"] for row in run.history]
    if kept is None or kept not in epochs:
        return {}
    value, numbers = values[epochs.index(kept)], [number for number in values if number is not None]
    high = value is not None and value > (min(numbers) + max(numbers)) / 2
    late = kept > (epochs[0] + epochs[-1]) / 2
    word = {
        "text": "kept" if run.result is not None else "best so far",
        "x": kept,
        "y": 0 if high else 1,
        "yref": "paper",
        "yanchor": "bottom" if high else "top",
        "xanchor": "right" if late else "left",
        "showarrow": False,
        "font": {"color": _css("ink")},
    }
    line = {"type": "line", "x0": kept, "x1": kept, "y0": 0, "y1": 1, "yref": "paper"}
    return {"shapes": [line | {"line": {"color": _css("ink"), "width": 1, "dash": "dot"}}], "annotations": [word]}


def _curves(run: _Run, quantity: str) -> list[dict[str, Any]]:
    """Training (thin, dashed) and validation (strong) over the epochs, with the gap between them shaded."""
    form = "%{y:.1%}" if quantity == "accuracy" else "%{y:.4g}"
    mode = "lines+markers" if len(run.history) <= 40 else "lines"
    kinds = {"val": ("validation", "accent", 2.5, "solid"), "train": ("training", "other", 1.75, "dash")}
    curves: list[dict[str, Any]] = []
    for part, (name, colour, width, dash) in kinds.items():
        values = [row.get(f"{part}_{quantity}") for row in run.history]
        if all(value is None for value in values):
            continue
        curves.append(
            {
                "type": "scatter",
                "name": name,
                "x": [row["epoch"] for row in run.history],
                "y": values,
                "mode": mode,
                "line": {"color": _css(colour), "width": width, "dash": dash},
                "marker": {"color": _css(colour), "size": 5},
                "hovertemplate": form,
            }
        )
    if len(curves) == 2:
        curves[1] |= {"fill": "tonexty", "fillcolor": _css("gap")}
    return curves


def _curve_charts(run: _Run) -> list[_Chart]:
    keys = dict.fromkeys(name for row in run.history for name in row)
    metrics = [key.removeprefix("val_") for key in keys if key.startswith("val_")]
    metrics = [name for name in metrics if name not in ("loss", "accuracy")]
    captions = {
        "loss": "Both should fall. Where validation turns up while training falls on, it is learning by heart.",
        "accuracy": "The shaded gap is what it knows of its training data but cannot carry over to new data.",
    }
    titles = {"loss": "Loss", "accuracy": "Accuracy"}
    charts: list[_Chart] = []
    for quantity in ("loss", "accuracy", *metrics):
        curves = _curves(run, quantity)
        if not curves:
            continue
        values = [value for curve in curves for value in curve["y"] if value is not None]
        yaxis: dict[str, Any] = {"tickformat": ".0%"} if quantity == "accuracy" else {"tickformat": "~g", "nticks": 8}
        if quantity == "loss" and min(values) > 0 and max(values) > 30 * min(values):
            yaxis = {
                "type": "log",
                "tickformat": "~g",
                "dtick": "D2" if max(values) < 1e3 * min(values) else 1,
                "title": {"text": "log scale", "standoff": 8},
            }
        layout = _layout(
            hovermode="x unified",
            xaxis=_epoch_axis(run),
            yaxis=yaxis,
            **_kept_marker(run, curves[0]["y"]),
        )
        caption = captions.get(quantity, "Your own metric, after each epoch.")
        figure = {"data": curves, "layout": layout}
        charts.append(_Chart(f"curve-{len(charts)}", titles.get(quantity, quantity), caption, figure))
    rates = [row.get("lr") for row in run.history]
    if any(rate is not None for rate in rates):
        line = {
            "type": "scatter",
            "name": "rate",
            "x": [row["epoch"] for row in run.history],
            "y": rates,
            "mode": "lines+markers" if len(rates) <= 40 else "lines",
            "line": {"color": _css("accent"), "width": 2.5},
            "marker": {"size": 5},
            "hovertemplate": "%{y:.4g}",
        }
        layout = _layout(
            hovermode="x unified",
            xaxis=_epoch_axis(run),
            yaxis={"tickformat": "~g", "rangemode": "tozero", "nticks": 6},
        )
        caption = "If a schedule that should end near zero does not, the run was cut short."
        wide = len(charts) % 2 == 0
        figure = {"data": [line], "layout": layout}
        charts.append(_Chart("rate", "Learning rate", caption, figure, height=200 if wide else 300, wide=wide))
    return charts


def _label(name: str) -> str:
    """Returns a class name as plotly's texts want it: short, and with no mark-up in it."""
    return html.escape(name if len(name) <= 40 else f"{name[:39]}…", quote=False)


def _class_charts(run: _Run) -> list[_Chart]:
    if run.outputs is None or run.targets is None or run.facts["task"] != "classification":
        return []
    count = len(run.classes)
    predicted = run.outputs.argmax(axis=1)
    table = np.bincount(run.targets.astype(np.int64) * count + predicted, minlength=count * count)
    table = table.reshape(count, count)  # row: the truth, column: the answer
    shown, note = np.arange(count), ""
    if count > _MOST_CLASSES:
        involved = table.sum(0) + table.sum(1) - 2 * table.diagonal()
        shown = np.sort(np.argsort(-involved, kind="stable")[:_MOST_CLASSES])
        note = f" Of {count} classes, the {_MOST_CLASSES} with the most mistakes."
    names = [run.classes[i] for i in shown]
    totals = table.sum(1)[shown]
    table = table[np.ix_(shown, shown)]
    wide = len(names) > _HALF_WIDTH_CLASSES
    of = "test" if run.part == "test" else "validation"
    return [
        _confusion_chart(names, table, totals, wide, f"On the {of} part. Row: the truth; column: the answer.{note}"),
        _accuracy_chart(names, table.diagonal(), totals, wide, note),
    ]


def _confusion_chart(
    names: Sequence[str], table: npt.NDArray[np.int64], totals: npt.NDArray[np.int64], wide: bool, caption: str
) -> _Chart:
    shares = table / np.maximum(totals, 1)[:, None]
    right = np.eye(len(names), dtype=bool)
    texts = [
        [
            f"{_label(true)} → {_label(answer)}<br>{table[i, j]:,} of {totals[i]:,} ({_percent(shares[i, j])})"
            for j, answer in enumerate(names)
        ]
        for i, true in enumerate(names)
    ]
    # Two maps, one over the other: what is right in one colour, what is wrong in another that starts visibly at once.
    worst = max(0.2, float(shares[~right].max(initial=0)))
    right_scale = [[0, _css("card")], [1, _css("accent")]]
    wrong_scale = [[0, _css("cell")], [1e-9, _css("cell")], [1e-9, _css("other-tint")], [1, _css("other")]]
    maps: list[dict[str, Any]] = []
    for mask, scale, top in ((right, right_scale, 1.0), (~right, wrong_scale, worst)):
        cells = {
            "type": "heatmap",
            "z": [
                [float(s) if m else None for s, m in zip(*row, strict=True)] for row in zip(shares, mask, strict=True)
            ],
            "zmin": 0,
            "zmax": top,
            "colorscale": scale,
            "showscale": False,
            "hoverongaps": False,
            "hovertext": texts,
            "hovertemplate": "%{hovertext}<extra></extra>",
            "xgap": 1 if len(names) <= 40 else 0,
            "ygap": 1 if len(names) <= 40 else 0,
        }
        maps.append(cells)
    if not wide:  # the counts fit into the cells
        rows, columns = np.nonzero(table)
        strong = np.where(right, shares, shares / worst)[rows, columns] > 0.5
        counts = {
            "type": "scatter",
            "mode": "text",
            "x": columns.tolist(),
            "y": rows.tolist(),
            "text": [f"{number:,}" for number in table[rows, columns].tolist()],
            "textfont": {"color": [_css("card") if cell else _css("ink") for cell in strong]},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        maps.append(counts)
    plain = {"showgrid": False, "constrain": "domain", "constraintoward": "top", "ticks": ""}
    layout = _layout(
        xaxis=plain | {"constraintoward": "center", "title": {"text": "answer", "standoff": 8}},
        yaxis=plain | {"title": {"text": "truth", "standoff": 8}, "autorange": "reversed", "scaleanchor": "x"},
    )
    caption += " Blue is right; orange is confused, the stronger the more of its row."
    figure = {"data": maps, "layout": layout}
    return _Chart(
        "confusion",
        "What it confuses",
        caption,
        figure,
        height=min(860, 200 + 60 * len(names)),
        square=True,
        labels={"xaxis": names, "yaxis": names},
        wide=wide,
    )


def _accuracy_chart(
    names: Sequence[str], right: npt.NDArray[np.int64], totals: npt.NDArray[np.int64], wide: bool, note: str
) -> _Chart:
    rows = []
    for name, hits, total in zip(names, right.tolist(), totals.tolist(), strict=True):
        if total:
            low, high = wilson_interval(hits, total)
            text = f"{_label(name)}: {hits:,} of {total:,} right ({_percent(hits / total)})<br>"
            rows.append((hits / total, low, high, name, text + _range((low, high), percent=True)))
    rows.sort(key=lambda row: (row[0], row[3]))
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [row[0] for row in rows],
        "y": list(range(len(rows))),
        "error_x": {
            "type": "data",
            "array": [row[2] - row[0] for row in rows],
            "arrayminus": [row[0] - row[1] for row in rows],
            "color": _css("accent"),
            "thickness": 1.5,
            "width": 3,
        },
        "marker": {"color": _css("accent"), "size": 8},
        "hovertext": [row[4] for row in rows],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    overall = float(right.sum() / max(totals.sum(), 1))
    line = {"type": "line", "x0": overall, "x1": overall, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    lowest = min((row[1] for row in rows), default=0.0)
    layout = _layout(
        hovermode="closest",
        hoverdistance=60,
        xaxis={
            "tickformat": ".0%",
            "range": [max(0.0, lowest - 0.03), 1.01],
            "title": {"text": "right", "standoff": 8},
        },
        yaxis={"range": [len(rows) - 0.5, -0.5], "showgrid": len(rows) <= 40},
        shapes=[line | {"line": {"color": _css("soft"), "width": 1, "dash": "dot"}}],
    )
    caption = f"Weakest first, with 95{_SPACE}% intervals; the dotted line is all classes together.{note}"
    if len(rows) < len(names):
        caption += f" Of {len(names)} classes, {len(names) - len(rows)} had no sample here."
    figure = {"data": [points], "layout": layout}
    return _Chart(
        "per-class",
        "Accuracy per class",
        caption,
        figure,
        height=60 + 18 * len(rows) if wide else 200 + 60 * len(rows),
        square=not wide,
        labels={"yaxis": [row[3] for row in rows]},
        wide=wide,
    )


def _regression_charts(run: _Run) -> list[_Chart]:
    if run.outputs is None or run.targets is None or run.facts["task"] != "regression":
        return []
    outputs, targets = run.outputs.reshape(len(run.outputs), -1), run.targets.reshape(len(run.targets), -1)
    if outputs.shape[1] != 1 or targets.shape[1] != 1:
        return []
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), _MOST_POINTS)).astype(np.int64))
    x, y = targets[chosen, 0].astype(float), outputs[chosen, 0].astype(float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return []
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": x.tolist(),
        "y": y.tolist(),
        "marker": {"color": _css("accent"), "size": 6, "opacity": 0.6},
        "hovertemplate": "true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
    }
    diagonal = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "layer": "below"}
    layout = _layout(
        hovermode="closest",
        xaxis={"title": {"text": "true", "standoff": 8}},
        yaxis={"title": {"text": "predicted", "standoff": 8}},
        shapes=[diagonal | {"line": {"color": _css("soft"), "width": 1, "dash": "dot"}}],
    )
    of = "test" if run.part == "test" else "validation"
    caption = f"On the {of} part. On the dotted line the answer is exact; a bend away from it is a bias."
    return [
        _Chart("scatter", "Answer against truth", caption, {"data": [points], "layout": layout}, height=420, wide=True)
    ]


# --- The page. ---


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))  # shrinks large pictures only
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _script(code: str) -> tuple[str, str]:
    """Returns code that can stand inside a `<script>` element, and the hash by which the page allows it."""
    code = code.replace("</script", "<\\/script").replace("\r\n", "\n")  # browsers hash what they parsed
    return code, "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _page(run: _Run) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curve_charts, class_charts = _curve_charts(run), _class_charts(run) + _regression_charts(run)
    charts = curve_charts + class_charts
    specs = [
        {"name": c.name, "height": c.height, "square": c.square, "labels": c.labels or {}, "figure": c.figure}
        for c in charts
    ]
    plotly_js, plotly_hash = _script(get_plotlyjs())
    draw_js, draw_hash = _script((Path(__file__).parent / "report.js").read_text("utf-8"))
    sentence, aside = _headline(run)
    source = str(run.facts["source"]).replace("\\", "/").rstrip("/")
    mistakes = [
        {
            "name": mistake.name,
            "true": mistake.true,
            "predicted": mistake.predicted,
            "confidence": _percent(mistake.confidence),
            "picture": None if mistake.picture is None else _png(mistake.picture),
            "small": mistake.picture is not None and max(mistake.picture.shape[:2]) < 100,
        }
        for mistake in run.mistakes or []
    ]
    flawless = run.mistakes == [] and run.result is not None
    return environment.get_template("report.html.jinja").render(
        title=f"{source.rsplit('/', 1)[-1] or 'A run'} · trainwell",
        source=run.facts["source"],
        sentence=sentence,
        aside=aside,
        facts=_key_facts(run),
        skipped=[(str(item.get("path", "")), str(item.get("reason", ""))) for item in run.facts["skipped"]],
        curve_charts=curve_charts,
        class_charts=class_charts,
        specs=specs,
        mistakes=mistakes,
        flawless=flawless,
        finished=run.result is not None,
        noun=run.noun,
        recipe=[
            (name, value if isinstance(value, str) else json.dumps(value, default=str))
            for name, value in run.recipe.items()
        ],
        command=run.facts.get("command", ""),
        seed=run.recipe.get("seed"),
        environment=[(name, str(value)) for name, value in run.facts["environment"].items()],
        fingerprint=run.facts.get("fingerprint", ""),
        on_cpu=str(run.facts["environment"].get("device", "cpu")).startswith("cpu"),
        version=run.facts.get("trainwell", ""),
        plotly_js=plotly_js,
        draw_js=draw_js,
        script_hashes=f"'{plotly_hash}' '{draw_hash}'",
    )
