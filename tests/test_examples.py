"""What the documentation shows runs."""

import re
import runpy
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
    accuracy, label, of_ensemble, again = capsys.readouterr().out.splitlines()
    for figure in (accuracy, of_ensemble):
        assert 0.5 < float(figure.split()[0]) <= 1
    for answer in (label, again):
        assert re.fullmatch(r"\['\d'\]", answer)


@pytest.mark.parametrize(
    "name",
    [
        "docs/optim.md", "docs/regularize.md", "docs/augment.md", "docs/ensemble.md", "docs/transfer.md",
        "CONTRIBUTING.md",
    ],
)  # fmt: skip
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), names)


def test_the_pages_new_optimizer_steps():
    """AdaBelief, as CONTRIBUTING shows it, moves by about its rate at first."""
    names = {}
    block, *_ = _blocks(ROOT / "CONTRIBUTING.md", "python")
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
    _, block, _ = _blocks(ROOT / "CONTRIBUTING.md", "python")
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


@pytest.mark.parametrize("threads", [1, 2])
def test_the_pages_new_pass_is_done_whole(threads):
    before, names = torch.get_num_threads(), {}
    *_, block = _blocks(ROOT / "CONTRIBUTING.md", "python")
    torch.set_num_threads(threads)
    exec(compile(block, "<CONTRIBUTING.md>", "exec"), names)  # no file, beside which it would be kept
    torch.set_num_threads(before)
    assert (names["out"] == names["x"] ** 2).all()


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


@pytest.mark.parametrize("draws", [[], pytest.param(["--torch"], marks=pytest.mark.slow)])
def test_the_loop_with_augmentation_runs_and_learns(draws):
    command = [sys.executable, ROOT / "examples" / "augment_any_loop.py", "5", *draws]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain, averaged = map(float, re.findall(r"digits not seen, .*: ([\d.]+)", done.stdout))
    assert plain > 0.8
    assert averaged > 0.8


def test_the_loop_with_an_average_learns_and_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys):
    def said(folder: str, epochs: int) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["average_any_loop.py", str(tmp_path / folder), str(epochs)])
            runpy.run_path(str(ROOT / "examples" / "average_any_loop.py"))
        return capsys.readouterr().out.splitlines()

    whole = said("whole", 4)
    averages = [float(line.rpartition(" ")[2]) for line in whole]
    assert averages[-1] == averages[-2]  # what is handed over is the last average
    assert averages[-1] < 0.3 < 2 * averages[0]
    assert said("cut", 2)[:2] + said("cut", 4) == whole


def _seeds(csv: Path, seeds: int) -> str:
    words = ["digits", "--csv", csv, "--seeds", seeds, "--limit", '{"train": 300, "test": 100}', "a: epochs=1",
             "b: epochs=2 optimizer=sgd"]  # fmt: skip
    command = [sys.executable, ROOT / "bench" / "seeds.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_speed_benchmark_runs():
    words = ["--images", "700", "--rounds", "1", "--steps", "1", "--threads", "1"]
    command = [sys.executable, ROOT / "bench" / "fit_speed.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ours +[\d,]+ images/s .* ours is 1\.00x as fast$", done.stdout, re.MULTILINE)
