"""What is trained of a pretrained model, where that is left open: by the plan, and by trying what there is time for."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from trainwell import random
from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.errors import DivergedError, InputError, nearest
from trainwell.train.choice import ASKED, Choice
from trainwell.train.evaluate import outputs_of
from trainwell.train.hardware import Hardware
from trainwell.train.loop import Trainer
from trainwell.train.recipe import Recipe
from trainwell.train.speed import steps_within
from trainwell.transfer.backbones import Backbone
from trainwell.transfer.cut import cut_point
from trainwell.transfer.features import cached, key_of, stage_features
from trainwell.transfer.linear import as_groups, best_l2, fit_linear, folds_of
from trainwell.transfer.plan import Candidate, make_plan
from trainwell.transfer.probes import Probe, best, probe

_FEW = 1_000  # images; of more, as many are probed, and candidates are judged on the validation part
_FOLDS = 3  # of the training part; each costs a training
_PIXELS, _SIDE = "pixels", 8  # what is probed beside the stages: images made so small, in pixels a side
_MOST_FITTED = 5_000  # images, to a candidate's linear classifier
_LEAST = 0.1  # of a training's steps; a trial that has time for fewer would tell nothing

Rows = npt.NDArray[np.int64]
Right = npt.NDArray[np.bool_]
Make = Callable[[Data, Recipe], AbstractContextManager[Trainer]]


@dataclass(frozen=True)
class Seen:
    """A pretrained model on its device, and how it sees the data; see `choose`."""

    model: torch.nn.Module
    batches: Batches
    hardware: Hardware
    progress: Callable[..., Any]


def closest(
    data: Data,
    several: list[Backbone],
    look: Callable[[Backbone], AbstractContextManager[Seen]],
    say: Callable[[str], object],
) -> Backbone:
    """Returns of several pretrained models the one on whose last stage a linear classifier does best.

    Args:
        data: of which the test part is not looked at.
        several: two at least.
        look: makes of a model what sees the data.
        say: told what was found.

    Raises:
        InputError: the data have no classes, one a sample.
    """
    if data.task != "classification":
        raise InputError("which of several pretrained models is closest is told by classes, one a sample: name one")
    rows, labels, groups = _probed(data, 0)
    found: dict[str, torch.Tensor] = {}
    for number, one in enumerate(several):
        with look(one) as seen:
            features = _features(data, seen)
        found[f"{number} {one.source}"] = features.of(features.stages[-1], rows)
    probes = probe(found, labels, num_classes=len(data.classes), folds=_FOLDS, groups=groups)
    for it in probes:
        low, high = it.interval
        name = it.stage.partition(" ")[2]
        say(f"a linear classifier on {name} is right on {it.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})")
    return several[int(best(probes).stage.partition(" ")[0])]


def _probed(data: Data, seed: int) -> tuple[Rows, torch.Tensor, Rows | None]:
    """Returns the rows of the training part that are probed, their classes and their groups."""
    rows = data.train.indices
    if len(rows) > _FEW:
        rows = rows[random.permutation(len(rows), seed, "probed")[:_FEW]]
    return rows, _targets(data, rows), None if data.groups is None else as_groups(data.groups[rows], len(rows))


def choose(data: Data, recipe: Recipe, seen: Seen, make: Make, say: Callable[[str], object]) -> Choice:
    """Chooses what of a pretrained model is trained.

    Args:
        data: of which the test part is not looked at.
        recipe: whose `transfer` is "auto", or "stage".
        seen: the model, and batches of the data.
        make: from data and a recipe to a trainer that begins as the pretrained model.
        say: told the reasons.
    """
    asked = {name: getattr(recipe, name) for name in ASKED}
    count = len(data.classes)
    try:
        if data.task != "classification":
            raise InputError("linear probes need classes, one a sample")
        features = _features(data, seen)
        rows, labels, groups = _probed(data, recipe.seed)
        pixels, *probes = probe(
            {stage: features.of(stage, rows) for stage in (_PIXELS, *features.stages)}, labels, num_classes=count,
            folds=_FOLDS, groups=groups, seed=recipe.seed,
        )  # fmt: skip
    except InputError as error:  # so few samples, or a model of another kind: nothing is told apart, but it can be used
        if recipe.transfer == "stage":
            raise
        reasons = [f"nothing was probed ({error}): all of the model is trained, gently"]
        say(reasons[0])
        return Choice(asked, {"transfer": "all"}, reasons=reasons)
    plan = make_plan(
        probes, samples=len(data.train), num_classes=count, pixels=pixels, backbone_lr=recipe.backbone_lr,
        mixup=recipe.mixup,
    )  # fmt: skip
    for reason in plan.reasons:
        say(reason)
    if recipe.transfer == "stage":
        chosen = _head_on(_asked_for(recipe, probes), probes)
        tried: list[dict[str, Any]] = []
        reasons = [*plan.reasons, f"asked for: {chosen.name}"]
    else:
        splits = [(data.train.indices, data.val.indices)]
        if len(data.train) <= _FEW:
            divided = folds_of(labels.numpy(), _FOLDS, groups, recipe.seed)
            splits = [(rows[fitted], rows[judged]) for fitted, judged in divided]
        trials = _Trials(data, recipe, features, probes, splits, make, say)
        candidates = plan.candidates
        if recipe.steps == 0:
            candidates = tuple(one for one in candidates if one.stage is not None)
            say("steps=0 leaves what is solved for: a linear classifier")
        chosen, tried, told = trials.winner(candidates)
        reasons = [*plan.reasons, *told]
    say(reasons[-1])
    cut = None
    if chosen.stage not in (None, features.stages[-1]):
        cut = {"before": cut_point(seen.model, str(chosen.stage)), "dimensions": features.dimensions(chosen.stage)}
    about = [{"stage": one.stage, "dimensions": one.dimensions, "accuracy": one.accuracy, "interval": one.interval,
              "log_loss": one.log_loss, "samples": len(one.right)} for one in (pixels, *probes)]  # fmt: skip
    return Choice(asked, dict(chosen.changes), cut, about, tried, reasons)


def _asked_for(recipe: Recipe, probes: list[Probe]) -> str:
    """Returns the stage that a recipe names, or else the best one."""
    stages = [one.stage for one in probes]
    if recipe.transfer_stage != "auto" and recipe.transfer_stage not in stages:
        raise InputError(
            f"the model has no stage {recipe.transfer_stage!r}{nearest(recipe.transfer_stage, stages)}: transfer_stage "
            f"is one of {', '.join(stages)}, or auto"
        )
    return best(probes).stage if recipe.transfer_stage == "auto" else recipe.transfer_stage


def _head_on(stage: str, probes: list[Probe]) -> Candidate:
    name = "linear" if stage == probes[-1].stage else f"linear on {stage}"
    return Candidate(name, {"transfer": "linear"}, stage)


def _targets(data: Data, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(np.asarray(data.train.targets[rows], np.int64))


@dataclass(frozen=True)
class _Features:
    """What each stage makes of some rows of the data."""

    rows: Rows
    values: dict[str, torch.Tensor]
    stages: list[str]

    def of(self, stage: str, rows: Rows) -> torch.Tensor:
        return self.values[stage][torch.from_numpy(np.searchsorted(self.rows, rows))]

    def dimensions(self, stage: str | None) -> int:
        return self.values[str(stage)].shape[1]


def _features(data: Data, seen: Seen) -> _Features:
    """Computes, or finds, what each stage makes of training and validation part; with folds, of all parts for all."""
    parts = [data.train, data.val, *([data.test] if data.options.get("folds", 1) > 1 else [])]
    rows = np.sort(np.concatenate([part.indices for part in parts]))
    like = seen.batches
    plain = like.plain(dataclasses.replace(like.part, indices=rows), min(64, like.batch_size))
    settings = repr((type(seen.model).__qualname__, data.inputs_digest, like.size, like.mean.tolist(),
                     like.std.tolist(), dataclasses.astuple(seen.hardware)))  # fmt: skip

    def compute() -> dict[str, torch.Tensor]:
        shown = seen.progress(plain, len(plain), "computing features of each stage")
        small: list[torch.Tensor] = []

        def looked_at() -> Iterator[torch.Tensor]:
            for x, _ in shown:
                small.append(F.adaptive_avg_pool2d(x, _SIDE).flatten(1).cpu())
                yield x

        found = stage_features(seen.model, looked_at(), autocast=seen.hardware.autocast())
        return {f"{place} {stage}": values
                for place, (stage, values) in enumerate({_PIXELS: torch.cat(small), **found}.items())}  # fmt: skip

    kept = cached(key_of(seen.model, "pixels and stages", settings, rows.tobytes().hex()), compute)
    values = {name.partition(" ")[2]: kept[name] for name in sorted(kept, key=lambda name: int(name.split()[0]))}
    return _Features(rows, values, [stage for stage in values if stage != _PIXELS])


class _Trials:
    """Judges candidates on the same samples."""

    def __init__(
        self,
        data: Data,
        recipe: Recipe,
        features: _Features,
        probes: list[Probe],
        splits: list[tuple[Rows, Rows]],
        make: Make,
        say: Callable[[str], object],
    ) -> None:
        self.data, self.recipe, self.features, self.splits = data, recipe, features, splits
        self.probes = {one.stage: one for one in probes}
        self.make, self.say = make, say

    def winner(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, list[dict[str, Any]], list[str]]:
        """Returns the candidate to take, what was found of each that was tried, and the reasons.

        The first that there was time for is taken, unless another is better by more than one standard error of the
        difference: where the data cannot tell them apart, the plan does (after the one-standard-error rule of
        L. Breiman et al., *Classification and regression trees*, 1984).
        """
        minutes = self.recipe.transfer_minutes
        dear = sum(one.stage is None for one in candidates)
        right: dict[str, Right] = {}
        tried: list[dict[str, Any]] = []
        told: list[str] = []
        for one in candidates:
            began = time.monotonic()
            found: Right | None
            try:
                found, why = self._trained(one, 60 * minutes / dear) if one.stage is None else self._linear(one.stage)
            except DivergedError as error:
                found, why = None, str(error)
            if found is None:
                told.append(f"{one.name} is left out: {why}")
                self.say(told[-1])
                continue
            right[one.name] = found
            seconds = time.monotonic() - began
            tried.append({"name": one.name, "accuracy": float(found.mean()), "samples": len(found),
                          "seconds": round(seconds, 1)})  # fmt: skip
        first = next(one for one in candidates if one.name in right)  # the linear classifier costs next to nothing
        chosen, words = first, [f"{first.name} {right[first.name].mean():.1%}"]
        for one, row in zip([c for c in candidates if c.name in right], tried, strict=True):
            difference = right[one.name].astype(float) - right[first.name]
            row["difference"], row["error"] = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
            if one is first:
                continue
            words.append(
                f"{one.name} {row['accuracy']:.1%} ({100 * row['difference']:+.1f} points, standard error "
                f"{100 * row['error']:.1f})"
            )
            if row["difference"] > row["error"] and right[one.name].mean() > right[chosen.name].mean():
                chosen = one
        if len(words) > 1:
            told.append(f"tried, on {len(right[first.name]):,} images not trained on: {', '.join(words)}")
            self.say(told[-1])
        return chosen, tried, [*told, f"chosen: {chosen.name}"]

    def _linear(self, stage: str) -> tuple[Right | None, str]:
        """Says of each sample that is judged whether a linear classifier on a stage's features is right."""
        if len(self.splits) > 1:  # the probes had the same folds
            judged = np.concatenate([rows for _, rows in self.splits])
            place = {row: number for number, row in enumerate(self.data.train.indices.tolist())}
            return self.probes[stage].right[[place[row] for row in judged.tolist()]], ""
        [(fitted, judged)] = self.splits
        fitted = fitted[random.permutation(len(fitted), self.recipe.seed, "fitted")[:_MOST_FITTED]]
        x, y, count = self.features.of(stage, fitted), _targets(self.data, fitted), len(self.data.classes)
        few = slice(_FEW)
        l2 = best_l2(x[few], y[few], num_classes=count, standardize=True, seed=self.recipe.seed)
        with torch.no_grad():
            outputs = fit_linear(x, y, num_classes=count, l2=l2, standardize=True)(self.features.of(stage, judged))
        return (outputs.argmax(1) == _targets(self.data, judged)).numpy(), ""

    def _trained(self, one: Candidate, seconds: float) -> tuple[Right | None, str]:
        """Says of each sample that is judged whether a model is right that was trained on others; or why not."""
        recipe = dataclasses.replace(
            self.recipe, **one.changes, restore_best=False, average="none", ema_decay=None, average_epochs=None,
            snapshots=0, patience=None,
        )  # fmt: skip
        steps = 0
        right: list[Right] = []
        for fitted, judged in self.splits:
            part = dataclasses.replace(
                self.data, train=dataclasses.replace(self.data.train, indices=fitted),
                val=dataclasses.replace(self.data.val, indices=judged),
            )  # fmt: skip
            if not steps:
                with self.make(part, dataclasses.replace(recipe, minutes=None)) as trainer:
                    whole = trainer.total_steps
                    steps = min(whole, steps_within(seconds / len(self.splits), trainer))
                if steps < _LEAST * whole:
                    return None, (
                        f"{60 * self.recipe.transfer_minutes:.0f} seconds have room for {steps:,} of its "
                        f"{len(self.splits)} × {whole:,} steps (--transfer-minutes gives it more)"
                    )
            if not right:
                times = f"{len(self.splits)} times " if len(self.splits) > 1 else ""
                how = one.sentence(self.recipe.backbone_lr, self.recipe.mixup)
                self.say(f"trying {one.name} ({how}): {times}{steps:,} steps …")
            with self.make(part, dataclasses.replace(recipe, epochs=None, minutes=None, steps=steps)) as trainer:
                trainer.run()
                outputs, targets = outputs_of(trainer.called, trainer.val, trainer.hardware.autocast())
                right.append((outputs.argmax(1) == targets).cpu().numpy())
        return np.concatenate(right), ""
