"""The step, and what happens when numbers are not finite."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import trainwell as tw
from trainwell.errors import DivergedError, InputError
from trainwell.train import Trainer

X, Y = load_digits(return_X_y=True)
X = X.astype(np.float32)


class Linear(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def _fit(out, model=None, loss=None, **fields):
    fields = {"batch_size": 50, "epochs": 2, "threads": 1, "optimizer": "sgd", "lr": 0.1, **fields}
    return tw.fit(
        (X[:300], Y[:300]), folds=1, out=out, model=model or Linear(), loss=loss, quiet=True, val=50, test=50, **fields
    )


def _weights(run):
    return run.model.state_dict()


def test_the_loop_is_the_loop_that_anybody_would_write(tmp_path):
    run = _fit(tmp_path / "run", momentum=0.9, weight_decay=0.01, restore_best=False)
    data = tw.load((X[:300], Y[:300]), val=50, test=50)
    x = X[data.train.indices].astype(np.float64)
    std = x.std(0)
    x, y = (
        torch.from_numpy((x - x.mean(0)) / np.where(std > 0, std, 1)).float(),
        torch.from_numpy(Y[data.train.indices]),
    )
    model = Linear()
    optimizer = torch.optim.SGD([{"params": [model.weight], "weight_decay": 0.01}, {"params": [model.bias]}],
                                lr=0.1, momentum=0.9, nesterov=True)  # fmt: skip
    rate = tw.schedules.cosine(0.1, steps=8)  # warmup rounds to nothing over 8 steps
    for step in range(8):
        order = torch.from_numpy(tw.random.permutation(200, 0, "order", step // 4))
        rows = order[step % 4 * 50 : step % 4 * 50 + 50]
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(_weights(run)["weight"], model.weight.detach(), rtol=1e-4, atol=1e-6)
    assert run.history[-1]["samples"] == 400


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = _fit(tmp_path / "whole", batch_size=100)
    pieces = _fit(tmp_path / "pieces", batch_size=25, grad_accum_steps=4)
    torch.testing.assert_close(_weights(pieces)["weight"], _weights(whole)["weight"], rtol=1e-5, atol=1e-7)
    for a, b in zip(whole.history, pieces.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["train_accuracy"] == b["train_accuracy"]


def test_a_clipped_gradient_has_the_length_asked_for(tmp_path):
    run = _fit(
        tmp_path / "run", clip_grad=1e-3, steps=1, epochs=None, schedule="constant", momentum=0.0, weight_decay=0.0
    )
    moved = torch.cat([value.flatten() for value in _weights(run).values()]).norm()
    assert float(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)


class Poisoned(nn.Module):
    """A loss that is not finite at the n-th time it is asked for."""

    def __init__(self, at, what):
        super().__init__()
        self.at, self.what, self.times = at, what, 0

    def forward(self, outputs, targets):
        if not torch.is_grad_enabled():
            return F.cross_entropy(outputs, targets)
        self.times += 1
        loss = F.cross_entropy(outputs, targets)
        if self.times != self.at:
            return loss
        return loss * float(self.what) if self.what != "gradient" else loss + (outputs * 0).abs().sqrt().sum()


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_what_is_not_finite_is_never_stepped_and_the_last_good_state_is_kept(what, tmp_path):
    with pytest.raises(DivergedError, match=r"step 6 \(epoch 2\), at a rate of 0\.0\d+.*try a lower lr") as caught:
        _fit(tmp_path / "run", loss=Poisoned(6, what), save_seconds=0)
    assert "\n" not in str(caught.value)
    state = tw.train.CheckpointFolder(tmp_path / "run" / "checkpoints").load()
    assert state["step"] == 5
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    resumed = tw.resume(tmp_path / "run", data=(X[:300], Y[:300]), model=Linear(), loss=Poisoned(0, what), quiet=True)
    assert resumed.result["steps"] == 8


def test_halving_goes_back_to_the_epochs_end_with_half_the_rate(tmp_path):
    loss = Poisoned(7, "nan")
    run = _fit(tmp_path / "run", loss=loss, on_nonfinite="halve", epochs=3, schedule="constant", save_seconds=0)
    assert loss.times == 12 + 3  # steps 5 to 7 were taken, or tried, twice
    assert [row["lr"] for row in run.history] == [0.1, 0.05, 0.05]
    assert [row["step"] for row in run.history] == [4, 8, 12]
    assert run.result["halvings"] == 1


def test_halving_ends_where_it_does_not_help(tmp_path):
    class AlwaysNan(nn.Module):
        def forward(self, outputs, targets):
            return outputs.sum() * float("nan")

    with pytest.raises(DivergedError, match="after 10 halvings"):
        _fit(tmp_path / "run", loss=AlwaysNan(), on_nonfinite="halve")


def test_an_unknown_monitor_is_told_before_anything_is_done(tmp_path):
    with pytest.raises(InputError, match="val_f1.*none of val_accuracy, val_balanced_accuracy, val_loss"):
        _fit(tmp_path / "run", monitor="val_f1", monitor_mode="max")
    assert not (tmp_path / "run").exists()


def test_whether_less_is_better_of_a_metric_of_ones_own_must_be_said(tmp_path):
    def planted():
        values = iter([3.0, 1.0, 2.0] + [0.0] * 2_000)
        return {"error": lambda outputs, targets: next(values)}

    with pytest.raises(InputError, match="monitor_mode whether 'min' or 'max'"):
        _fit(tmp_path / "run", metrics=planted(), monitor="val_error")
    for mode, best in (("min", 2), ("max", 1)):
        run = _fit(tmp_path / mode, metrics=planted(), monitor="val_error", monitor_mode=mode, epochs=3)
        assert run.result["best_epoch"] == best


def test_the_kept_weights_are_those_of_the_best_epoch(tmp_path):
    planted = iter([0.1, 0.9, 0.5, 0.4] + [0.0] * 2_000)
    seen = []
    run = tw.fit(
        (X[:300], Y[:300]), folds=1, out=tmp_path / "run", model=Linear(), quiet=True, val=50, test=50, batch_size=50,
        epochs=4, metrics={"planted": lambda outputs, targets: next(planted)}, monitor="val_planted",
        monitor_mode="max",
        on_epoch_end=lambda trainer, row: seen.append(trainer.model.weight.detach().clone()),
    )  # fmt: skip
    assert run.result["best_epoch"] == 2
    assert torch.equal(run.model.weight, seen[1])
    assert torch.equal(tw.Run(tmp_path / "run", Linear()).model.weight, seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_a_stopped_run_says_why(tmp_path):
    planted = iter([0.5, 0.4, 0.3] + [0.0] * 2_000)
    run = tw.fit(
        (X[:300], Y[:300]), folds=1, out=tmp_path / "run", model=Linear(), quiet=True, batch_size=50, epochs=9,
        patience=2, metrics={"planted": lambda outputs, targets: next(planted)}, monitor="val_planted",
        monitor_mode="max",
    )  # fmt: skip
    assert run.result["stop_reason"] == "no gain in val_planted for 2 epochs"
    assert (run.result["epochs"], run.result["best_epoch"]) == (3, 1)
    run = tw.fit(
        (X[:300], Y[:300]), folds=1, out=tmp_path / "other", model=Linear(), quiet=True, epochs=9,
        on_epoch_end=lambda trainer, row: row["epoch"] == 2 and trainer.stop("seen enough"),
    )  # fmt: skip
    assert (run.result["stop_reason"], run.result["epochs"]) == ("seen enough", 2)


def test_ctrl_c_saves_after_the_step_and_says_how_to_go_on(tmp_path):
    import signal

    def interrupt(trainer, row):
        if row["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    data = tw.load((X[:300], Y[:300]), val=50, test=50)
    whole = tw.fit(data, out=tmp_path / "whole", model=Linear(), quiet=True, epochs=3, batch_size=50)
    with pytest.raises(KeyboardInterrupt, match="after step 4 of 12.*go on with"):
        tw.fit(data, out=tmp_path / "cut", model=Linear(), quiet=True, epochs=3, batch_size=50, on_epoch_end=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = tw.resume(tmp_path / "cut", data=data, model=Linear(), quiet=True)
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


def test_a_trainer_works_without_a_folder():
    data = tw.load((X[:300], Y[:300]), val=50, test=50)
    from trainwell.train.custom import Custom
    from trainwell.train.display import Display
    from trainwell.train.prepare import prepared

    with prepared(data, tw.Recipe(epochs=2, batch_size=50), Custom(Linear()), Display(quiet=True)) as trainer:
        assert isinstance(trainer, Trainer)
        trainer.run()
    assert len(trainer.history.rows) == 2
    json.dumps(trainer.history.rows)


def test_stop_ends_the_run_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def step(self):
        train_step(self)
        if self.step == 2:
            self.stop("enough")

    monkeypatch.setattr(Trainer, "train_step", step)
    run = _fit(tmp_path / "run", epochs=3)
    assert (run.result["stop_reason"], run.result["epochs"], run.result["steps"]) == ("enough", 1, 4)


def test_a_validation_loss_that_is_not_finite_is_no_state_to_keep(tmp_path, monkeypatch):
    """The last step of an epoch spoils the weights: what is kept, and gone back to, is the state before."""
    train_step = Trainer.train_step

    def step(self):
        train_step(self)
        if self.step == 8 and self.lr_scale == 1:
            self.model.weight.data.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(DivergedError, match="validation loss is nan"):
        _fit(tmp_path / "stop", epochs=3, save_seconds=1e9)
    run = _fit(tmp_path / "halve", epochs=3, on_nonfinite="halve")
    assert run.result["halvings"] == 1
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert all(torch.isfinite(value).all() for value in _weights(run).values())
