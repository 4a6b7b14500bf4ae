"""The example of a loop of one's own, killed at random moments and run again, ends in the same bits."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "resume_any_loop.py"
STEPS = 145
STEP = re.compile(r"epoch \d, step (\d+), loss (.+)")


def _start(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(EXAMPLE), str(folder), "0.05"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _losses(said: list[str]) -> dict[int, str]:
    return {int(found[1]): found[2] for found in map(STEP.fullmatch, said) if found}


def _finish(folder: Path) -> tuple[str, dict[int, str]]:
    """Runs to the end; returns the digest of the weights, and the losses by step."""
    said, error = _start(folder).communicate(timeout=600)
    assert not error
    *steps, last = said.splitlines()
    assert last.startswith(f"sha256 of the weights after {STEPS} steps: ")
    return last, _losses(steps)


def _kill_and_resume(kills: int, folder: Path) -> None:
    (whole, losses), moments = _finish(folder / "whole"), random.Random(0)
    assert list(losses) == list(range(1, STEPS + 1))
    from_the_middle = 0
    for number in range(kills):
        cut = folder / f"cut-{number}"
        process = _start(cut)
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stdout.readline().rstrip("\n") for _ in range(moments.randrange(1, STEPS - 5))]
        time.sleep(moments.uniform(0, 0.05))
        process.kill()  # not its workers, which notice by themselves
        process.wait(timeout=60)
        process.stdout.close()
        process.stderr.close()
        assert _losses(said).items() <= losses.items()
        digest, rest = _finish(cut)
        assert digest == whole, f"kill number {number}"
        assert rest.items() <= losses.items(), f"kill number {number}"
        from_the_middle += len(rest) not in (0, STEPS)
    assert from_the_middle >= kills / 2


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(1, tmp_path)


@pytest.mark.slow
def test_killed_thirty_times_and_resumed_to_the_same_bits(tmp_path):
    _kill_and_resume(30, tmp_path)


def test_it_takes_at_most_ten_lines():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert 0 < sum("  # +" in line for line in lines) <= 10
    assert all("# +" in line for line in lines if re.search(r"\btw\b|checkpoint|sampler", line))
