import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPEC = importlib.util.spec_from_file_location("input_cold", Path(__file__).parents[1] / "bench" / "input_cold.py")
input_cold = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(input_cold)


@pytest.mark.parametrize("size", [None, 40])
def test_both_contenders_see_every_image_and_the_same_pictures(tmp_path, monkeypatch, capsys, size):
    monkeypatch.setenv("TRAINWELL_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    total = 0.0
    for number in range(30):
        folder = tmp_path / "photos" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image = coarse.resize((75, 60), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        middle = image if size is None else image.crop((7, 0, 67, 60))  # the square that is shrunk to the batch
        total += np.asarray(middle).mean() / 255
    for contender in input_cold.CONTENDERS:
        input_cold.measure(contender, tmp_path / "photos", size, workers=1)
        result = json.loads(capsys.readouterr().out)
        assert result["images"] == 30
        assert result["mean"] == pytest.approx(total / 30, abs=0.004)
        assert len(result["seconds"]) == 2


def test_memory_is_that_of_the_process_and_its_children():
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert {os.getpid(), child.pid} <= set(input_cold.family(os.getpid()))
            assert input_cold.pss(os.getpid()) > 10_000_000
        finally:
            child.kill()
    assert input_cold.pss(child.pid) == 0
