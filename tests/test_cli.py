"""The command line, as a person at a shell meets it."""

import csv
import functools
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trainwell as tw
from commands import call
from faults import in_child
from trainwell.cli import main

QUICK = ["--threads", "1", "--batch-size", "64", "--folds", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return tw.fit("digits", folds=1, out=out, epochs=6, augment="none", threads=1, quiet=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("images"), tw.load("digits")
    for row in range(4):
        Image.fromarray(data.images[row][..., 0]).save(folder / f"{row}.png")
    (folder / "x.txt").write_text("no image")
    return folder


def test_fit_says_how_it_goes_and_how_well_it_does(capsys, tmp_path):
    code, out, err = call(capsys, "fit", "digits", "--out", tmp_path / "run", "--epochs", 2, *QUICK)
    assert code == 0
    assert out.strip() == str(tmp_path / "run")
    assert "1,257 to train, 270 to val, 270 to test" in err
    assert "epoch   1  loss" in err
    assert "% right on 270 samples never seen (95 % interval" in err
    assert str(tmp_path / "run" / "report.html") in err


def test_quiet_prints_the_folder_of_the_run_alone(capsys, tmp_path):
    code, out, err = call(capsys, "fit", "digits", "--out", tmp_path / "r", "--epochs", 1, "--quiet", *QUICK)
    assert (code, err) == (0, "")
    assert out.strip() == str(tmp_path / "r")


def test_a_recipe_file_comes_before_the_flags(capsys, tmp_path):
    (tmp_path / "r.toml").write_text('epochs = 1\nlr = 0.004\noptimizer = "sgd"\n')
    words = ["fit", "digits", "--out", tmp_path / "run", "--recipe-file", tmp_path / "r.toml", "--optimizer", "adam"]
    assert call(capsys, *words, *QUICK)[0] == 0
    assert call(capsys, *words, "--overwrite", "--steps", 3, *QUICK)[0] == 0  # in place of the file's epochs
    assert tw.Run(tmp_path / "run").result["steps"] == 3
    recipe = tw.Run(tmp_path / "run").recipe
    assert (recipe.optimizer, recipe.lr) == ("adam", 0.004)


def test_the_recipe_of_a_run_makes_the_run_again(capsys, run, tmp_path):
    words = ["fit", "digits", "--out", tmp_path / "again", "--recipe-file", run.path / "recipe.toml", "--quiet"]
    assert call(capsys, *words, "--folds", "1")[0] == 0
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_a_dry_run_checks_and_keeps_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "fit", "digits", "--dry-run", *QUICK)
    assert code == 0
    assert "near ln(classes) = 2.303" in out
    assert "learnt by heart" in out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "give a folder of class folders"),
        (["fit", "nowhere"], "no file or folder"),
        (["fit", "digits", "--resume"], "--resume needs --out"),
        (["fit", "digits", "--epochs", "0"], "epochs must be at least 1"),
        (["fit", "digits", "--epochs", "2", "--minutes", "1"], "epochs and minutes each"),
        (["fit", "digits", "--recipe-file", "gone.toml"], "gone.toml: no recipe"),
        (["predict", "gone", "a.jpg"], "gone holds no run"),
        (["report", "gone"], "gone holds no run"),
        (["fit", "digits", "--out", "a", "--resume", "--overwrite"], "give one of them"),
        (["fit", "digits", "--val", "inf"], "val must be a fraction"),
        (["fit", "~nobody-of-that-name/photos"], "nobody of that name has a home here"),
        (["fit", __file__], "is no folder, no table"),
        (["cache", "--older-than-days", "3"], "give both"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("trainwell: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["fit", "digits", "--epoch", "3"], ["fit", "digits", "--optimizer", "sdg"], ["fti"]])
def test_a_mistyped_word_gets_a_hint_and_code_2(words, capsys):
    code, _, err = call(capsys, *words)
    assert code == 2
    assert any(hint in err for hint in ("--epochs", "sgd", "fit"))
    assert "Traceback" not in err


def test_divergence_is_one_line_and_code_1(capsys, tmp_path):
    words = ["fit", "digits", "--out", tmp_path / "run", "--lr", "1e30", "--optimizer", "sgd", "--warmup", "0"]
    code, _, err = call(capsys, *words, "--quiet", *QUICK)
    assert code == 1
    assert err.startswith("trainwell: not finite at step")
    assert err.count("\n") == 1


def test_predict_as_table_csv_and_json(capsys, run, images):
    code, table, err = call(capsys, "predict", run.path, images)
    assert code == 0
    assert "left out" in err
    assert "x.txt" in err
    assert all(f"{row}.png" in table for row in range(4))
    rows = list(csv.DictReader(io.StringIO(call(capsys, "predict", run.path, images, "--format", "csv")[1])))
    assert [row["class"] for row in rows] == ["0", "1", "2", "3"]
    words = ["predict", run.path, images / "0.png", images / "1.png", "--format", "json", "--probabilities"]
    told = json.loads(call(capsys, *words)[1])
    assert [row["class"] for row in told] == ["0", "1"]
    assert sum(told[0]["probabilities"][str(k)] for k in range(10)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("targets", [["age"], ["age", "size"]])
def test_predict_numbers(targets, capsys, tmp_path):
    rng = np.random.default_rng(0)
    lines = [",".join(["file", *targets])]
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(",".join([f"{number}.png", *(f"{value:.3f}" for value in rng.random(len(targets)))]))
    (tmp_path / "table.csv").write_text("\n".join(lines))
    words = [
        "--label-column",
        ",".join(targets),
        "--model",
        "resnet8",
        "--epochs",
        "1",
        "--folds",
        "1",
        "--threads",
        "1",
    ]
    out = tmp_path / "run"
    assert call(capsys, "fit", tmp_path / "table.csv", "--out", out, *words, "--quiet")[0] == 0
    code, told, _ = call(capsys, "predict", out, tmp_path / "0.png", "--format", "csv")
    [row] = csv.DictReader(io.StringIO(told))
    assert code == 0
    assert [*row] == ["file", *(targets if len(targets) > 1 else ["output 0"])]
    assert all(np.isfinite(float(row[name])) for name in [*row][1:])
    code, _, err = call(capsys, "predict", out, tmp_path / "0.png", "--probabilities")
    assert code == 2
    assert "leave out --probabilities" in err


def test_report_is_written_anew(capsys, run):
    (run.path / "report.html").unlink()
    code, out, _ = call(capsys, "report", run.path)
    assert code == 0
    assert out.strip() == str(run.path / "report.html")
    assert (run.path / "report.html").exists()


def test_help_reads_well(capsys):
    code, out, _ = call(capsys, "fit", "--help")
    assert code == 0
    assert "a folder of class folders" in out
    assert "{None}" not in out
    assert call(capsys, "--version")[1] == f"trainwell {tw.__version__}\n"
    for command in ("fit", "predict", "report"):
        assert command in call(capsys, "--help")[1]


def _started(*words):
    """Starts a command and waits until it trains."""
    process = subprocess.Popen([sys.executable, "-m", "trainwell", *map(str, words)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epoch"):
        assert line or process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_says_how_to_go_on_and_does(number, tmp_path, capsys):
    fit = ["fit", "digits", "--out", tmp_path / "run", "--epochs", "15", *QUICK]
    process = _started(*fit)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: trainwell fit --resume --out {tmp_path / 'run'}" in err
    assert "Traceback" not in err
    assert call(capsys, "fit", "--resume", "--out", tmp_path / "run", "--quiet")[0] == 0
    assert tw.Run(tmp_path / "run").result["epochs"] == 15


def test_output_that_nobody_reads_to_its_end(run, images):
    command = [sys.executable, "-m", "trainwell", "predict", str(run.path), str(images)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(60)


def test_seconds_between_saves_change_nothing(tmp_path, capsys):
    for name, seconds in (("often", 0), ("never", 1e9)):
        words = ["fit", "digits", "--out", tmp_path / name, "--epochs", 2, "--save-seconds", seconds, "--quiet", *QUICK]
        assert call(capsys, *words)[0] == 0
    often, never = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("often", "never"))
    assert often == never


def test_no_space_left_is_one_line_and_code_2(tmp_path):
    """A limit on the size of files stands for a full disk; each lets the run come a little farther."""
    for kilobytes in (1, 60, 900):
        out, limit = tmp_path / f"run-{kilobytes}", (kilobytes * 1024,) * 2
        words = ["fit", "digits", "--out", str(out), "--epochs", "1", "--threads", "1", "--folds", "1", "--quiet"]
        done = in_child(
            functools.partial(main, words),
            prepare=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit),
        )
        assert done.code == 2
        assert done.err.startswith("trainwell: ")
        assert "File too large" in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_name_with_a_letter_that_the_terminal_lacks(form, run, images):
    odd = shutil.copy(images / "0.png", images / "bär.png")
    done = in_child(
        functools.partial(main, ["predict", str(run.path), str(odd), "--format", form]),
        prepare=lambda: sys.stdout.reconfigure(encoding="ascii"),
    )
    Path(odd).unlink()
    assert (done.code, done.err) == (0, "")
    assert "b\\xe4r.png" in done.out


def test_a_dry_run_that_diverges_says_so(capsys):
    words = ["fit", "digits", "--dry-run", "--lr", "1e30", "--optimizer", "sgd", *QUICK]
    code, out, err = call(capsys, *words)
    assert code == 1
    assert "NOT learnt: loss" in out
    assert err.splitlines()[-1].startswith("trainwell: the dry run found something odd")


def test_a_model_of_code_resumes_when_it_is_named_again(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "fit", "digits", "--out", "run", "--model", "my_nets:make", "--epochs", 2, *QUICK)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    code, _, err = call(capsys, "fit", "--resume", "--out", "run")
    assert code == 2
    assert "--model my_nets:make" in err
    assert call(capsys, "fit", "--resume", "--out", "run", "--model", "my_nets:make")[0] == 0


def test_a_damaged_checkpoint_is_named_in_one_line(capsys, tmp_path):
    words = ["fit", "digits", "--out", tmp_path / "run", "--epochs", 2, "--save-seconds", 0, "--quiet", *QUICK]
    assert call(capsys, *words)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "state.json").write_text("{}")
    command = [sys.executable, "-m", "trainwell", "fit", "--resume", "--out", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"trainwell: the checkpoint {newest} is damaged (state.json is not what was written)"
    ]
