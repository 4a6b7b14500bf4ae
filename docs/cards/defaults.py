"""The defaults that the cards show, from the code."""

import dataclasses
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainwell import augment, ensemble, lab, optim, regularize, transfer
from trainwell.members import fit_members
from trainwell.optim import schedules
from trainwell.train.optimizers import make_optimizer, make_schedule
from trainwell.train.recipe import SCHEDULES, Recipe

# The class of each optimizer's card, and the recipe with which `fit` makes it, if it does.
RULES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "sgd": ("SGD", {"optimizer": "sgd", "momentum": 0.0}),
    "momentum": ("SGD", {"optimizer": "sgd", "nesterov": False}),
    "nesterov": ("SGD", {"optimizer": "sgd"}),
    "adagrad": ("Adagrad", {"optimizer": "adagrad"}),
    "rmsprop": ("RMSprop", {"optimizer": "rmsprop"}),
    "adam": ("Adam", {"optimizer": "adam"}),
    "adamw": ("AdamW", {"optimizer": "adamw"}),
    "adamax": ("Adamax", {"optimizer": "adamax"}),
    "nadam": ("NAdam", {"optimizer": "nadam"}),
    "radam": ("RAdam", {"optimizer": "radam"}),
    "lion": ("Lion", {"optimizer": "lion"}),
    "muon": ("Muon", {"optimizer": "muon"}),
    "soap": ("SOAP", {"optimizer": "soap"}),
}

# What the cards of functions and of other classes are about.
OTHERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "lr_range": (optim.lr_range,),
    "step": (schedules.step, schedules.piecewise),
    "plateau": (optim.Plateau,),
    "groups": (optim.no_decay_groups, optim.layer_decay_groups),
    "dropout": (regularize.Dropout, regularize.exact_marginal),
    "dropconnect": (regularize.DropConnect,),
    "stochastic_depth": (regularize.StochasticDepth, regularize.depth_rates),
    "fractional_pooling": (regularize.FractionalMaxPool2d,),
    "label_smoothing": (F.cross_entropy,),
    "mixup": (regularize.mixup, regularize.mixed_loss),
    "cutmix": (regularize.cutmix, regularize.mixed_loss),
    "penalties": (regularize.L1, regularize.L2, regularize.ElasticNet, optim.no_decay_groups),
    "sam": (optim.SAM, lab.sharpness),
    "batch_norm": (nn.BatchNorm2d,),
    "marginalize": (ensemble.marginalize,),
    "augmentation": (augment.Augment,),
    "colour": (augment.principal_components,),
    "test_time": (
        augment.flips, augment.shifts, augment.ten_crop, augment.multi_scale, augment.samples, augment.parse_views,
    ),
    "ema": (ensemble.EMA,),
    "swa": (ensemble.SWA, ensemble.LatestK, ensemble.refresh_batchnorm),
    "snapshots": (schedules.restarts,),
    "members": (fit_members,),
    "pretrained": (transfer.load_backbone, transfer.load_into, transfer.read_weights, transfer.save_backbone),
    "linear_head": (
        transfer.replace_head, transfer.head_inputs, transfer.extract_features, transfer.best_l2, transfer.fit_linear,
    ),
    "fine_tuning": (
        transfer.stages, transfer.freeze_all_but, transfer.freeze, transfer.thaw, transfer.is_frozen,
        transfer.find_head, transfer.reinitialize, optim.layer_decay_groups,
    ),
    "lp_ft": (transfer.best_l2, transfer.fit_linear),
    "l2_sp": (transfer.L2SP,),
    "probes": (transfer.stage_features, transfer.probe),
    "plan": (transfer.make_plan,),
}  # fmt: skip

# The amounts of `Augment` that are theirs.
AMOUNTS: dict[str, tuple[str, ...]] = {
    "geometry": ("flip", "flip_vertical", "crop", "scale", "translate", "rotate", "stretch", "shear", "lens"),
    "colour": ("brightness", "contrast", "saturation", "hue", "pca"),
    "erasing": ("erase", "cutout"),
}

# The recipe's fields that are theirs.
FIELDS: dict[str, tuple[str, ...]] = {
    "dropout": ("drop_rate", "drop_map_rate"),
    "dropconnect": ("dropconnect",),
    "stochastic_depth": ("drop_path_rate",),
    "label_smoothing": ("label_smoothing",),
    "mixup": ("mixup",),
    "cutmix": ("cutmix",),
    "penalties": ("l1", "l2"),
    "sam": ("sam",),
    "augmentation": ("augment",),
    "ema": ("average", "ema_decay"),
    "swa": ("average", "average_epochs"),
    "snapshots": ("snapshots",),
    "pretrained": ("pretrained",),
    "linear_head": ("transfer",),
    "fine_tuning": ("transfer", "backbone_lr", "layer_decay"),
    "lp_ft": ("transfer", "backbone_lr"),
    "l2_sp": ("l2_sp",),
    "probes": ("transfer",),
    "plan": ("transfer", "transfer_minutes"),
}


def defaults(card: str) -> str:
    """Returns the section of a card about the defaults."""
    if card in RULES:
        return _of_rule(*RULES[card])
    if card in AMOUNTS and card not in OTHERS:
        return _of_amounts(AMOUNTS[card])
    text = _of_functions(OTHERS.get(card) or (getattr(schedules, card),))
    if card in AMOUNTS:
        text = f"{_of_amounts(AMOUNTS[card])}\n\n{text}"
    if card in SCHEDULES:
        name = repr(make_schedule(Recipe(schedule=card, lr=0.1), 1000))
        name = textwrap.fill(name, 110, subsequent_indent="    ")
        text += f"\n\nOver 1,000 steps with `lr=0.1`, `fit` makes of the name `{card}`:\n\n```text\n{name}\n```"
    if card in FIELDS:
        given = {field.name: field.default for field in dataclasses.fields(Recipe)}
        text += "\n\nIn `fit`: " + ", ".join(f"`{name}={given[name]!r}`" for name in FIELDS[card]) + "."
    return text


def _of_rule(kind: str, fields: dict[str, Any] | None) -> str:
    """Returns a table of hyper-parameters: a rule's own defaults, and what `fit` gives it."""
    own = getattr(optim, kind)([torch.nn.Parameter(torch.zeros(2, 2))])
    names = [name for name in own.defaults if name not in optim.Optimizer.fields]
    lines = ["| | in your own loop | in `fit` |", "|---|---|---|"]
    if fields is None:
        return "\n".join(
            ["| | in your own loop |", "|---|---|", *(f"| `{n}` | {_shown(own.defaults[n])} |" for n in names)]
        )
    sizes = {"train": 4000, "val": 1000, "test": 1000}
    recipe = Recipe(**fields).resolve(task="classification", sizes=sizes, side=(32, 32), images=True)
    group = make_optimizer(torch.nn.Linear(2, 2), recipe).param_groups[0]
    for name in names:
        in_fit = "the same" if group[name] == own.defaults[name] else _shown(group[name])
        lines.append(f"| `{name}` | {_shown(own.defaults[name])} | {in_fit} |")
    return "\n".join(lines)


def _of_amounts(names: tuple[str, ...]) -> str:
    """Returns a table of the presets' amounts, with a training set's components, as in `fit`."""
    components = augment.Components((1.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    made = {name: preset(components=components) for name, preset in augment.PRESETS.items()}
    lines = [f"| | {' | '.join(f'`{name}`' for name in made)} |", f"|---|{'---|' * len(made)}"]
    for name in names:
        shown = [str(value) if isinstance(value := getattr(each, name), tuple | str) else f"{value:g}"
                 for each in made.values()]  # fmt: skip
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def _of_functions(functions: tuple[Callable[..., Any], ...]) -> str:
    """Returns each function's arguments with their defaults."""
    signatures = [textwrap.fill(_signature(function), 110, subsequent_indent="    ") for function in functions]
    return "```text\n" + "\n".join(signatures) + "\n```"


def _signature(function: Callable[..., Any]) -> str:
    known = [key for key, value in vars(schedules).items() if value is function and key.islower()]
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        name = stars.get(parameter.kind, "") + parameter.name
        given = parameter.default
        if given is not parameter.empty:
            name += f"={given.__name__ if inspect.isfunction(given) else repr(given)}"
        arguments.append(name)
    return f"{known[0] if known else function.__name__}({', '.join(arguments)})"


def _shown(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{value!r}`"
