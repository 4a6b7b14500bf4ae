"""A run that dies at any one of its file operations, and is resumed, ends in the same bits as one that never did.

Every point is tried: the process is forked, counts its file operations in the run's folder, and is gone at the n-th,
with nothing flushed or cleaned up, as at a `kill -9`.
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trainwell as tw
from faults import import_all
from trainwell.train.loop import Trainer

Y = np.arange(60) % 3
X = (np.random.default_rng(0).normal(size=(3, 6))[Y] * 3 + np.random.default_rng(1).normal(size=(60, 6))).astype("f4")
FAIL_AT = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


def _model(zero: bool) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    if zero:  # the weights of a model that is given to resume do not matter
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return model


def _go(out: Path, recipe: dict[str, object]) -> None:
    data = tw.load((X, Y))
    if (out / "run.json").exists():
        tw.resume(out, data=data, model=_model(zero=True), quiet=True, save_seconds=0)
    else:
        tw.fit(data, out=out, model=_model(zero=False), quiet=True, save_seconds=0, batch_size=16, threads=1, **recipe)


def _child(out: Path, recipe: dict[str, object], die_at: int) -> int:
    """Runs or resumes in a forked child that dies at its n-th file operation (0: never); returns its exit code."""
    import_all()
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            reads = event == "open" and "w" not in str(arguments[1]) and "a" not in str(arguments[1])
            inside = event in ("os.remove", "os.rmdir") or str(out) in str(arguments[:2])
            if event in FAIL_AT and inside and not reads:
                seen += 1
                if seen == die_at:
                    os._exit(9)

        sys.addaudithook(hook)
        warnings.simplefilter("ignore")
        try:
            _go(out, recipe)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _results(out: Path) -> tuple[bytes, list[dict[str, object]], bool]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tw.Run(out).history]
    return (out / "model.safetensors").read_bytes(), rows, (out / "report.html").exists()


def _try_every(folder: Path, recipe: dict[str, object], first: int, stride: int, again: int = 0) -> int:
    """Dies at every `stride`-th operation, resumes, compares; `again` dies at that operation of a first try before."""
    assert _child(folder / "whole", recipe, 0) == 0
    whole, point, tried = _results(folder / "whole"), first, 0
    while True:
        out = folder / f"point-{point}"
        if again:
            assert _child(out, recipe, again) == 9
        code = _child(out, recipe, point)
        if code == 0:
            return tried
        assert code == 9
        assert _child(out, recipe, 0) == 0, f"dead at operation {point}, it did not resume"
        assert _results(out) == whole, f"dead at operation {point}, it resumed to other bits"
        point, tried = point + stride, tried + 1


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss NaN at a step, until the rate was halved."""
    forward_backward = Trainer.forward_backward

    def poison(self, inputs, targets):
        loss, *rest = forward_backward(self, inputs, targets)
        return (loss * float("nan") if self.step == 4 and self.lr_scale > 0.6 else loss, *rest)

    monkeypatch.setattr(Trainer, "forward_backward", poison)


def test_dead_at_some_operations(tmp_path):
    assert _try_every(tmp_path, {"steps": 3}, first=1, stride=7) > 5


@pytest.mark.slow
@pytest.mark.parametrize("again", [0, 24])
def test_dead_at_every_operation(again, tmp_path):
    assert _try_every(tmp_path, {"epochs": 3}, first=1, stride=1, again=again) > 50


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
def test_dead_at_every_operation_of_a_run_that_goes_back(tmp_path):
    assert _try_every(tmp_path, {"epochs": 3, "on_nonfinite": "halve"}, first=1, stride=1) > 50
    assert tw.Run(tmp_path / "whole").result["halvings"] == 1


@pytest.mark.usefixtures("poisoned")
def test_dead_at_some_operations_of_a_run_that_goes_back(tmp_path):
    assert _try_every(tmp_path, {"epochs": 3, "on_nonfinite": "halve"}, first=3, stride=23) > 3
    assert tw.Run(tmp_path / "whole").result["halvings"] == 1
