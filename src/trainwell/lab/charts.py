"""The charts of the reports, as plain plotly figures.

`{"css": "--accent"}` stands for a colour that the reader's light or dark theme decides; the page's script fills it in,
and fits every chart to the reader's screen.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.metrics.correctness import wilson_interval
from trainwell.train.recipe import AVERAGES

_MOST_CLASSES = 100  # of more, those with the most mistakes are shown
_NARROW_CLASSES = 14  # more need the page's whole width
_MOST_POINTS = 2_000
_MOST_MARKED = 40  # epochs whose points, or classes whose cells, are told apart by eye

Axis = dict[str, Any]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chart:
    """A plotly figure, and what the page needs to place it."""

    name: str  # unique on the page
    title: str
    caption: str
    figure: dict[str, Any]  # data and layout, on top of `TEMPLATE`
    height: int = 300
    square: bool = False  # as high as it is wide, but no higher than `height`
    wide: bool = False  # over the page's whole width
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # axis to names at 0, 1, …; thinned out to fit


def css(name: str) -> dict[str, str]:
    """Returns what stands for the theme's colour of a name, such as "accent"."""
    return {"css": f"--{name}"}


def _title(text: str) -> Axis:
    return {"title": {"text": text}}


_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_AXIS = {"gridcolor": css("line"), "linecolor": css("line"), "zeroline": False, "automargin": True,
         "title": {"standoff": 8}, "ticks": "", "ticklabelstandoff": 4, "tickformat": "~g", "nticks": 8}  # fmt: skip
TEMPLATE = {
    "layout": {
        "font": {"family": _FONT, "size": 12, "color": css("soft")},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "hoverlabel": {"bgcolor": css("card"), "bordercolor": css("line"), "font": {"color": css("ink")}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}
"""What all charts share, as a plotly template."""


def percent(fraction: float) -> str:
    """Returns a fraction as a person reads it.

    >>> percent(0.975).replace(chr(160), " ")  # the space is one that no line ends at
    '97.5 %'
    """
    return f"{100 * fraction:.1f}\u00a0%"


def interval(ends: Sequence[float | None], fractions: bool) -> str:
    """Returns a 95 % interval in words, of fractions in percent; of one sample or group there is none.

    >>> interval((0.93, 0.994), fractions=True).replace(chr(160), " ")
    '95 % interval 93.0 to 99.4 %'
    """
    low, high = ends
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "no interval"
    return f"95\u00a0% interval {f'{100 * low:.1f} to {percent(high)}' if fractions else f'{low:.4g} to {high:.4g}'}"


def dotted(colour: str, **ends: Any) -> dict[str, Any]:
    """Returns a dotted line below the points, in a colour of the theme; `ends` are plotly's `x0`, `x1`, `y0`, …."""
    return {"type": "line", "layer": "below", "line": {"color": css(colour), "width": 1, "dash": "dot"}, **ends}


# --- Over the epochs. ---

_TITLES = {"loss": "Loss", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy"}
_CAPTIONS = {
    "loss": "Both should fall. Where validation turns up while training falls on, it is learning by heart.",
    "accuracy": "The shaded gap is what it knows of its training data but cannot carry over to new data.",
    "balanced_accuracy": "The mean over the classes of how many of each are right, however many there are of it.",
}


def learning(history: Sequence[Mapping[str, Any]], kept: int | None, word: str) -> list[Chart]:
    """Returns a chart of the loss, of the accuracy and of each further metric over the epochs, and of the rate.

    Args:
        history: One row an epoch, of finite numbers or `None`.
        kept: The epoch to mark.
        word: What to write beside the mark.
    """
    charts: list[Chart] = []
    columns = dict.fromkeys(column for row in history for column in row)
    for quantity in [column.removeprefix("val_") for column in columns if column.startswith("val_")]:
        curves = _curve(history, f"val_{quantity}", "validation") + _curve(history, f"train_{quantity}", "training")
        if not curves:
            continue
        if len(curves) == 2:
            curves[1] |= {"fill": "tonexty", "fillcolor": css("gap")}
        for average in AVERAGES:
            curves += _curve(history, f"{average}_val_{quantity}", f"average ({average})")
        layout = {
            "hovermode": "x unified",
            "xaxis": _epochs(history),
            "yaxis": _values(quantity, [value for curve in curves for value in curve["y"] if value is not None]),
            **_mark(curves[0], kept, word),
        }
        caption = _CAPTIONS.get(quantity, "Your own metric, after each epoch.")
        figure = {"data": curves, "layout": layout}
        charts.append(Chart(f"curve-{len(charts)}", _TITLES.get(quantity, quantity), caption, figure))
    if rate := _curve(history, "lr", "rate"):
        layout = {"hovermode": "x unified", "xaxis": _epochs(history), "yaxis": {"rangemode": "tozero", "nticks": 6}}
        caption = "If a schedule that should end near zero does not, the run was cut short."
        wide = len(charts) % 2 == 0  # it would have its row to itself
        figure = {"data": rate, "layout": layout}
        charts.append(Chart("rate", "Learning rate", caption, figure, height=200 if wide else 300, wide=wide))
    return charts


def _curve(history: Sequence[Mapping[str, Any]], column: str, name: str) -> list[dict[str, Any]]:
    """Returns a column of the history as a curve, or nothing where it has no values."""
    values = [row.get(column) for row in history]
    if all(value is None for value in values):
        return []
    colour, width, dash = ("other", 1.75, "dash") if name == "training" else ("accent", 2.5, "solid")
    if name.startswith("average"):
        colour, width, dash = "accent", 1.75, "dot"
    curve = {
        "type": "scatter", "name": name, "x": [row["epoch"] for row in history], "y": values,
        "mode": "lines+markers" if len(history) <= _MOST_MARKED else "lines",
        "marker": {"color": css(colour), "size": 5}, "line": {"width": width, "dash": dash},
        "hovertemplate": "%{y:.1%}" if column.endswith("_accuracy") else "%{y:.4g}",
    }  # fmt: skip
    return [curve]


def _epochs(history: Sequence[Mapping[str, Any]]) -> Axis:
    first, last = history[0]["epoch"], history[-1]["epoch"]
    margin = max(0.5, 0.02 * (last - first))
    axis = {"range": [first - margin, last + margin], "showgrid": False, "unifiedhovertitle": {"text": "epoch %{x}"}}
    return axis | _title("epoch") | ({"dtick": 1} if len(history) <= 10 else {})


def _values(quantity: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if quantity == "accuracy":
        # Of a long run the steep beginning may lie below the picture, or the rest would be one flat line.
        low = sorted(values)[len(values) // 25 if len(values) > 2 * _MOST_MARKED else 0]
        margin = max(0.005, 0.06 * (high - low))
        return {"tickformat": "~%", "range": [low - margin, high + margin]}
    if quantity == "loss" and low > 0 and high > 30 * low:
        return {"type": "log", "dtick": "D2" if high < 1_000 * low else 1} | _title("log scale")
    return {}


def _mark(curve: Mapping[str, Any], kept: int | None, word: str) -> dict[str, Any]:
    """Returns a dotted line at an epoch, its word at the top or the bottom, away from the curve."""
    if kept not in curve["x"]:
        return {}
    value, values = curve["y"][curve["x"].index(kept)], [value for value in curve["y"] if value is not None]
    high = value is not None and value > (min(values) + max(values)) / 2
    late = kept > (curve["x"][0] + curve["x"][-1]) / 2
    text = {
        "text": word, "x": kept, "y": 0 if high else 1, "yref": "paper", "showarrow": False,
        "yanchor": "bottom" if high else "top", "xanchor": "right" if late else "left", "xshift": -4 if late else 4,
        "font": {"color": css("ink")},
    }  # fmt: skip
    return {"shapes": [dotted("ink", x0=kept, x1=kept, y0=0, y1=1, yref="paper")], "annotations": [text]}


# --- On the test part. ---


def by_class(
    classes: Sequence[str],
    outputs: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    ends: Sequence[Sequence[float] | None] | None = None,
) -> list[Chart]:
    """Returns the confusion matrix and the accuracy of each class.

    Args:
        classes: The names of the classes.
        outputs: Scores of shape `(n, classes)`.
        targets: The true classes, integers of shape `(n,)`.
        ends: The 95 % interval of each class's accuracy; by default Wilson's.
    """
    count = len(classes)
    pairs = targets.astype(np.int64) * count + outputs.argmax(1)
    table = np.bincount(pairs, minlength=count * count).reshape(count, count)  # row: the truth, column: the answer
    shown, note = np.arange(count), ""
    if count > _MOST_CLASSES:
        mistaken = table.sum(0) + table.sum(1) - 2 * table.diagonal()
        mistaken[table.sum(1) == 0] = -1  # classes without a sample come last
        shown = np.sort(np.argsort(-mistaken, kind="stable")[:_MOST_CLASSES])
        note = f" Of {count} classes, the {_MOST_CLASSES} with the most mistakes."
    names, totals, table = [classes[i] for i in shown.tolist()], table.sum(1)[shown], table[np.ix_(shown, shown)]
    right = table.diagonal()
    if ends is None or len(ends) != count:
        ends = [wilson_interval(k, n) if n else None for k, n in zip(right.tolist(), totals.tolist(), strict=True)]
    else:
        ends = [ends[i] for i in shown.tolist()]
    return [_confusion(names, table, totals, note), _accuracies(names, right, totals, ends, note)]


def escaped(name: str) -> str:
    """Returns a name as plotly's texts want it: short, and with no mark-up in it."""
    return html.escape(name if len(name) <= 40 else f"{name[:39]}…", quote=False)


def _confusion(names: Sequence[str], table: Counts, totals: Counts, note: str) -> Chart:
    size, wide, gap = len(names), len(names) > _NARROW_CLASSES, int(len(names) <= _MOST_MARKED)
    shares = table / np.maximum(totals, 1)[:, None]
    right = np.eye(size, dtype=bool)
    worst = max(0.2, float(shares[~right].max(initial=0)))
    # What is right lies above 0, what is wrong below: there another colour starts, visibly at once.
    strength = np.where(right, shares, -shares / worst)
    below, above = 0.5 - 1e-9, 0.5 + 1e-9
    scale = [
        (0, "other"),
        (below, "other-tint"),
        (below, "cell"),
        (above, "cell"),
        (above, "accent-tint"),
        (1, "accent"),
    ]
    labels = [escaped(name) for name in names]
    texts = [
        [
            f"{true} → {answer}<br>{k:,} of {n:,} ({percent(k / max(n, 1))})"
            for answer, k in zip(labels, row, strict=True)
        ]
        for true, row, n in zip(labels, table.tolist(), totals.tolist(), strict=True)
    ]
    cells = {
        "type": "heatmap", "z": strength.round(4).tolist(), "zmin": -1, "zmax": 1, "showscale": False,
        "colorscale": [[at, css(colour)] for at, colour in scale], "hovertext": texts,
        "hovertemplate": "%{hovertext}<extra></extra>", "xgap": gap, "ygap": gap,
    }  # fmt: skip
    rows, columns = np.nonzero(table)
    counts = {
        "type": "scatter", "mode": "text", "x": columns.tolist(), "y": rows.tolist(), "hoverinfo": "skip",
        "text": [f"{number:,}" for number in table[rows, columns]], "showlegend": False,
        "textfont": {"color": [css("card" if abs(s) > 0.5 else "ink") for s in strength[rows, columns]]},
    }  # fmt: skip
    plain = {"showgrid": False, "constrain": "domain"}
    layout = {
        "xaxis": plain | _title("answer"),
        "yaxis": plain | _title("truth") | {"autorange": "reversed", "scaleanchor": "x", "constraintoward": "top"},
    }
    figure = {"data": [cells] if wide else [cells, counts], "layout": layout}  # in many cells there is no room
    caption = (
        f"Row: the truth; column: the answer. Blue is right, orange is not: the stronger, the more of its row.{note}"
    )
    height, both = min(860, 200 + 60 * size), {"xaxis": names, "yaxis": names}
    return Chart("confusion", "What it confuses", caption, figure, height, square=True, wide=wide, labels=both)


def _accuracies(
    names: Sequence[str], right: Counts, totals: Counts, ends: Sequence[Sequence[float] | None], note: str
) -> Chart:
    every = zip(totals.tolist(), right.tolist(), names, ends, strict=True)
    tested = [(n, k, name, end) for n, k, name, end in every if n and end is not None]
    tested.sort(key=lambda row: (row[1] / row[0], row[2]))
    texts = [
        f"{escaped(name)}: {k:,} of {n:,} right ({percent(k / n)})<br>{interval(end, fractions=True)}"
        for n, k, name, end in tested
    ]
    x, (low, high) = np.array([row[1] / row[0] for row in tested]), np.transpose([row[3] for row in tested])
    points = {
        "type": "scatter", "mode": "markers", "x": x.tolist(), "y": list(range(len(tested))),
        "error_x": {"array": (high - x).tolist(), "arrayminus": (x - low).tolist(), "thickness": 1.5, "width": 3},
        "marker": {"color": css("accent"), "size": 8}, "hovertext": texts,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    overall, margin = float(right.sum() / totals.sum()), 0.04 * float(1 - low.min())
    layout = {
        "hoverdistance": 60,
        "xaxis": {"tickformat": ".0%", "range": [low.min() - margin, 1 + margin]} | _title("right"),
        "yaxis": {"range": [len(tested) - 0.5, -0.5], "showgrid": len(tested) <= _MOST_MARKED},
        "shapes": [dotted("soft", x0=overall, x1=overall, y0=0, y1=1, yref="paper")],
    }
    caption = f"Weakest first, with 95\u00a0% intervals; the dotted line is all classes together.{note}"
    if len(tested) < len(names):
        caption += f" Of {len(names)} classes, {len(names) - len(tested)} had no sample here."
    wide = len(names) > _NARROW_CLASSES
    height = 60 + 18 * len(tested) if wide else 200 + 60 * len(tested)
    figure, labels = {"data": [points], "layout": layout}, {"yaxis": [row[2] for row in tested]}
    return Chart("per-class", "Accuracy per class", caption, figure, height, square=not wide, wide=wide, labels=labels)


def against_truth(outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> list[Chart]:
    """Returns a chart of answers over true values; nothing where there is more than one target a sample.

    Args:
        outputs: The model's answers, of shape `(n,)` or `(n, 1)`.
        targets: The true values, likewise.
    """
    if outputs.size != len(targets) or targets.size != len(targets):
        return []
    points = np.stack([targets.ravel(), outputs.ravel()]).astype(float)
    points = points[:, np.isfinite(points).all(0)]
    if not points.size:
        return []
    x, y = points[:, :: -(-points.shape[1] // _MOST_POINTS)].tolist()
    low, high = float(points.min()), float(points.max())
    answers = {
        "type": "scatter", "mode": "markers", "x": x, "y": y,
        "marker": {"color": css("accent"), "size": 6, "opacity": 0.6},
        "hovertemplate": "true %{x:.4g}<br>answer %{y:.4g}<extra></extra>",
    }  # fmt: skip
    exact = dotted("soft", x0=low, y0=low, x1=high, y1=high)
    layout = {"xaxis": _title("true"), "yaxis": _title("answer"), "shapes": [exact]}
    caption = "On the dotted line the answer is exact; a bend away from it is a bias."
    return [Chart("scatter", "Answer against truth", caption, {"data": [answers], "layout": layout}, 420, wide=True)]


# --- Of an ensemble. ---


def by_number(rows: Sequence[Mapping[str, Any]], kept: int, together: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Returns charts of the accuracy, if there is one, and of the loss over the number of members.

    Args:
        rows: For each number of `members`, the mean figures of so many `ensembles`; numbers, or `None`.
        kept: How many members the ensemble asks.
        together: The ensemble's own figures; each has a `value` and an `interval`.
    """
    if len(rows) < 2:
        return []
    if "log_loss" not in together:
        figure = _over_members(rows, "loss", kept, together["loss"])
        return [
            Chart("number-loss", "Loss", "Down is better. Where it is flat, more would hardly help.", figure, wide=True)
        ]
    right = _over_members(rows, "accuracy", kept, together["accuracy"])
    loss = _over_members(rows, "loss", kept, together["log_loss"])
    return [
        Chart("number-accuracy", "Accuracy", "Up is better. Where it is flat, more would hardly help.", right),
        Chart("number-loss", "Log loss", "Down is better. It counts how sure an answer was, too.", loss),
    ]


def _over_members(rows: Sequence[Mapping[str, Any]], column: str, kept: int, own: Mapping[str, Any]) -> dict[str, Any]:
    fractions = column == "accuracy"
    figure = "%{y:.2%}" if fractions else "%{y:.4g}"
    means = {
        "type": "scatter", "name": "so many of the members", "x": [row["members"] for row in rows],
        "y": [row[column] for row in rows], "mode": "lines+markers" if len(rows) <= _MOST_MARKED else "lines",
        "marker": {"color": css("accent"), "size": 5}, "line": {"width": 2.5},
        "customdata": [f"{n:,} ensembles" if (n := row["ensembles"]) > 1 else "one ensemble" for row in rows],
        "hovertemplate": f"{figure}, the mean of %{{customdata}}<extra></extra>",
    }  # fmt: skip
    this = {
        "type": "scatter", "name": "this ensemble", "mode": "markers", "x": [kept], "y": [own["value"]],
        "marker": {"color": css("other"), "size": 10, "symbol": "diamond"},
        "hovertemplate": f"{figure}<br>{interval(own['interval'], fractions)}<extra></extra>",
    }  # fmt: skip
    margin = max(0.3, 0.03 * len(rows))
    axis = {"range": [rows[0]["members"] - margin, rows[-1]["members"] + margin], "showgrid": False} | _title("members")
    axis |= {"dtick": 1} if len(rows) <= 10 else {}
    return {"data": [means, this], "layout": {"xaxis": axis, "yaxis": {"tickformat": "~%"} if fractions else {}}}


def reliability(answers: Mapping[str, npt.NDArray[Any]], targets: npt.NDArray[Any], bins: int) -> Chart:
    """Returns a chart of how often answers are right, over how sure they are, in bins of equal width.

    Args:
        answers: Probabilities of shape `(n, classes)` by whose they are: one model's, then the ensemble's.
        targets: The true classes, integers of shape `(n,)`.
        bins: How many there are.
    """
    data, lowest = [], np.ones(2)
    for (name, p), (colour, symbol) in zip(answers.items(), (("other", "diamond"), ("accent", "circle")), strict=False):
        confidence, right = p.max(1), p.argmax(1) == targets
        bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
        counts = np.bincount(bin_of, minlength=bins)
        held = np.flatnonzero(counts)
        n, k = counts[held], np.bincount(bin_of, right, bins)[held].astype(int)
        x, y = np.bincount(bin_of, confidence, bins)[held] / n, k / n
        ends = [wilson_interval(*pair) for pair in zip(k.tolist(), n.tolist(), strict=True)]
        texts = [
            f"{name}, {percent(sure)} sure<br>{hits:,} of {of:,} right ({percent(hits / of)})<br>{interval(end, True)}"
            for sure, hits, of, end in zip(x.tolist(), k.tolist(), n.tolist(), ends, strict=True)
        ]
        low, high = np.transpose(ends)
        lowest = np.minimum(lowest, [x.min(), low.min()])
        data.append({
            "type": "scatter", "name": name, "mode": "markers", "x": x.tolist(), "y": y.tolist(),
            "error_y": {"array": (high - y).tolist(), "arrayminus": (y - low).tolist(), "thickness": 1, "width": 0},
            "marker": {"color": css(colour), "symbol": symbol, "size": (5 + 15 * np.sqrt(n / len(targets))).tolist()},
            "hovertext": texts, "hovertemplate": "%{hovertext}<extra></extra>",
        })  # fmt: skip
    axis = {"tickformat": ".0%"}
    layout = {
        "xaxis": axis | {"range": [lowest[0] - 0.03, 1.03]} | _title("how sure"),
        "yaxis": axis | {"range": [lowest[1] - 0.03, 1.03]} | _title("how often right"),
        "legend": {"itemsizing": "constant"},
        "shapes": [dotted("soft", x0=0, y0=0, x1=1, y1=1)],
    }
    caption = (
        f"Answers by how sure they are, in {bins} steps; the larger the point, the more of them. On the dotted line, "
        "what is 80\u00a0% sure is right 80\u00a0% of the time; below it an answer is too sure, above it not sure "
        "enough. Where a point's 95\u00a0% interval reaches the line, chance may have parted them."
    )
    figure = {"data": data, "layout": layout}
    return Chart("reliability", "How sure, and how often right", caption, figure, 440, wide=True)
