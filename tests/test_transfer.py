"""From a pretrained model to a run: `fit` with `pretrained` and `transfer`."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trainwell as tw
from some_digits import some_digits
from trainwell.cli import main
from trainwell.models import resnet18
from trainwell.optim import range_test
from trainwell.train import Trainer, result

TINY = {"batch_size": 32, "threads": 1, "precision": "fp32", "augment": "none", "quiet": True}


@pytest.fixture(scope="module")
def data():
    images, targets = some_digits([6, 7, 8, 9])
    return tw.load((images[:240], targets[:240]), val=60, test=100)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run on other digits."""
    return tw.fit(
        some_digits([0, 1, 2, 3, 4, 5]), out=tmp_path_factory.mktemp("before") / "run", model="resnet8", epochs=12,
        folds=1, **TINY,
    )  # fmt: skip


def _fit(data, before, out, **fields):
    return tw.fit(data, out=out, pretrained=str(before.path), **{**TINY, "epochs": 6, **fields})


def _weights(run):
    return load_file(run.path / "model.safetensors")


def _same(run, before, names):
    start, end = load_file(before.path / "model.safetensors"), _weights(run)
    return all(end[name].equal(start[name]) for name in start if name.split(".")[0] in names)


BELOW = ["conv1", "bn1", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize(("way", "frozen", "average"), [
    ("linear", BELOW, "none"), ("linear", BELOW, "ema"), ("top1", BELOW[:-1], "ema"), ("top1", BELOW[:-1], "swa"),
    ("top1", BELOW[:-1], "latest"), ("top2", BELOW[:-2], "none"),
])  # fmt: skip
def test_what_is_frozen_is_unchanged_to_the_bit(way, frozen, average, data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer=way, average=average, weight_decay=0.1, epochs=3)
    assert _same(run, before, frozen)
    assert not _same(run, before, ["fc"])
    assert way == "linear" or not _same(run, before, ["layer3"])


@pytest.mark.parametrize("fields", [
    {"transfer": "linear"}, {"transfer": "linear", "augment": "light", "lr": 0.02}, {"transfer": "top1"},
    {"transfer": "gradual"},
    {"transfer": "all", "layer_decay": 0.7, "average": "ema"}, {"transfer": "all", "l2_sp": 0.05},
    {"transfer": "lp_ft"}, {"transfer": "gradual", "l2_sp": 0.05, "optimizer": "sgd", "lr": 0.02},
], ids=str)  # fmt: skip
def test_each_way_learns_and_resumes_to_the_bit(fields, data, before, tmp_path, monkeypatch):
    whole = _fit(data, before, tmp_path / "whole", **fields)
    assert whole.result["test_accuracy"] > 0.5  # chance is a quarter
    take = Trainer.train_step

    def fail(self):
        if self.step == 5:
            raise SystemError("the machine went down")
        take(self)

    monkeypatch.setattr(Trainer, "train_step", fail)
    moved = tmp_path / "before"
    shutil.copytree(before.path, moved)
    with pytest.raises(SystemError):
        tw.fit(data, out=tmp_path / "run", pretrained=str(moved), save_seconds=0, **{**TINY, "epochs": 6, **fields})
    shutil.rmtree(moved)  # a run needs what it began as no more
    monkeypatch.setattr(Trainer, "train_step", take)
    again = tw.resume(tmp_path / "run", data=data, quiet=True)
    ended, wanted = _weights(again), _weights(whole)
    assert all(ended[name].equal(wanted[name]) for name in wanted)


def test_a_new_head_begins_with_the_loss_of_chance(data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer="all", epochs=1)
    assert run.result["first_loss"] == pytest.approx(np.log(4), abs=1e-5)


def test_features_that_are_computed_once_give_the_run_of_the_whole_model(data, before, tmp_path, monkeypatch):
    """The same steps with the frozen model run each time, as an oracle."""
    cached = _fit(data, before, tmp_path / "cached", transfer="linear", epochs=4)
    monkeypatch.setattr("trainwell.train.head_features.possible", lambda *_: False)
    run = _fit(data, before, tmp_path / "run", transfer="linear", epochs=4)
    ended, wanted = _weights(cached), _weights(run)
    for name in wanted:
        torch.testing.assert_close(ended[name], wanted[name], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(cached.history, run.history, strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)


def test_the_frozen_model_is_run_once_a_sample(data, before, tmp_path, monkeypatch):
    seen = []
    from trainwell.models.resnet import ResNet

    run = ResNet.forward

    def count(self, x):
        seen.append(len(x))
        return run(self, x)

    monkeypatch.setattr(ResNet, "forward", count)
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    _fit(data, before, tmp_path / "run", transfer="linear", epochs=5)
    in_all, test = sum(data.sizes.values()), data.sizes["test"]
    assert 0 <= sum(seen) - in_all - test < 20  # the map of features looks at the test part too; a few to try
    seen.clear()
    _fit(data, before, tmp_path / "again", transfer="linear", epochs=5)
    assert 0 <= sum(seen) - 2 * test < 20


def test_a_run_says_what_it_began_as_and_predicts(data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer="top1")
    about = json.loads((run.path / "run.json").read_text())["backbone"]
    assert about["architecture"] == "resnet8"
    assert str(before.path) in about["source"]
    images, targets = some_digits([6, 7, 8, 9])
    predicted = tw.Run(run.path).predict(images[:100])
    assert np.mean([int(label) for label in predicted.labels] == targets[:100]) > 0.7


def test_mean_and_deviation_come_with_the_weights(data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer="linear")
    assert run.info["mean"] == pytest.approx(before.info["mean"])
    assert run.info["std"] == pytest.approx(before.info["std"])


def test_cross_validation_begins_each_fold_as_the_pretrained_model(before, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    images, targets = some_digits([6, 7, 8, 9])
    run = tw.fit(
        (images[:120], targets[:120]), out=tmp_path / "run", pretrained=str(before.path), transfer="linear", folds=3,
        epochs=8, **TINY,
    )  # fmt: skip
    assert run.result["test_accuracy"] > 0.7
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # features of all folds, computed once
    start = load_file(before.path / "model.safetensors")
    for fold in (1, 2, 3):
        weights = load_file(run.path / "folds" / str(fold) / "model.safetensors")
        assert all(weights[name].equal(start[name]) for name in start if not name.startswith("fc"))
        assert not (run.path / "folds" / str(fold) / "pretrained.safetensors").exists()


def test_a_model_of_ones_own_can_be_fine_tuned_and_resumed(data, before, tmp_path, monkeypatch):
    def mine():
        model = tw.Run(before.path).model
        tw.transfer.replace_head(model, 4)
        return model

    whole = tw.fit(data, out=tmp_path / "whole", model=mine(), transfer="linear", epochs=4, **TINY)
    take = Trainer.train_step

    def fail(self):
        if self.step == 5:
            raise SystemError("the machine went down")
        take(self)

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(SystemError):
        tw.fit(data, out=tmp_path / "run", model=mine(), transfer="linear", epochs=4, save_seconds=0, **TINY)
    monkeypatch.setattr(Trainer, "train_step", take)
    other = mine()
    torch.nn.init.normal_(other.conv1.weight)  # its weights do not matter
    again = tw.resume(tmp_path / "run", data=data, model=other, quiet=True)
    ended, wanted = _weights(again), _weights(whole)
    assert all(ended[name].equal(wanted[name]) for name in wanted)


@pytest.mark.parametrize("fields", [
    {"transfer": "all", "average": "ema"}, {"transfer": "top3"}, {"transfer": "gradual"}, {"transfer": "lp_ft"},
], ids=str)  # fmt: skip
def test_what_one_has_frozen_beforehand_stays_as_it_is_to_the_bit(fields, data, before, tmp_path):
    model = tw.Run(before.path).model
    tw.transfer.replace_head(model, 4)
    tw.transfer.freeze(model.layer1)
    run = tw.fit(data, out=tmp_path / "run", model=model, epochs=2, **TINY, **fields)
    assert _same(run, before, ["layer1"])
    assert not _same(run, before, ["layer2"])


def test_a_half_match_is_taken_where_fit_or_the_command_line_is_told_so(data, before, tmp_path, capsys):
    weights = _weights(before)
    del weights["layer2.0.conv2.weight"]
    half = tmp_path / "half.safetensors"
    save_file(weights, half)
    told = {"transfer": "linear", "epochs": 1, **TINY}
    with pytest.raises(tw.InputError, match=r"1 of its .*pretrained_partial=True, --pretrained-partial"):
        tw.fit(data, out=tmp_path / "run", pretrained=str(half), **told)
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(half), pretrained_partial=True, **told)
    assert _same(run, before, ["conv1", "bn1", "layer1", "layer3"])
    assert "layer2.0.conv2.weight" in run.info["backbone"]["match"]["reinitialised"]
    images, targets = some_digits([6, 7, 8, 9])
    np.savez(tmp_path / "digits.npz", x=images[:100], y=targets[:100])
    main(["fit", str(tmp_path / "digits.npz"), "--pretrained", str(half), "--pretrained-partial",
          "--transfer", "linear", "--folds", "1", "--out", str(tmp_path / "other"), "--threads", "1"])  # fmt: skip
    assert "layer2.0.conv2.weight" in capsys.readouterr().err


def _of_imagenet(path):
    """A file of a ResNet-18 of torchvision's names, classes and random weights."""
    save_file(resnet18(num_classes=1_000).state_dict(), path)


def test_a_file_of_imagenets_classes_brings_its_mean_and_deviation_and_says_so(before, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photos, own = (rng.integers(0, 256, (24, 20, 20, 3), np.uint8), np.arange(24) % 2), tmp_path / "own.safetensors"
    _of_imagenet(tmp_path / "r18.safetensors")
    told = {"transfer": "linear", "folds": 1, **TINY, "quiet": False}
    run = tw.fit(photos, out=tmp_path / "run", pretrained=str(tmp_path / "r18.safetensors"), **told)
    assert run.info["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert run.info["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert run.info["model"]["size"] == [20, 20]  # of which the file says nothing
    assert "; images are normalised as for ImageNet" in capsys.readouterr().err
    save_file(_weights(before), own)
    digits = some_digits([6, 7])
    other = tw.fit((digits[0][:60], digits[1][:60]), out=tmp_path / "other", pretrained=str(own), **told)
    assert other.info["mean"] != before.info["mean"]
    assert "; images are normalised by their own mean and deviation, as none is given there" in capsys.readouterr().err


def test_a_network_that_is_named_without_weights_is_said_to_begin_from_scratch(data, tmp_path, capsys):
    told = {"model": "resnet18", "steps": 1, **TINY, "quiet": False}
    tw.fit(data, out=tmp_path / "run", **told)
    assert "from scratch: a model is named, and no weights for it (--pretrained hub:timm/resnet18" in (
        capsys.readouterr().err
    )
    tw.fit(data, out=tmp_path / "other", pretrained="none", **told)
    assert "from scratch" not in capsys.readouterr().err


def test_from_the_command_line(before, tmp_path, capsys):
    images, targets = some_digits([6, 7, 8, 9])
    np.savez(tmp_path / "digits.npz", x=images[:200], y=targets[:200])
    words = ["fit", str(tmp_path / "digits.npz"), "--pretrained", str(before.path), "--transfer", "linear",
             "--epochs", "3", "--folds", "1", "--out", str(tmp_path / "run"), "--threads", "1"]  # fmt: skip
    main(words)
    told = capsys.readouterr().err
    assert "pretrained: " in told
    assert "new" in told  # the head
    assert "frozen: conv1, bn1, layer1, layer2, layer3" in told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pretrained": "nothing/there"}, "nothing/there"),
        ({"transfer": "linear"}, "there is none"),
        ({"l2_sp": 0.1}, "pretrained weights"),
        ({"layer_decay": 0.8}, "layer_decay is about pretrained weights"),
        ({"backbone_lr": 0.5}, "backbone_lr is about pretrained weights"),
        ({"transfer_stage": "layer2"}, "transfer_stage='layer2' is for transfer='stage'"),
        (
            {"pretrained": "embedded", "transfer": "none"},
            "transfer='none' trains from scratch, and pretrained is 'embedded'",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fields, told, data, tmp_path):
    with pytest.raises(tw.InputError, match=told) as error:
        tw.fit(data, out=tmp_path / "run", **{**TINY, "epochs": 1, **fields})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_features_have_no_pretrained_model(before, tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(tw.InputError, match="for images"):
        tw.fit((rng.normal(size=(90, 3)).astype("float32"), np.arange(90) % 3), pretrained=str(before.path),
               out=tmp_path / "run", **{k: v for k, v in TINY.items() if k != "augment"})  # fmt: skip


def test_a_damaged_start_is_told_in_one_line(data, before, tmp_path, monkeypatch):
    take = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: (_ for _ in ()).throw(SystemError("down")))
    with pytest.raises(SystemError):
        _fit(data, before, tmp_path / "run", transfer="linear")
    monkeypatch.setattr(Trainer, "train_step", take)
    (tmp_path / "run" / "pretrained.safetensors").write_bytes(b"nothing")
    with pytest.raises(tw.InputError, match=r"pretrained\.safetensors") as error:
        tw.resume(tmp_path / "run", data=data, quiet=True)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- what was found by reading


def test_a_module_of_the_same_weights_that_computes_something_else_has_features_of_its_own(data, tmp_path):
    accuracy = []
    for number, between in enumerate((nn.ReLU(), Nothing())):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), between, nn.Linear(32, 10))
        run = tw.fit("digits", model=model, transfer="linear", folds=1, out=tmp_path / str(number), **TINY)
        accuracy.append(run.result["test_accuracy"])
    assert accuracy[0] > 0.8
    assert accuracy[1] < 0.2


class Nothing(nn.Module):
    def forward(self, x):
        return x * 0


def test_the_range_test_takes_the_rates_of_the_stages(data, before, monkeypatch):
    seen = []
    monkeypatch.setattr(range_test, "_shares", lambda optimizer: seen.append([g["lr"] for g in optimizer.param_groups]))
    with contextlib.suppress(TypeError):
        tw.lr_range(data, pretrained=str(before.path), transfer="all", backbone_lr=0.01, **TINY)
    assert set(seen[0]) == {1.0, 0.01}


@pytest.mark.parametrize("look", [tw.dry_run, tw.lr_range])
def test_looking_leaves_a_model_as_it_is(look, before):
    model = tw.Run(before.path).model.train()
    start, text = {name: value.clone() for name, value in model.state_dict().items()}, repr(model)
    options = {} if look is tw.dry_run else {"sweep_steps": 12, "trial_steps": 0}
    with contextlib.suppress(tw.InputError, tw.errors.DivergedError):
        look(some_digits([0, 1, 2, 3, 4, 5]), model=model, transfer="top1", drop_rate=0.3, folds=1, **TINY, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert repr(model) == text


@pytest.mark.parametrize("way", ["linear", "lp_ft"])
def test_a_check_begins_at_chance_where_the_head_is_solved_for(way, data, before):
    found = tw.dry_run(data, pretrained=str(before.path), transfer=way, **TINY)
    assert found.starts_at_chance
    assert found.last_loss < found.first_loss


def test_a_check_takes_a_schedule_that_is_written_out():
    found = tw.dry_run("digits", model="mlp", schedule="cosine(0.01, steps=100)", folds=1, quiet=True)
    assert found.learns


@pytest.mark.parametrize("way", ["linear", "top1", "lp_ft"])
def test_dropconnect_stands_in_a_pretrained_models_last_layer(way, data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer=way, dropconnect=0.2, epochs=3)
    assert run.result["test_accuracy"] > 0.4


def test_a_kill_before_the_result_is_written_loses_no_map(data, before, tmp_path, monkeypatch):
    def fail(*arguments):
        raise SystemError("the machine went down")

    with monkeypatch.context() as patch:
        patch.setattr(result, "write_result", fail)
        with pytest.raises(SystemError):
            _fit(data, before, tmp_path / "run", transfer="top1", epochs=1)
    run = tw.resume(tmp_path / "run", data=data, quiet=True)
    assert json.loads((run.path / "transfer.json").read_text())["trained"].startswith("frozen: conv1")


@pytest.mark.parametrize("damage", [
    {"architecture": 5}, {"config": [1]}, {"cut": {"before": "layer3", "dimensions": -1}}, {"cut": []},
], ids=str)  # fmt: skip
def test_a_damaged_backbone_is_one_line(damage, data, before, tmp_path):
    run = _fit(data, before, tmp_path / "run", transfer="top1", epochs=1)
    info = json.loads((run.path / "run.json").read_text())
    info["backbone"] |= damage
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(tw.InputError) as error:
        tw.Run(run.path).predict(np.zeros((1, 8, 8), np.uint8))
    assert "\n" not in str(error.value)


def test_files_nested_too_deeply_are_one_line(before, tmp_path):
    for name, text in (("recipe.toml", "a = " + "[" * 100_000), ("run.json", "[" * 100_000)):
        run = shutil.copytree(before.path, tmp_path / name)
        (run / name).write_text(text)
        with pytest.raises(tw.InputError):
            tw.Run(run)
