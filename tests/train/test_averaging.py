"""Weight averages in `fit`: both judged on validation, the better one kept and named."""

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import nn

import trainwell as tw
from trainwell.errors import InputError
from trainwell.train import Recipe
from trainwell.train.averaging import make_average


@pytest.fixture(scope="module")
def data():
    images, targets = load_digits(return_X_y=True)
    return tw.load(
        ((images * 15.9375).round().astype("uint8").reshape(-1, 8, 8)[:600], targets[:600]), val=150, test=60
    )


def _fit(data, out, **fields):
    tw.random.seed_everything(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    recipe = {"threads": 1, "batch_size": 32, "epochs": 5, "augment": "none", "schedule": "constant", "lr": 0.01}
    return tw.fit(data, out=out, model=model, quiet=True, **recipe | fields), model


def _kept_in_file(run):
    with safe_open(run.path / "model.safetensors", "pt") as file:
        return file.metadata()["kept"]


def _weights(run):
    return (run.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("average", ["ema", "swa", "latest"])
@pytest.mark.parametrize("restore_best", [True, False])
def test_the_better_of_both_by_validation_is_kept_named_and_as_good_as_was_said(average, restore_best, data, tmp_path):
    run, model = _fit(data, tmp_path / "run", average=average, restore_best=restore_best)
    rows = run.history if restore_best else run.history[-1:]
    judged = {  # the higher accuracy; among equals the lower loss
        (row["epoch"], weights): (row[f"{prefix}val_accuracy"], -row[f"{prefix}val_loss"])
        for row in rows
        for weights, prefix in (("raw", ""), (average, f"{average}_"))
        if f"{prefix}val_loss" in row
    }
    epoch, weights = max(judged, key=judged.get)
    assert any(kind == average for _, kind in judged)
    assert (run.result["kept_epoch"], run.result["kept_weights"]) == (epoch, weights)
    assert _kept_in_file(run) == f"epoch {epoch}, {weights}"
    assert (run.result["val_accuracy"], -run.result["val_loss"]) == judged[epoch, weights]
    # and the file holds them, with batch norm's statistics
    chances = tw.Run(run.path, model).predict(np.stack([data.images[row] for row in data.val.indices])).outputs
    right = chances.argmax(1) == data.val.targets[data.val.indices]
    assert right.mean() == pytest.approx(run.result["val_accuracy"])


def test_an_average_that_validation_does_not_favour_is_not_kept_and_changes_nothing(data, tmp_path):
    # Over a run that only begins, the mean of all weights lags far behind the newest.
    plain, _ = _fit(data, tmp_path / "plain", lr=1e-3, epochs=3)
    lagging, _ = _fit(data, tmp_path / "lagging", lr=1e-3, epochs=3, average="ema", ema_decay=0.9999)
    assert lagging.result["kept_weights"] == "raw"
    assert _weights(lagging) == _weights(plain)
    assert [row["val_loss"] for row in lagging.history] == [row["val_loss"] for row in plain.history]
    assert all(row["ema_val_loss"] > row["val_loss"] for row in lagging.history)


class Parts(nn.Module):
    """A model with a batch norm that is never called, and one that was frozen in the way that is usual in torch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))
        self.frozen, self.spare, self.head = nn.BatchNorm1d(16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.frozen.eval().requires_grad_(False)
        self.frozen.running_mean.fill_(0.5)

    def forward(self, x):
        return self.head(self.frozen(self.body(x)))


def test_batch_norms_that_are_not_trained_or_not_called_are_as_they_were_in_the_average(data, tmp_path):
    tw.random.seed_everything(0)
    fields = {"threads": 1, "batch_size": 16, "epochs": 5, "augment": "none", "schedule": "constant", "lr": 0.05}
    run = tw.fit(data, out=tmp_path / "run", model=Parts(), quiet=True, average="ema", ema_decay=0.98, **fields)
    assert run.result["kept_weights"] == "ema"
    state = run.model.state_dict()
    for name, value in (("frozen.running_mean", 0.5), ("spare.running_mean", 0), ("spare.num_batches_tracked", 0)):
        assert (state[name] == value).all()
    assert state["body.2.running_mean"].any()


def test_noisy_steps_are_averaged_out(data, tmp_path):
    run, _ = _fit(data, tmp_path / "run", lr=0.05, batch_size=16, average="ema", ema_decay=0.98)
    raw, averaged = ([row[name] for row in run.history[1:]] for name in ("val_loss", "ema_val_loss"))
    assert sum(averaged) < sum(raw)


@pytest.mark.parametrize(
    ("fields", "steps"),  # of ten epochs of 7 steps each
    [
        ({"average": "ema"}, range(1, 71)),
        ({"average": "swa"}, [56, 63, 70]),
        ({"average": "swa", "average_epochs": 2}, [63, 70]),
        ({"average": "swa", "average_epochs": 99}, range(7, 71, 7)),
        ({"average": "latest"}, range(7, 71, 7)),
    ],
)
def test_when_the_weights_are_taken(fields, steps):
    averaging = make_average(nn.Linear(1, 1), Recipe(**fields), 70, 7)
    taken = []
    for step in range(1, 71):
        before = averaging.average.updates
        averaging.after_step(step, at_epochs_end=step % 7 == 0)
        taken += [step] * (averaging.average.updates - before)
    assert taken == list(steps)


def test_an_exponential_average_spans_a_quarter_of_the_run_at_most_10000_steps():
    decays = [make_average(nn.Linear(1, 1), Recipe(average="ema"), n, 7).average.decay for n in (3, 400, 10**6)]
    assert decays == pytest.approx([0, 0.99, 0.9999])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"average": "emma"}, "average must be one of none, ema, swa, latest.*did you mean 'ema'"),
        ({"average": "ema", "ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"ema_decay": 0.9}, "is for average='ema'"),
        ({"average": "ema", "average_epochs": 3}, "average_epochs is for average='swa' and average='latest'"),
        ({"average": "swa", "average_epochs": 0}, "average_epochs must be at least 1"),
    ],
)
def test_a_wrong_average_is_one_line(fields, words):
    with pytest.raises(InputError, match=words):
        Recipe(**fields)
