"""A run that is killed at any moment, and resumed, ends in the same bits as one that never was."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trainwell as tw

# Says "ready" when all is imported, so that the moment of the kill falls into the run and not into the imports.
SCRIPT = """
import sys
import trainwell as tw, trainwell.api
print("ready", flush=True)
tw.fit("digits", out=sys.argv[1], resume=True, quiet=True, save_seconds=0.05, epochs=6, threads=1, drop_rate=0.2)
"""


def _start(out: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _results(out: Path) -> tuple[bytes, list[dict[str, object]]]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in tw.Run(out).history]
    return (out / "model.safetensors").read_bytes(), rows


def _kill_and_resume(kills: int, folder: Path) -> None:
    began = time.monotonic()
    assert _start(folder / "whole").wait(300) == 0
    length = time.monotonic() - began
    whole, moments = _results(folder / "whole"), random.Random(0)
    in_training = 0
    for number in range(kills):
        out = folder / f"cut-{number}"
        process = _start(out)
        time.sleep(moments.uniform(0, length * 0.7))
        process.kill()
        process.wait(60)
        in_training += (out / "run.json").exists() and not (out / "result.json").exists()
        assert _start(out).wait(300) == 0
        assert _results(out) == whole, f"kill number {number}"
    assert in_training >= kills // 3, "too few kills fell into the training to prove anything"


def test_killed_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(3, tmp_path)


@pytest.mark.slow
def test_killed_thirty_times_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(30, tmp_path)
