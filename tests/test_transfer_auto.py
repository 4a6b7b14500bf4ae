"""`fit` where it is left open what a pretrained model is, and what of it is trained."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import trainwell as tw
from some_digits import some_digits
from trainwell.errors import InputError
from trainwell.train import Trainer, choosing
from trainwell.train.choice import ASKED, Choice
from trainwell.transfer.features import stage_features

TINY = {"batch_size": 32, "threads": 1, "precision": "fp32", "quiet": True}


@pytest.fixture(scope="module")
def data():
    images, targets = some_digits([6, 7, 8, 9])
    return tw.load((images[:200], targets[:200]), val=40, test=60)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run on other digits."""
    return tw.fit(
        some_digits([0, 1, 2, 3, 4, 5]), out=tmp_path_factory.mktemp("before") / "run", model="resnet8", epochs=8,
        folds=1, augment="none", **TINY,
    )  # fmt: skip


@pytest.fixture
def late_is_blind(before, tmp_path):
    """The same, but its last stage gives the same for all images."""
    weights = load_file(before.path / "model.safetensors")
    for name, value in weights.items():
        if name.startswith("layer3") and (".bn2." in name or "downsample.1." in name) and "running" not in name:
            value.zero_()
    path = tmp_path / "blind.safetensors"
    save_file({name: value for name, value in weights.items() if not name.startswith("fc.")}, path)
    return path


def _told(run):
    return run.info["choice"]


def test_the_head_that_is_solved_for_is_scikit_learns(data, before, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), transfer="linear", **TINY)
    assert (run.result["steps"], run.recipe.steps) == (0, 0)
    assert run.result["stop_reason"] == "the best linear classifier was solved for"
    images = torch.stack([torch.from_numpy(data.images[row]) for row in range(200)]).permute(0, 3, 1, 2) / 255
    normal = (images - torch.tensor(run.info["mean"])) / torch.tensor(run.info["std"])
    model = before.model.eval()
    features = stage_features(model, normal.float().split(50))["layer3"].double().numpy()
    rows, targets = data.train.indices, data.train.targets
    scaler = StandardScaler().fit(features[rows])
    x, weights = scaler.transform(features), load_file(run.path / "model.safetensors")
    mine = features @ weights["fc.weight"].double().numpy().T + weights["fc.bias"].double().numpy()
    gaps = []
    for power in range(-6, 3):
        oracle = LogisticRegression(C=1 / (len(rows) * 10.0**power), max_iter=10_000, tol=1e-8)
        oracle.fit(x[rows], targets[rows])
        theirs = oracle.decision_function(x)
        gaps.append(np.abs(mine - mine.mean(1, keepdims=True) - theirs).max())
    assert min(gaps) < 0.02  # logits up to 20; at one of the penalties they are the same
    tested = data.test.indices
    assert run.result["test_accuracy"] == pytest.approx((mine.argmax(1) == targets)[tested].mean(), abs=1e-6)


def test_what_says_how_to_step_is_heeded(data, before, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), transfer="linear", lr=0.01, epochs=2, **TINY)
    assert run.result["steps"] == 6


@pytest.mark.parametrize("fields", [
    {"transfer": "linear", "augment": "light"}, {"transfer": "linear", "mixup": 0.2},
    {"transfer": "linear", "label_smoothing": 0.1, "drop_rate": 0.1},
], ids=str)  # fmt: skip
def test_what_cannot_be_solved_for_is_refused_in_one_line(fields, data, before, tmp_path):
    with pytest.raises(InputError, match="steps=0 solves for the best linear classifier") as error:
        tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), steps=0, **fields, **TINY)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_steps_of_0_are_for_a_head_alone():
    with pytest.raises(InputError, match="steps must be at least 1"):
        tw.Recipe(steps=0, transfer="all")


def test_a_stage_that_is_blind_is_cut_off_and_the_reason_said(data, late_is_blind, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(late_is_blind), transfer_minutes=0.0, **TINY)
    choice = _told(run)
    assert choice["cut"]["before"] in ("layer2", "layer3")
    assert choice["changes"] == {"transfer": "linear"}
    told = " ".join(choice["reasons"])
    assert "unlike those of the pretrained network" in told
    assert "all is left out: 0 seconds" in told
    assert choice["reasons"][-1] in ("chosen: linear on layer1", "chosen: linear on layer2")
    assert run.result["test_accuracy"] > 0.8
    assert not any(name.startswith("body.layer3") for name in load_file(run.path / "model.safetensors"))
    again = tw.Run(run.path)  # from its files alone
    images, targets = some_digits([6, 7, 8, 9])
    tested = data.test.indices
    predicted = again.predict(images[:200][tested])
    right = np.mean([int(label) for label in predicted.labels] == targets[:200][tested])
    assert right == pytest.approx(run.result["test_accuracy"])


def test_stage_takes_the_best_one_without_trials(data, late_is_blind, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(late_is_blind), transfer="stage", **TINY)
    assert _told(run)["cut"] in ({"before": "layer3", "dimensions": 32}, {"before": "layer2", "dimensions": 16})
    assert _told(run)["tried"] == []
    with pytest.raises(InputError, match=f"stage of {re.escape(str(late_is_blind))}, which it left alone"):
        tw.transfer.load_backbone(run.path, num_classes=4)


def test_candidates_are_tried_on_what_they_were_not_trained_on(data, before, tmp_path, monkeypatch):
    seen = []
    train = choosing._Trials._trained

    def watch(self, one, seconds):
        seen.extend((set(fitted.tolist()), set(judged.tolist())) for fitted, judged in self.splits)
        return train(self, one, seconds)

    monkeypatch.setattr(choosing._Trials, "_trained", watch)
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), epochs=4, **TINY)
    names = {one["name"]: one for one in _told(run)["tried"]}
    assert "all" in names
    assert any(name.startswith("linear") for name in names)
    assert names["all"]["samples"] == len(data.train)
    test = set(data.test.indices.tolist())
    for fitted, judged in seen:
        assert not fitted & judged
        assert not (fitted | judged) & test
    assert set().union(*(judged for _, judged in seen)) == set(data.train.indices.tolist())


def test_where_candidates_cannot_be_told_apart_the_plan_decides():
    names = ["first", "second", "third"]
    candidates = tuple(choosing.Candidate(name, {"transfer": "all"}) for name in names)
    rng = np.random.default_rng(0)
    base = rng.random(100) < 0.7

    class Trials(choosing._Trials):
        def _trained(self, one, seconds):
            return right[one.name], ""

    trials = Trials(None, tw.Recipe(), None, [], [], None, lambda _: None)
    alike = base.copy()
    alike[np.flatnonzero(~base)[:3]] = True
    alike[np.flatnonzero(base)[:2]] = False  # one better of 100, standard error 2.2
    right = dict(zip(names, [base, alike, alike], strict=True))
    assert trials.winner(candidates)[0].name == "first"
    right["third"] = base | (np.arange(100) % 5 == 0)
    chosen, tried, told = trials.winner(candidates)
    assert chosen.name == "third"
    difference = right["third"].astype(float) - base
    assert tried[2]["error"] == pytest.approx(difference.std(ddof=0) / 10)
    assert "third" in told[-1]


def test_more_images_are_judged_on_the_validation_part(before, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "_FEW", 80)
    images, targets = some_digits([6, 7, 8, 9])
    many = tw.load((images[:300], targets[:300]), val=100, test=50)
    run = tw.fit(many, out=tmp_path / "run", pretrained=str(before.path), epochs=3, **TINY)
    assert {one["samples"] for one in _told(run)["tried"]} == {100}
    assert {one["samples"] for one in _told(run)["probes"]} == {80}


@pytest.mark.parametrize("cut", [False, True])
def test_each_fold_chooses_without_what_it_is_judged_on_and_resumes(cut, before, late_is_blind, tmp_path, monkeypatch):
    images, targets = some_digits([6, 7, 8, 9])
    source, few = str(late_is_blind if cut else before.path), (images[:90], targets[:90])
    told = {"pretrained": source, "folds": 2, "epochs": 2, "transfer": "stage" if cut else "auto", **TINY}
    whole = tw.fit(few, out=tmp_path / "whole", **told)
    for fold in (1, 2):
        info = json.loads((whole.path / "folds" / str(fold) / "run.json").read_text())
        rows = load_file(whole.path / "folds" / str(fold) / "split.safetensors")
        assert {one["samples"] for one in info["choice"]["probes"]} == {len(rows["train"])}
        assert info["choice"]["cut"] or not cut
    run, folds = Trainer.run, []

    def fail(self):
        if self.folder is not None and self.folder.parent.name == "folds":
            folds.append(self)
            if len(folds) == 2:
                raise SystemError("the machine went down")
        run(self)

    monkeypatch.setattr(Trainer, "run", fail)
    with pytest.raises(SystemError):
        tw.fit(few, out=tmp_path / "run", save_seconds=0, **told)
    monkeypatch.setattr(Trainer, "run", run)
    late_is_blind.unlink()
    again = tw.resume(tmp_path / "run", data=few, quiet=True)
    for name in ("model", "folds/1/model", "folds/2/model"):
        mine, wanted = (load_file(each.path / f"{name}.safetensors") for each in (again, whole))
        assert all(mine[key].equal(wanted[key]) for key in wanted)
    assert _told(again)["reasons"] == _told(whole)["reasons"]


def test_of_several_the_one_that_knows_most_of_the_data_is_kept(data, before, late_is_blind, tmp_path, capsys):
    run = tw.fit(
        data, out=tmp_path / "run", pretrained=f"{late_is_blind}, {before.path}", transfer="linear",
        **(TINY | {"quiet": False}),
    )  # fmt: skip
    assert run.info["backbone"]["source"] == run.recipe.pretrained == str(before.path)
    assert f"a linear classifier on {late_is_blind} is right on" in capsys.readouterr().err
    with pytest.raises(InputError, match="nothing at nowhere"):
        tw.fit(data, out=tmp_path / "other", pretrained=f"{before.path},nowhere", **TINY)


def test_folds_are_told_to_begin_as_a_network_whose_choice_has_seen_them(before, late_is_blind, tmp_path, capsys):
    images, targets = some_digits([6, 7, 8, 9])
    told = {"transfer": "linear", "folds": 2, **TINY, "quiet": False}
    few = (images[:90], targets[:90])
    tw.fit(few, out=tmp_path / "two", pretrained=f"{late_is_blind},{before.path}", **told)
    assert (
        "the folds begin as that one too, though images on which they are judged had a say" in capsys.readouterr().err
    )
    tw.fit(few, out=tmp_path / "one", pretrained=str(before.path), **told)
    assert "the folds begin as that one" not in capsys.readouterr().err


def test_with_no_steps_to_take_only_what_is_solved_for_is_tried(data, before, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), steps=0, **TINY)
    assert run.result["steps"] == 0
    assert all(one["name"].startswith("linear") for one in _told(run)["tried"])
    assert len(_told(run)["tried"]) == 1


def test_a_path_with_commas_is_one_source(before, tmp_path):
    from trainwell.train.pretrained import sources_in

    moved = tmp_path / "a,b"
    shutil.copytree(before.path, moved)
    assert sources_in(str(moved)) == [str(moved)]
    assert sources_in("embedded, x.safetensors") == ["embedded", "x.safetensors"]
    assert sources_in(",") == [","]


def test_several_labels_a_sample_cannot_be_probed(before, tmp_path):
    images, targets = some_digits([6, 7, 8, 9])
    labels = np.eye(4, dtype=np.float32)[targets]
    many = tw.load((images[:120], labels[:120]), val=20, test=20)
    run = tw.fit(many, out=tmp_path / "run", pretrained=str(before.path), epochs=1, **TINY)
    assert run.recipe.transfer == "all"
    assert "need classes" in _told(run)["reasons"][0]
    with pytest.raises(InputError, match="need classes"):
        tw.fit(many, out=tmp_path / "other", pretrained=str(before.path), transfer="stage", **TINY)
    with pytest.raises(InputError, match="name one"):
        tw.fit(many, out=tmp_path / "other", pretrained=f"{before.path},{before.path}", **TINY)


def test_a_sample_a_class_is_enough_to_go_on(before, tmp_path):
    images, targets = some_digits([6, 7, 8, 9])
    rows = [int(np.flatnonzero(targets == label)[k]) for label in range(4) for k in range(3)]
    few = tw.load((images[rows], targets[rows]), val=4, test=4)
    run = tw.fit(few, out=tmp_path / "run", pretrained=str(before.path), epochs=1, **TINY)
    assert run.recipe.transfer == "all"
    assert "no class has two samples" in _told(run)["reasons"][0]


def test_a_candidate_that_diverges_is_left_out(data, before, tmp_path):
    told = {"pretrained": str(before.path), "optimizer": "sgd", "lr": 1e30, "epochs": 2, **TINY}
    run = tw.fit(data, out=tmp_path / "run", **told)
    assert run.recipe.transfer == "linear"
    assert "all is left out: not finite at step" in " ".join(_told(run)["reasons"])


def test_members_take_what_the_first_one_chose(data, before, tmp_path):
    tw.fit_members(
        data, out=tmp_path / "members", members=2, pretrained=str(before.path), transfer_minutes=0.02, epochs=1,
        engine="loop", **TINY,
    )  # fmt: skip
    ways = {tw.Recipe.load(path).transfer for path in tmp_path.rglob("recipe.toml")}
    assert len(ways) == 1
    assert ways <= {"linear", "lp_ft", "all"}


def _chosen_by(monkeypatch, changes, cut=None, probes=()):
    """Lets a choice be this one, without any trial; returns the recipes for which there was one to make."""
    asked = []

    def choose(data, recipe, seen, make, say):
        asked.append(recipe)
        return Choice({name: getattr(recipe, name) for name in ASKED}, changes, cut, list(probes), [], ["chosen: it"])

    monkeypatch.setattr(choosing, "choose", choose)
    return asked


def test_folds_that_chose_otherwise_are_named_when_run_and_in_the_report(before, tmp_path, monkeypatch, capsys):
    images, targets = some_digits([6, 7, 8, 9])
    names = iter(["linear", "linear", "all"])  # the model that is kept chooses first

    def choose(data, recipe, seen, make, say):
        name = next(names)
        return Choice({n: getattr(recipe, n) for n in ASKED}, {"transfer": name}, reasons=[f"chosen: {name}"])

    monkeypatch.setattr(choosing, "choose", choose)
    told = {"pretrained": str(before.path), "folds": 2, "epochs": 1, **TINY, "quiet": False}
    run = tw.fit((images[:90], targets[:90]), out=tmp_path / "run", **told)
    assert "\nfold 2 chose all; the model kept is linear\n" in capsys.readouterr().err
    assert "<li>fold 2 chose all; the model kept is linear</li>" in run.report().read_text()
    names = iter(["linear"] * 3)
    alike = tw.fit((images[:90], targets[:90]), out=tmp_path / "alike", **told)
    assert "the model kept is" not in capsys.readouterr().err + alike.report().read_text()


def test_members_take_the_whole_choice_with_its_rate_and_mixup(data, before, tmp_path, monkeypatch):
    asked = _chosen_by(monkeypatch, {"transfer": "all", "backbone_lr": 1.0, "mixup": 0.1})
    tw.fit_members(
        data, out=tmp_path / "members", members=2, pretrained=str(before.path), epochs=1, engine="loop", **TINY
    )
    recipes = [tw.Recipe.load(path) for path in tmp_path.rglob("recipe.toml")]
    assert {(one.transfer, one.backbone_lr, one.mixup) for one in recipes} == {("all", 1.0, 0.1)}
    assert len(recipes) == 2
    assert len(asked) == 1


def test_members_are_cut_after_the_stage_that_was_chosen(data, before, tmp_path, monkeypatch):
    choose, stages = choosing.choose, [{"stage": stage} for stage in ("pixels", "conv1", "layer1", "layer2", "layer3")]
    cut = {"before": "layer2", "dimensions": 16}

    def first_layer1_then_as_ever(data, recipe, *others):
        if recipe.transfer == "stage":
            return choose(data, recipe, *others)
        return Choice({"transfer": "auto"}, {"transfer": "linear"}, cut, stages, [], ["chosen: linear on layer1"])

    monkeypatch.setattr(choosing, "choose", first_layer1_then_as_ever)
    tw.fit_members(data, out=tmp_path / "members", members=2, pretrained=str(before.path), engine="loop", **TINY)
    cuts = [json.loads(path.read_text())["choice"]["cut"] for path in tmp_path.rglob("run.json")]
    assert cuts == [cut, cut]


def test_members_that_begin_as_another_network_choose_for_themselves(data, before, tmp_path, monkeypatch):
    moved = tmp_path / "before"
    shutil.copytree(before.path, moved)
    asked = _chosen_by(monkeypatch, {"transfer": "all", "backbone_lr": 1.0})
    recipes = [{"pretrained": str(before.path)}, {"pretrained": str(before.path), "transfer": "top1"},
               {"pretrained": str(moved)}, {"model": "resnet8", "transfer": "none"}]  # fmt: skip
    tw.fit_members(data, out=tmp_path / "members", members=recipes, epochs=1, engine="loop", **TINY)
    assert {one.pretrained for one in asked} == {str(before.path), str(moved)}
    second = tw.Recipe.load(tmp_path / "members" / "members" / "2" / "recipe.toml")
    assert (second.transfer, second.backbone_lr) == ("top1", 0.1)
    infos = [json.loads((tmp_path / "members" / "members" / str(n) / "run.json").read_text()) for n in (1, 2, 3, 4)]
    assert [info["choice"] is None for info in infos] == [True, True, False, True]
    assert [info["backbone"] is None for info in infos] == [False, False, False, True]


def test_folds_of_members_are_told_to_have_a_choice_that_has_seen_them(before, tmp_path, monkeypatch, capsys):
    images, targets = some_digits([6, 7, 8, 9])
    _chosen_by(monkeypatch, {"transfer": "all", "backbone_lr": 1.0})
    told = {"members": 2, "folds": 2, "epochs": 1, "engine": "loop", **TINY, "quiet": False}
    few = (images[:90], targets[:90])
    tw.fit_members(few, out=tmp_path / "auto", pretrained=str(before.path), **told)
    assert "all members take what the first one chose, in their folds too" in capsys.readouterr().err
    tw.fit_members(few, out=tmp_path / "all", pretrained=str(before.path), transfer="all", **told)
    assert "what the first one chose" not in capsys.readouterr().err


def test_a_stage_can_be_named(data, before, tmp_path):
    told = {"pretrained": str(before.path), "transfer": "stage", **TINY}
    run = tw.fit(data, out=tmp_path / "run", transfer_stage="layer1", **told)
    assert _told(run)["cut"] == {"before": "layer2", "dimensions": 16}
    images, targets = some_digits([6, 7, 8, 9])
    folded = tw.fit((images[:90], targets[:90]), out=tmp_path / "folded", transfer_stage="layer1", folds=2, **told)
    for path in folded.path.rglob("run.json"):
        assert json.loads(path.read_text())["choice"]["cut"] == {"before": "layer2", "dimensions": 16}
    with pytest.raises(
        InputError, match=r"no stage 'layer9' \(did you mean 'layer.'\?\): transfer_stage is one of conv1"
    ):
        tw.fit(data, out=tmp_path / "other", transfer_stage="layer9", **told)


def test_what_looks_at_steps_alone_chooses_nothing(data, before, capsys):
    found = tw.dry_run(data, pretrained=str(before.path), **TINY)
    assert found.first_loss == pytest.approx(np.log(4), abs=1e-4)
    tested = tw.lr_range(data, pretrained=str(before.path), sweep_steps=20, trial_steps=0, **TINY)
    assert tested.suggestion > 0
    assert "tried" not in capsys.readouterr().err


def test_a_check_of_gradual_unfreezing_learns_with_all_stages_since_none_would_thaw_in_it(data, before):
    told = {**TINY, "pretrained": str(before.path)}
    assert tw.dry_run(data, transfer="gradual", **told) == tw.dry_run(data, transfer="all", **told)


@pytest.mark.parametrize("average", [{"average": "ema", "ema_decay": 0.9}, {"average": "swa", "average_epochs": 1}])
def test_what_is_tried_is_not_averaged(average, data, before, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", pretrained=str(before.path), epochs=1, transfer_minutes=0.05, **average,
                 **TINY)  # fmt: skip
    assert run.recipe.average == average["average"]
