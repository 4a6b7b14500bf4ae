"""Few samples: the result comes from folds, the model from all samples, and both survive an interruption."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import trainwell as tw
from trainwell.cli import main

NOISE = np.random.default_rng(3)
Y = np.arange(90) % 3
X = (np.random.default_rng(0).normal(size=(3, 6))[Y] + NOISE.normal(size=(90, 6))).astype("f4")
QUICK = {"epochs": 3, "batch_size": 16, "threads": 1, "quiet": True, "save_seconds": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tw.fit((X, Y), out=tmp_path_factory.mktemp("runs") / "run", drop_rate=0.2, **QUICK)


def _same_bits(one, two):
    for path in ["model.safetensors", *(f"folds/{fold}/model.safetensors" for fold in range(1, 6))]:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    forget = ("seconds", "time")
    results = [{k: v for k, v in tw.Run(path).result.items() if k not in forget} for path in (one, two)]
    assert results[0] == results[1]


def test_the_result_is_that_of_the_folds(run):
    outputs, targets = np.zeros((90, 3)), np.full(90, -1)
    for fold in range(1, 6):
        held = load_file(run.path / f"folds/{fold}/evaluation.safetensors")
        outputs[held["test_rows"]], targets[held["test_rows"]] = held["test_outputs"], held["test_targets"]
        single = tw.Run(run.path / f"folds/{fold}").result
        told = run.result["folds"][fold - 1]
        assert told["test_accuracy"] == single["test_accuracy"]
    assert (targets == Y).all()  # every sample was judged once
    assert run.result["test_samples"] == 90
    assert run.result["test_accuracy"] == pytest.approx((outputs.argmax(1) == Y).mean())
    loss = -np.log(outputs[np.arange(90), Y]).mean()
    assert run.result["test_loss"] == pytest.approx(loss, rel=1e-4)
    low, high = run.result["test_interval"]
    assert low < run.result["test_accuracy"] < high
    recalls = [(outputs.argmax(1) == Y)[k == Y].mean() for k in range(3)]
    assert [one["recall"] for one in run.result["by_class"]] == pytest.approx(recalls)
    assert run.result["test_balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_the_model_that_is_kept_learns_from_all(run):
    assert run.info["sizes"] == {"train": 76, "val": 14, "test": 0}
    assert run.predict(X).outputs.shape == (90, 3)
    assert (run.path / "report.html").exists()
    assert not list(run.path.glob("folds/*/checkpoints"))  # they are large, and needed no more


def test_a_fold_is_a_run_that_can_be_had_alone(run, tmp_path):
    fold = tw.Run(run.path / "folds/2")
    alone = tw.fit(
        tw.load((X, Y), folds=5, fold=2), out=tmp_path / "alone", recipe=fold.recipe, quiet=True, save_seconds=0
    )
    assert (alone.path / "model.safetensors").read_bytes() == (fold.path / "model.safetensors").read_bytes()
    assert alone.result["test_accuracy"] == fold.result["test_accuracy"]


@pytest.mark.parametrize("stop_at", [0, 4, 7, 16])
def test_interrupted_and_resumed_to_the_same_bits(stop_at, run, tmp_path):
    seen = 0

    def interrupt(trainer, row):
        nonlocal seen
        seen += 1
        if seen == stop_at + 1:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt, match="go on with"):
        tw.fit((X, Y), out=out, drop_rate=0.2, on_epoch_end=interrupt, **QUICK)
    assert not (out / "result.json").exists()
    tw.resume(out, data=(X, Y), quiet=True, save_seconds=0)
    _same_bits(out, run.path)


def test_a_fold_that_is_lost_is_trained_anew(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.path, out)
    for path in (out / "result.json", out / "folds/3"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    tw.resume(out, data=(X, Y), quiet=True)
    _same_bits(run.path, out)


def test_the_folds_of_divided_data_cannot_be_made_again(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.path, out)
    for path in (out / "result.json", out / "folds/3"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(tw.InputError, match="divided already: give the source"):
        tw.resume(out, data=tw.load((X, Y), folds=5), quiet=True)


def test_why_there_is_no_cross_validation_is_told_and_a_test_part_can_be_asked_for(tmp_path):
    lonely = np.where(np.arange(90) == 5, 3, Y)
    one = tw.fit((X, lonely), out=tmp_path / "one", **QUICK)
    assert "folds" not in one.result
    assert any("no cross-validation, because class '3' has one sample" in item["text"] for item in one.info["notices"])
    two = tw.fit((X, Y), out=tmp_path / "two", test=0.15, **QUICK)  # which is the default of a single split
    assert "folds" not in two.result
    assert two.info["sizes"]["test"] == 14


class Net(nn.Sequential):
    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_a_model_of_ones_own_starts_alike_in_all_folds_even_after_an_interruption(tmp_path):
    first = {}

    def remember(out):
        def epoch_end(trainer, row):
            where = trainer.checkpoints.folder.parent.name
            first.setdefault((out, where), row["train_loss"])
            if out == "cut" and where == "3":
                raise KeyboardInterrupt

        return epoch_end

    tw.fit((X, Y), out=tmp_path / "whole", model=Net(0), on_epoch_end=remember("whole"), **QUICK)
    with pytest.raises(KeyboardInterrupt):
        tw.fit((X, Y), out=tmp_path / "cut", model=Net(0), on_epoch_end=remember("cut"), **QUICK)
    tw.resume(tmp_path / "cut", data=(X, Y), model=Net(9), quiet=True, save_seconds=0)  # other weights do not matter
    _same_bits(tmp_path / "cut", tmp_path / "whole")


def test_groups_widen_the_interval_and_stay_together(tmp_path):
    groups = np.arange(90) // 9
    x = X + 2 * NOISE.normal(size=(10, 6)).astype("f4")[groups]  # the samples of a group are alike
    grouped = tw.fit((x, Y, groups), out=tmp_path / "grouped", **QUICK)
    rows = [load_file(grouped.path / f"folds/{fold}/evaluation.safetensors")["test_rows"] for fold in range(1, 6)]
    assert sum(len(set(groups[own])) for own in rows) == 10


@pytest.mark.parametrize(
    ("task", "y"), [("regression", X[:, 0] * 2), ("multilabel", np.stack([Y > 0, Y > 1], axis=1) * 1.0)]
)
def test_other_tasks(task, y, tmp_path):
    run = tw.fit((X, y), out=tmp_path / "run", folds=3, **QUICK)
    assert run.info["task"] == task
    assert len(run.result["folds"]) == 3
    mean = np.average([one["test_loss"] for one in run.result["folds"]], weights=[30, 30, 30])
    assert run.result["test_loss"] == pytest.approx(mean)
    assert run.result["test_interval"][0] < mean < run.result["test_interval"][1]
    assert (run.path / "report.html").exists()


def test_metrics_of_ones_own_are_of_all_samples(tmp_path):
    run = tw.fit(
        (X, Y), out=tmp_path / "run", folds=3, metrics={"hits": lambda o, t: float((o.argmax(1) == t).sum())}, **QUICK
    )
    assert run.result["metrics"]["test_hits"]["value"] == pytest.approx(90 * run.result["test_accuracy"])


def test_minutes_are_shared_out(tmp_path):
    run = tw.fit((X, Y), out=tmp_path / "run", folds=2, minutes=0.03, batch_size=16, threads=1, quiet=True)
    steps = [tw.Run(run.path / f"folds/{fold}").result["steps"] for fold in (1, 2)]
    assert steps == [run.result["steps"]] * 2


def test_data_that_lack_a_test_part_are_refused(tmp_path):
    with pytest.raises(tw.InputError, match="no test part"):
        tw.fit(tw.load((X, Y), folds=5), out=tmp_path / "run", **QUICK)


def test_a_given_test_part_is_used_as_it_is(tmp_path):
    run = tw.fit({"train": (X, Y), "test": (X[:30], Y[:30])}, out=tmp_path / "run", **QUICK)
    assert "folds" not in run.result
    asked = tw.fit((X, Y), out=tmp_path / "asked", test=0.2, **QUICK)
    assert (asked.info["sizes"]["test"], "folds" in asked.result) == (18, False)


def test_on_the_command_line(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=X, y=Y, groups=np.arange(90) // 3)
    out = tmp_path / "run"
    words = ["--epochs", "2", "--batch-size", "16", "--threads", "1", "--folds", "3"]
    main(["fit", str(tmp_path / "data.npz"), "--out", str(out), *words])
    told = capsys.readouterr().err
    assert "fold 3 of 3" in told
    assert "each by one of 3 models that had not seen it" in told
    main(["fit", "--resume", "--out", str(out), "--quiet"])
    again = dataclasses.replace(tw.Run(out).recipe)
    assert again.epochs == 2
