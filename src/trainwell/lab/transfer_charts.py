"""The charts of a run that began as a pretrained model: what its stages know, and where its features put images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwell.lab.charts import Chart, css, dotted, escaped, interval, percent

# Ten hues that are told apart on white and on black; grey is for the classes that get none.
_COLOURS = (
    "#2f7fc1", "#e0752d", "#3a9d5d", "#c9479b", "#8a6fd1", "#c9a227", "#1fa3a3", "#c4443f", "#8b6b4a", "#7d9a2a",
)  # fmt: skip
_REST = "#8a919a"
_LONGEST = 40  # letters of an image's name, of which the last tell more

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureMap:
    """Where features put some images.

    Attributes:
        before: `(n, 2)`, of the pretrained model; `None` where that is the same.
        after: `(n, 2)`, of the trained one.
        targets: the true class of each image.
        predicted: the class that the trained model names.
        names: of the images.
        part: "test" or "validation", of which they are.
        pictures: the images, as data URIs.
    """

    before: Points | None
    after: Points
    targets: list[int]
    predicted: list[int]
    names: list[str]
    part: str
    pictures: list[str]


def probes(rows: Sequence[Mapping[str, Any]], chosen: str | None, count: int) -> Chart:
    """Returns a chart of how well a linear classifier does on each stage.

    Args:
        rows: of each stage, from the input to the head, its name as `stage`, `accuracy`, its `interval`, and of how
            many `samples`.
        chosen: the stage that the new head was put on.
        count: of the classes.
    """
    y, (low, high) = np.array([row["accuracy"] for row in rows]), np.transpose([row["interval"] for row in rows])
    texts = [
        f"{escaped(row['stage'])}: {percent(row['accuracy'])} right<br>{interval(row['interval'], fractions=True)}"
        for row in rows
    ]
    marked = [row["stage"] == chosen for row in rows]
    points = {
        "type": "scatter", "mode": "lines+markers", "x": list(range(len(rows))), "y": y.tolist(),
        "error_y": {"array": (high - y).tolist(), "arrayminus": (y - low).tolist(), "thickness": 1.5, "width": 4,
                    "color": css("accent")},
        "line": {"width": 1, "dash": "dot", "color": css("line")},
        "marker": {"color": [css("other" if one else "accent") for one in marked],
                   "size": [11 if one else 8 for one in marked],
                   "opacity": 1,  # by default markers of several sizes are bubbles, which show through
                   "symbol": ["diamond" if one else "circle" for one in marked]},
        "hovertext": texts, "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip
    chance = 1 / count
    bottom, top = min(float(low.min()), chance), float(high.max())
    word = {"text": "chance", "x": 1, "xref": "paper", "xanchor": "right", "y": chance, "yanchor": "bottom",
            "showarrow": False}  # fmt: skip
    layout = {
        "hoverdistance": 60,
        "xaxis": {"range": [-0.5, len(rows) - 0.5], "showgrid": False, "title": {"text": "stage, from input to head"}},
        "yaxis": {"tickformat": ".0%", "range": [bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)]},
        "shapes": [dotted("soft", x0=0, x1=1, xref="paper", y0=chance, y1=chance)],
        "annotations": [word],
    }
    caption = (
        f"How often a linear classifier on what the pretrained stage gives is right, in cross-validation on "
        f"{rows[0]['samples']:,} training images, with 95\u00a0% intervals."
    )
    if chosen is not None:
        caption += " The diamond is the stage that the new head was put on."
    names = {"xaxis": [str(row["stage"]) for row in rows]}
    figure = {"data": [points], "layout": layout}
    return Chart("probes", "What each stage knew of these classes", caption, figure, 280, wide=True, labels=names)


def feature_maps(found: FeatureMap, classes: Sequence[str]) -> list[Chart]:
    """Returns a chart of where features put images before and one after training, or the one where they are the same.

    Each point's `customdata` is the number of its picture.

    Args:
        found: the maps.
        classes: names of the classes.
    """
    wide = found.before is None
    charts = [] if found.before is None else [("before", "Before: as it was pretrained", found.before)]
    charts.append(("after", "Before and after" if wide else "After: as it is now", found.after))
    return [
        Chart(f"map-{name}", title, _caption(name, wide), _figure(points, found, classes), 480, square=True, wide=wide)
        for name, title, points in charts
    ]


def _caption(name: str, same: bool) -> str:
    if same:
        return "Below the head nothing was trained: its features are what they were."
    if name == "before":
        return "Where classes lie apart here already, there was little to be learnt."
    return "Turned to lie on the one before as well as it can."


def _figure(points: Points, found: FeatureMap, classes: Sequence[str]) -> dict[str, Any]:
    """Returns a scatter with a colour for each of the ten most frequent classes, and crosses for what is wrong."""
    shown = [label for label, _ in Counter(sorted(found.targets)).most_common(len(_COLOURS))]
    colours = dict(zip(sorted(shown), _COLOURS, strict=False))
    targets, predicted = np.array(found.targets), np.array(found.predicted)
    right, coloured = targets == predicted, np.isin(targets, shown)
    groups = [(escaped(classes[label]), np.flatnonzero(right & (targets == label)), "circle") for label in colours]
    groups += [("other classes", np.flatnonzero(right & ~coloured), "circle")]
    groups += [("named wrong", np.flatnonzero(~right), "x")]
    traces = [_trace(name, rows, symbol, points, found, classes, colours) for name, rows, symbol in groups if len(rows)]
    plain = {"showticklabels": False, "showgrid": False}
    return {"data": traces, "layout": {"xaxis": plain, "yaxis": plain, "hoverdistance": 12, "showlegend": True}}


def _trace(
    name: str,
    rows: npt.NDArray[np.int64],
    symbol: str,
    points: Points,
    found: FeatureMap,
    classes: Sequence[str],
    colours: Mapping[int, str],
) -> dict[str, Any]:
    x, y = points[rows].T.round(4).tolist()
    numbers = rows.tolist()
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "customdata": numbers,
        "marker": {"color": [colours.get(found.targets[row], _REST) for row in numbers], "symbol": symbol, "size": 8,
                   "line": {"width": 1, "color": css("card")}},
        "hovertext": [_text(row, found, classes) for row in numbers], "hovertemplate": "%{hovertext}<extra></extra>",
    }  # fmt: skip


def _text(row: int, found: FeatureMap, classes: Sequence[str]) -> str:
    true, named = (escaped(classes[label]) for label in (found.targets[row], found.predicted[row]))
    name = found.names[row]
    if len(name) > _LONGEST:
        name = f"…{name[1 - _LONGEST :]}"
    answer = "named right" if true == named else f"taken for {named}"
    return f"{true}, {answer}<br>{escaped(name)}"
