"""Each technique trains, and resumes to the bit from the middle of an epoch, alone and with the others."""

import pytest
from sklearn.datasets import load_digits

import trainwell as tw
from techniques import PAIRS, TECHNIQUES, Residual, Technique
from trainwell.regularize import FractionalMaxPool2d
from trainwell.train import Trainer

NAMED = pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)


@pytest.fixture(scope="module")
def data():
    images, targets = load_digits(return_X_y=True)
    return tw.load(((images * 15.9375).round().astype("uint8").reshape(-1, 8, 8)[:500], targets[:500]), val=60, test=60)


def _fit(data, technique: Technique, out, **fields):
    tw.random.seed_everything(0)
    recipe = {"batch_size": 64, "epochs": 4, "threads": 1, "augment": "none", **technique.recipe, **fields}
    return tw.fit(data, out=out, model=technique.model(), quiet=True, **recipe)


def _resume(data, technique: Technique, out):
    tw.random.seed_everything("anything else")
    model = technique.model()
    return tw.resume(out, data=data, model=None if isinstance(model, str) else model, quiet=True)


def _results(run):
    """Returns what must be the same to the bit: the weights and the history, without the times."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    return (run.path / "model.safetensors").read_bytes(), rows


def _stop_at(step, monkeypatch):
    """Makes the training loop fail just before a step, as if the machine had gone down."""
    take = Trainer.train_step

    def fail(self):
        if self.step == step:
            raise SystemError("the machine went down")
        take(self)

    monkeypatch.setattr(Trainer, "train_step", fail)


@NAMED
def test_it_trains(technique, data, tmp_path):
    run = _fit(data, technique, tmp_path / "run", epochs=10)
    assert run.history[-1]["train_loss"] < 0.7 * run.result["first_loss"]
    assert run.result["test_accuracy"] > 0.3


@NAMED
@pytest.mark.parametrize("step", [1, 8])  # in the first epoch, and in the second
def test_it_resumes_to_the_bit_in_the_middle_of_an_epoch(technique, step, data, tmp_path, monkeypatch):
    whole = _fit(data, technique, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _stop_at(step, patch)
        with pytest.raises(SystemError):
            _fit(data, technique, tmp_path / "cut", save_seconds=0)
    resumed = _resume(data, technique, tmp_path / "cut")
    assert _results(resumed) == _results(whole)


@pytest.mark.slow  # all of them together are in the test below
@pytest.mark.parametrize("pair", PAIRS, ids=lambda technique: technique.name)
def test_pairs_train_and_resume_to_the_bit_in_bf16_and_channels_last(pair, data, tmp_path, monkeypatch):
    whole = _fit(data, pair, tmp_path / "whole")
    assert whole.history[-1]["train_loss"] < 0.95 * whole.result["first_loss"]
    with monkeypatch.context() as patch:
        _stop_at(10, patch)
        with pytest.raises(SystemError):
            _fit(data, pair, tmp_path / "cut", save_seconds=0)
    assert _results(_resume(data, pair, tmp_path / "cut")) == _results(whole)


def test_all_that_go_together_do_so_and_resume(data, tmp_path, monkeypatch):
    together = Technique("all", {
        "optimizer": "sgd", "lr": 0.05, "label_smoothing": 0.1, "clip_grad": 0.5, "batch_size": 24,
        "grad_accum_steps": 3, "patience": 3, "on_nonfinite": "halve", "precision": "bf16", "sam": 0.05, "l1": 1e-4,
        "mixup": 0.2, "cutmix": 1.0, "drop_rate": 0.2, "drop_map_rate": 0.1, "dropconnect": 0.2, "drop_path_rate": 0.2,
        "augment": "standard", "average": "ema",
    }, model=lambda: Residual(FractionalMaxPool2d, 0.7))  # fmt: skip
    whole = _fit(data, together, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _stop_at(12, patch)
        with pytest.raises(SystemError):
            _fit(data, together, tmp_path / "cut", save_seconds=0)
    resumed = _resume(data, together, tmp_path / "cut")
    assert _results(resumed) == _results(whole)
