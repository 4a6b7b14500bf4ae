"""The cards of docs/cards: their sections, their code, their commands, their pictures, and their tables."""

import ast
import csv
import dataclasses
import importlib
import inspect
import itertools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

import trainwell as tw
from trainwell import api, augment, cli, ensemble, regularize, transfer
from trainwell.optim.kernels import cpu
from trainwell.train.recipe import AVERAGES, SCHEDULES

HERE = Path(__file__).parent.parent / "docs" / "cards"
CARDS = sorted(path.stem for path in HERE.glob("*.md") if path.stem != "index")
SECTIONS = [
    "Formula", "Picture", "In your own loop", "In `fit`", "What we measured", "When it hurts", "Defaults",
]  # fmt: skip


sys.path.insert(0, str(HERE))
tables, compared, benches, defaults, ensembles_table, transfer_table = map(
    importlib.import_module, ("tables", "compared", "benches", "defaults", "ensembles_table", "transfer_table")
)


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


def test_every_regulariser_has_a_card():
    made = {name: getattr(regularize, name) for name in regularize.__all__}
    kinds = [name for name, kind in made.items() if isinstance(kind, type) and issubclass(kind, regularize.ElasticNet)]
    kinds += [name for name, kind in made.items() if isinstance(kind, type) and issubclass(kind, regularize.Noise)]
    shown = {function.__name__ for functions in defaults.OTHERS.values() for function in functions}
    assert len(kinds) == 8
    assert not {*kinds, "mixup", "cutmix", "SAM", "marginalize"} - {"Noise"} - shown
    fields = {*tw.models.NOISE, "label_smoothing", "mixup", "cutmix", "l1", "l2", "sam"}
    assert not fields - {name for names in defaults.FIELDS.values() for name in names}


AVERAGING = {"average", "ema_decay", "average_epochs", "snapshots"}
TRANSFER = {"pretrained", "transfer", "transfer_minutes", "backbone_lr", "layer_decay", "l2_sp"}


def test_the_cards_show_the_fields_of_a_recipe_that_are_theirs():
    fields = {name for names in defaults.FIELDS.values() for name in names}
    others = {"label_smoothing", "mixup", "cutmix", "l1", "l2", "sam", "augment"}
    assert fields == {*tw.models.NOISE, *others, *AVERAGING, *TRANSFER}


def test_every_way_of_transfer_and_every_function_for_it_is_on_a_card():
    cards = [*transfer_table.RECIPES]
    shown = " ".join(_sections(card)["In `fit`"] for card in cards)
    [told] = re.findall(r"transfer must be (.*);", _refusal(transfer="nonsense"))
    ways = re.findall(r"\w+", told.replace("or none", ""))
    assert {"auto", "linear", "stage", "top2", "all", "gradual", "lp_ft"} <= {*ways}
    assert all(f"--transfer {way}" in shown for way in ways if way != "top1")
    assert {name for card in cards for name in defaults.FIELDS[card]} == TRANSFER
    listed = {function.__name__ for card in cards for function in defaults.OTHERS[card]}
    public = {name: getattr(transfer, name) for name in transfer.__all__}
    assert not {name for name, value in public.items() if inspect.isfunction(value)} - listed
    assert {"L2SP"} <= listed


def _refusal(**fields) -> str:
    with pytest.raises(tw.InputError) as refused:
        tw.Recipe(**fields)
    return str(refused.value)


def test_every_average_of_a_recipe_has_a_card():
    shown = " ".join(_sections(card)["In `fit`"] for card in ("ema", "swa"))
    assert all(f'average="{name}"' in shown for name in AVERAGES)
    kinds = {function.__name__ for card in ("ema", "swa") for function in defaults.OTHERS[card]}
    assert {"EMA", "SWA", "LatestK", "refresh_batchnorm"} == kinds


def test_every_amount_of_an_augmentation_is_on_a_card_and_in_the_index():
    amounts = {field.name: field.default for field in dataclasses.fields(augment.Augment)}
    others = {"chance", "padding_mode", "size", "mean", "std", "components", "dtype", "channels_last"}
    shown = [name for names in defaults.AMOUNTS.values() for name in names]
    assert sorted(shown) == sorted(amounts.keys() - others)
    for card, names in defaults.AMOUNTS.items():
        for name in names:
            assert re.search(rf"\b{name.removesuffix('_vertical')}", _text(card)), name
            assert re.search(rf"\b{name.removesuffix('_vertical').removesuffix('e')}", _text("index"), re.I), name
    views = {"flips", "shifts", "ten_crop", "multi_scale", "samples"}
    assert views < {function.__name__ for function in defaults.OTHERS["test_time"]}
    assert all(f"`{name}(" in _text("test_time") for name in views)


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
    return torch.tensor(data.images[:96], dtype=torch.float32)[:, None] / 16, torch.tensor(data.target[:96])


def _has(kind, **attributes):
    """Makes a test whether a layer of a kind is in the model."""
    return lambda made: any(
        isinstance(layer, kind)
        and all(getattr(layer, name) == pytest.approx(value) for name, value in attributes.items())
        for layer in made["model"].modules()
    )


def _drew(kind, **attributes):
    """Makes a test whether a layer of a kind is in the model, and has drawn noise in each step."""
    return lambda made: (
        _has(kind, **attributes)(made)
        and all(
            made["drawn"].count(layer) >= len(made["batches"])
            for layer in made["model"].modules()
            if isinstance(layer, kind) and getattr(layer, "p", 1) > 0
        )
    )


# What is to be seen after a card's own loop. `losses` are the options with which cross-entropy was called, `drawn` the
# layers that drew noise.
IN_USE = {
    "lr_range": lambda made: 1e-4 < made["found"].suggestion < 10,
    "dropout": _drew(regularize.Dropout, p=0.5, maps=False),
    "dropconnect": _drew(regularize.DropConnect, p=0.3),
    "stochastic_depth": _drew(regularize.StochasticDepth, p=0.2),
    "fractional_pooling": _drew(regularize.FractionalMaxPool2d, output_ratio=0.7),
    "label_smoothing": lambda made: made["losses"] == [{"label_smoothing": 0.1}] * len(made["batches"]),
    "mixup": lambda made: 0 < float(made["mixed"].share.min()) < 1 and not _is_pasted(made),
    "cutmix": lambda made: float(made["mixed"].share.min()) < 1 and _is_pasted(made),
    "penalties": lambda made: made["penalty"].l1 > 0 and regularize.sparsity(made["model"]) > 0,
    "sam": lambda made: made["sam"].rho > 0 and len(made["losses"]) == 2 * len(made["batches"]),
    "batch_norm": lambda made: _are_means(made["model"], made["batches"]),
    "marginalize": lambda made: made["result"].draws == 40 and _drew(regularize.Dropout, p=0.2)(made),
    "augmentation": lambda made: _changed(made) and made["aug"] == made["tw"].augment.light(rotate=10, brightness=0.2),
    "geometry": lambda made: _changed(made) and made["seen"].min() >= 0 and made["seen"].max() <= 1.0001,
    "colour": lambda made: (
        _changed(made) and _are_shades(made["x"], made["seen"]) and made["aug"].components is not None
    ),
    "erasing": lambda made: _changed(made) and _are_wiped(made["x"], made["seen"]),
    "test_time": lambda made: made["result"].draws == 18 and float(made["result"].std.max()) > 0,
    "ema": lambda made: made["ema"].updates == len(made["batches"]) and _holds(made["model"], made["ema"]),
    "swa": lambda made: (
        made["swa"].updates == 2 and _holds(made["model"], made["swa"]) and _are_means(made["model"], made["batches"])
    ),
    "snapshots": lambda made: len(made["snapshots"]) == made["result"].draws == 3 and _differ(made["snapshots"]),
    "members": lambda made: len(made["members"]) == 3 and _differ(made["members"]) and made["p"].shape == (16, 10),
    "pretrained": lambda made: made["model"] is made["backbone"].model and _is_loaded(made["backbone"], made["other"]),
    "linear_head": lambda made: _is_best_of(made["model"], made["features"], made["targets"], made["l2"]),
    "fine_tuning": lambda made: made["top"] == 2 and _steps_of_stages(made["model"], made["optimizer"]) == [10, 15],
    "lp_ft": lambda made: (
        not torch.equal(made["head"].weight, made["fitted"].weight)
        and not torch.equal(transfer.head_inputs(made["model"], made["x"]), made["features"][-len(made["x"]) :])
    ),
    "l2_sp": lambda made: (
        float(made["pull"].penalty().detach()) > 0
        and [g["weight_decay"] for g in made["optimizer"].param_groups] == [0, 0.01]
    ),
    "probes": lambda made: made["chosen"] in made["probes"] and [one.stage for one in made["probes"]] == ["1"],
    "plan": lambda made: {"linear"} < {one.name for one in made["plan"].candidates},
}
NOTHING_LEARNED = ("lr_range", "probes", "plan")  # the model is as it was
SOLVED = ("linear_head", "lp_ft")  # before any step, so that little is left for those


def _is_loaded(backbone: transfer.Backbone, other: nn.Module) -> bool:
    """Says whether all but the last layer is matched, and what is no figure of the weights came along."""
    below = {name for name in other.state_dict() if not name.startswith("fc.")}
    return {*backbone.match.matched} == below and (backbone.mean, backbone.std, backbone.img_size) == (
        (0.3,),
        (0.4,),
        8,
    )


def _is_best_of(model: nn.Module, features: torch.Tensor, targets: torch.Tensor, l2: float) -> bool:
    """Says whether the objective has no slope at a model's last layer."""
    deviation = features.double().std(0, correction=0)
    weight, bias = (parameter.detach().double().requires_grad_() for parameter in model[-1].parameters())
    loss = torch.nn.functional.cross_entropy(features.double() @ weight.T + bias, targets)
    slopes = torch.autograd.grad(loss + l2 / 2 * (weight * deviation).square().sum(), (weight, bias))
    return max(float(slope.abs().max()) for slope in slopes) < 1e-5


def _steps_of_stages(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Returns how many steps each stage was trained."""
    counts = {name: float(optimizer.state[parameter]["step"]) for name, parameter in model.named_parameters()}
    return [max(count for name, count in counts.items() if name.split(".")[0] in names)
            for names in transfer.stages(model)]  # fmt: skip


def _holds(model: nn.Module, average: ensemble.WeightAverage) -> bool:
    """Says whether a model's weights are the average."""
    weights = dict(model.named_parameters())
    return all(torch.equal(weights[name], value) for name, value in average.average().items() if name in weights)


def _differ(models: list[nn.Module]) -> bool:
    """Says whether no two models are the same."""
    weights = [next(model.parameters()) for model in models]
    return not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def _changed(made: dict) -> bool:
    """Says whether images of the last batch were changed, and not all of them in the same way."""
    change = made["seen"] - made["x"]
    return made["seen"].shape == made["x"].shape and not torch.allclose(change[0], change[1], atol=1e-3)


def _are_shades(x: torch.Tensor, seen: torch.Tensor) -> bool:
    """Says whether each image is a multiple of what it was, plus a number."""
    pairs = zip(x.flatten(1).numpy(), seen.flatten(1).numpy(), strict=True)
    return all(np.corrcoef(before, after)[0, 1] > 0.9999 for before, after in pairs)


def _are_wiped(x: torch.Tensor, seen: torch.Tensor) -> bool:
    """Says whether pixels are 0, in some of the images, or else those that were, normalised."""
    wiped = (seen == 0) & (x != 0.5)
    return 2 < int(wiped.flatten(1).any(1).sum()) < len(x) and torch.allclose(seen[~wiped], (x[~wiped] - 0.5) / 0.25)


def _are_means(model: nn.Sequential, batches: list) -> bool:
    """Says whether batch norm has noted the means over all batches, by the weights as they are."""
    with torch.no_grad():
        means = torch.stack([model[:2](x).mean(0) for x, _ in batches]).mean(0)
    return torch.allclose(model[2].running_mean, means, atol=1e-5)


def _is_pasted(made: dict) -> bool:
    """Says whether each pixel of the last mixed batch is one of the sample's or one of its partner's."""
    x, (inputs, partners, _) = made["x"], made["mixed"]
    return bool(((inputs == x) | (inputs == x[partners])).all())


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("card", CARDS)
def test_the_code_for_a_loop_of_your_own_runs_and_learns(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where some write
    [block] = _blocks(_sections(card)["In your own loop"], "python")
    x, y = _few_digits()
    cross_entropy = torch.nn.functional.cross_entropy

    def run() -> tuple[float, float, dict]:
        """Returns the loss before and after, and what the code has made."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 10))
        batches = [(a, b) for a, b in zip(x[:80].split(16), y[:80].split(16), strict=True)] * 3
        losses, drawn, row_keys = [], [], regularize.Noise.row_keys

        def drawing(layer, x):
            drawn.append(layer)
            return row_keys(layer, x)

        def noted(*args, **options):
            losses.append(options)
            return cross_entropy(*args, **options)

        before = _loss(model, x[:80], y[:80])
        made = {"model": model, "batches": batches, "held_out": [(x[80:], y[80:])], "losses": losses, "drawn": drawn}
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "cross_entropy", noted)
            patch.setattr(regularize.Noise, "row_keys", drawing)
            exec(compile(block, f"{card}.md", "exec"), made)
        return before, _loss(made["model"], x[:80], y[:80]), made

    before, after, made = run()
    if card in IN_USE:
        assert IN_USE[card](made)
    if card in NOTHING_LEARNED:
        assert after == before
        return
    if card in IN_USE and card not in SOLVED:
        with monkeypatch.context() as patch:  # the model may be the card's own, or changed: the same code without steps
            for kind in (tw.optim.AdamW, tw.optim.SGD):  # not their base: torch puts the step into each class
                patch.setattr(kind, "step", lambda *_: None)
            _, before, _ = run()
    assert after < before - 0.01


def _loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad(), regularize.evaluating(model):
        return float(torch.nn.functional.cross_entropy(model(x), y))


class _Fit:
    """Stands in for `fit` and the like, and `load`: the same, on few samples, in few steps; notes what was asked."""

    def __init__(self, out: Path) -> None:
        self.out, self.asked = out, []
        pixels = load_digits().data[:120].reshape(-1, 8, 8, 1).repeat(3, axis=3) * 15
        self.data = (pixels.astype(np.uint8), load_digits().target[:120])
        self.real_fit, self.real_range, self.real_load = api.fit, api.lr_range, tw.load
        self.real_members = tw.fit_members

    def fit(self, source, **options):
        assert source == "photos/"
        self.asked.append(options)
        small = {"model": "resnet8", "steps": 3, "folds": 1, "out": self.out / str(len(self.asked)), "quiet": True}
        if "pretrained" in options:  # which says the model, and where a head is solved for there are no steps
            del small["model"]
            if options.get("transfer") in ("linear", "stage"):
                del small["steps"]
        return self.real_fit(self.data, **small | options)

    def fit_members(self, source, **options):
        assert source == "photos/"
        self.asked.append(options)
        small = {"model": "mlp", "steps": 3, "folds": 1, "out": self.out / "members", "engine": "loop", "quiet": True}
        return self.real_members(self.data, **small | options)

    def lr_range(self, source, **options):
        assert source == "photos/"
        self.asked.append(options)
        small = {"model": "mlp", "folds": 1, "sweep_steps": 20, "trial_steps": 20, "quiet": True}
        return self.real_range(self.data, **small, **options)

    def load(self, source, **options):
        assert source == "photos/"
        return self.real_load(self.data, quiet=True, **options)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("card", CARDS)
def test_the_code_for_fit_runs_with_the_technique(card, tmp_path, monkeypatch, capsys):
    short = _Fit(tmp_path)
    if card in transfer_table.RECIPES:  # their pretrained network is a run
        monkeypatch.chdir(tmp_path)
        fields = {"model": "resnet8", "steps": 3, "folds": 1, "quiet": True}
        before = api.fit(short.data, out=tmp_path / "runs" / "first", **fields)
    for name in ("fit", "fit_members", "lr_range", "load"):
        monkeypatch.setattr(tw, name, getattr(short, name), raising=False)
    [block] = _blocks(_sections(card)["In `fit`"], "python")
    made = {}
    exec(compile(block, f"{card}.md", "exec"), made)
    assert short.asked
    assert any(_is_about(card, options) for options in short.asked)
    if card == "marginalize":
        assert made["result"].draws == 20
        assert float(made["result"].std.max()) > 0  # it was sampled
    if card == "test_time":
        assert len(capsys.readouterr().out.splitlines()) == 1  # the labels
        assert (made["run"].path / "augmentation.png").exists()
    if card in ("snapshots", "members"):
        assert isinstance(made["ensemble"], tw.Ensemble)
        assert len(made["ensemble"].about["members"]) == {"snapshots": 3, "members": 5}[card]
    if card in transfer_table.RECIPES:
        assert made["run"].info["backbone"]["source"] == "runs/first"
        assert _HAS_LEARNED[card](made["run"], before)


def _moved(run: tw.Run, before: tw.Run) -> bool:
    """Says whether a run has changed the first weights of the one that it began as."""
    return not torch.equal(run.model.conv1.weight, before.model.conv1.weight)


# What is to be seen after a card's `fit`, beside the run that it began as.
_HAS_LEARNED = {
    "pretrained": lambda run, before: run.recipe.model == "resnet8" and run.info["mean"] == before.info["mean"],
    "linear_head": lambda run, before: run.recipe.steps == 0 and not _moved(run, before),
    "fine_tuning": lambda run, before: (run.recipe.layer_decay, run.recipe.steps) == (0.8, 3) and _moved(run, before),
    "lp_ft": lambda run, before: run.recipe.steps == 3 and _moved(run, before),
    "l2_sp": lambda run, before: run.recipe.transfer == "all" and _moved(run, before),
    "probes": lambda run, _: (
        run.recipe.steps == 0
        and [one["stage"] for one in run.info["choice"]["probes"]] == ["pixels", "conv1", "layer1", "layer2", "layer3"]
    ),
    "plan": lambda run, _: run.info["choice"]["tried"] and run.info["choice"]["reasons"][-1].startswith("chosen: "),
}


@pytest.mark.parametrize("card", CARDS)
def test_the_commands_are_understood(card):
    [block] = _blocks(_sections(card)["In `fit`"], "console")
    told = []
    for line in block.strip().splitlines():
        prompt, program, *words = shlex.split(line)
        assert (prompt, program) == ("$", "trainwell")
        command = cli._parsed(words)
        if isinstance(command, cli.Predict):
            assert augment.parse_views(command.average, augment.standard(), 32)
            continue
        assert command.source == "photos/"
        told.append(vars(command.recipe) | {"members": getattr(command, "members", None)})
    assert any(_is_about(card, recipe) for recipe in told)


LAYERS = {"fractional_pooling": regularize.FractionalMaxPool2d, "batch_norm": nn.BatchNorm2d}
FIELDS = {
    "momentum": ("nesterov", False), "groups": ("weight_decay", 0.05), "warmup": ("warmup", 0.1),
    "nesterov": ("optimizer", "sgd"), "lr_range": ("optimizer", "sgd"), "dropout": ("drop_rate", 0.5),
    "dropconnect": ("dropconnect", 0.3), "stochastic_depth": ("drop_path_rate", 0.1),
    "label_smoothing": ("label_smoothing", 0.1), "mixup": ("mixup", 0.2), "cutmix": ("cutmix", 1.0),
    "penalties": ("l1", 1e-4), "sam": ("sam", 0.05), "marginalize": ("drop_rate", 0.2),
    "augmentation": ("augment", "strong"), "geometry": ("augment", "light(rotate=5, scale=(1.0, 1.5))"),
    "colour": ("augment", "standard(hue=10)"), "erasing": ("augment", "standard(erase=0.25)"),
    "test_time": ("augment", "standard"), "ema": ("average", "ema"), "swa": ("average", "swa"),
    "snapshots": ("snapshots", 3), "members": ("members", 5), "pretrained": ("pretrained", "runs/first"),
    "linear_head": ("transfer", "linear"), "fine_tuning": ("layer_decay", 0.8), "lp_ft": ("transfer", "lp_ft"),
    "l2_sp": ("l2_sp", 0.01), "probes": ("transfer", "stage"), "plan": ("transfer_minutes", 10.0),
}  # fmt: skip


def _is_about(card: str, options: dict) -> bool:
    if card in SCHEDULES:
        return options.get("schedule") == card
    if card in LAYERS:
        return _has(LAYERS[card])({"model": _made(card, options["model"])})
    name, value = FIELDS.get(card, ("optimizer", card))
    if card == "sgd" and options.get("momentum") != 0:
        return False
    if card == "dropout" and options.get("drop_map_rate") != 0.1:
        return False
    return options.get(name) == value


def _made(card: str, model: nn.Module | str) -> nn.Module:
    """Makes a model from its name; a function is the card's own."""
    if not isinstance(model, str) or ":" not in model:
        return tw.models.create(model, num_classes=10, in_chans=3)
    [block] = _blocks(_sections(card)["In `fit`"], "python")
    tree = ast.parse(block)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)]
    functions = {}
    exec(compile(tree, f"{card}.md", "exec"), functions)
    return functions[model.partition(":")[2]](in_chans=3, num_classes=10)


# ---------------------------------------------------------------------- tables


def test_no_card_is_stale():
    stale = [card for card in CARDS if tables.filled(card, _text(card)) != _text(card)]
    assert not stale, "run docs/cards/tables.py"
    listed = [card for evidence in compared.ALL for card in evidence.recipes]
    assert sorted([*listed, *ensembles_table.ARMS, *transfer_table.RECIPES, "lr_range"]) == CARDS


def _write_rows(
    path: Path, accuracies: dict[str, list[float]], evidence: compared.Evidence = compared.OPTIMIZERS
) -> list[dict[str, str]]:
    rows = [
        {"recipe": name, "fields": json.dumps({"optimizer": "adam", "nesting": True}), "seed": seed, "split_seed": seed,
         "test_accuracy": value, "test_loss": 1.0, "val_accuracy": 0.5, "best_epoch": 1, "steps": 10,
         "seconds": 30 + seed, "average_accuracy": value + 0.01 * (seed + 1), "average_loss": 0.9}
        for name, values in accuracies.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return compared.read(evidence, path)


def _numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−-]?\d+\.\d+", text)]


def test_means_and_intervals_are_scipys(tmp_path):
    random = np.random.default_rng(0)
    adam = random.normal(0.70, 0.01, 10)
    lion = adam + random.normal(0.02, 0.004, 10)
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": list(adam), "lion": list(lion)})
    text = compared.measured("lion", rows)
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
    text = compared.measured("constant", _write_rows(tmp_path / "rows.csv", {k: list(v) for k, v in made.items()}))
    gains = [made[f"{kind}-cosine"] - made[f"{kind}-constant"] for kind in ("sgd", "adam")]
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    for line, values in zip(lines, [*gains, gains[0] - gains[1]], strict=True):
        test = stats.ttest_1samp(100 * values, 0).confidence_interval()
        assert _numbers(line) == pytest.approx([100 * values.mean(), test.low, test.high], abs=0.006)
    beside = compared.measured("cosine", compared.read(compared.OPTIMIZERS, tmp_path / "rows.csv"))
    assert "| sgd-cosine | 8 |" in beside
    assert "What a cosine gives" not in beside


def test_a_tie_is_called_one_and_few_seeds_are_told(tmp_path):
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72, 0.71], "lion": [0.71, 0.70, 0.72]})
    text = compared.measured("lion", rows)
    assert re.search(r"\| lion \| 3 \|.*, a tie \|", text)
    assert "Fewer than 10 seeds" in text
    single = compared.measured("lion", _write_rows(tmp_path / "rows.csv", {"lion": [0.5]}))
    assert "| lion | 1 | 50.00 (one seed: no interval) | – |" in single


def test_differences_are_of_the_seeds_that_both_have(tmp_path):
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72], "lion": [0.71, 0.74, 0.10]})
    [line] = [line for line in compared.measured("lion", rows).splitlines() if line.startswith("| lion |")]
    assert "; n 2" in line
    assert _numbers(line.split("|")[4])[0] == pytest.approx(1.5)


def test_regularisers_are_compared_at_the_same_budget(tmp_path):
    random = np.random.default_rng(2)
    means = {"sam-3x": 0.66, "none": 0.60, "none-3x": 0.62, "sam": 0.61, "mixup": 0.55}
    made = {name: list(random.normal(mean, 0.002, 10)) for name, mean in means.items()}
    text = compared.measured("sam", _write_rows(tmp_path / "rows.csv", made, compared.REGULARIZERS))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| 10 |" in line]
    assert [cell[0] for cell in cells] == ["none", "sam", "none-3x", "sam-3x"]
    assert [cell[3] == "–" for cell in cells] == [True, False, True, False]
    for cell, reference in ((cells[1], "none"), (cells[3], "none-3x")):
        paired = stats.ttest_rel(100 * np.array(made[cell[0]]), 100 * np.array(made[reference])).confidence_interval()
        difference = 100 * np.mean(np.array(made[cell[0]]) - np.array(made[reference]))
        assert _numbers(cell[3]) == pytest.approx([difference, paired.low, paired.high], abs=0.006)
    assert "against none or none-3x, points" in text
    assert "(../evidence/regularizers.csv)" in text


def test_a_budget_without_rows_of_its_own_is_left_out(tmp_path):
    made = {"none": [0.60, 0.61], "none-3x": [0.62, 0.63], "sam": [0.61, 0.63]}
    text = compared.measured("sam", _write_rows(tmp_path / "rows.csv", made, compared.REGULARIZERS))
    assert "| sam | 2 |" in text
    assert "| none-3x |" not in text
    without = compared.measured(
        "sam", _write_rows(tmp_path / "rows.csv", {"sam-3x": [0.6, 0.7]}, compared.REGULARIZERS)
    )
    assert "against nothing, points" in without
    assert re.search(r"\| sam-3x \| 2 \|[^|]*\| – \|", without)
    with pytest.raises(ValueError, match="'none' in rows.csv is in no card"):
        _write_rows(tmp_path / "rows.csv", made)


def test_what_averaging_at_test_gives_is_paired_within_each_recipe(tmp_path):
    random = np.random.default_rng(3)
    made = {name: list(random.normal(0.6, 0.01, 10)) for name in ("none", "standard", "none-3x", "standard-3x")}
    rows = _write_rows(tmp_path / "rows.csv", made, compared.AUGMENTATIONS)
    for row in rows:
        if row["recipe"] == "none":
            row["average_accuracy"] = ""  # without samples of an augmentation
    text = compared.measured("test_time", rows)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if " | 10 | " in line}
    assert list(lines) == ["standard", "none-3x", "standard-3x"]
    gains = 100 * np.array([0.01 * (seed + 1) for seed in range(10)])
    plain = 100 * np.array(made["standard"])
    cells = lines["standard"].split(" | ")
    for cell, values, tolerance in ((cells[2], plain, 0.006), (cells[3], gains, 0.006)):
        test = stats.ttest_1samp(values, 0).confidence_interval()
        assert _numbers(cell) == pytest.approx([values.mean(), test.low, test.high], abs=tolerance)
    assert _numbers(cells[4]) == pytest.approx([-0.1] * 3, abs=6e-4)
    assert "tie" not in lines["standard"]
    assert "bench/augmentation.py" in text
    beside = compared.measured("augmentation", rows)
    assert re.findall(r"^\| (\S+) \| 10 \|", beside, re.MULTILINE) == ["none", "standard", "none-3x", "standard-3x"]
    assert compared.measured("erasing", rows).startswith("Not measured yet")


@pytest.mark.parametrize("evidence", [compared.REGULARIZERS, compared.AUGMENTATIONS], ids=["regularizers", "augment"])
def test_the_tables_to_come_fit_the_cards(evidence, tmp_path, monkeypatch):
    rows = _write_rows(
        tmp_path / "rows.csv",
        {name: [0.6, 0.7] for names in evidence.recipes.values() for name in ("none", "none-3x", *names)},
        evidence,
    )
    fields = {"optimizer": "adam", "schedule": "cosine", "lr": 0.03, "model": "resnet8", "epochs": 120, "seeds": "some",
              "batch_size": 64, "weight_decay": 0.0, "restore_best": False, "label_smoothing": 0.1}  # fmt: skip
    monkeypatch.setattr(tables, "read", lambda _: [{**row, "fields": json.dumps(fields)} for row in rows])
    for card in evidence.recipes:
        lines = tables.filled(card, _text(card)).splitlines()
        assert len(lines) <= 120, card
        assert max(map(len, lines)) <= 122, card


ARMS = ("single", "ema", "constant", "constant-ema", "swa", "snapshots",
        *(f"members-{n}{end}" for n in range(2, 9) for end in ("-all", "")))  # fmt: skip


def _ensembles(path: Path, seeds: int, arms: tuple[str, ...] = ARMS, few: dict[str, int] | None = None) -> list:
    """Writes rows as `bench/ensembles.py` does, with figures that are drawn, and reads them."""
    random = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for arm in arms:
            for member in range(8 if arm == "single" else 1):
                if seed >= (few or {}).get(arm, seeds):
                    continue
                figures = random.normal([0.6, 1.2, 0.4, 0.05], [0.01, 0.02, 0.01, 0.005])
                rows.append({
                    "arm": arm, "seed": seed, "member": member, "accuracy": figures[0], "log_loss": figures[1],
                    "brier_score": figures[2], "calibration_error": figures[3],
                    "seconds": "" if arm.startswith("members") else 100 + 10 * member + 20 * (arm == "swa"),
                    "kept": ("swa" if seed < 6 else "raw") if arm == "swa" else 2 if arm[:2] in ("sn", "me") else "raw",
                    "favoured": "",
                })  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return ensembles_table.read(path)


def test_ensembles_are_compared_with_a_single_run_of_the_same_seed(tmp_path):
    rows = _ensembles(tmp_path / "rows.csv", 10)
    text = ensembles_table.measured("members", rows)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    by_figure = {name: lines[k * len(lines) // 3 : (k + 1) * len(lines) // 3] for k, name in enumerate(
        ("accuracy", "log_loss", "calibration_error"))}  # fmt: skip
    for (figure, found), unit, digits in zip(by_figure.items(), (100, 1, 100), (2, 4, 2), strict=True):
        assert [cells[0] for cells in found[1:]] == ["single", *ensembles_table.ARMS["members"]]
        values = {
            arm: unit * np.array([float(row[figure]) for row in rows if row["arm"] == arm and row["member"] == "0"])
            for arm in ARMS
        }
        for arm, mean, more, *_ in found[1:]:
            for cell, sample in ((mean, values[arm]), (more, values[arm] - values["single"])):
                if (arm, cell) == ("single", more):
                    assert more == "–"
                    continue
                test = stats.ttest_1samp(sample, 0).confidence_interval()
                assert _numbers(cell) == pytest.approx([sample.mean(), test.low, test.high], abs=0.6 * 10**-digits)
            if arm != "single":
                assert more.endswith("a tie") == (test.low <= 0 <= test.high)
    assert "Fewer" not in text
    [eight] = [cells for cells in by_figure["accuracy"] if cells[0] == "members-8"]
    assert eight[3:] == ["10", "2 of 8", f"{sum(range(100, 180, 10)) / 100:.2f}"]
    [swa] = [line for line in ensembles_table.measured("swa", rows).splitlines() if "| the average in" in line]
    assert swa.endswith("| 10 | the average in 6 of 10 | 1.20 |")
    given = [line for line in ensembles_table.measured("ema", rows).splitlines() if line.startswith("- ")]
    for line, (figure, unit) in zip(
        given, (("accuracy", 100), ("log_loss", 1), ("calibration_error", 100)), strict=True
    ):
        plain, averaged = (
            np.array([unit * float(row[figure]) for row in rows if row["arm"] == arm])
            for arm in ("constant", "constant-ema")
        )
        test = stats.ttest_rel(averaged, plain).confidence_interval()
        assert _numbers(line) == pytest.approx([(averaged - plain).mean(), test.low, test.high], abs=0.006)


def test_few_seeds_of_an_ensemble_are_told_and_rows_that_belong_nowhere_refused(tmp_path):
    rows = _ensembles(tmp_path / "rows.csv", 3, few={"ema": 2})
    text = ensembles_table.measured("ema", rows)
    assert "Fewer than 10 seeds" in text
    assert re.search(r"^\| single .*\| 3 \|", text, re.MULTILINE)
    assert re.search(r"^\| ema .*\| 2 \|", text, re.MULTILINE)
    for card in ("ema", "snapshots"):
        rows = _ensembles(tmp_path / "rows.csv", 3, ("single", "swa"))
        assert ensembles_table.measured(card, rows).startswith("Not measured yet on the evidence task")
    assert ensembles_table.read(tmp_path / "none.csv") == []
    with pytest.raises(ValueError, match="'mystery' in rows.csv is in no card"):
        _ensembles(tmp_path / "rows.csv", 1, ("single", "mystery"))
    with pytest.raises(ValueError, match="'swa' in rows.csv has seed 0 twice"):
        _ensembles(tmp_path / "rows.csv", 1, ("swa", "swa"))


def test_the_tables_of_ensembles_to_come_fit_the_cards(tmp_path, monkeypatch):
    rows = _ensembles(tmp_path / "rows.csv", 3)
    monkeypatch.setattr(ensembles_table, "read", lambda: rows)
    for card in ensembles_table.ARMS:
        lines = tables.filled(card, _text(card)).splitlines()
        assert len(lines) <= 120, card
        assert max(map(len, lines)) <= 122, card


def _transfers(path: Path, seeds: dict[int, int], recipes: tuple[str, ...], few: dict[str, int] | None = None) -> list:
    """Writes rows as `bench/transfer.py` does, with figures that are drawn, and reads them."""
    random = np.random.default_rng(0)
    rows = [
        {"recipe": name, "per_class": per_class, "seed": seed, "test_loss": 1.0, "seconds": 100 * place + seed,
         "test_accuracy": random.normal(0.6 + 0.02 * place + 1e-4 * per_class, 0.01),
         "transfer": ("lp_ft" if seed % 3 else "linear") if name == "plan" else name}
        for per_class, count in seeds.items() for place, name in enumerate(recipes)
        for seed in range((few or {}).get(name, count))
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return transfer_table.read(path)


WAYS = ("scratch", "plan", "linear", "stage", "all", "l2_sp", "lp_ft")


def test_ways_of_transfer_are_compared_with_scratch_at_each_size(tmp_path):
    rows = _transfers(tmp_path / "rows.csv", {1000: 10, 10: 12}, WAYS)
    values = {
        (per_class, name): 100 * np.array([float(row["test_accuracy"]) for row in rows
                                           if (row["recipe"], row["per_class"]) == (name, per_class)])
        for per_class in ("10", "1000") for name in WAYS
    }  # fmt: skip
    for card, names in transfer_table.RECIPES.items():
        text = transfer_table.measured(card, rows)
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
        lines = [cells for cells in lines if len(cells) == 6][1:]
        expected = [(size, name) for size in ("10", "1,000") for name in ("scratch", *names)]
        assert [tuple(cells[:2]) for cells in lines] == expected
        for size, name, count, accuracy, more, seconds in lines:
            mine, scratch = (values[size.replace(",", ""), key] for key in (name, "scratch"))
            assert int(count) == len(mine) == {"10": 12, "1,000": 10}[size]
            test = stats.ttest_1samp(mine, 0).confidence_interval()
            assert _numbers(accuracy) == pytest.approx([mine.mean(), test.low, test.high], abs=0.006)
            assert float(seconds) == pytest.approx(100 * WAYS.index(name) + (len(mine) - 1) / 2, abs=0.51)
            if name == "scratch":
                assert more == "–"
                continue
            test = stats.ttest_rel(mine, scratch).confidence_interval()
            assert _numbers(more) == pytest.approx([(mine - scratch).mean(), test.low, test.high], abs=0.006)
            assert more.endswith("a tie") == (test.low <= 0 <= test.high)
        assert "Fewer" not in text
        assert "(../evidence/transfer.csv)" in text


def test_the_plan_is_compared_with_the_way_that_was_best(tmp_path):
    rows = _transfers(tmp_path / "rows.csv", {50: 10}, WAYS)
    text = transfer_table.measured("plan", rows)
    [line] = [line for line in text.splitlines() if line.startswith("| 50 | lp_ft |")]
    plan, best = (
        100 * np.array([float(row["test_accuracy"]) for row in rows if row["recipe"] == name])
        for name in ("plan", "lp_ft")
    )
    test = stats.ttest_rel(plan, best).confidence_interval()
    assert _numbers(line.split("|")[3]) == pytest.approx([(plan - best).mean(), test.low, test.high], abs=0.006)
    assert "so many times: with 50 images a class lp_ft (6), linear (4)." in text


def test_transfer_without_scratch_is_not_measured_and_strange_rows_are_refused(tmp_path):
    assert transfer_table.read(tmp_path / "none.csv") == []
    rows = _transfers(tmp_path / "rows.csv", {10: 3}, ("scratch", "all"), few={"all": 2})
    assert transfer_table.measured("lp_ft", rows).startswith("Not measured yet on the evidence task")
    text = transfer_table.measured("pretrained", rows)
    assert "Fewer than 10 seeds" in text
    assert "| linear |" not in text
    assert re.search(r"^\| 10 \| all \| 2 \|", text, re.MULTILINE)
    rows = _transfers(tmp_path / "rows.csv", {10: 3}, ("linear", "all"))
    assert transfer_table.measured("pretrained", rows).startswith("Not measured yet on the evidence task")
    with pytest.raises(ValueError, match="'mystery' with 10 images a class in rows.csv is in no card"):
        _transfers(tmp_path / "rows.csv", {10: 1}, ("scratch", "mystery"))
    with pytest.raises(ValueError, match="'all' with 20 images a class in rows.csv is in no card"):
        _transfers(tmp_path / "rows.csv", {20: 1}, ("all",))
    with pytest.raises(ValueError, match="'all' with 10 images a class in rows.csv has seed 0 twice"):
        _transfers(tmp_path / "rows.csv", {10: 1}, ("all", "all"))


def test_the_tables_of_transfer_to_come_fit_the_cards(tmp_path, monkeypatch):
    rows = _transfers(tmp_path / "rows.csv", dict.fromkeys(transfer_table.PER_CLASS, 3), WAYS)
    monkeypatch.setattr(transfer_table, "read", lambda: rows)
    for card in transfer_table.RECIPES:
        lines = tables.filled(card, _text(card)).splitlines()
        assert len(lines) <= 120, card
        assert max(map(len, lines)) <= 122, card


def test_what_has_no_rows_is_not_measured(tmp_path):
    assert compared.read(compared.OPTIMIZERS, tmp_path / "none.csv") == []
    rows = _write_rows(tmp_path / "rows.csv", {"adam-cosine": [0.70, 0.72]})
    assert compared.measured("soap", rows).startswith("Not measured yet on the evidence task")
    assert not re.search(r"\d\.\d", compared.measured("soap", rows))


def test_a_schedule_without_rows_of_its_own_is_not_measured(tmp_path):
    made = {"adam-cosine": [0.70, 0.72], "sgd-constant": [0.6, 0.7], "adam-constant": [0.6, 0.7]}
    rows = _write_rows(tmp_path / "rows.csv", made)
    for card in SCHEDULES:
        text = compared.measured(card, rows)
        assert text.startswith("Not measured yet on the evidence task") == (card not in ("cosine", "constant")), card
    text = compared.measured("wsd", _write_rows(tmp_path / "rows.csv", {**made, "sgd-wsd": [0.7, 0.8]}))
    names = re.findall(r"^\| (\S+) \| 2 \|", text, re.MULTILINE)
    assert names == ["adam-cosine", "sgd-wsd", "sgd-constant", "adam-constant"]


@pytest.mark.parametrize("card", sorted({*CARDS} - {"lr_range"}))
def test_a_table_has_a_row_of_its_card(card):
    [shown] = [x[card] for x in (*(evidence.recipes for evidence in compared.ALL), ensembles_table.ARMS,
                                 transfer_table.RECIPES) if card in x]  # fmt: skip
    if card in SCHEDULES:  # whatever stands beside it
        shown = [name for name in shown if name.split("-")[-1] == card]
    told = _sections(card)["What we measured"]
    rows = [[cell.strip(" *") for cell in line.split("|")] for line in told.splitlines() if line.startswith("| ")]
    assert told.split("-->")[1].strip().startswith("Not measured yet") or any({*row} & {*shown} for row in rows)


def test_rows_that_belong_nowhere_or_contradict_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'mystery' in rows.csv is in no card"):
        _write_rows(tmp_path / "rows.csv", {"mystery": [0.5]})
    _write_rows(tmp_path / "rows.csv", {"lion": [0.5, 0.6]})
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "twice.csv").write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(ValueError, match="has seed 1 twice"):
        compared.read(compared.OPTIMIZERS, tmp_path / "twice.csv")
    (tmp_path / "two.csv").write_text(text.replace('""optimizer"": ""adam""', '""optimizer"": ""sgd""', 1))
    with pytest.raises(ValueError, match="has fields"):
        compared.read(compared.OPTIMIZERS, tmp_path / "two.csv")


def test_the_range_tests_table_says_what_its_benchmark_said():
    said = (benches.RANGE_TEST.with_suffix(".txt")).read_text(encoding="utf-8")
    [block] = re.findall(r"^held out, all optimizers, n = \d+\n(.*?)\n\n", said, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        numbers = r" *(.+?) +([\d.]+)% \[([\d.]+)%, ([\d.]+)%\]  ratio +([\d.]+) .* (\d+) steps"
        rule, share, low, high, ratio, steps = re.fullmatch(numbers, line).groups()
        told = rf"\| \**{re.escape(rule)}\** \| \d+ \| {share} \({low} to {high}\) \| {ratio} \| {steps} \|"
        assert re.search(told, _text("lr_range")), rule
    assert benches.range_test(HERE / "none.csv") == "Not measured yet."


def test_coadaptation_is_what_scipy_makes_of_the_rows_and_what_the_script_said():
    with benches.COADAPTATION.open(newline="") as file:
        rows = list(csv.DictReader(file))
    said = benches.COADAPTATION.with_suffix(".txt").read_text(encoding="utf-8")
    lines = [line for line in _sections("dropout")["What we measured"].splitlines() if line.startswith("| ")]
    for line, figure in zip(lines[-3:], ("loss", "mean_rise", "largest_rise"), strict=True):
        without, dropped = (
            np.array([float(row[figure]) for row in rows if float(row["drop_rate"]) == rate]) for rate in (0.0, 0.5)
        )
        assert len(without) == len(dropped) == 10
        values = [without, dropped, dropped - without]
        cells = line.strip("|").split("|")[1:]
        for cell, sample in zip(cells, values, strict=True):
            test = stats.ttest_1samp(sample, 0).confidence_interval()
            assert _numbers(cell) == pytest.approx([sample.mean(), test.low, test.high], abs=6e-5)
        [printed] = re.findall(rf"^ +{figure} (.*)$", said, re.MULTILINE)
        assert _numbers(printed) == pytest.approx([number for cell in cells for number in _numbers(cell)], abs=1.1e-4)
    assert benches.coadaptation(HERE / "none.csv") == "Co-adaptation: not measured yet."


def test_filling_leaves_the_rest_of_a_card_alone():
    text = _text("lion")
    broken = re.sub(r"(<!-- defaults -->\n).*?(<!-- /defaults -->)", r"\1nothing\n\2", text, flags=re.DOTALL)
    assert broken != text
    assert tables.filled("lion", broken) == text
    with pytest.raises(ValueError, match="marks"):
        tables.filled("lion", text.replace("<!-- /measured -->", ""))
