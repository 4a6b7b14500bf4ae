import json
import re
import shutil

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file, save_file
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from pages import HOSTILE, browse, charts_of, needs_browser, without_plotly, words_of
from trainwell.errors import InputError
from trainwell.lab.ensemble_report import write_report
from trainwell.metrics.calibration import calibration_error
from trainwell.run_ensemble import make

CLASSES = ("cat", "dog", "owl")


def run_facts(task, given=None):
    """What a run's `run.json` holds."""
    return {
        "trainwell": "0.1.0", "source": "/data/pets", "task": task, "skipped": [], "fingerprint": "0f1e2d3c4b5a",
        "classes": list(CLASSES) if task == "classification" else [], "sizes": {"train": 800, "val": 200, "test": 150},
        "model": {"name": "mlp", "parameters": 77_850, "num_classes": 3, "in_features": 64}
        | dict.fromkeys(("in_chans", "img_size", "size", "sample_shape")), "data_options": {},
        "environment": {"device": "cpu"}, "command": "trainwell fit /data/pets", "mean": [0.5], "std": [0.5],
        "given": {"recipe": given or {}, "data": {}, "model": False, "loss": False, "metrics": []},
    }  # fmt: skip


def answers(task, member):
    """What one of the members says: each is wrong elsewhere, the third almost everywhere."""
    truth, own = np.random.default_rng(0), np.random.default_rng(member + 1)
    found = {"test_rows": np.arange(150)}
    for part, count in (("val", 200), ("test", 150)):
        if task == "classification":
            targets = truth.integers(0, 3, count)
            logits = (3, 2.5, 0)[member % 3] * np.eye(3)[targets] + own.normal(scale=1.5, size=(count, 3))
            outputs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        else:
            targets = truth.normal(size=(count, 2)) if task == "regression" else truth.integers(0, 2, (count, 2))
            outputs = targets + own.normal(scale=0.5, size=(count, 2))
        whole = np.int64 if task == "classification" else np.float32
        found |= {f"{part}_targets": targets.astype(whole), f"{part}_outputs": outputs.astype(np.float32)}
    return found


def make_ensemble(folder, task="classification", count=3, **about):
    """Writes an ensemble's folder as `fit_members` leaves it."""
    for member in range(count):
        own = folder / "members" / str(member + 1)
        own.mkdir(parents=True)
        (own / "run.json").write_text(json.dumps(run_facts(task, {"seed": member})))
        (own / "recipe.toml").write_text(tomli_w.dumps({"seed": member}))
        save_file(answers(task, member), own / "evaluation.safetensors")
    runs = [{"run": f"members/{member + 1}", "weights": "model.safetensors"} for member in range(count)]
    make(folder, runs, **about)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_ensemble(tmp_path_factory.mktemp("made") / "ensemble")


@pytest.fixture
def folder(made, tmp_path):
    """An ensemble of one's own."""
    return shutil.copytree(made, tmp_path / "ensemble")


def page_of(folder):
    return without_plotly(write_report(folder))


def about_of(folder):
    return json.loads((folder / "ensemble.json").read_text())


def change(folder, **fields):
    (folder / "ensemble.json").write_text(json.dumps(about_of(folder) | fields))


def rows_of(page):
    """The rows of the first table, each as its words."""
    table = re.search(r'<table class="figures">(.*?)</table>', page, re.DOTALL)[1]
    return [words_of(row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]


def test_the_page_says_what_the_ensemble_is_worth(folder):
    words, about = words_of(page_of(folder)), about_of(folder)
    assert sorted(about["kept"]) == [0, 1]  # or these figures would show less
    found = about["result"]
    assert f"2 of 3 members together: {found['test_accuracy']:.1%} right on 150 samples never seen (95 %" in words
    for fact in ("members 3", "that answer 2", "mean of their probabilities arithmetic", "test samples 150"):
        assert fact in words
    assert "pets · trainwell" in words


@pytest.mark.parametrize(("T", "said"), [(1.25, "made less sure"), (0.8, "made surer"), (1.0, "as sure as the mean")])
def test_the_temperature_is_said_in_words(folder, T, said):
    change(folder, temperature=T)
    assert f"temperature: {said}" in words_of(page_of(folder))
    assert f"{T:.3g}" in words_of(page_of(folder))


def test_the_table_holds_each_members_figures_as_scikit_learn_finds_them(folder):
    head, *rows = rows_of(page_of(folder))
    assert head == "accuracy log loss Brier score calibration error"
    first = about_of(folder)["kept"][0]
    for member, row in enumerate(rows[:3]):
        evaluation = load_file(folder / "members" / str(member + 1) / "evaluation.safetensors")
        p, y = evaluation["test_outputs"].astype(float), evaluation["test_targets"]
        p /= p.sum(1, keepdims=True)
        figures = [f"{100 * accuracy_score(y, p.argmax(1)):.1f} %", f"{log_loss(y, p):.4f}",
                   f"{brier_score_loss(y, p, scale_by_half=False):.4f}", f"{calibration_error(p, y):.4f}"]  # fmt: skip
        note = "does not answer" if member == 2 else "best on validation" if member == first else "answers"
        ends = r"(?:0|[\d.]+) to [\d.]+(?: %)?"
        assert re.fullmatch(f"member {member + 1} {note} " + " ".join(f"{re.escape(v)} {ends}" for v in figures), row)


def test_the_mean_the_ensemble_and_the_gain_follow(folder):
    *_, mean, ensemble, gain = rows_of(page_of(folder))
    found = about_of(folder)["result"]
    expected = np.mean([figures["brier_score"]["value"] for figures in found["single"]])
    assert mean.startswith("a member on average ")
    assert f"{expected:.4f}" in mean
    low, high = found["ensemble"]["log_loss"]["interval"]
    assert ensemble.startswith("the ensemble those that answer, together ")
    assert f"{found['ensemble']['log_loss']['value']:.4f} {low:.4f} to {high:.4f}" in ensemble
    value, (low, high) = found["gain"]["accuracy"]["value"], found["gain"]["accuracy"]["interval"]
    best = about_of(folder)["kept"][0] + 1
    assert gain.startswith(f"the gain beside member {best}, which is best on validation {100 * value:+.1f} points ")
    assert f" {100 * low:+.1f} to {100 * high:+.1f} " in gain


def test_a_gain_stands_out_only_where_its_interval_leaves_out_zero(folder):
    found = about_of(folder)["result"]
    for name, interval in (("log_loss", [-0.2, -0.1]), ("accuracy", [-0.01, 0.03])):
        found["gain"][name] = {"value": sum(interval) / 2, "interval": interval}
    change(folder, result=found)
    gain = page_of(folder).split('<tr class="gain">')[1].split("</tr>")[0]
    assert "<td><b>-0.1500</b>" in gain
    assert "<td>+1.0 points" in gain


def test_the_charts_over_the_number_of_members_hold_its_rows(folder):
    charts, about = charts_of(page_of(folder)), about_of(folder)
    for column, own in (("accuracy", "accuracy"), ("loss", "log_loss")):
        means, this = charts[f"number-{column}"].data
        assert list(means.x) == [1, 2, 3]
        assert list(means.y) == [row[column] for row in about["result"]["by_number"]]
        assert (this.x[0], this.y[0]) == (2, about["result"]["ensemble"][own]["value"])


def test_the_reliability_chart_is_that_of_the_calibration_errors(folder):
    about = about_of(folder)
    single, together = charts_of(page_of(folder))["reliability"].data
    first = about["kept"][0]
    assert single.name == f"member {first + 1}"
    expected = about["result"]["single"][first], about["result"]["ensemble"]
    for points, figures in zip((single, together), expected, strict=True):
        counts = [int(re.search(r" of (\d+) right", text)[1]) for text in points.hovertext]
        assert sum(counts) == 150
        error = np.abs(np.subtract(points.x, points.y)) @ counts / 150
        assert error == pytest.approx(figures["calibration_error"]["value"])
        right = np.dot(points.y, counts) / 150
        assert right == pytest.approx(figures["accuracy"]["value"])


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_without_classes_there_is_the_loss(tmp_path, task):
    folder = make_ensemble(tmp_path / "ensemble", task)
    page = page_of(folder)
    assert "members together: test loss" in words_of(page)
    assert "temperature" not in words_of(page)
    head, *rows = rows_of(page)
    assert head == "loss"
    assert len(rows) == 5
    assert f" {about_of(folder)['result']['ensemble']['loss']['value']:.4g} " in rows[-1]
    assert list(charts_of(page)) == ["number-loss"]


def test_what_differs_between_members_is_listed_with_links(folder):
    (folder / "members/2/report.html").write_text("a report")
    change(folder, recipes=[{"lr": 0.1}, {"lr": 0.2, "seed": 1}, {"lr": 0.2, "seed": 2, "epochs": 5}])
    page = page_of(folder)
    table = page.split('<table class="members">')[1].split("</table>")[0]
    head, *rows = [words_of(row) for row in table.split("</tr>")[:-1]]
    assert sorted(head.split()) == sorted(["member", "answers", "model", "lr", "seed", "epochs"])
    cells = [
        dict(zip(head.split(), re.findall("<td>(.*?)</td>", row), strict=True)) for row in table.split("</tr>")[1:-1]
    ]
    assert [one["lr"] for one in cells] == ["0.1", "0.2", "0.2"]
    assert [one["seed"] for one in cells] == ["0", "1", "2"]  # what was not given is its default
    assert [one["epochs"] for one in cells] == ["–", "–", "5"]
    assert rows[2].startswith("member 3 no ")
    assert re.findall('href="([^"]*)"', page) == ["data:,", "members/2/report.html"]


def test_without_a_plan_the_runs_tell_what_differs(folder):
    table = page_of(folder).split('<table class="members">')[1].split("</table>")[0]
    assert re.findall("<th>(.*?)</th>", table) == ["member", "answers", "model", "seed"]


def test_members_that_failed_are_named(tmp_path):
    folder = make_ensemble(tmp_path / "ensemble")
    members = [{"run": f"members/{number}", "weights": "model.safetensors"} for number in (1, 3)]
    make(
        folder, members, failed={"2": "the loss is <b>not</b> finite"}, recipes=[{"lr": 0.1}, {"lr": 7.0}, {"lr": 0.3}]
    )
    page = page_of(folder)
    assert "that failed 1" in words_of(page)
    assert "Members that failed They are left out. member 2 the loss is <b>not</b> finite" in words_of(page)
    assert "<b>not" not in page
    assert [row.split(" ")[:2] for row in rows_of(page)[1:3]] == [["member", "1"], ["member", "3"]]
    assert "<td>0.3</td>" in page  # the third's, though it stands second
    assert "<td>7.0</td>" not in page


def snapshots(folder):
    """Makes the ensemble of three moments of one run."""
    (folder / "snapshots").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_facts("classification")))
    (folder / "recipe.toml").write_text(tomli_w.dumps({"snapshots": 3}))
    (folder / "report.html").write_text("the run's own")
    for member in range(3):
        save_file(answers("classification", member), folder / f"snapshots/evaluation-0000{member + 1}000.safetensors")
    steps = [f"snapshots/step-0000{member + 1}000.safetensors" for member in range(3)]
    make(folder, [{"run": ".", "weights": weights} for weights in steps])
    return folder


def test_the_report_of_snapshots_leaves_that_of_the_run(tmp_path):
    folder = snapshots(tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "ensemble.html"
    assert (folder / "report.html").read_text() == "the run's own"
    page = without_plotly(path)
    assert re.findall('href="([^"]*)"', page) == ["data:,", "report.html"]
    assert [row.split(" does")[0] for row in rows_of(page)][3] == "after step 3,000"
    assert "reliability" in charts_of(page)


def test_one_member_has_no_charts_over_numbers(tmp_path):
    page = page_of(make_ensemble(tmp_path / "ensemble", count=1))
    assert "The only member: " in words_of(page)
    assert list(charts_of(page)) == ["reliability"]


def test_the_same_folder_gives_the_same_page(folder):
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


# ---------------------------------------------------------------------- strangers' folders


def hostile(folder):
    """An ensemble whose every name is an attack, in a folder that is one too."""
    run = "members/1/" + HOSTILE[1].replace("/", "")
    (folder / "members/1").rename(folder / "members/moved")
    (folder / "members/1").mkdir()
    (folder / "members/moved").rename(folder / run)
    (folder / run / "report.html").write_text("a report")
    facts = run_facts("classification") | {"source": HOSTILE[0], "classes": list(HOSTILE)}
    facts["model"]["name"] = HOSTILE[1]
    for own in (run, "members/2", "members/3"):
        (folder / own / "run.json").write_text(json.dumps(facts))
    members = [{"run": run, "weights": "model.safetensors"}, *about_of(folder)["members"][1:]]
    recipes = [{HOSTILE[0]: HOSTILE[1]}, {"lr": [HOSTILE[2], "\udc80"]}, {}]
    change(folder, members=members, recipes=recipes, failed={HOSTILE[2]: HOSTILE[0]}, trainwell=HOSTILE[2])
    return folder


def test_names_cannot_become_code(folder):
    page = page_of(hostile(folder))
    assert page.count("<script") == page.count("</script") == 3  # the charts' data, plotly, the drawing
    assert "<img" not in page
    assert "<b>c" not in page
    assert "&lt;/script&gt;&lt;script&gt;console.error(1)&lt;/script&gt;" in page
    link, *_ = re.findall('href="([^"]*)"', page)[1:]
    assert link == "members/1/%3Cimg%20src%3Dx%20onerror%3Dconsole.error%282%29%3E/report.html"


def test_nothing_is_asked_of_a_network(folder):
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", page_of(folder))


def test_what_is_no_ensemble_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no ensemble"):
        write_report(tmp_path)


def test_an_unfinished_ensemble_is_refused(folder):
    about = about_of(folder)
    del about["result"]
    (folder / "ensemble.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"^[^\n]*is not finished[^\n]*$"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 100_000, '{"members": 1}', '{"members": [], "mean": "x"}'])
def test_what_is_no_table_is_damaged(folder, content):
    (folder / "ensemble.json").write_text(content)
    with pytest.raises(InputError, match=r"^[^\n]*ensemble\.json[^\n]*damaged[^\n]*$"):
        write_report(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"kept": []}, {"kept": [3]}, {"kept": [-1]}, {"kept": [0, 0]}, {"kept": ["0"]}, {"kept": [0.0]}, {"kept": None},
        {"temperature": "warm"}, {"temperature": -1}, {"temperature": float("inf")}, {"mean": "<b>"}, {"result": []},
        {"trainwell": 1}, {"failed": []}, {"failed": {"1": []}}, {"recipes": [[]] * 3}, {"recipes": 3},
        *({"members": [{"run": run, "weights": "model.safetensors"}] * 3} for run in ("/etc", "..", "a/../../b", "c:x",
                                                                                     "a\\b", "a\0b", 3)),
    ],
)  # fmt: skip
def test_damaged_fields_are_refused(folder, fields):
    change(folder, **fields)
    with pytest.raises(InputError, match=r"^[^\n]*ensemble\.json[^\n]*damaged[^\n]*$"):
        write_report(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("test_samples",), "1"), (("test_samples",), 0), (("test_accuracy",), None), (("test_interval",), [0.5]),
        (("ensemble",), {}), (("ensemble", "log_loss"), {"value": None, "interval": [0, 1]}),
        (("ensemble", "accuracy", "interval"), ["0", "1"]), (("ensemble", "brier_score", "value"), float("nan")),
        pytest.param(("ensemble", "accuracy", "value"), 10**400, id="huge"),
        (("single",), []), (("single",), [{}] * 3), (("gain",), {}),
        (("gain", "accuracy", "value"), "<b>"), (("by_number",), [3]), (("by_number",), [{"members": 1}]),
        (("by_number",), [{"members": 1, "ensembles": 1, "loss": "x", "accuracy": 1.0}]),
    ],
)  # fmt: skip
def test_damaged_figures_are_refused(folder, place, value):
    result = about_of(folder)["result"]
    table = result
    for name in place[:-1]:
        table = table[name]
    table[place[-1]] = value
    change(folder, result=result)
    with pytest.raises(InputError, match=r"^[^\n]*ensemble\.json[^\n]*damaged[^\n]*$"):
        write_report(folder)


def test_a_figure_that_was_not_finite_is_a_dash(folder):
    result = about_of(folder)["result"]
    result["single"][2]["log_loss"] = {"value": None, "interval": [None, None]}
    change(folder, result=result)
    *_, third, mean, _, _ = rows_of(page_of(folder))
    assert "– – to –" in third
    assert "–" in mean


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("test_outputs", np.full((150, 3), 0.5)), ("test_outputs", np.full((150, 3), np.nan)),
        ("test_outputs", np.full((150, 2), 0.5)), ("test_outputs", np.full((7, 3), 1 / 3)),
        ("test_targets", np.full(150, 3)), ("test_targets", np.full(150, -1)), ("test_targets", np.zeros(150)),
        ("test_targets", np.zeros((150, 1), int)),
    ],
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(folder, tensor, value):
    path = folder / "members" / str(about_of(folder)["kept"][1] + 1) / "evaluation.safetensors"
    save_file(load_file(path) | {tensor: value}, path)
    with pytest.raises(InputError, match=r"^[^\n]*members[^\n]*does not fit[^\n]*$"):
        write_report(folder)


@pytest.mark.parametrize("name", ["run.json", "evaluation.safetensors"])
def test_a_members_missing_or_damaged_file_is_named(folder, name):
    path = folder / "members/1" / name
    path.write_text("rubbish")
    with pytest.raises(InputError, match=rf"^[^\n]*{re.escape(str(path))}[^\n]*damaged[^\n]*$"):
        write_report(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"^[^\n]*members.1[^\n]*{re.escape(name)}[^\n]*$"):
        write_report(folder)


@needs_browser
@pytest.mark.parametrize("kind", ["hostile", "snapshots"])
def test_a_browser_draws_it_without_error_or_request(folder, tmp_path, kind):
    path = write_report(hostile(folder) if kind == "hostile" else snapshots(tmp_path / "run"))
    charts = charts_of(without_plotly(path))
    dom, console, requests = browse(path, tmp_path)
    assert console == []
    assert requests == []
    assert list(charts) == ["number-accuracy", "number-loss", "reliability"]
    for name in charts:
        assert re.search(rf'id="chart-{name}"[^>]*>\s*<div[^>]*class="plot-container plotly"', dom), name
