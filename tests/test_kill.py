"""A run that is killed at a random moment, and resumed, ends in the same bits as one that never was."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trainwell as tw

STEPS = 54
# Tells of each step, so that the kill falls into the training however fast the machine is.
SCRIPT = """
import sys
import trainwell as tw
from trainwell.train import Trainer

train_step = Trainer.train_step

def told(self):
    train_step(self)
    print("step", flush=True)

Trainer.train_step = told
tw.fit("digits", out=sys.argv[1], resume=True, quiet=True, save_seconds=0.05, folds=1, epochs=6, threads=1,
       drop_rate=0.2)
"""


def _start(out: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True)


def _finish(out: Path) -> tuple[bytes, list[dict[str, object]]]:
    _, error = _start(out).communicate(timeout=600)
    assert not error
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tw.Run(out).history]
    return (out / "model.safetensors").read_bytes(), rows


def _kill_and_resume(kills: int, folder: Path) -> None:
    whole, moments = _finish(folder / "whole"), random.Random(0)
    assert tw.Run(folder / "whole").result["steps"] == STEPS
    for number in range(kills):
        out = folder / f"cut-{number}"
        process = _start(out)
        assert process.stdout is not None
        for _ in range(moments.randrange(1, STEPS - 5)):
            assert process.stdout.readline() == "step\n"
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate(timeout=60)
        assert not (out / "result.json").exists(), "killed too late to prove anything"
        assert _finish(out) == whole, f"kill number {number}"


def test_killed_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(1, tmp_path)


@pytest.mark.slow
def test_killed_thirty_times_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(30, tmp_path)
