"""A disk that fails, at any one operation: one clear line, code 2, nothing lost.

A child is forked in which the n-th file operation in the folder fails, for every n. After it the same command, or the
one that the message names, ends in the same bits as if nothing had failed.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trainwell as tw
from faults import ERRORS, Ended, Faults, command, in_child
from trainwell.cli import main
from trainwell.train.checkpoint_folder import CheckpointFolder

Y = np.arange(60) % 3
X = (np.random.default_rng(0).normal(size=(3, 6))[Y] * 3 + np.random.default_rng(1).normal(size=(60, 6))).astype("f4")
HOW = re.compile(r"go on with: (trainwell fit --resume --out \S+)")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "three.npz"
    np.savez(path, x=X, y=Y)
    return path


def _fit(data: Path, out: Path, faults: Faults | None = None, folds: int = 1) -> Ended:
    words = ["fit", data, "--out", out, "--model", "mlp", "--epochs", "2", "--batch-size", "16", "--threads", "1",
             "--drop-rate", "0.2", "--save-seconds", "0", "--folds", folds, "--quiet"]  # fmt: skip
    return command(words, faults)


def _resume(out: Path, faults: Faults | None = None) -> Ended:
    return command(["fit", "--resume", "--out", out, "--save-seconds", "0", "--quiet"], faults)


def _results(out: Path) -> tuple[bytes, list[dict[str, object]], list[str]]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tw.Run(out).history]
    return (out / "model.safetensors").read_bytes(), rows, sorted(path.name for path in out.iterdir())


def _is_one_line(ended: Ended, faults: Faults) -> None:
    assert ended.code == 2, ended.err
    assert ended.err.startswith("trainwell: ")
    assert ended.err.count("\n") == 1, ended.err
    assert str(faults.folder) in ended.err
    assert os.strerror(faults.number) in ended.err


def _whole(data: Path, out: Path, folds: int = 1) -> tuple[tuple[bytes, list[dict[str, object]], list[str]], int]:
    ended = _fit(data, out, Faults(out), folds)
    assert (ended.code, ended.err) == (0, "")
    assert ended.seen > 100
    return _results(out), ended.seen


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run in which nothing failed, and how many operations it took."""
    return _whole(data, tmp_path_factory.mktemp("whole") / "run")


def _try_fit(data, whole, folder, points, *, lasting, folds=1):
    for point in points:
        out = folder / f"at-{point}"
        faults = Faults(out, point, ERRORS[point % len(ERRORS)], lasting)
        ended = _fit(data, out, faults, folds)
        if ended.code == 0:  # what failed was clearing up
            assert ended.err == ""
        else:
            _is_one_line(ended, faults)
            if (out / "run.json").exists():
                assert shlex.split(HOW.search(ended.err)[1]) == ["trainwell", "fit", "--resume", "--out", str(out)]
                ended = _resume(out)
            else:
                assert "--out" in ended.err
                assert not out.exists() or lasting, f"litter of {point}: {os.listdir(out)}"
                ended = _fit(data, out, folds=folds)
            assert (ended.code, ended.err) == (0, ""), point
        assert _results(out) == whole[0], f"failed at operation {point}, it went on to something else"


def test_some_operations_of_a_run_fail_once(data, whole, tmp_path):
    _try_fit(data, whole, tmp_path, range(1, whole[1], 17), lasting=False)


def test_some_operations_of_a_run_fail_and_all_after_them(data, whole, tmp_path):
    _try_fit(data, whole, tmp_path, range(4, whole[1], 29), lasting=True)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
def test_every_operation_of_a_run_fails(lasting, data, whole, tmp_path):
    _try_fit(data, whole, tmp_path, range(1, whole[1] + 1), lasting=lasting)


def test_some_operations_of_a_cross_validation_fail(data, tmp_path):
    whole = _whole(data, tmp_path / "whole", folds=2)
    _try_fit(data, whole, tmp_path, range(31, whole[1], 149), lasting=False, folds=2)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
def test_every_third_operation_of_a_cross_validation_fails(lasting, data, tmp_path):
    whole = _whole(data, tmp_path / "whole", folds=2)
    _try_fit(data, whole, tmp_path, range(1, whole[1] + 1, 3), lasting=lasting, folds=2)


def _try_resume(data, whole, folder, points):
    cut = folder / "cut"
    _fit(data, cut, Faults(cut, whole[1] // 2))
    for point in points:
        out = folder / f"at-{point}"
        shutil.copytree(cut, out)
        faults = Faults(out, point, ERRORS[point % len(ERRORS)], lasting=bool(point % 2))
        ended = _resume(out, faults)
        if ended.code:
            _is_one_line(ended, faults)
            assert f"--resume --out {out}" in ended.err or "choose another --out" in ended.err
            ended = _resume(out)
        assert (ended.code, ended.err) == (0, ""), point
        assert _results(out) == whole[0], f"failed at operation {point}, it went on to something else"


def test_some_operations_of_a_resumed_run_fail(data, whole, tmp_path):
    _try_resume(data, whole, tmp_path, range(1, whole[1] // 2, 16))


@pytest.mark.slow
def test_every_operation_of_a_resumed_run_fails(data, whole, tmp_path):
    _try_resume(data, whole, tmp_path, range(1, whole[1] // 2))


# --- The cache. ---


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(16):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 60, 3), np.uint8)).save(path)
    return root


def _load(photos: Path, cache: Path, faults: Faults | None = None) -> Ended:
    def act() -> None:
        os.environ["TRAINWELL_CACHE"] = str(cache)
        try:
            print(tw.load(photos, quiet=True).fingerprint)
        except tw.InputError as error:
            sys.exit(f"trainwell: {error}\n")

    return in_child(act, faults)


def _try_store(photos, folder, stride):
    whole = _load(photos, folder / "whole", Faults(folder / "whole"))
    assert (whole.code, whole.err) == (0, "")
    assert whole.seen > 10
    for point in range(1, whole.seen + 1, stride):
        cache = folder / f"at-{point}"
        faults = Faults(cache, point, ERRORS[point % len(ERRORS)], lasting=bool(point % 2))
        ended = _load(photos, cache, faults)
        if ended.code:
            assert ended.err.startswith("trainwell: ")
            assert ended.err.count("\n") == 1, ended.err
            assert str(cache) in ended.err
            assert "TRAINWELL_CACHE" in ended.err
            store = list(cache.rglob("store"))  # whole, and only then there
            assert len(store) < 2
        again = _load(photos, cache)
        assert again[:3] == whole[:3], point
        assert not list(cache.glob("images/*/.*.partial"))  # no half store


def test_some_operations_of_the_cache_fail(photos, tmp_path):
    _try_store(photos, tmp_path, 4)


@pytest.mark.slow
def test_every_operation_of_the_cache_fails(photos, tmp_path):
    _try_store(photos, tmp_path, 1)


# --- One checkpoint. ---


def _try_checkpoint(folder, stride):
    state = {"weight": torch.arange(1000.0), "step": 2}

    def save(out: Path, point: int = 0, number: int = 0, lasting: bool = False) -> Ended:
        return in_child(lambda: CheckpointFolder(out).save(2, state), Faults(out, point, number, lasting))

    CheckpointFolder(folder / "whole").save(1, {"weight": torch.zeros(1000), "step": 1})
    whole = save(folder / "whole")
    assert whole.seen > 10
    for point in range(1, whole.seen + 1, stride):
        out = folder / f"at-{point}"
        checkpoints = CheckpointFolder(out, keep=1)
        checkpoints.save(1, {"weight": torch.zeros(1000), "step": 1})
        ended = save(out, point, ERRORS[point % len(ERRORS)], bool(point % 2))
        kept = checkpoints.load()  # the old or the new one, and whole
        assert torch.equal(kept["weight"], state["weight"] if kept["step"] == 2 else torch.zeros(1000))
        assert ended.code or kept["step"] == 2
        checkpoints.save(3, state)
        assert checkpoints.steps() == [3]
        assert [path.name for path in out.iterdir()] == ["step-00000003"]


def test_every_operation_of_a_checkpoint_fails(tmp_path):
    _try_checkpoint(tmp_path, 1)


# --- Commands that write elsewhere. ---


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["fit", photos, "--out", out, "--model", "resnet8", "--img-size", "8", "--epochs", "1", "--quiet",
             "--threads", "1", "--folds", "1"]  # fmt: skip
    ended = command(words)
    assert ended.code == 0, ended.err
    return out


def _full_disk():
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_predictions_that_the_disk_does_not_take(form, run, photos):
    words = ["predict", str(run), str(photos), "--format", form]
    ended = in_child(lambda: main(words), prepare=lambda: setattr(sys, "stdout", _full_disk()))
    assert ended.code == 2
    assert ended.err == "trainwell: the output cannot be written (No space left on device): it is not whole\n"


def test_progress_that_cannot_be_shown_ends_nothing(photos, run, tmp_path):
    words = ["fit", photos, "--out", tmp_path / "run", "--recipe-file", run / "recipe.toml", "--folds", 1]
    ended = in_child(lambda: main([str(word) for word in words]), prepare=lambda: setattr(sys, "stderr", _full_disk()))
    assert ended.code == 0
    assert _results(tmp_path / "run") == _results(run)


def test_every_operation_of_a_report_fails(run):
    before = (run / "report.html").read_bytes()
    seen = command(["report", run], Faults(run)).seen
    assert seen > 3
    for point in range(1, seen + 1):
        faults = Faults(run, point, ERRORS[point % len(ERRORS)])
        ended = command(["report", run], faults)
        _is_one_line(ended, faults)
        assert (run / "report.html").read_bytes()[:15] == before[:15]
        assert not list(run.glob(".*.partial"))
