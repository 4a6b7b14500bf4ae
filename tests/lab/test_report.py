import base64
import io
import json
import re
import tomllib

import numpy as np
import pytest
import tomli_w
from PIL import Image
from safetensors.numpy import save_file
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from pages import HOSTILE, browse, charts_of, needs_browser, without_plotly, words_of
from trainwell.errors import InputError
from trainwell.lab.report import write_report
from trainwell.train.recipe import Recipe


def make_run(path, task="classification", classes=("cat", "dog", "owl"), epochs=5, samples=100, wrong=9, ended=True):
    """Writes a run directory as `fit` does; with `ended=False` as it is while the run is going."""
    generator = np.random.default_rng(0)
    path.mkdir(parents=True, exist_ok=True)
    classes = list(classes) if task == "classification" else []
    steps = 25 * (epochs if ended else epochs + 3)
    recipe = {"model": "resnet8", "steps": steps, "batch_size": 32, "lr": 0.0125, "seed": 41}
    recipe["monitor"] = "val_accuracy" if task == "classification" else "val_loss"
    (path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    facts = {
        "trainwell": "0.1.0",
        "source": "/data/pets",
        "task": task,
        "classes": classes,
        "sizes": {"train": 800, "val": 150, "test": samples},
        "skipped": [{"path": "cat/broken.jpg", "reason": "truncated after 12 of 900 bytes"}],
        "data_options": {"val": 0.15, "test": 0.1, "split_seed": 0},
        "fingerprint": "0f1e2d3c4b5a",
        "model": {"parameters": 77_850, "name": "resnet8", "in_chans": 1, "img_size": 8},
        "environment": {"torch": "2.13.0", "cpu": "A fine CPU", "threads": 2, "device": "cpu"},
        "given": {"recipe": {"epochs": epochs, "lr": 0.0125}, "model": False, "loss": True, "metrics": []},
        "command": "trainwell fit /data/pets --out runs/pets",
    }
    (path / "run.json").write_text(json.dumps(facts))
    rows = []
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        row = {"epoch": epoch, "step": 25 * epoch, "samples": 800 * epoch, "lr": 0.0125 * (1 - t), "seconds": 0.5}
        row |= {"train_loss": 2.3 * np.exp(-4 * t), "val_loss": 2.3 * np.exp(-2.5 * t) + 0.15 * t**2}
        if task == "classification":
            row |= {"train_accuracy": 1 - 0.9 * np.exp(-5 * t), "val_accuracy": 1 - 0.9 * np.exp(-3.2 * t)}
        else:
            row |= {"val_mae": 0.8 - 0.3 * t}
        rows.append(json.dumps(row))
    (path / "history.jsonl").write_text("\n".join(rows) + "\n")
    if not ended:
        return path
    result = {"val_loss": 0.31, "test_loss": 0.297, "best_epoch": epochs, "best_step": 25 * epochs, "epochs": epochs}
    result |= {"steps": 25 * epochs, "stop_reason": f"all {epochs} epochs done", "seconds": 83.4, "first_loss": 2.3}
    result |= {"kept_epoch": epochs, "samples": 800 * epochs, "halvings": 0, "metrics": {}}
    if task == "classification":
        targets = np.arange(samples) % len(classes)
        predicted = targets.copy()
        predicted[:wrong] = (targets[:wrong] + 1 + np.arange(wrong) % max(1, len(classes) - 1)) % len(classes)
        outputs = np.full((samples, len(classes)), 0.1 / len(classes), np.float32)
        outputs[np.arange(samples), predicted] += 0.9
        right = samples - wrong
        result |= {"monitor": "val_accuracy", "val_accuracy": 0.953, "test_accuracy": right / samples}
        interval = binomtest(right, samples).proportion_ci(method="wilson")
        result |= {"test_interval": [interval.low, interval.high]}
        missed = np.flatnonzero(predicted != targets)[:24]
        pictures = {str(i): generator.integers(0, 256, (8, 8, 1 + 2 * (i % 2)), np.uint8) for i in range(len(missed))}
        save_file(pictures, path / "mistakes.safetensors")
        mistakes = [
            {"name": f"test/{i}.png", "true": int(targets[i]), "predicted": int(predicted[i]), "confidence": 0.987}
            for i in missed
        ]
        (path / "mistakes.json").write_text(json.dumps(mistakes))
    else:
        shape = (samples,) if task == "regression" else (samples, 4)
        targets = generator.normal(size=shape).astype(np.float32)
        outputs = targets + 0.2 * generator.normal(size=shape).astype(np.float32)
        result |= {"monitor": "val_loss", "test_interval": [0.24, 0.36]}
        result |= {"metrics": {"test_mae": {"value": 0.5123, "interval": [0.45, 0.61]}}}
    (path / "result.json").write_text(json.dumps(result))
    save_file({"test_outputs": outputs, "test_targets": targets}, path / "evaluation.safetensors")
    return path


def page_of(run):
    """The report's text without plotly's own code."""
    return without_plotly(write_report(run))


def test_the_page_says_what_the_run_found(tmp_path):
    words = words_of(page_of(make_run(tmp_path / "run")))
    assert "Of 100 images it has never seen it names 91 right (95 % interval 83.8 to 95.2 %)." in words
    for fact in [
        "800 images",
        "150 images",
        "parameters 77,850",
        "trained for 5 epochs",
        "1 min 23 s",
        "all 5 epochs done",
        "95.3 %",
    ]:
        assert fact in words
    for fact in ["1 file was left out", "cat/broken.jpg : truncated after 12 of 900 bytes"]:
        assert fact in words
    for fact in [
        "batch_size 32",
        "lr 0.0125",
        "trainwell fit /data/pets --out runs/pets",
        "seed 41",
        "A fine CPU",
    ]:
        assert fact in words


def test_the_charts_show_the_runs_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    charts = charts_of(page_of(run))
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for chart, quantity in (("curve-0", "loss"), ("curve-1", "accuracy")):
        curves = {curve.name: list(curve.y) for curve in charts[chart].data}
        assert curves["training"] == [row[f"train_{quantity}"] for row in rows]
        assert curves["validation"] == [row[f"val_{quantity}"] for row in rows]
        assert [shape.x0 for shape in charts[chart].layout.shapes] == [5]  # the kept epoch
    assert list(charts["rate"].data[0].y) == [row["lr"] for row in rows]


def test_the_confusion_chart_is_sklearns_matrix(tmp_path):
    run = make_run(tmp_path / "run", samples=101, wrong=30)
    from safetensors.numpy import load_file

    evaluation = load_file(run / "evaluation.safetensors")
    expected = confusion_matrix(evaluation["test_targets"], evaluation["test_outputs"].argmax(1))
    cells, counts = charts_of(page_of(run))["confusion"].data
    table = np.zeros((3, 3), int)
    table[list(counts.y), list(counts.x)] = [int(text) for text in counts.text]
    np.testing.assert_array_equal(table, expected)
    strength, shares = np.array(cells.z, float), expected / expected.sum(1, keepdims=True)
    right = np.eye(3, dtype=bool)
    np.testing.assert_allclose(strength[right], shares[right], atol=1e-4)
    assert (strength[~right] <= 0).all()  # wrong answers are on the other side of the colour scale, in proportion
    np.testing.assert_allclose(strength[~right] / strength.min(), shares[~right] / shares[~right].max(), atol=1e-3)
    assert cells.hovertext[0][1].startswith(f"cat → dog<br>{expected[0, 1]} of {expected[0].sum()} (")


def test_accuracy_per_class_is_sorted_and_carries_intervals(tmp_path):
    points = charts_of(page_of(make_run(tmp_path / "run", samples=100, wrong=9)))["per-class"].data[0]
    assert list(points.x) == sorted(points.x)
    # 3 of 34 cats were missed, 3 of 33 dogs, 3 of 33 owls; scipy: binomtest(31, 34).proportion_ci(method="wilson")
    assert points.hovertext[-1] == "cat: 31 of 34 right (91.2\u00a0%)<br>95\u00a0% interval 77.0 to 97.0\u00a0%"


@pytest.mark.parametrize("count", [2, 60, 130])
def test_any_number_of_classes_is_drawn(tmp_path, count):
    names = [f"class {i}" for i in range(count)]
    page = page_of(make_run(tmp_path / "run", classes=names, samples=400, wrong=50))
    charts = charts_of(page)
    assert len(charts["confusion"].data[0].z) == min(count, 100)
    assert ("Of 130 classes, the 100 with the most mistakes" in page) == (count == 130)


def test_classes_without_a_test_sample_are_counted(tmp_path):
    page = page_of(make_run(tmp_path / "run", samples=2, wrong=0))
    assert "Of 3 classes, 1 had no sample here." in page
    assert len(charts_of(page)["per-class"].data[0].x) == 2


def test_of_many_classes_those_with_samples_are_shown(tmp_path):
    run = make_run(tmp_path / "run", classes=[f"class {i}" for i in range(130)], samples=2, wrong=0)
    save_file(
        {"test_outputs": np.eye(130, dtype=np.float32)[[120, 121]], "test_targets": np.array([120, 121])},
        run / "evaluation.safetensors",
    )
    assert list(charts_of(page_of(run))["per-class"].data[0].x) == [1, 1]


def test_mistakes_are_shown_to_the_pixel(tmp_path):
    run = make_run(tmp_path / "run")
    page = page_of(run)
    from safetensors.numpy import load_file

    expected = load_file(run / "mistakes.safetensors")
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert len(shown) == len(expected) == 9
    for number, data in enumerate(shown):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(pixels.reshape(expected[str(number)].shape), expected[str(number)])
    assert "cat → dog 98.7 % sure test/0.png" in words_of(page)


def test_no_mistakes_is_said_kindly(tmp_path):
    words = words_of(page_of(make_run(tmp_path / "run", wrong=0)))
    assert "it names all 100 right" in words
    assert "it named every test image right" in words


def test_features_have_no_pictures(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "mistakes.safetensors").unlink()
    (run / "mistakes.json").unlink()
    page = page_of(run)
    assert "<img" not in page
    assert "mistakes" not in words_of(page)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_runs_without_classes(tmp_path, task):
    page = page_of(make_run(tmp_path / "run", task=task))
    words, charts = words_of(page), charts_of(page)
    assert "On 100 images it has never seen its loss is 0.297 (95 % interval 0.24 to 0.36)." in words
    assert "test mae, 95 % interval 0.45 to 0.61 0.5123" in words
    assert "confusion" not in charts
    assert list(charts["curve-1"].data[0].y) == pytest.approx([0.74, 0.68, 0.62, 0.56, 0.5])  # val_mae
    assert ("scatter" in charts) == (task == "regression")


def test_a_run_that_is_going(tmp_path):
    run = make_run(tmp_path / "run", ended=False)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"epoch": 6, "tra')  # the moment in which a line is being written
    page = page_of(run)
    words = words_of(page)
    assert "In progress: 5 epochs, 125 of 200 steps, done." in words
    assert "At best 96.3 % of the validation images right, after epoch 5." in words
    assert list(charts_of(page)) == ["curve-0", "curve-1", "rate"]


def test_the_best_so_far_of_a_metric_that_shall_fall(tmp_path):
    run = make_run(tmp_path / "run", ended=False)
    recipe = tomllib.loads((run / "recipe.toml").read_text()) | {"monitor": "val_mae", "monitor_mode": "min"}
    Recipe.from_dict(recipe).save(run / "recipe.toml")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    told = [row | {"val_mae": value} for row, value in zip(rows, (5, 3, 1, 2, 4), strict=True)]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    assert "after epoch 3." in words_of(page_of(run))


def test_a_run_before_its_first_epoch(tmp_path):
    run = make_run(tmp_path / "run", ended=False)
    (run / "history.jsonl").unlink()
    assert "In progress: 0 epochs done." in words_of(page_of(run))


def test_one_epoch_and_losses_that_are_not_numbers(tmp_path):
    run = make_run(tmp_path / "run", epochs=1)
    row = json.loads((run / "history.jsonl").read_text())
    (run / "history.jsonl").write_text(json.dumps(row | {"train_loss": float("nan")}) + "\n")
    assert [curve.name for curve in charts_of(page_of(run))["curve-0"].data] == ["validation"]


def test_the_kept_epoch_is_marked_even_where_it_is_not_the_best(tmp_path):
    run = make_run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"best_epoch": 3, "kept_epoch": 4, "halvings": 2}))
    page = page_of(run)
    assert [shape.x0 for shape in charts_of(page)["curve-0"].layout.shapes] == [4]
    assert "epoch 4" in words_of(page)
    assert "learning rate halved 2 times" in words_of(page)


def test_what_was_given_stands_out(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    rows = re.findall(r'<div class="row( given)?"><dt>(.*?)</dt><dd>(.*?)</dd>', page)
    assert [(name, value) for given, name, value in rows if given] == [
        ("epochs", "5"),
        ("lr", "0.0125"),
        ("loss", "your own"),
    ]
    assert ("", "batch_size", "32") in rows
    assert [name for _, name, _ in rows].count("lr") == 1


@pytest.mark.parametrize("name", ["run.json", "recipe.toml"])
def test_what_is_no_run_is_refused(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(InputError, match=rf"^[^\n]*has no {name}[^\n]*$"):
        write_report(run)
    assert not (run / "report.html").exists()


def _change(path, **fields):
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(content))


def cross_validated(run):
    """Makes the run one whose result comes from two folds."""
    facts = json.loads((run / "run.json").read_text())
    _change(run / "run.json", sizes=facts["sizes"] | {"test": 0})
    folds = [{"test_accuracy": 0.9, "test_loss": 0.3, "test_samples": 50}, {"test_accuracy": 0.92, "test_samples": 50}]
    rows = [{"samples": 34, "recall": 1.0, "interval": [0.8, 1.0], "predicted": 34},
            {"samples": 33, "recall": 0.8, "interval": [0.55, 0.95], "predicted": 30},
            {"samples": 0, "recall": None, "interval": None, "predicted": 36}]  # fmt: skip
    _change(
        run / "result.json", folds=folds, test_samples=100, by_class=rows, indistinguishable=[0.8, 0.97],
        test_balanced_accuracy=0.905, test_balanced_interval=[0.83, 0.95],
    )  # fmt: skip
    return run


def test_a_result_of_folds_says_so(tmp_path):
    run = cross_validated(make_run(tmp_path / "run"))
    words = words_of(page_of(run))
    assert "Of 100 images, each asked of a model that had not seen it, 91 were named right (95 % interval" in words
    assert "By cross-validation: 2 models" in words
    assert "Another model with 80.0 % to 97.0 % on as many other images could be just as good." in words
    assert "fold 1, 50 images 90.0 % fold 2, 50 images 92.0 %" in words
    assert "balanced accuracy (each class counts the same), 95 % interval 83.0 to 95.0 % 90.5 %" in words
    assert "kept for the end" not in words


def test_the_intervals_of_the_classes_are_those_of_the_result(tmp_path):
    run = cross_validated(make_run(tmp_path / "run"))
    [points] = charts_of(page_of(run))["per-class"].data
    bars = zip(points.x, points.error_x.arrayminus, points.error_x.array, strict=True)
    ends = {(round(x - low, 6), round(x + high, 6)) for x, low, high in bars}
    assert ends == {(0.8, 1.0), (0.55, 0.95)}


def test_what_was_noticed_is_told(tmp_path):
    run = make_run(tmp_path / "run")
    notices = [{"kind": "duplicates", "text": "2 images show the same as others", "paths": ["a<b>.jpg", "c.jpg"]}]
    _change(run / "run.json", notices=notices)
    page = page_of(run)
    assert "1 thing noticed in the data 2 images show the same as others the 2 files a<b>.jpg c.jpg" in words_of(page)
    assert "<b>.jpg" not in page


def test_labels_are_listed_with_their_figures(tmp_path):
    run = make_run(tmp_path / "run", task="multilabel")
    _change(run / "run.json", classes=["cat", "dog"])
    rows = [{"samples": 40, "recall": 0.75, "precision": None, "average_precision": 0.5},
            {"samples": 0, "recall": None, "precision": 0.125, "average_precision": None}]  # fmt: skip
    _change(run / "result.json", by_label=rows, mean_average_precision=0.5, exact_match=0.25)
    words = words_of(page_of(run))
    assert "cat 40 75.0 % – 50.0 % dog 0 – 12.5 % –" in words
    assert "mean average precision 50.0 %" in words


@pytest.mark.parametrize(
    "fields",
    [
        {"folds": [{"test_accuracy": "<b>"}]}, {"by_label": [{"samples": "x"}]}, {"indistinguishable": [1]},
        {"test_samples": "1"}, {"test_balanced_accuracy": 0.5}, {"by_class": [{"samples": 1, "interval": None}]},
    ],
)  # fmt: skip
def test_damaged_figures_are_named(fields, tmp_path):
    run = make_run(tmp_path / "run")
    _change(run / "result.json", **fields)
    with pytest.raises(InputError, match=r"result\.json: damaged"):
        write_report(run)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"classes": 3}'),
        ("result.json", "[]"),
        ("result.json", '{"kept_epoch": "3"}'),
        ("result.json", '{"seconds": Infinity}'),
        ("history.jsonl", "rubbish\n"),
        ("history.jsonl", '{"step": 1}\n'),
        ("history.jsonl", '{"epoch": "1", "step": 1}\n'),
        ("mistakes.json", '[{"name": "x", "true": 3, "predicted": 0, "confidence": 1}]'),
        ("mistakes.json", '[{"name": "x"}]'),
        ("mistakes.json", "[" * 100_000),
        ("mistakes.safetensors", "rubbish"),
        ("evaluation.safetensors", "rubbish"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, name, content):
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=rf"^{re.escape(str(run / name))}[^\n]*damaged[^\n]*$"):
        write_report(run)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((4, 2), [0, 1, 0, 1]), ((3, 3), [0, 1, 0, 1]), ((4, 3), [0, 1, 2, 3]), ((4, 3), [0, 1, 2, -1])],
)
def test_an_evaluation_that_does_not_fit_the_classes_is_refused(tmp_path, outputs, targets):
    run = make_run(tmp_path / "run")
    tensors = {"test_outputs": np.zeros(outputs, np.float32), "test_targets": np.array(targets)}
    save_file(tensors, run / "evaluation.safetensors")
    with pytest.raises(InputError, match="damaged"):
        write_report(run)


# --- Of a run that began as a pretrained model. ---

REASONS = ["90 images, 30 a class: little (below or from 100)", "chosen: linear on layer1"]


def pretrained(run, classes=("cat", "dog", "owl"), images=30, before=True, **backbone):
    """Makes the run one that began as a pretrained model, which it cut after `layer1`."""
    generator = np.random.default_rng(1)
    names = ["fc.weight", "fc.bias"]
    match = {"matched": [f"layer{i}.weight" for i in range(8)], "reinitialised": names, "left_over": [], "head": "fc"}
    match |= {"wrong_shape": [["fc.weight", [1000, 64], [3, 64]]], "channels": None}
    about = {"source": "hub:them/resnet8@1f", "architecture": "resnet8", "licence": "apache-2.0", "match": match}
    about |= {"cut": {"before": "layer2", "dimensions": 16}}
    stages = {"conv1": 0.5, "layer1": 0.8, "layer2": 0.7, "layer3": 0.6}
    probes = [{"stage": stage, "accuracy": right, "interval": [right - 0.1, right + 0.06], "samples": 90}
              for stage, right in stages.items()]  # fmt: skip
    tried = [{"name": "linear on layer1", "accuracy": 0.8, "samples": 90, "seconds": 0.1, "difference": 0, "error": 0},
             {"name": "lp_ft", "accuracy": 0.75, "samples": 90, "seconds": 31.4, "difference": -0.05,
              "error": 0.031}]  # fmt: skip
    choice = {"asked": {}, "changes": {}, "cut": about["cut"], "probes": probes, "tried": tried, "reasons": REASONS}
    _change(run / "run.json", backbone=about | backbone, choice=choice)
    told = {"trained": "frozen: conv1, layer1", "part": "test", "names": [f"test/{i}.png" for i in range(images)]}
    (run / "transfer.json").write_text(json.dumps(told))
    targets = np.arange(images) % len(classes)
    tensors = {str(i): generator.integers(0, 256, (8, 6, 1 + 2 * (i % 2)), np.uint8) for i in range(images)}
    tensors |= {"targets": targets, "predicted": np.where(np.arange(images) < 4, (targets + 1) % 3, targets)}
    for name in ("before", "after") if before else ("after",):
        tensors[name] = generator.uniform(-1, 1, (images, 2)).astype(np.float32)
    save_file(tensors, run / "feature_map.safetensors")
    return run


def _change_map(run, **tensors):
    from safetensors.numpy import load_file

    save_file(load_file(run / "feature_map.safetensors") | tensors, run / "feature_map.safetensors")


def test_a_run_says_what_it_began_as(tmp_path):
    page = page_of(pretrained(make_run(tmp_path / "run")))
    words = words_of(page)
    assert (
        "What it began as hub:them/resnet8@1f (resnet8, licence apache-2.0): 8 of 10 tensors matched; fc.weight, "
        "fc.bias are new (1000 classes there, 3 here). It was cut after layer1, whose 16 features the new head takes. "
        "Frozen: conv1, layer1."
    ) in words
    assert " ".join(REASONS) in words
    assert "linear on layer1 80.0 % 90 – – 0.1 lp_ft 75.0 % 90 -5.0 3.1 31.4" in words
    assert "What it began as" not in words_of(page_of(make_run(tmp_path / "scratch")))


def test_a_run_that_is_going_says_what_it_began_as(tmp_path):
    run = pretrained(make_run(tmp_path / "run", ended=False), licence=None, cut=None)
    (run / "transfer.json").unlink()
    page = page_of(run)
    assert "hub:them/resnet8@1f (resnet8): 8 of 10 tensors matched" in words_of(page)
    assert [name for name in charts_of(page) if name not in ("curve-0", "curve-1", "rate")] == ["probes"]


@pytest.mark.parametrize(("cut", "chosen"), [({"before": "layer2", "dimensions": 16}, 1), (None, 3)])
def test_the_probes_carry_intervals_and_the_chosen_stage_is_marked(tmp_path, cut, chosen):
    chart = charts_of(page_of(pretrained(make_run(tmp_path / "run"), cut=cut)))["probes"]
    [points] = chart.data
    assert list(points.y) == [0.5, 0.8, 0.7, 0.6]
    assert list(points.error_y.array) == pytest.approx([0.06] * 4)
    assert list(points.error_y.arrayminus) == pytest.approx([0.1] * 4)
    assert [shape.y0 for shape in chart.layout.shapes] == [1 / 3]  # chance
    assert [i for i, symbol in enumerate(points.marker.symbol) if symbol == "diamond"] == [chosen]


def _points(chart):
    """Of each image on a map, by its number: name of the trace, x, y, colour, symbol and text."""
    found = {}
    for trace in chart.data:
        each = zip(trace.customdata, trace.x, trace.y, trace.marker.color, trace.hovertext, strict=True)
        found |= {i: (trace.name, x, y, colour, trace.marker.symbol, text) for i, x, y, colour, text in each}
    return [found[i] for i in range(len(found))]


def test_the_maps_show_each_image_where_it_is(tmp_path):
    from safetensors.numpy import load_file

    run = pretrained(make_run(tmp_path / "run"))
    page, tensors = page_of(run), load_file(run / "feature_map.safetensors")
    for name in ("before", "after"):
        points = _points(charts_of(page)[f"map-{name}"])
        np.testing.assert_allclose([point[1:3] for point in points], tensors[name], atol=1e-4)
        assert len({point[3] for point in points}) == 3  # a colour a class
        assert len({(point[3], label) for point, label in zip(points, tensors["targets"], strict=True)}) == 3
        assert [point[4] for point in points] == ["x"] * 4 + ["circle"] * 26
        assert points[0][0] == "named wrong"
        assert points[0][5] == "cat, taken for dog<br>test/0.png"
        assert points[5][5] == "owl, named right<br>test/5.png"
    inert = re.search('<template id="pictures">(.*?)</template>', page)[1]
    for number, data in enumerate(re.findall('<img src="data:image/png;base64,([^"]+)"', inert)):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(pixels.reshape(tensors[str(number)].shape), tensors[str(number)])
    assert number == 29


def test_where_nothing_below_the_head_was_trained_there_is_one_map(tmp_path):
    page = page_of(pretrained(make_run(tmp_path / "run"), before=False))
    assert [name for name in charts_of(page) if name.startswith("map-")] == ["map-after"]
    assert "its features are what they were" in words_of(page)


def test_of_many_classes_ten_have_a_colour(tmp_path):
    classes = [f"class {i}" for i in range(13)]
    run = pretrained(make_run(tmp_path / "run", classes=classes), classes, images=40)
    _change_map(run, predicted=np.arange(40) % 13)
    traces = {trace.name: trace for trace in charts_of(page_of(run))["map-after"].data}
    assert list(traces) == [*classes[:10], "other classes"]
    assert len({colour for trace in traces.values() for colour in trace.marker.color}) == 11
    assert len(traces["other classes"].x) == 9


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", {"backbone": []}), ("run.json", {"backbone": {"source": 3}}), ("run.json", {"choice": [1]}),
        ("run.json", {"choice": {"probes": [{"stage": "a", "accuracy": "1", "interval": [0, 1], "samples": 9}]}}),
        ("run.json", {"choice": {"probes": [{"stage": "a", "accuracy": 1, "interval": [0, float("nan")],
                                             "samples": 9}]}}),
        ("run.json", {"choice": {"tried": [{"name": "all"}]}}),
        ("run.json", {"choice": {"tried": [{"name": "all", "accuracy": 1, "samples": 9, "seconds": 1,
                                            "difference": 0.1}]}}),
        ("run.json", {"choice": {"reasons": [1]}}),
        ("run.json", {"choice": {"reasons": ["so"] * 1_000}}),
        ("transfer.json", {"trained": None}), ("transfer.json", {"names": "abc"}), ("transfer.json", {"names": [1]}),
        ("transfer.json", {"names": ["a"] * 29}), ("transfer.json", {"names": []}),
        ("transfer.json", {"names": ["a"] * 1_001}), ("transfer.json", {"part": 1}),
    ],
)  # fmt: skip
def test_a_damaged_beginning_is_named(tmp_path, name, content):
    run = pretrained(make_run(tmp_path / "run"))
    _change(run / name, **content)
    with pytest.raises(InputError, match=rf"^{re.escape(str(run / name))}[^\n]*damaged[^\n]*$"):
        write_report(run)


@pytest.mark.parametrize(
    "tensors",
    [
        {"after": np.zeros((29, 2), np.float32)}, {"before": np.full((30, 2), np.nan, np.float32)},
        {"before": np.full((30, 2), 1e300)},
        {"after": np.zeros((30, 3), np.float32)}, {"after": np.zeros((30, 2), np.uint8)},
        {"targets": np.full(30, 3)}, {"targets": np.full(30, -1)}, {"predicted": np.zeros(30, np.float32)},
        {"predicted": np.zeros((30, 1), np.int64)}, {"7": np.zeros((8, 8, 3), np.float32)},
        {"7": np.zeros((8, 101, 3), np.uint8)}, {"7": np.zeros((8, 0, 3), np.uint8)},
    ],
)  # fmt: skip
def test_a_map_that_does_not_fit_is_refused(tmp_path, tensors):
    run = pretrained(make_run(tmp_path / "run"))
    _change_map(run, **tensors)
    with pytest.raises(InputError, match=r"^[^\n]*transfer\.json: damaged[^\n]*$"):
        write_report(run)
    (run / "feature_map.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"feature_map\.safetensors: damaged"):
        write_report(run)


def hostile_run(path):
    run = make_run(path, classes=HOSTILE)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"source": HOSTILE[0], "command": HOSTILE[1], "skipped": [{"path": HOSTILE[0], "reason": HOSTILE[1]}]}
    (run / "run.json").write_text(json.dumps(facts))
    mistakes = json.loads((run / "mistakes.json").read_text())
    mistakes[0]["name"] = '"><script>console.error(3)</script>\udc80'
    (run / "mistakes.json").write_text(json.dumps(mistakes))
    pretrained(run, HOSTILE, source=HOSTILE[0], architecture=HOSTILE[1], licence=HOSTILE[2])
    choice = json.loads((run / "run.json").read_text())["choice"] | {"reasons": list(HOSTILE)}
    choice["tried"][0]["name"] = choice["probes"][0]["stage"] = HOSTILE[0]
    _change(run / "run.json", choice=choice)
    _change(run / "transfer.json", trained=HOSTILE[1], part=HOSTILE[2], names=[*HOSTILE * 9, "\udc80", "b" * 99, ""])
    return run


def test_names_cannot_become_code(tmp_path):
    page = page_of(hostile_run(tmp_path / "run"))
    assert page.count("<script") == page.count("</script") == 3  # the charts' data, plotly, the drawing
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;script&gt;console.error(1)&lt;/script&gt;" in page
    # plotly reads a little HTML in its texts; there the names come escaped a second time
    for name in ("confusion", "probes", "map-before", "map-after"):
        texts = json.dumps([trace.to_plotly_json() for trace in charts_of(page)[name].data], default=list)
        assert "<script" not in texts
        assert "<b>" not in texts


def test_nothing_is_asked_of_a_network(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]


@needs_browser
@pytest.mark.parametrize("kind", ["hostile", "regression", "going"])
def test_a_browser_draws_it_without_error_or_request(tmp_path, kind):
    run = tmp_path / "run"
    if kind == "hostile":
        hostile_run(run)
    else:
        make_run(run, "regression" if kind == "regression" else "classification", ended=kind != "going")
    charts = charts_of(page_of(run))
    dom, console, requests = browse(run / "report.html", tmp_path)
    assert console == []
    assert requests == []
    for name in charts:  # each chart's box holds plotly's drawing
        assert re.search(rf'id="chart-{name}"[^>]*>\s*<div[^>]*class="plot-container plotly"', dom), name
    assert dom.count('class="main-svg"') >= 2 * len(charts)


@needs_browser
def test_the_browser_would_have_told(tmp_path):
    """The positive control of the test above: each thing it finds none of is planted, and found."""
    path = write_report(make_run(tmp_path / "run"))
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text("utf-8"))
    plants = """
        <script>console.error("planted error")</script>
        <script>undefined_function()</script>
        <img src="http://127.0.0.1:9/image.png" alt="">
        <script>fetch("http://127.0.0.1:9/fetched").catch(() => {})</script>
    """
    path.write_text(page.replace("<main>", f"<main>{plants}").replace('id="chart-rate"', ""), "utf-8")
    dom, console, requests = browse(path, tmp_path)
    for words in ["planted error", "undefined_function is not defined", "null"]:  # null: the chart without its box
        assert any(words in line for line in console), words
    assert {"http://127.0.0.1:9/image.png", "http://127.0.0.1:9/fetched"} <= set(requests)
    assert not re.search('id="chart-rate"', dom)


@needs_browser
def test_the_page_itself_forbids_requests_and_foreign_code(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    plants = '<img src="http://127.0.0.1:9/x.png" alt=""><script>document.title = "taken over"</script>'
    path.write_text(path.read_text("utf-8").replace("<main>", f"<main>{plants}"), "utf-8")
    dom, console, requests = browse(path, tmp_path)
    assert requests == []
    assert "<title>taken over" not in dom
    assert len(console) == 2  # the refusals


@needs_browser
@pytest.mark.parametrize("name", ["before", "after"])
def test_pointing_at_an_image_on_a_map_shows_it(tmp_path, name):
    run = pretrained(make_run(tmp_path / "run"))
    path = write_report(run)
    [policy] = re.findall('<meta http-equiv="Content-Security-Policy"[^>]*>', path.read_text("utf-8"))
    hover = """<script>
        const box = document.getElementById("chart-map-NAME");
        box.scrollIntoView({ block: "center" });
        const place = box.querySelector(".scatter:nth-child(2) .point:nth-child(3)").getBoundingClientRect();
        const where = { clientX: place.x + place.width / 2, clientY: place.y + place.height / 2, bubbles: true };
        box.querySelector(".nsewdrag").dispatchEvent(new MouseEvent("mousemove", where));
    </script></body>""".replace("NAME", name)
    page = path.read_text("utf-8").replace(policy, "").replace("</body>", hover)
    path.write_text(page, "utf-8")
    dom, console, requests = browse(path, tmp_path)
    assert console == []
    assert requests == []
    shown = charts_of(without_plotly(path))[f"map-{name}"].data[1].customdata[2]
    pictures = re.findall("<img[^>]*>", re.search('<template id="pictures">(.*?)</template>', page)[1])
    assert re.search(r'<div id="pointed"( style="[^"]*px[^"]*")>(<img[^>]*>)</div>', dom)[2] == pictures[shown]
    assert f"<br>test/{shown}.png" in "".join(charts_of(without_plotly(path))[f"map-{name}"].data[1].hovertext)
    assert f"test/{shown}.png</tspan>" in dom
