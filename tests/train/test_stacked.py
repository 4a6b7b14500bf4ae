"""Trainers together: each ends up with what it has alone."""

import contextlib
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import trainwell as tw
from trainwell.errors import DivergedError, InputError
from trainwell.models import MLP, resnet8
from trainwell.train import stacked
from trainwell.train.custom import Custom
from trainwell.train.prepare import prepared
from trainwell.train.stacked import refusal, run_stacked, step_time

X, Y = load_digits(return_X_y=True)
X = X.astype(np.float32)
FEATURES = tw.load((X[:300], Y[:300]), val=50, test=50)
IMAGES = tw.load((X[:300].reshape(-1, 8, 8).astype(np.uint8) * 16, Y[:300]), val=50, test=50)
BASE = {"batch_size": 50, "epochs": 3, "threads": 1, "precision": "fp32"}


@pytest.fixture
def trainer():
    with contextlib.ExitStack() as stack:

        def make(folder=None, data=FEATURES, model=None, loss=None, **fields):
            recipe = tw.Recipe(**{**BASE, **fields})
            torch.manual_seed(fields.get("seed", 0))
            custom = Custom(model() if model else None, loss)
            made = stack.enter_context(prepared(data, recipe, custom))
            made.classification = True
            if folder is not None:
                folder.mkdir(exist_ok=True)
                made.keep_in(folder)
            return made

        yield make


def doubled(made):
    """Lets a trainer compute in double precision."""
    made.model.double()
    for batches in (made.train, made.val):
        batch = batches.batch
        batches.batch = lambda *where, batch=batch: (batch(*where)[0].double(), batch(*where)[1])
    made.__init__(made.model, made.train, made.val, made.recipe, made.hardware, (made.objective, made.reported))
    return made


def same(ours, theirs, most):
    """Compares all that a trainer would save."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in ("step", "epoch", "batch", "stop_reason"):
        assert a[name] == b[name], name
    for name, value in b["model"].items():
        torch.testing.assert_close(a["model"][name], value, rtol=most, atol=most, msg=name)
    assert a["optimizer"]["state"].keys() == b["optimizer"]["state"].keys()
    for i, values in b["optimizer"]["state"].items():
        assert a["optimizer"]["state"][i].keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(a["optimizer"]["state"][i][name], value, rtol=most, atol=most, msg=f"{i} {name}")
    groups = [
        [{k: v for k, v in g.items() if k != "schedules"} for g in x["optimizer"]["param_groups"]] for x in (a, b)
    ]
    assert groups[0] == groups[1]
    assert len(a["history"]) == len(b["history"])
    for row, other in zip(a["history"], b["history"], strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds"}:
            assert row[name] == pytest.approx(other[name], rel=most, abs=most), name


RUNS = {
    "mlp, adamw": (
        FEATURES, None, {"drop_rate": 0.2}, ({"lr": 0.001}, {"lr": 0.003, "weight_decay": 0.2}, {"seed": 5}),
    ),
    "resnet8, sgd": (
        IMAGES, lambda: resnet8(in_chans=1, width=4, drop_rate=0.2, drop_path_rate=0.3),
        {"optimizer": "sgd", "augment": "light"},
        ({"lr": 0.05, "momentum": 0.8}, {"lr": 0.1, "clip_grad": 0.5}, {"lr": 0.02, "seed": 3, "l1": 1e-4}),
    ),
    "losses and lengths": (
        FEATURES, None, {"optimizer": "nadam"},
        ({"label_smoothing": 0.1}, {"mixup": 0.3, "epochs": 2}, {"schedule": "constant", "average": "ema"}),
    ),
    "the same rates": (FEATURES, None, {"optimizer": "rmsprop", "label_smoothing": 0.1}, ({"seed": 1}, {"seed": 2})),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("precision", ["double", "single"])
def test_each_trainer_ends_with_what_it_has_alone(name, precision, trainer):
    data, model, common, each = RUNS[name]

    def make():
        made = [trainer(data=data, model=model, **common, **own) for own in each]
        return [doubled(one) for one in made] if precision == "double" else made

    ours, theirs = make(), make()
    run_stacked(ours)
    for one in theirs:
        one.run()
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, 1e-6 if precision == "double" else 5e-3)
    if precision == "single":
        return
    for one in ours:  # afterwards they go their own way
        held = [*one.model.state_dict().values(), *(x for y in one.optimizer.state.values() for x in y.values())]
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in held)


def test_one_that_stops_early_drops_out_and_the_others_go_on(trainer):
    def make():
        made = [doubled(trainer(lr=lr, epochs=4)) for lr in (1e-3, 2e-3, 3e-3)]
        made[1].on_epoch_end = lambda one, row: row["epoch"] == 2 and one.stop("enough")
        return made

    ours, theirs = make(), make()
    run_stacked(ours)
    for one in theirs:
        one.run()
    assert [one.stop_reason for one in ours] == ["all 4 epochs done", "enough", "all 4 epochs done"]
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, 1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_from_the_middle_goes_on_alone_and_together(optimizer, trainer, tmp_path):
    """Interrupted together after step 6, member 1 has gone on alone to step 9: the others catch up."""
    fields = [{"lr": lr, "optimizer": optimizer} for lr in (1e-3, 2e-3, 3e-3)]
    theirs = [trainer(**own) for own in fields]
    for one in theirs:
        one.run()

    def interrupt_at(step):
        return lambda one: one.step == step and signal.raise_signal(signal.SIGINT)

    ours = [trainer(tmp_path / str(k), **own) for k, own in enumerate(fields)]
    ours[2].on_step = interrupt_at(6)
    with pytest.raises(KeyboardInterrupt, match="saved after step 6 of 12"):
        run_stacked(ours)
    assert [one.step for one in ours] == [6, 6, 6]
    alone = trainer(tmp_path / "1", **fields[1])
    alone.resume()
    alone.on_step = interrupt_at(9)
    with pytest.raises(KeyboardInterrupt, match="after step 9"):
        alone.run()
    again = [trainer(tmp_path / str(k), **own) for k, own in enumerate(fields)]
    for one in again:
        one.resume()
    assert [one.step for one in again] == [6, 9, 6]
    run_stacked(again)
    for a, b in zip(again, theirs, strict=True):
        same(a, b, 2e-3)
    kept = trainer(tmp_path / "0", **fields[0])
    kept.resume()
    assert (kept.step, kept.stop_reason) == (12, "all 3 epochs done")
    same(kept, again[0], 0)


class Poisoned(nn.Module):
    """A loss that is not finite at the n-th time it is asked for."""

    def __init__(self, at):
        super().__init__()
        self.at, self.times = at, 0

    def forward(self, outputs, targets):
        self.times += torch.is_grad_enabled()
        return nn.functional.cross_entropy(outputs, targets) * (float("nan") if self.times == self.at else 1)


def test_what_is_not_finite_is_stepped_by_none(trainer):
    losses = [Poisoned(0), Poisoned(3), Poisoned(0)]
    ours = [trainer(loss=loss) for loss in losses]
    with pytest.raises(DivergedError, match=r"^member 2 of 3: not finite at step 3 .*the loss is nan") as caught:
        run_stacked(ours)
    assert "\n" not in str(caught.value)
    assert [one.step for one in ours] == [2, 2, 2]
    theirs = trainer(loss=Poisoned(0))
    for _ in range(2):
        theirs.train_step()
    for k in (0, 1, 2):
        for name, value in theirs.model.named_parameters():
            torch.testing.assert_close(ours[k].model.get_parameter(name), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", [0, 1])
def test_the_others_go_on_as_if_what_diverges_had_not_been_there(place, trainer):
    def model():
        return resnet8(in_chans=1, width=4)  # with batch norms, which a pass moves

    def make():
        losses = [Poisoned(3 if k == place else 0) for k in range(3)]
        return [
            doubled(trainer(data=IMAGES, model=model, loss=losses[k], lr=lr, augment="none", epochs=2))
            for k, lr in enumerate((1e-3, 2e-3, 3e-3))
        ]

    ours, theirs, told = make(), make(), {}
    run_stacked(ours, lambda place, error: told.update({place: str(error)}))
    assert told.keys() == {place}
    assert told[place].startswith("not finite at step 3 ")
    assert (ours[place].step, ours[place].stop_reason) == (2, "")
    for k in {0, 1, 2} - {place}:
        theirs[k].run()
        same(ours[k], theirs[k], 1e-6)


def test_one_whose_validation_loss_is_not_finite_drops_out_at_the_end_of_its_epoch(trainer):
    ours, theirs = ([doubled(trainer(lr=lr)) for lr in (1e-3, 2e-3)] for _ in range(2))
    ours[0].validate = lambda: {"val_loss": float("inf"), "val_accuracy": 0.0}
    told = []
    run_stacked(ours, lambda *what: told.append(what))
    assert [place for place, _ in told] == [0]
    assert "the validation loss is inf" in str(told[0][1])
    theirs[1].run()
    same(ours[1], theirs[1], 1e-6)


def test_all_may_diverge(trainer):
    told = []
    run_stacked([trainer(loss=Poisoned(n)) for n in (2, 2, 4)], lambda place, _: told.append(place))
    assert sorted(told) == [0, 1, 2]


def test_gradients_are_clipped_for_each(trainer):
    fields = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "steps": 1, "epochs": None,
              "schedule": "constant"}  # fmt: skip
    ours = [trainer(clip_grad=clip, **fields) for clip in (1e-3, 1e-2, None)]
    before = [[p.detach().clone() for p in one.model.parameters()] for one in ours]
    run_stacked(ours)
    moved = [
        float(torch.cat([(p.detach() - q).flatten() for p, q in zip(one.model.parameters(), old, strict=True)]).norm())
        for one, old in zip(ours, before, strict=True)
    ]
    assert moved[:2] == pytest.approx([1e-4, 1e-3], rel=1e-2)
    assert moved[2] > 1e-2


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ({"sam": 0.05}, {}, "sam"),
        ({"grad_accum_steps": 2}, {"grad_accum_steps": 2}, "grad_accum_steps"),
        ({"optimizer": "muon"}, {"optimizer": "muon"}, "muon works on whole matrices"),
        ({"optimizer": "soap"}, {}, "soap works on whole matrices"),
        ({"on_nonfinite": "halve"}, {}, "on_nonfinite='halve'"),
        ({"batch_size": 25}, {}, "batch_size is 25 in one run and 50"),
        ({"optimizer": "sgd"}, {}, "optimizer is sgd in one run and adamw"),
        ({"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "sgd"}, "momentum is 0 in some runs"),
        ({"optimizer": "sgd", "nesterov": False}, {"optimizer": "sgd"}, "nesterov is true in some runs"),
        ({"model": lambda: MLP(64, 10, (8,))}, {"model": lambda: MLP(64, 10, (9,))}, "the members differ"),
        ({"model": lambda: nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5))}, "same", "torch's Dropout"),
    ],
)
def test_what_cannot_be_together_is_told_in_one_line(one, other, why, trainer):
    two = [trainer(**one), trainer(**(one if other == "same" else other))]
    told = refusal(two)
    assert why in told
    assert "\n" not in told
    with pytest.raises(InputError) as caught:
        run_stacked(two)
    assert str(caught.value) == told
    assert [one.step for one in two] == [0, 0]


def test_what_goes_together_is_not_refused(trainer):
    assert refusal([trainer(lr=0.1, seed=1, mixup=0.2), trainer()]) == ""
    assert refusal([trainer(), trainer(seed=4)]) == ""
    assert "nothing" in refusal([])
    assert "batches" in refusal([trainer(), trainer(data=tw.load((X[:300, :32], Y[:300]), val=50, test=50))])


def test_the_time_of_a_step_is_taken_with_everything_left_as_it_was(trainer, monkeypatch):
    ours, theirs = ([trainer(lr=lr) for lr in (1e-3, 2e-3)] for _ in range(2))
    state = torch.get_rng_state()
    times = iter(range(100))
    monkeypatch.setattr(stacked, "time", SimpleNamespace(monotonic=lambda: float(next(times) ** 2)))
    assert step_time(ours, 3) == 13.0  # between 4², 5², 6², 7², 8² and 9²
    monkeypatch.undo()
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, 0)
