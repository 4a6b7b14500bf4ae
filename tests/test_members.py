"""`fit_members`: members like any other run, killed, resumed, extended, on this machine or on a cluster."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

import trainwell as tw
from commands import call
from trainwell import engines
from trainwell.engines import Members
from trainwell.errors import DivergedError, InputError
from trainwell.train import Trainer

IMAGES = (load_digits().images * 15.9375).round().astype("uint8")[:400]
TARGETS = load_digits().target[:400]
RNG = np.random.default_rng(0)
QUICK = {"model": "mlp", "batch_size": 32, "epochs": 3, "threads": 1, "augment": "none", "quiet": True, "folds": 1}


def _weights(folder, count):
    return [(Path(folder) / f"members/{k}/model.safetensors").read_bytes() for k in range(1, count + 1)]


def _loop():
    """A model of one's own, which begins at other weights for each seed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


# ---------------------------------------------------------------------- each engine


@pytest.mark.parametrize("engine", ["loop", "processes", "stacked", "auto"])
def test_members_differ_by_their_seed_and_answer_together(engine, tmp_path):
    made = tw.fit_members((IMAGES, TARGETS), members=3, out=tmp_path / "out", engine=engine, **QUICK)
    assert [tw.Run(tmp_path / f"out/members/{k}").recipe.seed for k in (1, 2, 3)] == [0, 1, 2]
    assert len(set(_weights(tmp_path / "out", 3))) == 3
    assert made.about["engine"] in ("loop", "processes", "stacked")
    assert engine in ("auto", made.about["engine"])
    assert made.result["test_accuracy"] > 0.6
    assert len(made.predict(IMAGES[:3]).labels) == 3
    for k in (1, 2, 3):
        assert (tmp_path / f"out/members/{k}/report.html").exists()


def test_a_member_in_a_loop_or_a_process_is_the_run_that_fit_makes_to_the_bit(tmp_path):
    alone = tw.fit((IMAGES, TARGETS), out=tmp_path / "alone", **QUICK, seed=1)
    for engine in ("loop", "processes"):
        tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / engine, engine=engine, **QUICK)
        assert _weights(tmp_path / engine, 2)[1] == (alone.path / "model.safetensors").read_bytes()


def test_recipes_may_differ_in_anything(tmp_path):
    members = [
        {"lr": 1e-3},
        {"model": "resnet8", "drop_rate": 0.1},
        tw.Recipe(model="mlp", seed=7, epochs=2, threads=1),
    ]
    made = tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / "out", engine="loop", **QUICK)
    recipes = [tw.Run(tmp_path / f"out/members/{k}").recipe for k in (1, 2, 3)]
    assert [(r.model, r.seed, r.epochs) for r in recipes] == [("mlp", 0, 3), ("resnet8", 1, 3), ("mlp", 7, 2)]
    assert recipes[0].lr == 1e-3
    assert len(made.about["members"]) == 3


def test_each_member_of_a_function_begins_at_weights_of_its_own(tmp_path):
    fields = {name: value for name, value in QUICK.items() if name != "model"}
    for engine in ("loop", "stacked"):
        made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / engine, engine=engine, model=_loop, **fields)
        first, second = (run.model[1].weight for run in (tw.Run(tmp_path / f"{engine}/members/{k}", _loop())
                                                         for k in (1, 2)))  # fmt: skip
        assert (first - second).abs().mean() > 0.05
        assert len(tw.Ensemble(made.path, _loop).predict(IMAGES[:4]).labels) == 4


def test_members_are_cross_validated_where_a_run_would_be(tmp_path):
    made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **QUICK | {"folds": 2})
    own = tmp_path / "out/members/2"
    assert (own / "folds/2/result.json").exists()
    # Those that chose members and temperature are not judged.
    chose, said = load_file(own / "split.safetensors")["val"], load_file(own / "evaluation.safetensors")
    judged = ~np.isin(said["test_rows"].numpy(), chose.numpy())
    assert 0 < made.result["test_samples"] == judged.sum() == len(IMAGES) - len(chose)
    right = said["test_outputs"].argmax(1) == said["test_targets"]
    found = made.result["single"][1]["accuracy"]["value"]
    assert found == pytest.approx(right.numpy()[judged].mean())
    assert made.report().exists()


@pytest.mark.parametrize("fastest", ["loop", "stacked"])
def test_auto_takes_the_way_that_is_fastest_and_a_resume_stays_with_it(fastest, tmp_path, monkeypatch):
    times = {"loop": 2.0, "stacked": 2.0, fastest: 1.0}
    monkeypatch.setattr(Members, "step_times", lambda *_, **__: times)
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", **QUICK)
    assert json.loads((tmp_path / "out/ensemble.json").read_text())["engine"] == fastest
    monkeypatch.setattr(Members, "step_times", lambda *_, **__: pytest.fail("it is tried again"))
    trained, ways = [], {"loop": "fit", "stacked": "run_stacked"}
    for way, name in ways.items():
        real = getattr(engines, name)
        monkeypatch.setattr(engines, name, lambda *a, _w=way, _r=real, **k: trained.append(_w) or _r(*a, **k))
    tw.fit_members((IMAGES, TARGETS), members=3, out=tmp_path / "out", resume=True, **QUICK)
    assert trained == [fastest]


# ---------------------------------------------------------------------- interrupted

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_members import IMAGES, TARGETS, QUICK
import trainwell as tw
if __name__ == "__main__":
    tw.fit_members((IMAGES, TARGETS), members=5, out=sys.argv[1], engine="processes", jobs=1,
                   **QUICK | {{"epochs": 12, "save_seconds": 0.0}})
"""


def _killed_after_two(folder, script):
    """Starts an ensemble of five in a process of its own, and kills all of it once two members are done."""
    process = subprocess.Popen([sys.executable, script, folder], start_new_session=True)
    for _ in range(1200):
        done = sorted(int(path.parent.name) for path in folder.glob("members/*/report.html"))
        if len(done) >= 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return done


@pytest.mark.slow
def test_killed_resumed_and_on_a_ray_cluster_the_members_are_the_same_to_the_bit(tmp_path, monkeypatch):
    fields = QUICK | {"epochs": 12}
    whole = tw.fit_members((IMAGES, TARGETS), members=5, out=tmp_path / "whole", engine="processes", jobs=1, **fields)

    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = _killed_after_two(tmp_path / "cut", script)
    assert 2 <= len(done) < 5
    results = {k: (tmp_path / f"cut/members/{k}/result.json").stat().st_mtime_ns for k in done}
    said = []
    monkeypatch.setattr("trainwell.train.display.Display.say", lambda self, line: said.append(line))
    cut = tw.fit_members((IMAGES, TARGETS), out=tmp_path / "cut", resume=True, **fields | {"quiet": False})
    trained = [line for line in said if line.startswith("member ") and " is done" in line]
    assert len(trained) == 5 - len(done)
    for k in done:
        assert (tmp_path / f"cut/members/{k}/result.json").stat().st_mtime_ns == results[k]
    assert _weights(cut.path, 5) == _weights(whole.path, 5)

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tests = str(Path(__file__).parent)
        monkeypatch.setenv("PYTHONPATH", tests)
        on_ray = tw.fit_members((IMAGES, TARGETS), members=5, out=tmp_path / "ray", backend="ray", **fields)
    finally:
        ray.shutdown()
    assert _weights(on_ray.path, 5) == _weights(whole.path, 5)
    figures = [{k: v for k, v in one.about.items() if k in ("kept", "temperature", "result")} for one in
               (whole, cut, on_ray)]  # fmt: skip
    assert figures[0] == figures[1] == figures[2]


def test_the_same_call_on_a_dask_cluster(tmp_path):
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, Client(cluster):
        made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "dask", backend="dask", **QUICK)
    alone = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "loop", engine="loop", **QUICK)
    assert _weights(made.path, 2) == _weights(alone.path, 2)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_interrupted_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(engine, tmp_path, monkeypatch):
    fields = QUICK | {"engine": engine, "members": 2, "epochs": 2, "save_seconds": 0.0}
    whole = tw.fit_members((IMAGES, TARGETS), out=tmp_path / "whole", **fields)
    take = Trainer.take_batch

    def fail(self):
        if self.recipe.seed == 1 and self.step == 12:
            raise SystemError("the machine went down")
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_batch", fail)
        with pytest.raises(SystemError):
            tw.fit_members((IMAGES, TARGETS), out=tmp_path / "cut", **fields)
    fields.pop("members")
    resumed = tw.fit_members((IMAGES, TARGETS), out=tmp_path / "cut", resume=True, **fields)
    assert _weights(resumed.path, 2) == _weights(whole.path, 2)


def test_more_members_can_be_added_and_those_there_stay(tmp_path):
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **QUICK)
    before = _weights(tmp_path / "out", 2)
    more = tw.fit_members((IMAGES, TARGETS), members=3, out=tmp_path / "out", resume=True, **QUICK)
    assert _weights(tmp_path / "out", 2) == before
    assert len(more.about["members"]) == 3
    again = tw.fit_members((IMAGES, TARGETS), out=tmp_path / "out", resume=True, quiet=True)
    assert again.about == more.about


@pytest.mark.parametrize("engine", ["loop", "processes", "stacked", "auto"])
def test_a_member_that_diverges_is_left_out_and_told(engine, tmp_path):
    fields = QUICK | {"engine": engine, "optimizer": "sgd", "clip_grad": 1e30}
    members = [{"lr": 1e30}, {"lr": 1e-3}, {"lr": 2e-3}]
    made = tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / "out", **fields)
    assert [one["run"] for one in made.about["members"]] == ["members/2", "members/3"]
    assert made.about["failed"].keys() == {"1"}
    assert made.about["failed"]["1"].startswith("not finite")
    again = tw.fit_members((IMAGES, TARGETS), out=tmp_path / "out", resume=True, quiet=True)
    assert again.about == made.about
    with pytest.raises(DivergedError, match="no member of .* could be trained; the first: not finite"):
        tw.fit_members((IMAGES, TARGETS), members=[{"lr": 1e30}, {"lr": 2e30}], out=tmp_path / "none", **fields)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_an_ensemble_one_of_whose_members_diverged_is_resumed_to_the_same_bits(engine, tmp_path, monkeypatch):
    fields = QUICK | {"engine": engine, "optimizer": "sgd", "clip_grad": 1e30, "save_seconds": 0.0}
    members = [{"lr": 1e30}, {"lr": 1e-3}, {"lr": 2e-3}]
    tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / "whole", **fields)
    take = Trainer.take_batch

    def fail(self):
        if self.recipe.lr == 2e-3 and self.step == 12:
            raise SystemError("the machine went down")
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_batch", fail)
        with pytest.raises(SystemError):
            tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / "cut", **fields)
    tw.fit_members((IMAGES, TARGETS), out=tmp_path / "cut", resume=True, quiet=True)
    for number in (2, 3):
        name = f"members/{number}/model.safetensors"
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_keeps_members_that_are_done_with_overwrite_too(tmp_path):
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **QUICK)
    kept = tmp_path / "out/members/1/result.json"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out/members/2")
    both = {"resume": True, "overwrite": True}
    made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **both, **QUICK)
    assert kept.stat().st_mtime_ns == before
    assert len(made.about["members"]) == 2
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", overwrite=True, **QUICK)
    assert kept.stat().st_mtime_ns != before


def test_another_mean_is_taken_of_the_members_that_are_there(tmp_path):
    made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", mean="geometric", engine="loop", **QUICK)
    before = _weights(tmp_path / "out", 2)
    again = {"out": tmp_path / "out", "resume": True, "quiet": True}
    assert tw.fit_members((IMAGES, TARGETS), **again).about == made.about  # which is geometric still
    other = tw.fit_members((IMAGES, TARGETS), mean="arithmetic", **again)
    assert other.mean == "arithmetic"
    assert other.about["result"] != made.about["result"]
    assert _weights(tmp_path / "out", 2) == before
    x, y = RNG.normal(size=(60, 3)).astype(np.float32), RNG.normal(size=60).astype(np.float32)
    with pytest.raises(InputError, match="geometric mean is of the probabilities"):
        tw.fit_members((x, y), members=2, out=tmp_path / "values", mean="geometric", folds=1, epochs=1, quiet=True)
    assert not (tmp_path / "values").exists()


# ---------------------------------------------------------------------- models that are code


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of one's own in the working directory, that tells when it is imported."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        f"from torch import nn\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    return f"{name}:make"


def _plan(folder, **fields):
    """Writes an ensemble's file as a stranger might."""
    about = {"members": [{"run": "members/1", "weights": "model.safetensors"}], "mean": "arithmetic", "engine": "loop",
             "source": "digits", "loading": {"folds": 1}, "common": {"epochs": 1, "threads": 1},
             "recipes": [{"epochs": 1, "threads": 1}]}  # fmt: skip
    folder.mkdir()
    (folder / "ensemble.json").write_text(json.dumps(about | fields))


def test_an_ensemble_from_a_stranger_runs_no_code(nets, tmp_path, capsys):
    recipes = [{"epochs": 1, "model": nets}, {"epochs": 1, "model": nets, "seed": 1}]
    _plan(tmp_path / "out", recipes=recipes, common=recipes[0])
    for words in ((), ("--members", "3")):
        code, _, err = call(capsys, "fit", "--resume", "--out", "out", *words)
        assert code == 2
        assert err.count("\n") == 1
        assert f"is code, {nets!r}, which is not run because a file names it" in err
        assert err.rstrip().endswith(f"name it again: --model {nets}")
    with pytest.raises(InputError, match="is code"):
        tw.fit_members(None, out="out", resume=True, quiet=True)
    with pytest.raises(InputError, match="other members"):
        tw.fit_members(None, out="out", resume=True, model="mlp", quiet=True)
    _plan(tmp_path / "mixed", recipes=[{"epochs": 1, "model": "mlp"}, {"epochs": 1, "model": nets}])
    with pytest.raises(InputError, match="is code"):
        tw.fit_members(None, out="mixed", resume=True, model="mlp", quiet=True)
    _plan(tmp_path / "chosen", chosen={"model": nets})
    with pytest.raises(InputError, match="is code"):
        tw.fit_members(None, out="chosen", resume=True, quiet=True)
    assert not (tmp_path / "imported").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ensemble.json"}


def test_a_model_by_the_name_of_a_function_is_gone_on_with_where_it_is_named_again(nets, tmp_path, capsys, monkeypatch):
    words = ["digits", "--folds", "1", "--model", nets, "--epochs", "1", "--threads", "1", "--lr", "0.01"]
    engine = ["--engine", "loop", "--out", "out"]

    def cut(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", cut)
        code, _, err = call(capsys, "fit", *words, "--members", "2", *engine)
    assert code == 130
    assert err.rstrip().endswith(f"go on with: trainwell fit --resume --out out --model {nets}")
    code, _, err = call(capsys, "fit", "--resume", "--out", "out", "--model", nets)
    assert code == 0
    assert "together:" in err or "alone, as no other" in err
    made = tw.fit_members(None, members=3, out="out", resume=True, model=nets, quiet=True)
    assert len(made.about["members"]) == 3
    assert len(made.predict(IMAGES[:2]).labels) == 2
    assert tw.Run("out/members/3").recipe.lr == 0.01  # as of those that were there


def test_members_with_built_in_models_and_with_code_answer_together(nets, tmp_path):
    fields = {name: value for name, value in QUICK.items() if name != "model"} | {"engine": "loop"}
    made = tw.fit_members(
        (IMAGES, TARGETS), members=[{"model": "mlp"}, {"model": nets, "lr": 0.01}], out="out", **fields
    )
    about = json.loads((tmp_path / "out/ensemble.json").read_text()) | {"kept": [0, 1]}
    (tmp_path / "out/ensemble.json").write_text(json.dumps(about))
    for model in (nets, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        assert len(tw.Ensemble("out", model).predict(IMAGES[:2]).labels) == 2
    assert len(made.predict(IMAGES[:2]).labels) == 2
    with pytest.raises(InputError, match="code"):
        tw.Ensemble("out").predict(IMAGES[:2])


# ---------------------------------------------------------------------- the command line


def test_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["digits", "--folds", "1", "--model", "mlp", "--epochs", "2", "--threads", "1"]
    code, said, err = call(capsys, "fit", *words, "--members", "2", "--engine", "loop", "--out", out)
    assert (code, said.strip()) == (0, str(out))
    assert "2 members, one after the other" in err
    assert "together:" in err
    before = _weights(out, 2)
    code, _, err = call(capsys, "fit", "--resume", "--out", out)
    assert (code, _weights(out, 2)) == (0, before)
    assert "done already" in err
    code, _, err = call(capsys, "fit", *words, "--members", "2", "--out", out)
    assert code == 2
    assert "holds a run" in err or "holds an ensemble" in err
    code, said, err = call(
        capsys, "fit", *words, "--members", "2", "--engine", "loop", "--out", out, "--overwrite", "--quiet"
    )
    assert (code, err) == (0, "")


def test_flags_of_members_without_members_are_refused(capsys):
    code, _, err = call(capsys, "fit", "digits", "--engine", "loop")
    assert code == 2
    assert "--members 5" in err


# ---------------------------------------------------------------------- one line for each mistake


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"members": 0}, "members must be at least 1"),
        ({"members": "five"}, "a number, or a list"),
        ({"members": [{"lrr": 1}]}, "no field 'lrr'.*did you mean 'lr'"),
        ({"members": [{"seed": 1}, {"seed": 1}]}, "member 2 is the same as member 1"),
        ({"engine": "fast"}, "engine must be one of auto, loop, processes, stacked"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"backend": "ray", "engine": "loop"}, "backend is for engine='processes'"),
        ({"model": nn.Linear(64, 10)}, "give a function that makes the model"),
        (
            {"model": _loop, "members": [{}, {"model": "mlp"}]},
            "member 2 names the model 'mlp', and model= is a function",
        ),
        ({"members": []}, "a number, or a list"),
        ({"members": True}, "a number, or a list"),
        ({"members": {"lr": 1}}, "a number, or a list"),
        ({"on_epoch_end": print}, "on_epoch_end is for fit alone"),
        ({"member": 3}, "has 'member'.*did you mean 'members'"),
        ({"backend": "rya"}, "backend must be one of ray, dask; it is 'rya'.*did you mean 'ray'"),
        ({"backend": "dask"}, "backend='dask' finds no cluster"),
        ({"model": lambda: 3}, "model must return a torch.nn.Module"),
        ({"engine": "stacked", "folds": 2}, "cannot be stacked: cross-validation"),
        ({"engine": "stacked", "members": [{}, {"model": "resnet8"}]}, "cannot be stacked: .*model"),
        ({"mean": "geometrical"}, "mean must be one of arithmetic, geometric;.*did you mean 'geometric'"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_started(arguments, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        tw.fit_members((IMAGES, TARGETS), out=tmp_path / "out", **{**QUICK, **arguments})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_members_may_be_numpys_number_or_a_generator(tmp_path):
    for name, members in (("number", np.int64(2)), ("generator", ({"seed": seed} for seed in range(2)))):
        made = tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / name, engine="loop", **QUICK)
        assert [one["seed"] if one.get("seed") else 0 for one in made.about["recipes"]] == [0, 1]


def test_an_ensemble_that_was_made_of_runs_is_not_gone_on_with(tmp_path, capsys):
    made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "two", engine="loop", **QUICK)
    of = tw.Ensemble.of([made.path / "members/1", made.path / "members/2"], out=tmp_path / "of")
    with pytest.raises(InputError, match="an ensemble of finished runs, with which there is no going on: Ensemble.of"):
        tw.fit_members((IMAGES, TARGETS), members=3, out=of.path, resume=True, **QUICK)
    code, _, err = call(capsys, "fit", "--resume", "--out", of.path)
    assert code == 2
    assert "no going on" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"common": 3}, {"common": {"lrr": 1}},
        {"recipes": []}, {"recipes": 3}, {"recipes": [3]}, {"recipes": [{"lrr": 1}]}, {"loading": {"lr": 1}},
        {"loading": []}, {"engine": "fast"}, {"engine": None}, {"source": 3}, {"threads": "two"}, {"chosen": []},
        {"chosen": {"sees": 1}}, {"share_of_minutes": 0, "recipes": [{"minutes": 1}]},
    ],
)  # fmt: skip
def test_a_strangers_or_a_damaged_plan_is_one_line(fields, tmp_path):
    _plan(tmp_path / "out", **fields)
    with pytest.raises(InputError, match=r"ensemble\.json is damaged") as error:
        tw.fit_members(None, out=tmp_path / "out", resume=True, quiet=True)
    assert "\n" not in str(error.value)


def test_it_is_resumed_as_it_was_started_or_not_at_all(tmp_path):
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **QUICK)
    for other in (
        {"lr": 0.5},
        {"members": 1},
        {"members": [{"lr": 1.0}, {}]},
        {"engine": "processes"},
        {"folds": 2},
        {"model": "resnet8"},
    ):
        with pytest.raises(InputError, match="was started"):
            tw.fit_members((IMAGES, TARGETS), out=tmp_path / "out", resume=True, **{**QUICK, **other})
    with pytest.raises(InputError, match="trained on arrays, which are not kept"):
        tw.fit_members(None, out=tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="holds no ensemble to go on with"):
        tw.fit_members(None, out=tmp_path / "nothing", resume=True)
    with pytest.raises(InputError, match="holds"):
        tw.fit_members((IMAGES, TARGETS), out=tmp_path / "out", **QUICK)


def test_other_data_are_refused(tmp_path):
    tw.fit_members((IMAGES, TARGETS), members=1, out=tmp_path / "out", engine="loop", **QUICK)
    with pytest.raises(InputError, match="not what|other data"):
        tw.fit_members((IMAGES[:300], TARGETS[:300]), members=2, out=tmp_path / "out", resume=True, **QUICK)


def test_a_cluster_whose_library_is_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    with pytest.raises(InputError, match=r"pip install 'trainwell\[ray\]'"):
        tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", backend="ray", **QUICK)
    assert not (tmp_path / "out").exists()


def test_what_is_written_says_how_it_came_about(tmp_path):
    made = tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="loop", **QUICK, lr=3e-3)
    about = json.loads((made.path / "ensemble.json").read_text())
    assert (about["engine"], about["source"]) == ("loop", "arrays")
    assert about["recipes"][1]["lr"] == 3e-3


# ---------------------------------------------------------------------- what was found by reading


def test_an_extension_that_cannot_be_stacked_leaves_the_ensemble_as_it_was(tmp_path):
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="stacked", **QUICK)
    with pytest.raises(InputError, match="cannot be stacked: model is .*; such members need an ensemble of their own"):
        tw.fit_members((IMAGES, TARGETS), members=[{}, {}, {}, {"model": "resnet8"}], out=tmp_path / "out", resume=True,
                       quiet=True)  # fmt: skip
    assert len(tw.Ensemble(tmp_path / "out").about["members"]) == 2
    made = tw.fit_members((IMAGES, TARGETS), members=3, out=tmp_path / "out", resume=True, quiet=True)
    assert len(made.about["members"]) == 3


def test_a_loss_of_means_and_variances_is_refused_before_anything_is_trained(tmp_path):
    x, y = RNG.normal(size=(60, 3)).astype(np.float32), RNG.normal(size=60).astype(np.float32)
    given = {"loss": _likelihood, "steps": 5, "folds": 1, "quiet": True, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"an ensemble averages .* the shape \(2, 1\), not \(2, 2\)"):
        tw.fit_members((x, y), members=2, model=lambda: nn.Linear(3, 2), engine="loop", **given)
    with pytest.raises(InputError, match="an ensemble averages"):
        tw.fit((x, y), model=nn.Linear(3, 2), snapshots=2, **given)
    assert not (tmp_path / "out").exists()
    tw.fit((x, y), model=nn.Linear(3, 2), **given)


def _likelihood(outputs, targets):
    return nn.functional.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].exp())


def test_stacked_members_of_several_lengths_are_killed_and_resumed_to_the_same_bits(tmp_path, monkeypatch):
    fields = QUICK | {"model": "resnet8", "precision": "fp32", "batch_size": 16, "save_seconds": 1e9, "epochs": None}
    members = [{"steps": 2}, {"steps": 2, "seed": 5}, {"steps": 2, "seed": 6}, {"steps": 5}]
    data = tw.load((IMAGES[:120], TARGETS[:120]))
    given = fields | {"engine": "stacked", "members": members}
    given.pop("folds")
    tw.fit_members(data, out=tmp_path / "whole", **given)
    take = Trainer.take_batch

    def fail(self):
        if self.step == 4:
            raise SystemError("the machine went down")
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_batch", fail)
        with pytest.raises(SystemError):
            tw.fit_members(data, out=tmp_path / "cut", **given)
    tw.fit_members(data, out=tmp_path / "cut", resume=True, quiet=True)
    assert _weights(tmp_path / "cut", 4) == _weights(tmp_path / "whole", 4)


def test_members_of_different_code_answer_together(tmp_path, monkeypatch):
    (tmp_path / "two_nets.py").write_text(
        "from torch import nn\n\n"
        "def wide(num_classes, in_chans):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n\n"
        "def deep(num_classes, in_chans):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),"
        " nn.Linear(8, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["two_nets:wide", "two_nets:deep"]
    made = tw.fit_members(
        (IMAGES, TARGETS), members=[{"model": name} for name in names], out=tmp_path / "out", engine="loop",
        **{**QUICK, "model": "auto"},
    )  # fmt: skip
    assert len(made.predict(IMAGES[:3]).labels) == 3
    again = tw.Ensemble(tmp_path / "out", model=names)
    assert again.predict(IMAGES[:3]).labels == made.predict(IMAGES[:3]).labels
    with pytest.raises(InputError, match="the model of .* is 'two_nets:"):
        tw.Ensemble(tmp_path / "out", model=["other:net"]).predict(IMAGES[:3])


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snapshots": 2, "folds": 5}, "snapshots are judged on a test part"),
        ({"save_seconds": -1}, "save_seconds must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_an_ensemble(engine, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine=engine, **QUICK | changes)
    assert not (tmp_path / "out").exists()


def test_an_ensemble_among_the_images_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="lies in the folder of the images"):
        tw.fit_members(tmp_path / "photos", members=2, out=tmp_path / "photos/out", quiet=True)


def test_the_home_directory_and_relative_sources_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    np.savez("digits.npz", x=IMAGES, y=TARGETS)
    tw.fit_members("digits.npz", members=2, out="~/out", engine="loop", **QUICK)
    assert not Path("~").exists()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    made = tw.fit_members(None, members=3, out="~/out", resume=True, quiet=True)
    assert len(made.about["members"]) == 3


def test_what_is_different_in_a_member_stands_beside_what_all_have_in_common(tmp_path):
    made = tw.fit_members(
        (IMAGES, TARGETS), members=[{"ema_decay": 0.9}, {"ema_decay": 0.99, "steps": 5}], out=tmp_path / "out",
        average="ema", engine="loop", **QUICK,
    )  # fmt: skip
    assert [one.recipe.ema_decay for one in sorted(made.members, key=lambda run: run.path)] == [0.9, 0.99]
    assert tw.Run(tmp_path / "out/members/2").result["steps"] == 5
    with pytest.raises(InputError, match="model, lr beside members that are recipes would be lost"):
        tw.fit_members((IMAGES, TARGETS), members=[tw.Recipe(), tw.Recipe(seed=1)], model="mlp", lr=0.5)
    with pytest.raises(InputError, match="a recipe has no field 'lrr'.*lr"):
        tw.fit_members((IMAGES, TARGETS), members=[{"lrr": 1}])


def test_further_members_have_what_all_have_in_common_alone(tmp_path):
    members = [{"lr": 1e-3}, {"label_smoothing": 0.1}]
    tw.fit_members((IMAGES, TARGETS), members=members, out=tmp_path / "out", engine="loop", **QUICK)
    tw.fit_members((IMAGES, TARGETS), members=[*members, {"weight_decay": 0.1}], out=tmp_path / "out", resume=True,
                   quiet=True)  # fmt: skip
    first, third = (tw.Run(tmp_path / f"out/members/{k}").info["given"]["recipe"] for k in (1, 3))
    assert third["weight_decay"] == 0.1
    assert third["epochs"] == first["epochs"]
    assert first["lr"] == 1e-3
    assert "lr" not in third


def test_stacked_members_have_the_ensembles_of_their_snapshots(tmp_path):
    for engine in ("loop", "stacked"):
        tw.fit_members((IMAGES, TARGETS), members=2, snapshots=2, out=tmp_path / engine, engine=engine, **QUICK)
    names = [
        sorted(path.name for path in (tmp_path / engine / "members/1").glob("[!.]*")) for engine in ("loop", "stacked")
    ]
    assert {"ensemble.json", "ensemble.html"} <= set(names[0])
    assert names[0] == names[1]


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    tw.fit_members((IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="stacked", **{**QUICK, "model": _loop})
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_a_report_that_is_missing_is_written_again(tmp_path):
    given = {"out": tmp_path / "out", "resume": True, "quiet": True}
    tw.fit_members((IMAGES, TARGETS), members=2, engine="loop", **given | QUICK)
    (tmp_path / "out/report.html").unlink()
    tw.fit_members((IMAGES, TARGETS), **given)
    assert (tmp_path / "out/report.html").exists()


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a process that trained a member was killed.*fewer --jobs"):
        tw.fit_members(
            (IMAGES, TARGETS), members=2, out=tmp_path / "out", engine="processes", metrics={"killer": _kill}, jobs=2,
            **QUICK,
        )  # fmt: skip


def _kill(outputs, targets):
    if "loky" in type(multiprocessing.current_process()).__module__:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


@pytest.mark.parametrize("labels", [0, 2])
def test_one_sample_to_be_tested_on_is_reported_without_an_interval(labels, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    data = tw.load((x, (x[:, :labels] > 0).astype(np.float32) if labels else x[:, 0]), val=12, test=1)
    made = tw.fit_members(data, members=2, out=tmp_path / "out", engine="loop", model="mlp", epochs=1, quiet=True)
    assert made.result["ensemble"]["loss"]["interval"] == [None, None]
    assert (tmp_path / "out/report.html").exists()
    tw.fit(data, model="mlp", epochs=2, snapshots=2, out=tmp_path / "run", quiet=True)
    assert (tmp_path / "run/ensemble.html").exists()
