"""Cross-validation: a model for each fold, each judged on samples that it has never seen."""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainwell.data.dataset import Data, Samples
from trainwell.data.divide import divide
from trainwell.errors import InputError, in_one_line
from trainwell.files import remove, remove_partials
from trainwell.train import pretrained
from trainwell.train.choice import Choice
from trainwell.train.custom import Custom
from trainwell.train.display import Display, duration
from trainwell.train.figures import short
from trainwell.train.folder import start_run
from trainwell.train.loop import Trainer
from trainwell.train.prepare import prepared
from trainwell.train.recipe import Recipe
from trainwell.train.result import Tested, finish

_FOLDER = "folds"


def folds_done(folder: Path, data: Data) -> bool:
    """Says whether all folds of a run are trained."""
    return all((folder / _FOLDER / str(fold) / "result.json").exists() for fold in range(1, data.options["folds"] + 1))


def train_folds(
    folder: Path, samples: Samples, data: Data, trainer: Trainer, custom: Custom, display: Display,
    prepare: Callable[[Trainer], object],
) -> None:  # fmt: skip
    """Trains a model on all but each fold, by the same recipe, in `folds/1`, `folds/2`, …; those done are left alone.

    Each is a run like any other: saved, and gone on with after an interruption.

    Args:
        folder: the run directory.
        samples: what is divided.
        data: of the model that is trained on all samples in the end; its options say into how many folds.
        trainer: of that model, before its first step.
        custom: the user's own code; a model of the user's starts from the same weights in each fold.
        display: told how far it is.
        prepare: called with the trainer of each fold before it runs.
    """
    count, began, done = data.options["folds"], time.monotonic(), 0
    for fold in range(1, count + 1):
        own = folder / _FOLDER / str(fold)
        if not (own / "result.json").exists():
            display.what = f"fold {fold} of {count}, "
            given = dataclasses.replace(
                custom, model=None if custom.model is None else copy.deepcopy(trainer.model), backbone=trainer.backbone
            )
            part = divide(samples, data.options | {"fold": fold})
            own.mkdir(parents=True, exist_ok=True)
            _train_fold(own, part, trainer, given, prepare)
            done += 1
            left = (time.monotonic() - began) / done * (count - fold + 1)
            figure = short(_result(own))
            display.say(f"fold {fold} of {count}: {figure}; about {duration(left)} left for all")
        for name in ("checkpoints", pretrained.FILE):  # they are large, and a fold that is done needs them no more
            remove(own / name)
    display.what = ""
    if told := chosen_otherwise(folder):
        display.say(told)


def chosen_otherwise(folder: Path) -> str:
    """Returns in a line which folds chose to train something else of a pretrained model than is kept; "" if none did.

    Args:
        folder: the run directory.
    """
    kept = _chosen_in(folder)
    folds = sorted((path.parent for path in folder.glob(f"{_FOLDER}/*/run.json")), key=lambda own: int(own.name))
    told = [f"fold {own.name} chose {chosen}" for own in folds if (chosen := _chosen_in(own)) != kept]
    return "; ".join([*told, f"the model kept is {kept}"]) if kept and told else ""


def _chosen_in(own: Path) -> str:
    """Returns what a run chose to train, as people call it; "" if nothing was to be chosen."""
    choice = json.loads((own / "run.json").read_text(encoding="utf-8")).get("choice")
    if not choice:
        return ""
    word, _, name = choice["reasons"][-1].partition(": ")
    return str(name if word in ("chosen", "asked for") else choice["changes"].get("transfer", ""))


def _train_fold(own: Path, part: Data, final: Trainer, custom: Custom, prepare: Callable[[Trainer], object]) -> None:
    remove_partials(own)
    recipe, resumes = final.recipe, (own / "run.json").exists()
    if final.choice is not None:  # which has seen what a fold is judged on, and is made anew without that
        told = json.loads((own / "run.json").read_text(encoding="utf-8"))["choice"] if resumes else None
        try:
            custom = dataclasses.replace(custom, choice=None if told is None else Choice(**told))
        except TypeError as error:
            raise InputError(f"{own / 'run.json'} is damaged ({in_one_line(error)}): remove that folder") from None
        recipe = Recipe.load(own / "recipe.toml") if resumes else final.choice.undone(recipe)
    with prepared(part, recipe, custom) as trainer:
        if resumes:
            trainer.keep_in(own)
            trainer.resume()
        else:
            start_run(own, part, recipe, {}, custom, trainer)
        prepare(trainer)
        trainer.run()
        finish(own, trainer, part)


def _result(own: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((own / "result.json").read_text(encoding="utf-8"))
    return content


def pooled(folder: Path, data: Data) -> Tested:
    """Returns the outputs for all samples, each from the model of the fold that it was left out of.

    The interval of a figure over all of them is one for the mean of the folds' models on new data (P. Bayle,
    A. Bayle, L. Janson and L. Mackey, *Cross-validation confidence intervals for test error*, 2020).

    Raises:
        InputError: the files of a fold are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    outputs, targets, rows, told = [], [], [], []
    for fold in range(1, data.options["folds"] + 1):
        own = folder / _FOLDER / str(fold)
        try:
            result, tensors = _result(own), load_file(own / "evaluation.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"{own} is damaged ({error}): remove that folder, and resume, to train the fold anew"
            ) from None
        figures = ("test_accuracy", "test_balanced_accuracy", "test_loss", "test_samples", "kept_epoch")
        told.append({name: math.nan if result[name] is None else result[name] for name in figures if name in result})
        outputs.append(tensors["test_outputs"])
        targets.append(tensors["test_targets"])
        rows.append(tensors["test_rows"].numpy())
    every = torch.cat(outputs)
    if data.task == "classification":  # probabilities were kept; their logarithms are logits
        every = every.clamp_min(torch.finfo(every.dtype).tiny).log()
    sizes = [fold["test_samples"] for fold in told]
    loss = float(np.average([fold["test_loss"] for fold in told], weights=sizes))
    return Tested(every, torch.cat(targets), np.concatenate(rows), loss, tuple(told))
