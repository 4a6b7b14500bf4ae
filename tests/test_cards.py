"""The cards of docs/cards: their sections, their code, their commands, their pictures, and their tables."""

import csv
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

import trainwell as tw
from trainwell import api, cli
from trainwell.optim.kernels import cpu
from trainwell.train.recipe import SCHEDULES

HERE = Path(__file__).parent.parent / "docs" / "cards"
CARDS = sorted(path.stem for path in HERE.glob("*.md") if path.stem != "index")
SECTIONS = [
    "Formula", "Picture", "In your own loop", "In `fit`", "What we measured", "When it hurts", "Defaults",
]  # fmt: skip


def _load_tables():
    spec = importlib.util.spec_from_file_location("cards_tables", HERE / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = _load_tables()


def _text(card: str) -> str:
    return (HERE / f"{card}.md").read_text(encoding="utf-8")


def _sections(card: str) -> dict[str, str]:
    title, *parts = re.split(r"^## (.+)$", _text(card), flags=re.MULTILINE)
    return {"": title, **dict(zip(parts[::2], parts[1::2], strict=True))}


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_optimizer_and_schedule_of_a_recipe_has_a_card():
    optimizers = get_args(get_type_hints(tw.Recipe)["optimizer"])
    assert not {*optimizers, *SCHEDULES} - set(CARDS)


def test_every_card_is_in_the_index_and_in_its_table():
    index = _text("index")
    [toctree] = re.findall(r"```{toctree}\n:hidden:\n\n(.*?)\n```", index, re.DOTALL)
    assert sorted(toctree.split("\n")) == CARDS
    linked = re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\)", index, re.MULTILINE)
    assert sorted(linked) == CARDS


@pytest.mark.parametrize("card", CARDS)
def test_a_card_has_its_sections_in_order(card):
    sections = _sections(card)
    assert list(sections) == ["", *SECTIONS]
    title, paragraph = sections[""].strip().split("\n\n")
    assert title.startswith("# ")
    assert len(re.findall(r"\.(?=\s|$)", paragraph)) == 1, "one sentence"
    assert "$$" in sections["Formula"]
    for name in SECTIONS:
        assert len(sections[name].strip()) > 30, name


@pytest.mark.parametrize("card", CARDS)
def test_a_card_fits_its_screen_and_a_half(card):
    assert len(_text(card).splitlines()) <= 120
    assert max(map(len, _text(card).splitlines())) <= 122


@pytest.mark.parametrize("card", [*CARDS, "index"])
def test_pictures_and_links_are_there(card):
    text = _text(card)
    if card != "index":
        assert re.search(rf"!\[[^\]]{{20,}}\]\({card}\.svg\)", _sections(card)["Picture"]), "its picture, in words too"
    for target in re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert (HERE / target).exists(), target
    for picture in re.findall(r"\((\w+\.svg)\)", text):
        drawn = (HERE / picture).read_text(encoding="utf-8")
        assert len(drawn) < 60_000
        assert "<text" in drawn  # letters, not outlines
        assert "#ffffff" in drawn  # a white ground, on dark pages too


def test_the_numbers_in_a_picture_are_whole():
    assert "beta2 = 0.999<" in (HERE / "adam.svg").read_text(encoding="utf-8")  # only coordinates are rounded


# ---------------------------------------------------------------------- code


@pytest.fixture
def no_compiling(monkeypatch):
    """Lets optimizers step by their reference: compiling each takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(cpu, "compiled", lambda *_: None)


def _few_digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.tensor(data.data[:96], dtype=torch.float32) / 16, torch.tensor(data.target[:96])


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("card", CARDS)
def test_the_code_for_a_loop_of_your_own_runs_and_learns(card):
    torch.manual_seed(0)
    x, y = _few_digits()
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 10))
    batches, held_out = (
        [(a, b) for a, b in zip(x[:80].split(16), y[:80].split(16), strict=True)] * 3,
        [(x[80:], y[80:])],
    )

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(x[:80]), y[:80]))

    before = loss()
    [block] = _blocks(_sections(card)["In your own loop"], "python")
    variables = {"model": model, "batches": batches, "held_out": held_out}
    exec(compile(block, f"{card}.md", "exec"), variables)
    if card == "lr_range":
        assert 1e-4 < variables["found"].suggestion < 10
        assert loss() == before
    else:
        assert loss() < before


class _Fit:
    """Stands in for `fit` and `lr_range`: the same, on few samples and for three steps; notes what was asked for."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked = out, []
        pixels = load_digits().data[:120].reshape(-1, 8, 8, 1) * 15
        self.data = (pixels.astype(np.uint8), load_digits().target[:120])
        self.real_fit, self.real_range = api.fit, api.lr_range

    def fit(self, source, **options):
        self.asked.append(options)
        small = {"model": "mlp", "steps": 3, "folds": 1, "out": self.out / str(len(self.asked)), "quiet": True}
        return self.real_fit(self.data, **small, **options)

    def lr_range(self, source, **options):
        self.asked.append(options)
        small = {"model": "mlp", "folds": 1, "sweep_steps": 20, "trial_steps": 20, "quiet": True}
        return self.real_range(self.data, **small, **options)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("card", CARDS)
def test_the_code_for_fit_runs_with_the_technique(card, tmp_path, monkeypatch):
    short = _Fit(tmp_path)
    monkeypatch.setattr(tw, "fit", short.fit, raising=False)
    monkeypatch.setattr(tw, "lr_range", short.lr_range, raising=False)
    [block] = _blocks(_sections(card)["In `fit`"], "python")
    exec(compile(block, f"{card}.md", "exec"), {})
    assert short.asked
    assert any(_is_about(card, options) for options in short.asked)


@pytest.mark.parametrize("card", CARDS)
def test_the_commands_are_understood(card):
    [block] = _blocks(_sections(card)["In `fit`"], "console")
    told = []
    for line in block.strip().splitlines():
        prompt, program, *words = shlex.split(line)
        assert (prompt, program) == ("$", "trainwell")
        command = cli._parsed(words)
        assert command.source == "photos/"
        told.append(vars(command.recipe))
    assert any(_is_about(card, recipe) for recipe in told)


def _is_about(card: str, options: dict) -> bool:
    if card in SCHEDULES:
        return options.get("schedule") == card
    wanted = {"momentum": ("momentum", 0.9), "groups": ("weight_decay", 0.05), "warmup": ("warmup", 0.1)}
    name, value = wanted.get(card, ("optimizer", {"nesterov": "sgd", "lr_range": "sgd"}.get(card, card)))
    if card == "sgd" and options.get("momentum") != 0:
        return False
    return options.get(name) == value


# ---------------------------------------------------------------------- tables


def test_no_card_is_stale():
    rows = tables.read(tables.EVIDENCE)
    stale = [card for card in CARDS if tables.filled(card, _text(card), rows) != _text(card)]
    assert not stale, "run docs/cards/tables.py"
    assert set(tables.RECIPES) == set(CARDS)


def _write_rows(path: Path, accuracies: dict[str, list[float]]) -> list[dict[str, str]]:
    rows = [
        {"recipe": name, "fields": json.dumps({"optimizer": "adam", "nesting": True}), "seed": seed, "split_seed": seed,
         "test_accuracy": value, "test_loss": 1.0, "val_accuracy": 0.5, "best_epoch": 1, "steps": 10,
         "seconds": 30 + seed}
        for name, values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tables.read(path)


def _numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]


def test_means_and_intervals_are_scipys(tmp_path):
    random = np.random.default_rng(0)
    adam = random.normal(0.70, 0.01, 10)
    lion = adam + random.normal(0.02, 0.004, 10)
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": list(adam), "lion": list(lion)})
    text = tables.measured("lion", rows)
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(("| adam-cosine ", "| lion "))]
    assert [(cell[0].strip(), cell[1].strip(), cell[4].strip()) for cell in cells] == [
        ("adam-cosine", "10", "34"), ("lion", "10", "34")
    ]  # fmt: skip
    for cell, values in zip(cells, (adam, lion), strict=True):
        test = stats.ttest_1samp(100 * values, 0).confidence_interval()
        assert _numbers(cell[2]) == pytest.approx([100 * values.mean(), test.low, test.high], abs=0.006)
    paired = stats.ttest_rel(100 * lion, 100 * adam).confidence_interval()
    assert _numbers(cells[1][3]) == pytest.approx([100 * (lion - adam).mean(), paired.low, paired.high], abs=0.006)
    assert "tie" not in cells[1][3]
    assert "Fewer" not in text
    assert "adam-cosine: optimizer=adam nesting=true" in text  # the command, in TOML's words
    assert "(../evidence/optimizers.csv)" in text


def test_what_decay_gives_is_paired_within_and_between_optimizers(tmp_path):
    random = np.random.default_rng(1)
    means = {"sgd-constant": 0.57, "sgd-cosine": 0.62, "adam-constant": 0.60, "adam-cosine": 0.61}
    made = {name: random.normal(mean, 0.01, 8) for name, mean in means.items()}
    text = tables.measured("constant", _write_rows(tmp_path / "rows.csv", {k: list(v) for k, v in made.items()}))
    gains = [made[f"{kind}-cosine"] - made[f"{kind}-constant"] for kind in ("sgd", "adam")]
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    for line, values in zip(lines, [*gains, gains[0] - gains[1]], strict=True):
        test = stats.ttest_1samp(100 * values, 0).confidence_interval()
        assert _numbers(line) == pytest.approx([100 * values.mean(), test.low, test.high], abs=0.006)
    assert "What a cosine gives" not in tables.measured("step", tables.read(tmp_path / "rows.csv"))


def test_a_tie_is_called_one_and_few_seeds_are_told(tmp_path):
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72, 0.71], "lion": [0.71, 0.70, 0.72]})
    text = tables.measured("lion", rows)
    assert re.search(r"\| lion \| 3 \|.*, a tie \|", text)
    assert "Fewer than 10 seeds" in text
    single = tables.measured("lion", _write_rows(tmp_path / "rows.csv", {"lion": [0.5]}))
    assert "| lion | 1 | 50.00 (one seed: no interval) | – |" in single


def test_differences_are_of_the_seeds_that_both_have(tmp_path):
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72], "lion": [0.71, 0.74, 0.10]})
    [line] = [line for line in tables.measured("lion", rows).splitlines() if line.startswith("| lion |")]
    assert "; n 2" in line
    assert _numbers(line.split("|")[4])[0] == pytest.approx(1.5)


def test_what_has_no_rows_is_not_measured(tmp_path):
    assert tables.read(tmp_path / "none.csv") == []
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72]})
    assert tables.measured("soap", rows).startswith("Not measured yet on the evidence task")
    assert not re.search(r"\d\.\d", tables.measured("soap", rows))


def test_rows_that_belong_nowhere_or_contradict_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'mystery' in rows.csv is in no card"):
        _write_rows(tmp_path / "rows.csv", {"mystery": [0.5]})
    _write_rows(tmp_path / "rows.csv", {"lion": [0.5, 0.6]})
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "twice.csv").write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(ValueError, match="has seed 1 twice"):
        tables.read(tmp_path / "twice.csv")
    (tmp_path / "two.csv").write_text(text.replace('""optimizer"": ""adam""', '""optimizer"": ""sgd""', 1))
    with pytest.raises(ValueError, match="has fields"):
        tables.read(tmp_path / "two.csv")


def test_the_range_tests_table_says_what_its_benchmark_said():
    said = (tables.RANGE_TEST.with_suffix(".txt")).read_text(encoding="utf-8")
    [block] = re.findall(r"^held out, all optimizers, n = \d+\n(.*?)\n\n", said, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        numbers = r" *(.+?) +([\d.]+)% \[([\d.]+)%, ([\d.]+)%\]  ratio +([\d.]+) .* (\d+) steps"
        rule, share, low, high, ratio, steps = re.fullmatch(numbers, line).groups()
        told = rf"\| \**{re.escape(rule)}\** \| \d+ \| {share} \({low} to {high}\) \| {ratio} \| {steps} \|"
        assert re.search(told, _text("lr_range")), rule
    assert tables.measured_range_test(HERE / "none.csv") == "Not measured yet."


def test_filling_leaves_the_rest_of_a_card_alone():
    text = _text("lion")
    broken = re.sub(r"(<!-- defaults -->\n).*?(<!-- /defaults -->)", r"\1nothing\n\2", text, flags=re.DOTALL)
    assert broken != text
    assert tables.filled("lion", broken, tables.read(tables.EVIDENCE)) == text
    with pytest.raises(ValueError, match="marks"):
        tables.filled("lion", text.replace("<!-- /measured -->", ""), [])
