"""What importing costs, and what the parts can do without."""

import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import trainwell


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["trainwell", "trainwell.cli", "trainwell.data", "trainwell.data.decode"])
def test_importing_loads_nothing_heavy(module):
    loaded = _python(f"import {module}, sys; print(*sys.modules)").split()
    assert module in loaded
    assert not {"torch", "numba", "sklearn", "scipy", "plotly", "joblib"} & set(loaded)


def test_every_public_name_is_there():
    _python("""
        import trainwell as tw
        for name in tw.__all__:
            assert getattr(tw, name) is not None
        for package in (tw.augment, tw.data, tw.ensemble, tw.lab, tw.metrics, tw.models, tw.optim, tw.regularize,
                        tw.train, tw.transfer):
            for name in package.__all__:
                getattr(package, name)
    """)


PARTS = """
    import numpy as np, torch
    import trainwell as tw

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    data = tw.load({"train": (rng.integers(0, 256, (40, 9, 8, 3), dtype=np.uint8), np.arange(40) % 2)})
    batches = tw.data.Batches(data.train, 8, size=(8, 8), shuffle=True)
    model = tw.models.create("resnet8", num_classes=2, in_chans=3, drop_rate=0.2, drop_path_rate=0.2)
    rate = tw.schedules.warmup(tw.schedules.cosine(0.1, steps=4), steps=2)
    optimizer = torch.optim.SGD(tw.optim.no_decay_groups(model, 1e-4), lr=rate(0))
    stopping = tw.train.EarlyStopping(patience=3, mode="min")
    for step, (x, y) in enumerate(batches.epoch(0)):
        optimizer.param_groups[0]["lr"] = rate(step)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stopping.update(loss.item(), at=step)
    sampler = tw.data.KeyedSampler(40, labels=np.arange(40) % 2)
    pixels = tw.data.Keyed([torch.zeros(2)] * 40)
    loader = torch.utils.data.DataLoader(pixels, batch_size=8, sampler=sampler)
    assert sum(len(batch) for batch in sampler.batches(loader)) == 40
    tw.models.MLP(4, 2)(torch.zeros(3, 4))
    try:
        import numba
    except ImportError:
        print("ran without the rest")
"""


def _with_dependencies(*names: str) -> set[str]:
    """Returns the distributions and everything they require, without extras."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            lines = [Requirement(line) for line in metadata.requires(name) or []]
            wanted += [line.name for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    return found


def test_parts_need_torch_and_numpy_alone(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for name in _with_dependencies("torch", "numpy"):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    (site / "trainwell").symlink_to(Path(trainwell.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-S", "-c", textwrap.dedent(PARTS)]  # -S: without the environment's own packages
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran without the rest"
