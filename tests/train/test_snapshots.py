"""Snapshots of one run: at the ends of cycles or of the last epochs, and the ensemble of those that help."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

import trainwell as tw
from commands import call
from trainwell.ensemble import temperature, tempered
from trainwell.errors import InputError
from trainwell.metrics.calibration import log_loss
from trainwell.train import Recipe, Trainer
from trainwell.train.optimizers import make_schedule
from trainwell.train.snapshots import evaluation_of

IMAGES = (load_digits().images * 15.9375).round().astype("uint8")[:600]
TARGETS = load_digits().target[:600]


@pytest.fixture(scope="module")
def data():
    return tw.load((IMAGES, TARGETS), val=150, test=150)


def _fit(data, out, **fields):
    recipe = {"model": "mlp", "threads": 1, "batch_size": 32, "epochs": 6, "lr": 5e-3} | fields
    return tw.fit(data, out=out, quiet=True, **recipe)


def _snapshots(folder):
    return sorted(path.name for path in (folder / "snapshots").glob("step-*"))


# ---------------------------------------------------------------------- the rate


@pytest.mark.parametrize(("steps", "cycles"), [(90, 3), (100, 3), (64, 5), (7, 1)])
def test_the_rate_is_the_papers_closed_form_and_torchs_warm_restarts(steps, cycles):
    recipe = Recipe(schedule="restarts", snapshots=cycles, lr=0.3, warmup=0.0)
    schedule = make_schedule(recipe, steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    length = math.ceil(steps / cycles)
    theirs = CosineAnnealingWarmRestarts(optimizer, T_0=length)
    for t in range(1, steps + 1):
        # Huang et al. 2017, equation 2, where t counts from 1
        paper = 0.3 / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1)
        assert schedule(t - 1) == pytest.approx(paper, abs=1e-12)
        assert schedule(t - 1) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


# ---------------------------------------------------------------------- which weights are kept


def test_a_snapshot_is_taken_at_the_end_of_each_cycle(data, tmp_path):
    seen = {}

    class Watch:
        def __call__(self, trainer, row):
            seen[trainer.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    recipe = {"model": "mlp", "threads": 1, "batch_size": 32, "epochs": 6, "schedule": "restarts", "snapshots": 3}
    run = tw.fit(data, out=tmp_path / "run", quiet=True, on_epoch_end=Watch(), **recipe)
    per_epoch = run.result["steps"] // 6
    steps = [2 * per_epoch, 4 * per_epoch, 6 * per_epoch]
    assert _snapshots(run.path) == [f"step-{step:08d}.safetensors" for step in steps]
    for step in steps:
        kept = load_file(run.path / f"snapshots/step-{step:08d}.safetensors")
        assert all(torch.equal(kept[name], value) for name, value in seen[step].items())


def test_with_another_schedule_they_are_the_last_epochs(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=2)
    per_epoch = run.result["steps"] // 6
    assert _snapshots(run.path) == [f"step-{epoch * per_epoch:08d}.safetensors" for epoch in (5, 6)]


def test_a_run_that_stops_early_has_the_last_epochs_before_that(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=2, epochs=40, patience=1, lr=0.02)
    assert run.result["epochs"] < 40
    per_epoch = run.result["steps"] // run.result["epochs"]
    last = run.result["epochs"]
    assert _snapshots(run.path) == [f"step-{epoch * per_epoch:08d}.safetensors" for epoch in (last - 1, last)]


def test_snapshots_change_nothing_in_the_run(data, tmp_path):
    plain, kept = _fit(data, tmp_path / "plain"), _fit(data, tmp_path / "kept", snapshots=3)
    assert (plain.path / "model.safetensors").read_bytes() == (kept.path / "model.safetensors").read_bytes()


def test_interrupted_and_resumed_they_are_the_same_to_the_bit(data, tmp_path, monkeypatch):
    fields = {"snapshots": 3, "schedule": "restarts"}
    whole = _fit(data, tmp_path / "whole", **fields)
    take = Trainer.train_step
    with monkeypatch.context() as patch:

        def fail(self):
            if self.step == 50:
                raise SystemError("the machine went down")
            take(self)

        patch.setattr(Trainer, "train_step", fail)
        with pytest.raises(SystemError):
            tw.fit(data, out=tmp_path / "cut", quiet=True, save_seconds=0, model="mlp", threads=1, batch_size=32,
                   epochs=6, lr=5e-3, **fields)  # fmt: skip
    resumed = tw.resume(tmp_path / "cut", data=data, quiet=True)
    assert _snapshots(resumed.path) == _snapshots(whole.path)
    for name in [*_snapshots(whole.path), *(p.name for p in (whole.path / "snapshots").glob("evaluation-*"))]:
        assert (whole.path / "snapshots" / name).read_bytes() == (resumed.path / "snapshots" / name).read_bytes()
    assert tw.Ensemble(whole.path).about == tw.Ensemble(resumed.path).about


# ---------------------------------------------------------------------- the ensemble of them


def test_the_ensemble_of_those_that_help_answers_like_a_run(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=3, schedule="restarts", lr=0.01)
    ensemble = tw.Ensemble(run.path)
    names = [member["weights"] for member in ensemble.about["members"]]
    assert names[:3] == [f"snapshots/{name}" for name in _snapshots(run.path)]
    assert names[3:] in ([], ["model.safetensors"])
    assert [member["run"] for member in ensemble.about["members"]] == ["."] * len(names)
    pixels = np.stack([data.images[row] for row in data.test.indices])
    predictions = ensemble.predict(pixels)
    right = predictions.outputs.argmax(1) == data.test.targets[data.test.indices]
    assert right.mean() == pytest.approx(ensemble.result["test_accuracy"])
    one = tw.Run(run.path, weights=f"snapshots/{_snapshots(run.path)[0]}").predict(pixels).outputs
    first = ensemble.result["single"][0]["accuracy"]["value"]
    assert (one.argmax(1) == data.test.targets[data.test.indices]).mean() == pytest.approx(first)
    assert (run.path / "ensemble.html").exists()
    assert (run.path / "report.html").exists()


def _val_loss(said):
    """The log loss on validation with the best temperature, of what is chosen by."""
    p, targets = said["val_outputs"].double(), said["val_targets"]
    return log_loss(tempered(p, temperature(p, targets)), targets)


def test_what_answers_is_no_worse_on_validation_than_the_weights_that_the_run_kept(data, tmp_path):
    # A rate that is too high at the end: the last epochs are worse than one before.
    rate = {"lr": None, "schedule": "then(constant(0.003), 0.5, at=38)", "restore_best": True}
    run = _fit(data, tmp_path / "run", snapshots=2, **rate)
    ensemble = tw.Ensemble(run.path)
    snapshots = [f"snapshots/{name}" for name in _snapshots(run.path)]
    assert [member["weights"] for member in ensemble.about["members"]] == [*snapshots, "model.safetensors"]
    files = [*(evaluation_of(run.path / name) for name in snapshots), run.path / "evaluation.safetensors"]
    said = [load_file(path) for path in files]
    losses = [_val_loss(one) for one in said]
    assert losses[2] < min(losses[:2])  # or this shows nothing
    mean = torch.stack([said[place]["val_outputs"] for place in ensemble.about["kept"]]).mean(0)
    assert _val_loss({"val_outputs": mean, "val_targets": said[0]["val_targets"]}) <= losses[2] + 1e-9
    assert ensemble.about["kept"][0] == 2
    assert "the kept weights" in (run.path / "ensemble.html").read_text()


def test_weights_that_were_kept_and_are_a_snapshot_too_answer_once(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=2, restore_best=False)
    last = load_file(run.path / f"snapshots/{_snapshots(run.path)[-1]}")
    assert all(torch.equal(value, last[name]) for name, value in load_file(run.path / "model.safetensors").items())
    assert len(tw.Ensemble(run.path).about["members"]) == 2


def test_the_ensemble_of_a_run_in_a_folder_called_snapshots(data, tmp_path):
    run = _fit(data, tmp_path / "snapshots", snapshots=2, restore_best=True, epochs=3)
    assert len(tw.Ensemble(run.path).about["members"]) >= 2


@pytest.mark.parametrize(
    ("fields", "what"), [({}, "epochs"), ({"schedule": "restarts", "epochs": 1, "batch_size": 300}, "cycles")]
)
def test_fewer_snapshots_than_asked_for_are_told(fields, what, data, tmp_path, capsys):
    run = _fit(data, tmp_path / "run", **{"snapshots": 5, "epochs": 2} | fields)
    count = len(_snapshots(run.path))
    assert count < 5
    assert f"{count} snapshots were taken, and not 5: the run had no more {what}" in capsys.readouterr().err
    _fit(data, tmp_path / "enough", snapshots=2, epochs=2)
    assert "snapshots were taken" not in capsys.readouterr().err


def test_report_writes_the_pages_of_the_run_and_of_its_snapshots(data, tmp_path, capsys):
    run = _fit(data, tmp_path / "run", snapshots=2, epochs=2)
    pages = [run.path / "report.html", run.path / "ensemble.html"]
    for page in pages:
        page.unlink()
    code, out, _ = call(capsys, "report", run.path)
    assert (code, out.split()) == (0, [str(page) for page in pages])
    assert all(page.exists() for page in pages)


def test_a_kill_before_the_ensemble_was_made_is_made_up_for(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=2)
    before = tw.Ensemble(run.path).about
    (run.path / "ensemble.json").unlink()
    tw.resume(run.path, data=data, quiet=True)
    assert tw.Ensemble(run.path).about == before


def test_snapshots_and_cross_validation_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"folds=1 \(--folds 1\)"):
        tw.fit((IMAGES, TARGETS), out=tmp_path / "run", snapshots=2, folds=2, epochs=1, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_snapshot_is_one_line(data, tmp_path):
    run = _fit(data, tmp_path / "run", snapshots=2)
    name = _snapshots(run.path)[0]
    (run.path / "snapshots" / name).write_bytes(b"rubbish")
    with pytest.raises(InputError, match="does not fit the model mlp"):
        tw.Run(run.path, weights=f"snapshots/{name}").model  # noqa: B018
