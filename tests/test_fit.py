"""`fit`, `resume`, `check` and what they leave behind."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import tomllib
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest
from torch import nn

import trainwell as tw
from trainwell.files import remove
from trainwell.train import folder
from trainwell.train.folder import at_work_in

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 6)) * 3
Y = np.arange(240) % 3
X = (CENTRES[Y] + RNG.normal(size=(240, 6))).astype(np.float32)
QUICK = {"folds": 1, "epochs": 3, "batch_size": 32, "threads": 1, "quiet": True}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return tw.fit("digits", out=tmp_path_factory.mktemp("runs") / "digits", **{**QUICK, "epochs": 4})


def test_a_run_leaves_model_history_result_and_report(digits):
    left = set(os.listdir(digits.path))
    assert left >= {"model.safetensors", "history.jsonl", "result.json", "report.html", "recipe.toml", "run.json",
                    "split.safetensors", "evaluation.safetensors", "mistakes.json", "checkpoints"}  # fmt: skip
    assert [row["epoch"] for row in digits.history] == [1, 2, 3, 4]
    assert set(digits.history[0]) == {"epoch", "step", "samples", "lr", "train_loss", "train_accuracy", "val_loss",
                                      "val_accuracy", "seconds"}  # fmt: skip
    assert tomllib.loads((digits.path / "recipe.toml").read_text())["epochs"] == 4
    assert digits.result["steps"] == 4 * 39


def test_the_result_is_what_the_kept_model_does_on_the_test_part(digits):
    split = load_file(digits.path / "split.safetensors")
    data = tw.load("digits")
    assert {name: len(rows) for name, rows in split.items()} == data.sizes
    rows = split["test"].numpy()
    images = np.stack([data.images[int(row)] for row in rows])
    predictions = digits.predict(images)
    right = sum(
        label == data.classes[target] for label, target in zip(predictions.labels, data.test.targets[rows], strict=True)
    )
    assert digits.result["test_accuracy"] == right / len(rows)
    interval = binomtest(right, len(rows)).proportion_ci(method="wilson")
    assert digits.result["test_interval"] == pytest.approx([interval.low, interval.high])
    best = max(row["val_accuracy"] for row in digits.history)
    assert digits.result["val_accuracy"] == best


def test_mistakes_are_mistakes_most_confident_first(digits):
    mistakes = json.loads((digits.path / "mistakes.json").read_text())
    data = tw.load("digits")
    assert [m["confidence"] for m in mistakes] == sorted((m["confidence"] for m in mistakes), reverse=True)
    pictures = load_file(digits.path / "mistakes.safetensors") if mistakes else {}
    for place, mistake in enumerate(mistakes):
        row = int(mistake["name"].removeprefix("sample "))
        assert data.test.targets[row] == mistake["true"] != mistake["predicted"]
        assert (pictures[str(place)].numpy() == data.images[row]).all()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(digits, tmp_path):
    again = tw.fit("digits", out=tmp_path / "again", **{**QUICK, "epochs": 4})
    other = tw.fit("digits", out=tmp_path / "other", seed=1, **{**QUICK, "epochs": 4})
    weights = [(run.path / "model.safetensors").read_bytes() for run in (digits, again, other)]
    assert weights[0] == weights[1] != weights[2]
    splits = [(run.path / "split.safetensors").read_bytes() for run in (digits, other)]
    assert splits[0] == splits[1]  # the split has a seed of its own


def test_fit_leaves_the_process_as_it_was(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tw.fit((X, Y), out=tmp_path / "run", **{**QUICK, "threads": 2})
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1


def test_features(tmp_path):
    run = tw.fit((X, Y), out=tmp_path / "run", **QUICK)
    assert run.result["test_accuracy"] > 0.9
    assert run.predict(X[:5]).outputs.shape == (5, 3)
    with pytest.raises(tw.InputError, match=r"samples of shape \(6,\), not \(4,\)"):
        run.predict(X[:, :4])
    with pytest.raises(tw.InputError, match="not finite"):
        run.predict(np.full((1, 6), np.nan))


def test_regression_with_a_metric(tmp_path):
    y = (X @ np.arange(6.0) / 10).astype(np.float32)
    run = tw.fit((X, y), out=tmp_path / "run", metrics={"mae": lambda o, t: float((o - t).abs().mean())},
                 **{**QUICK, "epochs": 40})  # fmt: skip
    assert run.result["test_loss"] < 0.2 * y.var()
    low, high = run.result["test_interval"]
    assert low < run.result["test_loss"] < high
    assert run.result["metrics"]["test_mae"]["value"] < 0.5 * np.abs(y - y.mean()).mean()
    assert "val_mae" in run.history[0]
    assert "test_accuracy" not in run.result
    assert np.abs(run.predict(X).outputs - y).mean() < 0.5 * np.abs(y - y.mean()).mean()


def test_several_labels_a_sample(tmp_path):
    y = np.stack([Y == 0, Y != 2], 1).astype(np.float32)
    run = tw.fit((X, y), out=tmp_path / "run", **{**QUICK, "epochs": 20})
    assert run.info["task"] == "multilabel"
    assert ((run.predict(X).outputs > 0.5) == y).mean() > 0.9


def test_losses_that_subtract_do_not_broadcast(tmp_path):
    y = (X @ np.arange(6.0) / 10).astype(np.float32)
    runs = [
        tw.fit((X, y), out=tmp_path / name, loss=loss, **{**QUICK, "epochs": 5})
        for name, loss in {"default": None, "module": nn.MSELoss(), "own": lambda o, t: (o - t).pow(2).mean()}.items()
    ]
    assert [[row["val_loss"] for row in run.history] for run in runs] == [[r["val_loss"] for r in runs[0].history]] * 3


def test_a_length_given_takes_the_place_of_the_recipes(tmp_path):
    run = tw.fit(
        (X, Y), out=tmp_path / "run", recipe=tw.Recipe(steps=200, batch_size=32, threads=1), epochs=2, quiet=True
    )
    assert run.result["epochs"] == 2


def test_among_equals_the_lower_loss_is_kept(tmp_path):
    run = tw.fit(
        (X, Y), out=tmp_path / "run", metrics={"same": lambda o, t: 0.5}, monitor="val_same", monitor_mode="max",
        **{**QUICK, "epochs": 6, "patience": 3},
    )  # fmt: skip
    losses = [row["val_loss"] for row in run.history]
    assert len(losses) == 4  # a tie is no gain for patience
    assert run.result["best_epoch"] == 1 + losses.index(min(losses)) > 1


def test_a_loss_of_ones_own(tmp_path):
    def absolute(outputs, targets):
        return (outputs - targets).abs().mean()

    y = X[:, 0] * 2
    run = tw.fit((X, y), out=tmp_path / "run", loss=absolute, **{**QUICK, "epochs": 20})
    error = np.abs(run.predict(X[tw.load((X, y)).test.indices]).outputs - y[tw.load((X, y)).test.indices]).mean()
    assert run.result["test_loss"] == pytest.approx(error, rel=1e-4)


def test_minutes_fix_the_steps_before_they_are_taken(tmp_path):
    run = tw.fit((X, Y), folds=1, out=tmp_path / "run", minutes=0.05, batch_size=32, quiet=True, threads=1)
    assert run.recipe.minutes is None
    assert run.recipe.steps == run.result["steps"] >= 1
    assert run.info["given"]["recipe"]["minutes"] == 0.05
    assert f"steps={run.recipe.steps}" in run.info["command"]  # the clock would give another number
    assert run.history[-1]["lr"] < 1e-3 * max(row["lr"] for row in run.history) + 1e-4  # the schedule came to its end


def test_minutes_leave_the_model_untouched(tmp_path):
    from trainwell.train.custom import Custom
    from trainwell.train.display import Display
    from trainwell.train.prepare import prepared

    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = tw.load((X, Y))
    with prepared(data, tw.Recipe(minutes=0.02, batch_size=32), Custom(model), Display(quiet=True)) as trainer:
        assert trainer.recipe.steps is not None
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_check_learns_a_batch_by_heart_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tw.dry_run("digits", threads=1, quiet=True)
    assert found.learns
    assert found.starts_at_chance
    assert found.chance_loss == pytest.approx(np.log(10))
    assert os.listdir(tmp_path) == []


def test_a_check_tells_of_a_model_that_cannot_learn_and_of_a_bad_start():
    class Deaf(nn.Linear):
        def forward(self, x):
            return super().forward(x * 0) * 0 + self.bias * 0 + torch.tensor([0.0, 50.0, 0.0])

    from trainwell.train.custom import Custom
    from trainwell.train.display import Display
    from trainwell.train.dry_run import learn_one_batch
    from trainwell.train.prepare import prepared

    with prepared(tw.load((X, Y)), tw.Recipe(), Custom(Deaf(6, 3)), Display(quiet=True)) as trainer:
        found = learn_one_batch(trainer, 3, most_steps=5)
    assert not found.learns
    assert not found.starts_at_chance


@pytest.mark.filterwarnings("ignore:the metric 'broken' failed")
def test_a_metric_that_has_no_answer_for_some_draws_costs_no_run(tmp_path):
    from sklearn.metrics import roc_auc_score

    def auc(outputs, targets):
        return float(roc_auc_score(targets, outputs[:, 1])) if len(targets.unique()) > 1 else float("nan")

    def strict(outputs, targets):
        if len(targets.unique()) < 2:
            raise ValueError("only one class")
        return auc(outputs, targets)

    def broken(outputs, targets):
        if len(targets) == 5:  # the test part
            raise ValueError("too few")
        return 1.0

    rows = np.flatnonzero(Y < 2)[:40]
    run = tw.fit((X[rows], Y[rows]), out=tmp_path / "run", metrics={"auc": auc, "strict": strict, "broken": broken},
                 folds=1, test=5, val=10, epochs=2, threads=1, quiet=True)  # fmt: skip
    low, high = run.result["metrics"]["test_auc"]["interval"]
    assert 0 <= low <= run.result["metrics"]["test_auc"]["value"] <= high <= 1
    assert run.result["metrics"]["test_strict"] == run.result["metrics"]["test_auc"]
    assert run.result["metrics"]["test_broken"] == {"value": None, "interval": [None, None]}
    assert run.report().exists()


def test_a_recipe_in_the_folder_is_not_taken_for_a_runs(tmp_path):
    (tmp_path / "recipe.toml").write_text("# mine\nepochs = 1\n")
    with pytest.raises(tw.InputError, match=r"not empty and holds no run \(recipe.toml\)"):
        tw.fit((X, Y), out=tmp_path, recipe=tmp_path / "recipe.toml", quiet=True)
    assert (tmp_path / "recipe.toml").read_text().startswith("# mine")


@pytest.mark.parametrize("after", range(21))
def test_a_removal_that_is_cut_off_can_be_done_again(after, digits, tmp_path, monkeypatch):
    shutil.copytree(digits.path, tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000100").mkdir(parents=True, exist_ok=True)
    _remove_cut_off(tmp_path / "run", after, monkeypatch)


@pytest.mark.parametrize("after", range(14))
def test_a_removal_of_an_ensemble_that_is_cut_off_can_be_done_again(after, tmp_path, monkeypatch):
    for name in ("ensemble.json", "report.html", "members/1/run.json"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).touch()
    _remove_cut_off(tmp_path / "all", after, monkeypatch)


def _remove_cut_off(path, after, monkeypatch):
    left = iter(range(after))

    def cut(path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(folder, "remove", cut)
    with contextlib.suppress(KeyboardInterrupt):
        folder.remove_run(path)
    folder.refuse_used(path, overwrite=True)


@pytest.mark.parametrize("outputs", [2, 1])
def test_answers_that_are_not_finite_on_the_test_part_are_told(outputs, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    data = tw.load((x, (x[:, 0] > 0).astype(int) if outputs == 2 else x[:, 0]), val=12, test=12)
    far = x.copy()
    far[data.test.indices[0]] = 100
    parts = {name: dataclasses.replace(part, inputs=far) for name, part in data.parts.items()}
    run = tw.fit(
        dataclasses.replace(data, **parts), model=Fails(3, outputs), epochs=1, out=tmp_path / "run", quiet=True
    )
    assert run.result["test_loss"] is None
    text = run.report().read_text()
    assert ("its loss is nan" in text) == (outputs == 1)


class Fails(nn.Linear):
    """Answers with NaN far from where it has learned."""

    def forward(self, x):
        return torch.where(x[:, :1] < 50, super().forward(x), torch.nan)


def test_a_run_among_the_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tw.InputError, match="lies in the folder of the images"):
        tw.fit(".", quiet=True)


@pytest.mark.parametrize("shape", [(8, 8), (300, 8, 3)])
def test_copies_among_arrays_stay_on_one_side(shape):
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), np.uint8)
    data = tw.load((np.concatenate([images, images]), np.arange(60) % 2), val=9, test=9)
    sides = [set((part.indices % 30).tolist()) for part in data.parts.values()]
    assert sum(map(len, sides)) == 30
    assert data.notices[0].text.startswith("60 images are the same as others (rows 0 and 30)")


# ------------------------------------------------------------------ resuming, and what is refused


def _cut(out, epochs=4, **options):
    """Leaves a run that was interrupted after its second epoch."""

    def interrupt(trainer, row):
        if row["epoch"] == 2:
            trainer.save()
            raise SystemError

    with pytest.raises(SystemError):
        tw.fit("digits", out=out, on_epoch_end=interrupt, **{**QUICK, "epochs": epochs, **options})


def test_resume_by_fit_and_by_path_give_the_bits_of_an_uninterrupted_run(digits, tmp_path):
    for number, go_on in enumerate(
        [
            lambda out: tw.resume(out, quiet=True),
            lambda out: tw.fit("digits", out=out, resume=True, **{**QUICK, "epochs": 4}),
        ]
    ):
        _cut(tmp_path / str(number))
        resumed = go_on(tmp_path / str(number))
        assert (resumed.path / "model.safetensors").read_bytes() == (digits.path / "model.safetensors").read_bytes()


def test_resume_with_a_damaged_checkpoint_uses_the_one_before(digits, tmp_path):
    _cut(tmp_path / "run", save_seconds=0)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "tensors.safetensors").write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match=newest.name):
        resumed = tw.resume(tmp_path / "run", quiet=True)
    assert (resumed.path / "model.safetensors").read_bytes() == (digits.path / "model.safetensors").read_bytes()


def test_a_done_run_on_arrays_is_returned_without_them(tmp_path):
    run = tw.fit((X, Y), out=tmp_path / "run", **QUICK)
    assert tw.resume(run.path, quiet=True).result == run.result


def test_a_done_run_is_returned_as_it_is(digits):
    before = (digits.path / "model.safetensors").stat().st_mtime_ns
    assert tw.resume(digits.path, quiet=True).result == digits.result
    assert (digits.path / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"epochs": 9}, "started with epochs=4, not 9"), ({"lr": 0.5}, "lr=None, not 0.5"),
     ({"val": 0.3}, "val=0.15, not 0.3"), ({"split_seed": 1}, "split_seed=0, not 1")],
)  # fmt: skip
def test_resuming_as_something_else_is_refused(digits, change, message):
    with pytest.raises(tw.InputError, match=message):
        tw.fit("digits", out=digits.path, resume=True, **{**QUICK, "epochs": 4, **change})


def test_resuming_on_other_data_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)

    def interrupt(trainer, row):
        raise SystemError

    with pytest.raises(SystemError):
        tw.fit(tmp_path / "d.npz", out=tmp_path / "run", on_epoch_end=interrupt, **QUICK)
    np.savez(tmp_path / "d.npz", x=X + 1, y=Y)
    with pytest.raises(tw.InputError, match="not what .* was trained on"):
        tw.resume(tmp_path / "run", quiet=True)


def test_what_was_given_must_be_given_again(tmp_path):
    def interrupt(trainer, row):
        raise SystemError

    def loss(outputs, targets):
        return outputs.square().mean()

    with pytest.raises(SystemError):
        tw.fit((X, Y), out=tmp_path / "run", model=nn.Linear(6, 3), loss=loss, metrics={"zero": lambda o, t: 0.0},
               on_epoch_end=interrupt, **QUICK)  # fmt: skip
    for given, message in [
        ({}, "given a model of yours"),
        ({"model": nn.Linear(6, 3)}, "given a loss of yours"),
        ({"model": nn.Linear(6, 3), "loss": loss}, "lacks zero"),
        ({"model": nn.Linear(6, 3), "loss": loss, "metrics": {"zero": lambda o, t: 0.0}}, "trained on arrays"),
    ]:
        with pytest.raises(tw.InputError, match=message):
            tw.resume(tmp_path / "run", quiet=True, **given)


def test_a_used_folder_is_refused_and_nothing_in_it_touched(digits, tmp_path):
    with pytest.raises(tw.InputError, match="holds a run.*--resume.*--overwrite"):
        tw.fit("digits", out=digits.path, **QUICK)
    (tmp_path / "thesis.txt").write_text("all my work")
    for overwrite in (False, True):
        with pytest.raises(tw.InputError, match="not empty and holds no run"):
            tw.fit("digits", out=tmp_path, overwrite=overwrite, **QUICK)
    assert (tmp_path / "thesis.txt").read_text() == "all my work"
    (tmp_path / "file").write_text("")
    with pytest.raises(tw.InputError, match="is a file"):
        tw.fit("digits", out=tmp_path / "file", **QUICK)


def test_two_runs_cannot_share_a_folder(tmp_path):
    started, finish = threading.Event(), threading.Event()

    def work():
        with at_work_in(tmp_path / "run"):
            started.set()
            finish.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(60)
    try:
        with pytest.raises(tw.InputError, match="another run is at work"):
            tw.fit("digits", out=tmp_path / "run", **QUICK)
    finally:
        finish.set()
        thread.join(60)


def test_overwrite_starts_anew(tmp_path):
    tw.fit((X, Y), out=tmp_path / "run", **QUICK)
    run = tw.fit((X, Y), out=tmp_path / "run", overwrite=True, **{**QUICK, "epochs": 1})
    assert len(run.history) == 1


def test_without_out_a_new_folder_below_runs_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert str(tw.fit((X, Y), **{**QUICK, "epochs": 1}).path) == os.path.join("runs", f"run-{number}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"split_sed": 3}, "did you mean 'split_seed'"),
     ({"epoch": 3}, "did you mean 'epochs'"), ({"device": "gpu"}, "device 'gpu' cannot be used"),
     ({"model": "resnet9"}, "unknown model 'resnet9'"), ({"model": "resnet8"}, "needs images")],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_leaves_no_run(fields, message, tmp_path):
    with pytest.raises(tw.InputError, match=message) as caught:
        tw.fit((X, Y), out=tmp_path / "run", **{**QUICK, **fields})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()
    tw.fit((X, Y), out=tmp_path / "run", **{**QUICK, "epochs": 1})  # the folder can be used afterwards


# ------------------------------------------------------------------ what does not go together


class TwoOutputs(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def _not_of_one_sample(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets) * (1 if outputs.sum().item() > 0 else 2)


WEIGHT = torch.tensor([1.0, 10.0, 100.0])
PROBABILITIES = nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))
ONE_STEP = {"lr": 1e-3, "steps": 1, "epochs": None}


def _weighted(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, weight=WEIGHT)


def _of_probabilities(outputs, targets):
    return nn.functional.nll_loss(outputs.log(), targets)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": nn.Linear(6, 2)}, r"returns shape \(2, 2\) for a batch of 2, not \(2, 3\)"),
        ({"model": nn.Linear(5, 3)}, r"cannot take a float32 batch of shape \(2, 6\) .RuntimeError"),
        ({"model": nn.Linear(6, 3).double()}, "cannot take a float32 batch"),
        ({"model": TwoOutputs(6, 3)}, "must return a tensor, not a tuple"),
        ({"model": nn.Linear}, "make an instance of it"),
        ({"model": nn.ReLU()}, "no parameter to train"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "one number, the mean"),
        ({"loss": nn.BCEWithLogitsLoss()}, "the loss cannot take outputs"),
        ({"loss": "mse"}, "loss must be a function"),
        ({"loss": nn.CrossEntropyLoss(), "label_smoothing": 0.1}, "label_smoothing is for the classification loss"),
        ({"cutmix": 1.0}, "cutmix pastes parts of images"),
        ({"mixup": 0.2, "loss": _not_of_one_sample}, "take the loss of each sample, and this one cannot"),
        ({"mixup": 0.2, "loss": nn.CrossEntropyLoss(weight=WEIGHT)}, "class weights in a batch, .* they would cancel"),
        ({"mixup": 0.2, "loss": _weighted}, "take the loss of each sample, and this one is not the mean of those"),
        ({"mixup": 0.2, "loss": partial(tw.regularize.cross_entropy, weight=WEIGHT), **ONE_STEP}, None),
        ({"mixup": 0.2, "class_weight": "balanced", "model": "mlp", **ONE_STEP}, None),
        ({"mixup": 0.2, "loss": _of_probabilities, "model": PROBABILITIES, **ONE_STEP}, None),
        ({"model": "mlp", "drop_path_rate": 0.1}, "no residual branch"),
        ({"metrics": [print]}, "metrics must map names"),
        ({"metrics": {"loss": max}}, "cannot be called 'loss'"),
        ({"batch_size": 1}, "batch norm needs at least 2"),
        ({"batch_size": 4, "grad_accum_steps": 4, "model": "mlp", "lr": 1e-3, "steps": 1, "epochs": None}, None),
        ({"recipe": 3}, "recipe must be a Recipe"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_done(given, message, tmp_path):
    words = {**QUICK, "batch_size": 8, **given}
    if message is None:
        assert tw.fit((X, Y), out=tmp_path / "run", **words).result["steps"] == 1
        return
    with pytest.raises(tw.InputError, match=message) as caught:
        tw.fit((X, Y), out=tmp_path / "run", **words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bad_input_beside_overwrite_loses_nothing(digits):
    before = sorted(path.name for path in digits.path.iterdir())
    for bad in ({"source": "nowhere"}, {"source": "digits", "model": nn.Linear(1, 1)}):
        with pytest.raises(tw.InputError):
            tw.fit(bad.pop("source"), out=digits.path, overwrite=True, **QUICK, **bad)
    assert sorted(path.name for path in digits.path.iterdir()) == before


def test_a_start_does_not_take_another_tools_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=9.ckpt").write_text("precious")
    with pytest.raises(tw.InputError, match="not empty and holds no run"):
        tw.fit((X, Y), out=tmp_path, overwrite=True, **QUICK)
    assert (tmp_path / "checkpoints" / "epoch=9.ckpt").read_text() == "precious"


def test_the_written_command_makes_the_run_again(tmp_path):
    made = tw.fit("digits", out=tmp_path / "my run", val=0.3, split_seed=4, restore_best=False, **QUICK)
    assert made.info["command"] == (
        "trainwell fit digits --val 0.3 --split-seed 4 --folds 1 --epochs 3 --batch-size 32 --no-restore-best "
        "--threads 1"
    )
    own = tw.fit((X, Y), out=tmp_path / "own", loss=nn.CrossEntropyLoss(), **QUICK)
    assert own.info["command"].startswith("tw.fit(data, loss=loss, folds=1, epochs=3")


def test_a_finished_run_without_its_report_gets_it(tmp_path):
    run = tw.fit((X, Y), out=tmp_path / "run", **QUICK)
    (run.path / "report.html").unlink()
    tw.resume(run.path, data=(X, Y), quiet=True)
    assert (run.path / "report.html").exists()


class Odd(nn.Module):
    """Random in evaluation too, with a buffer that no state dict holds, and a batch norm put in evaluation."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6).eval(), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls += 1
        x = self.norm(x) * (1 + 0.01 * self.calls)
        return self.head(x + 0.1 * torch.randn_like(x))


def test_odd_models_resume_to_the_bit_too(tmp_path):
    def interrupt(trainer, row):
        if row["epoch"] == 2:
            trainer.save()
            raise SystemError

    data = tw.load((X, Y))
    torch.manual_seed(0)
    whole = tw.fit(data, out=tmp_path / "whole", model=Odd(), **QUICK)
    torch.manual_seed(0)
    with pytest.raises(SystemError):
        tw.fit(data, out=tmp_path / "cut", model=Odd(), on_epoch_end=interrupt, **QUICK)
    resumed = tw.resume(tmp_path / "cut", data=data, model=Odd(), quiet=True)
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert resumed.result["test_loss"] == whole.result["test_loss"]
    state = load_file(whole.path / "model.safetensors")
    assert torch.equal(state["norm.running_mean"], torch.zeros(6))  # what was put in evaluation stayed there
    assert torch.equal(state["norm.num_batches_tracked"], torch.tensor(0))


def test_resuming_with_another_model_is_one_clear_line(tmp_path):
    def interrupt(trainer, row):
        raise SystemError

    with pytest.raises(SystemError):
        tw.fit((X, Y), out=tmp_path / "run", model=nn.Linear(6, 3), on_epoch_end=interrupt, **QUICK)
    other = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    with pytest.raises(tw.InputError, match="of another model") as caught:
        tw.resume(tmp_path / "run", data=(X, Y), model=other, quiet=True)
    assert "\n" not in str(caught.value)


def test_it_says_what_noise_is_in_the_model_and_hands_it_over_with_it(tmp_path, capsys):
    noise = {"drop_rate": 0.3, "drop_map_rate": 0.1, "drop_path_rate": 0.1, "dropconnect": 0.2}
    run = tw.fit("digits", out=tmp_path / "run", folds=1, steps=1, **noise)
    told = "Dropout of 0.1 to 0.3 in 7 places, StochasticDepth of 0.05 to 0.1 in 2 places, DropConnect of 0.2"
    assert f"noise in training: {told}\n" in capsys.readouterr().err
    x = torch.rand(3, 1, 8, 8)
    for model in (run.model, tw.Run(tmp_path / "run").model):
        torch.testing.assert_close(model(x), run.model(x))
        assert tw.ensemble.marginalize(model, x, samples=5).std.min() > 0
    tw.fit("digits", out=tmp_path / "quiet", folds=1, steps=1)
    assert "noise in training" not in capsys.readouterr().err
