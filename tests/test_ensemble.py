"""Ensembles on disk: made of runs, chosen on validation alone, judged on the rest, predicting like a run."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn

import trainwell as tw
from commands import call
from trainwell.ensemble import temperature, tempered
from trainwell.errors import InputError

IMAGES = (load_digits().images * 15.9375).round().astype("uint8")[:700]
TARGETS = load_digits().target[:700]
QUICK = {"model": "mlp", "threads": 1, "batch_size": 32, "epochs": 3, "quiet": True, "augment": "none"}


@pytest.fixture(scope="module")
def data():
    return tw.load((IMAGES, TARGETS), val=150, test=250)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [tw.fit(data, out=folder / str(seed), seed=seed, **QUICK) for seed in range(4)]


@pytest.fixture(scope="module")
def ensemble(runs, tmp_path_factory):
    return tw.Ensemble.of(runs, out=tmp_path_factory.mktemp("of") / "ensemble")


def _evaluations(runs):
    return [load_file(run.path / "evaluation.safetensors") for run in runs]


def _loss(probabilities, targets):
    return log_loss(targets, probabilities, labels=range(10))


def _tempered_loss(probabilities, targets):
    """Returns the log loss with the temperature that is best if one more sample is a mistake, found by search."""
    n = len(targets)
    others = probabilities.copy()
    others[np.arange(n), targets] = 0
    wrong = others.argmax(1)

    def doubting(u):
        powered = _powered(probabilities, np.exp(u))
        return _loss(powered, targets) * n / (n + 1) + _loss(powered, wrong) / (n + 1)

    best = minimize_scalar(doubting, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    return _loss(_powered(probabilities, np.exp(best.x)) if best.fun < doubting(0) else probabilities, targets)


def _powered(probabilities, inverse):
    powered = probabilities.clip(2.2e-16) ** inverse
    return powered / powered.sum(1, keepdims=True)


def test_members_are_chosen_on_validation_alone_and_no_worse_there_than_the_best(ensemble, runs):
    found = _evaluations(runs)
    val, targets = np.stack([one["val_outputs"].double().numpy() for one in found]), found[0]["val_targets"].numpy()
    way, losses = [], []
    while len(way) < 4:
        added = {k: _tempered_loss(val[[*way, k]].mean(0), targets) for k in range(4) if k not in way}
        way.append(min(added, key=added.get))
        losses.append(added[way[-1]])
    assert ensemble.about["kept"] == way[: int(np.argmin(losses)) + 1]


def test_the_test_part_decides_nothing(ensemble, runs, tmp_path):
    copies = []
    for run in runs:
        own = tmp_path / run.path.name
        own.mkdir()
        for path in run.path.iterdir():
            if path.is_file() and path.name != ".lock":
                (own / path.name).write_bytes(path.read_bytes())
        tensors = load_file(own / "evaluation.safetensors")
        tensors["test_outputs"] = tensors["test_outputs"].flip(1)  # all wrong
        save_file({name: value.contiguous() for name, value in tensors.items()}, own / "evaluation.safetensors")
        copies.append(own)
    other = tw.Ensemble.of(copies, out=tmp_path / "ensemble")
    for name in ("kept", "temperature"):
        assert other.about[name] == ensemble.about[name]
    assert other.result["test_accuracy"] < 0.3


def test_its_figures_are_scikit_learns_with_intervals_around_them(ensemble, runs):
    found = _evaluations(runs)
    test, targets = np.stack([one["test_outputs"].double().numpy() for one in found]), found[0]["test_targets"].numpy()
    mean = test[ensemble.about["kept"]].mean(0)
    powered = mean ** (1 / ensemble.temperature)
    together = powered / powered.sum(1, keepdims=True)
    figures = ensemble.result["ensemble"]
    assert figures["accuracy"]["value"] == pytest.approx((together.argmax(1) == targets).mean())
    assert figures["log_loss"]["value"] == pytest.approx(_loss(together, targets), rel=1e-6)
    assert figures["brier_score"]["value"] == pytest.approx(
        brier_score_loss(targets, together, labels=range(10), scale_by_half=False), rel=1e-6
    )
    for figure in figures.values():
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
    gain = ensemble.result["gain"]["accuracy"]["value"]
    single = ensemble.result["single"][ensemble.about["kept"][0]]["accuracy"]["value"]
    assert gain == pytest.approx(figures["accuracy"]["value"] - single)


def test_the_gain_is_beside_the_best_single_one_with_a_temperature_of_its_own(ensemble, runs):
    said = _evaluations(runs)[ensemble.about["kept"][0]]
    T = temperature(said["val_outputs"], said["val_targets"])
    assert T != 1  # or this shows nothing
    alone = _loss(tempered(said["test_outputs"], T).numpy(), said["test_targets"].numpy())
    value = ensemble.result["ensemble"]["log_loss"]["value"] - alone
    assert ensemble.result["gain"]["log_loss"]["value"] == pytest.approx(value, abs=1e-9)


def test_one_member_that_answers_alone_gains_nothing_over_itself(data, tmp_path):
    made = tw.fit_members(data, members=1, out=tmp_path / "one", engine="loop", **QUICK | {"lr": 0.02, "epochs": 8})
    assert made.temperature != 1
    for figure in made.result["gain"].values():
        assert figure["value"] == 0


def test_the_gain_by_number_is_the_mean_over_all_ensembles_of_so_many(ensemble, runs):
    found = _evaluations(runs)
    test, targets = np.stack([one["test_outputs"].double().numpy() for one in found]), found[0]["test_targets"].numpy()
    for row in ensemble.result["by_number"]:
        subsets = list(itertools.combinations(range(4), row["members"]))
        right = [(test[list(chosen)].mean(0).argmax(1) == targets).mean() for chosen in subsets]
        assert row["ensembles"] == len(subsets)
        assert row["accuracy"] == pytest.approx(np.mean(right))
        assert row["loss"] == pytest.approx(np.mean([_loss(test[list(c)].mean(0), targets) for c in subsets]), rel=1e-6)


def test_it_predicts_like_a_run_the_mean_of_its_members_tempered(ensemble):
    predictions = ensemble.predict(IMAGES[:20])
    mean = np.mean([member.predict(IMAGES[:20]).outputs.astype(np.float64) for member in ensemble.members], axis=0)
    powered = mean ** (1 / ensemble.temperature)
    np.testing.assert_allclose(predictions.outputs, powered / powered.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert predictions.classes == ensemble.classes
    assert len(predictions.labels) == 20


def test_the_geometric_mean_is_that_of_probabilities_and_chosen_for(runs, tmp_path):
    made = tw.Ensemble.of(runs, out=tmp_path / "ensemble", mean="geometric")
    each = np.stack([member.predict(IMAGES[:20]).outputs.astype(np.float64) for member in made.members])
    product = np.exp(np.log(each.clip(2.2e-16)).mean(0)) ** (1 / made.temperature)
    np.testing.assert_allclose(
        made.predict(IMAGES[:20]).outputs, product / product.sum(1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_everything_is_in_its_folder_which_can_be_moved(ensemble, tmp_path):
    before = ensemble.predict(IMAGES[:5]).outputs
    moved = tmp_path / "elsewhere"
    import shutil

    shutil.copytree(ensemble.path, moved)
    np.testing.assert_array_equal(tw.Ensemble(moved).predict(IMAGES[:5]).outputs, before)
    assert tw.Ensemble(moved).report() == moved / "report.html"


def test_values_are_averaged_as_they_are(tmp_path):
    inputs, targets = load_diabetes(return_X_y=True)
    data = tw.load((inputs.astype(np.float32), targets.astype(np.float32)), val=80, test=80)
    runs = [tw.fit(data, out=tmp_path / str(seed), seed=seed, **QUICK | {"augment": "auto"}) for seed in range(2)]
    made = tw.Ensemble.of(runs, out=tmp_path / "ensemble")
    x = inputs[:9].astype(np.float32)
    expected = np.mean([member.predict(x).outputs for member in made.members], axis=0)
    np.testing.assert_allclose(made.predict(x).outputs, expected, rtol=1e-5)
    low, high = made.result["ensemble"]["loss"]["interval"]
    assert low < made.result["test_loss"] < high
    with pytest.raises(InputError, match="geometric mean is of the probabilities"):
        tw.Ensemble.of(runs, out=tmp_path / "other", mean="geometric")


def test_models_of_ones_own_are_given_again_as_a_function_or_a_module(data, tmp_path):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    runs = []
    for seed in range(2):
        tw.random.seed_everything(seed)
        runs.append(tw.fit(data, out=tmp_path / str(seed), **QUICK | {"model": make()}))
    made = tw.Ensemble.of(runs, out=tmp_path / "ensemble", model=make)
    first = made.predict(IMAGES[:5]).outputs
    np.testing.assert_array_equal(tw.Ensemble(made.path, make()).predict(IMAGES[:5]).outputs, first)
    with pytest.raises(InputError, match="with a model of yours"):
        tw.Ensemble(made.path).predict(IMAGES[:5])


def test_snapshots_that_runs_were_opened_with_are_what_answers(data, tmp_path):
    run = tw.fit(data, out=tmp_path / "run", snapshots=3, **QUICK | {"lr": 0.02})
    names = sorted(path.relative_to(run.path).as_posix() for path in run.path.glob("snapshots/step-*"))
    opened = [tw.Run(run.path, weights=name) for name in names]
    made = tw.Ensemble.of([*opened, run], out=tmp_path / "made")
    assert [member["run"] for member in made.about["members"]] == [f"members/{k}" for k in (1, 2, 3, 4)]
    for number, one in enumerate([*opened, run], 1):
        copied = tw.Run(made.path / f"members/{number}").predict(IMAGES[:9]).outputs
        np.testing.assert_array_equal(copied, one.predict(IMAGES[:9]).outputs)
        truth = data.test.targets[data.test.indices]
        right = one.predict(np.stack([data.images[row] for row in data.test.indices])).outputs.argmax(1) == truth
        assert made.result["single"][number - 1]["accuracy"]["value"] == pytest.approx(right.mean())
    (run.path / names[0].replace("step-", "evaluation-")).unlink()
    with pytest.raises(InputError, match=r"has no snapshots.evaluation-.*: it is not finished"):
        tw.Ensemble.of(opened, out=tmp_path / "other")


# ---------------------------------------------------------------------- the command line


def test_the_command_line_takes_it_like_a_run(ensemble, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(IMAGES[0]).save(tmp_path / "digit.png")
    code, out, _ = call(capsys, "predict", ensemble.path, tmp_path / "digit.png", "--format", "json")
    assert code == 0
    expected = ensemble.predict(tmp_path / "digit.png")
    assert json.loads(out)[0]["class"] == expected.labels[0]
    code, out, _ = call(capsys, "report", ensemble.path)
    assert (code, out.strip()) == (0, str(ensemble.path / "report.html"))


# ---------------------------------------------------------------------- one line for each mistake


def test_runs_on_other_data_or_another_split_are_refused(runs, tmp_path):
    other = tw.load((IMAGES, TARGETS), val=150, test=250, split_seed=1)
    run = tw.fit(other, out=tmp_path / "other", **QUICK)
    with pytest.raises(InputError, match="other data, or split otherwise|judged on other samples"):
        tw.Ensemble.of([runs[0], run], out=tmp_path / "ensemble")
    assert not (tmp_path / "ensemble").exists()


def test_a_run_that_is_not_finished_is_refused(runs, tmp_path):
    own = tmp_path / "unfinished"
    own.mkdir()
    for name in ("run.json", "recipe.toml"):
        (own / name).write_bytes((runs[0].path / name).read_bytes())
    with pytest.raises(InputError, match="not finished"):
        tw.Ensemble.of([runs[0], own], out=tmp_path / "ensemble")


def test_an_ensemble_is_of_two_runs_or_more_each_of_them_once(runs, ensemble, tmp_path):
    own = runs[0].path
    for given in ([], runs[:1], str(own), own, runs[0]):
        with pytest.raises(InputError, match="of two runs or more: give a list"):
            tw.Ensemble.of(given, out=tmp_path / "made")
    for given in ([runs[0], own], [str(own), runs[1], own / ".." / own.name]):
        with pytest.raises(InputError, match=f"run {len(given)} is run 1 again"):
            tw.Ensemble.of(given, out=tmp_path / "made")
    with pytest.raises(InputError, match="is an ensemble itself: give its members"):
        tw.Ensemble.of([ensemble, runs[0]], out=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    made = tw.Ensemble.of((run for run in runs[:2]), out=tmp_path / "made")
    assert len(made.about["members"]) == 2


def test_what_is_no_ensemble_says_so(runs, ensemble, tmp_path):
    with pytest.raises(InputError, match="holds no ensemble"):
        tw.Ensemble(runs[0].path)
    with pytest.raises(InputError, match=r"but an ensemble: tw\.Ensemble"):
        tw.Run(ensemble.path)
    with pytest.raises(InputError, match="exists already"):
        tw.Ensemble.of(runs, out=ensemble.path)
    with pytest.raises(InputError, match=r"models are those of its members"):
        ensemble.model  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["members"][0].update(run="../../elsewhere"),
        lambda about: about["members"][0].update(weights="/etc/passwd"),
        lambda about: about.update(kept=[]),
        lambda about: about.update(kept=[99]),
        lambda about: about.update(kept=[-1]),
        lambda about: about.update(temperature=-1),
        lambda about: about.update(mean="median"),
        lambda about: about.pop("members"),
        lambda about: about.update(members=3),
        lambda about: about.update(result=[1]),
    ],
)
def test_a_strangers_or_a_damaged_ensemble_is_one_line(change, ensemble, tmp_path):
    about = json.loads((ensemble.path / "ensemble.json").read_text())
    change(about)
    (tmp_path / "ensemble.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="ensemble.json is damaged") as error:
        tw.Ensemble(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_answers_of_a_member_are_one_line(runs, tmp_path):
    own = tmp_path / "damaged"
    own.mkdir()
    for path in runs[0].path.iterdir():
        if path.is_file() and path.name != ".lock":
            (own / path.name).write_bytes(path.read_bytes())
    save_file({"val_outputs": torch.zeros(3)}, own / "evaluation.safetensors")
    with pytest.raises(InputError, match=r"evaluation\.safetensors is damaged"):
        tw.Ensemble.of([runs[1], own], out=tmp_path / "ensemble")
