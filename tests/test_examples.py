"""What the documentation shows runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import trainwell as tw

ROOT = Path(__file__).parent.parent


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    accuracy, label = capsys.readouterr().out.splitlines()
    assert 0.5 < float(accuracy.split()[0]) <= 1
    assert re.fullmatch(r"\['\d'\]", label)


@pytest.mark.parametrize("name", ["docs/optim.md", "docs/regularize.md", "docs/augment.md", "CONTRIBUTING.md"])
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), names)


def test_the_pages_new_optimizer_steps():
    """AdaBelief, as CONTRIBUTING shows it, moves by about its rate at first."""
    names = {}
    block, _ = _blocks(ROOT / "CONTRIBUTING.md", "python")
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = names["AdaBelief"]([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.tensor([4.0, -0.1])
        optimizer.step()
    assert weight[0] < -0.1
    assert weight[1] > 0.1


def test_the_pages_new_noise_keeps_the_contract():
    names = {}
    _, block = _blocks(ROOT / "CONTRIBUTING.md", "python")
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    layer, x = names["GaussianNoise"](0.5), torch.zeros(4000, 3)
    with tw.regularize.keyed(layer, 7):
        whole = layer(x)
    with tw.regularize.keyed(layer, 7, rows=range(1000, 1010)):
        assert torch.equal(layer(x[:10]), whole[1000:1010])
    assert abs(whole.mean()) < 0.02
    assert abs(whole.std() - 0.5) < 0.02
    layer.eval()
    assert torch.equal(layer(x), x)
    with tw.regularize.sampling(layer):
        assert not torch.equal(layer(x), x)


def test_the_readmes_recipe_is_one(tmp_path):
    [block] = _blocks(ROOT / "README.md", "toml")
    assert tw.Recipe.from_dict(tomllib.loads(block)).patience == 8


def test_the_readmes_pictures_and_links_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_bare_loop_runs_and_is_short():
    path = ROOT / "examples" / "bare_loop.py"
    assert len(path.read_text().splitlines()) < 40
    done = subprocess.run([sys.executable, path, "3"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"validation: ([\d.]+)", done.stdout)[0]) > 0.5


@pytest.mark.parametrize("draws", [[], ["--torch"]])
def test_the_loop_with_augmentation_runs_and_learns(draws):
    command = [sys.executable, ROOT / "examples" / "augment_any_loop.py", "5", *draws]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, averaged = map(float, re.findall(r"digits not seen, .*: ([\d.]+)", done.stdout))
    assert plain > 0.8
    assert averaged > 0.8


def _seeds(csv: Path, seeds: int) -> str:
    words = ["digits", "--csv", csv, "--seeds", seeds, "--limit", '{"train": 300, "test": 100}', "a: epochs=1",
             "b: epochs=2 optimizer=sgd"]  # fmt: skip
    command = [sys.executable, ROOT / "bench" / "seeds.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_seeds_runner_goes_on_where_it_was_and_pairs_by_seed(tmp_path):
    csv = tmp_path / "rows.csv"
    _seeds(csv, 1)
    first = csv.read_text().splitlines()
    said = _seeds(csv, 2)
    rows = csv.read_text().splitlines()
    assert rows[: len(first)] == first
    assert len(rows) == 1 + 4
    assert said.count("rows, the last") == 2
    paired = re.findall(r"\|  ([+-][\d.]+) \[", said)
    columns = [row.rsplit(",", 6) for row in rows[1:]]
    by_name = {name: [float(c[1]) for c in columns if c[0].startswith(name)] for name in "ab"}
    mean = sum(b - a for a, b in zip(by_name["a"], by_name["b"], strict=True)) / 2
    assert float(paired[0]) == pytest.approx(mean, abs=1e-4)


def test_the_speed_benchmark_runs():
    words = ["--images", "700", "--rounds", "1", "--steps", "1", "--threads", "1"]
    command = [sys.executable, ROOT / "bench" / "fit_speed.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ours +[\d,]+ images/s .* ours is 1\.00x as fast$", done.stdout, re.MULTILINE)
