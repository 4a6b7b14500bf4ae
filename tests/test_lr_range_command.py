"""`trainwell lr-range` and `api.lr_range`."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trainwell as tw
from commands import call
from trainwell import api

FAST = ["--model", "mlp", "--precision", "fp32", "--threads", "1", "--sweep-steps", "30", "--trial-steps", "20"]


def test_it_prints_the_flag_to_use_and_writes_the_picture(capsys, tmp_path):
    code, out, err = call(capsys, "lr-range", "digits", "--out", tmp_path / "p.html", "--optimizer", "sgd", *FAST)
    assert code == 0
    line = re.fullmatch(r"learning rate (\S+) \(the loss falls from \S+ on and .*\): --lr (\S+)\n", out)
    assert line[1] == line[2]
    assert 0.01 < float(line[2]) < 2
    assert str(tmp_path / "p.html") in err
    assert f"suggestion {line[1]}" in (tmp_path / "p.html").read_text("utf-8")
    assert os.listdir(tmp_path) == ["p.html"]


def test_quiet_prints_the_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "lr-range", "digits", "--quiet", *FAST[:-1], "0")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert os.listdir(tmp_path) == ["lr-range.html"]


def test_the_same_recipe_gives_the_same_test():
    options = {
        "model": "mlp",
        "precision": "fp32",
        "drop_rate": 0.2,
        "threads": 1,
        "sweep_steps": 25,
        "trial_steps": 0,
        "quiet": True,
    }
    first, other = (api.lr_range("digits", seed=seed, **options) for seed in (0, 1))
    torch.rand(3)
    assert api.lr_range("digits", seed=0, **options) == first != other


def test_a_model_of_ones_own_is_left_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = tw.load("digits", quiet=True)
    found = api.lr_range(data, model=model, clip_grad=1.0, grad_accum_steps=2, threads=1, sweep_steps=30,
                         trial_steps=30, quiet=True)  # fmt: skip
    assert found.suggestion
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "trainwell lr-range photos/"),
        (["nowhere"], "no file or folder"),
        (["digits", "--low", "2", "--high", "1"], "0 < low < high"),
        (["digits", "--sweep-steps", "1"], "at least 20"),
        (["digits", "--model", "resnet9x"], "resnet"),
        (["digits", "--optimiser", "sgd"], "did you mean --optimizer?"),
        (["digits", "--low", "small"], "--low takes a number, not 'small'"),
        (["digits", "--out", "run/report.html"], "holds a run"),
        (["digits", "--out", "run"], "must end in .html"),
        (["digits", "--out", "gone/p.html"], "in no folder that exists"),
        (["digits", "--out", "folder.html"], "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.html").mkdir()
    Path("run").mkdir()
    Path("run/run.json").write_text("{}")
    Path("run/report.html").write_text("a report")
    code, out, err = call(capsys, "lr-range", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert Path("run/report.html").read_text() == "a report"
    assert sorted(os.listdir()) == ["folder.html", "run"]


def test_nothing_to_suggest_is_code_1(capsys, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", x=rng.normal(size=(300, 3)).astype(np.float32), y=rng.permutation(300) % 2)
    code, out, err = call(capsys, "lr-range", tmp_path / "noise.npz", "--out", tmp_path / "p.html", "--high", "1e-6",
                           "--folds", 1, *FAST)  # fmt: skip
    assert (code, out) == (1, "")
    assert "no learning rate to suggest" in err
    assert (tmp_path / "p.html").exists()
