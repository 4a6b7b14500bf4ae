"""The members of an ensemble: what each says, which of them help, and how good they are together."""

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainwell import random
from trainwell.ensemble.combine import mean_of, select, temperature, tempered
from trainwell.errors import InputError
from trainwell.train import scores
from trainwell.train.metrics import bootstrap_interval
from trainwell.train.snapshots import evaluation_of

FILE = "ensemble.json"
Mean = Literal["arithmetic", "geometric"]
_MOST_SUBSETS = 70  # of members, that figures by their number are averaged over: all of up to 4 of 8


class Answers(NamedTuple):
    """What one member says of the validation and the test part: probabilities or values, and the truth."""

    val: Tensor
    val_targets: Tensor
    test: Tensor
    test_targets: Tensor
    rows: Tensor
    groups: Tensor | None


def combined(outputs: Sequence[Tensor], mean: Mean, T: float = 1.0) -> Tensor:
    """Returns the mean of members' probabilities or values, `(n, …)` each, with a temperature where it is not 1."""
    found = mean_of(torch.stack([member.flatten(1) for member in map(_at_least_2d, outputs)]), mean)
    return (tempered(found, T) if T != 1 else found).reshape(outputs[0].shape)


def answers_of(weights: Path, task: str) -> Answers:
    """Reads what was written down beside a member's weights.

    In cross-validation the samples on which members and temperature are chosen are among those that folds were judged
    on; they are left out of these here, so that every figure is of samples that had no say in the ensemble.

    Raises:
        InputError: it is missing, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = evaluation_of(weights) if weights.name.startswith("step-") else weights.with_name("evaluation.safetensors")
    try:
        found = load_file(path)
        val, test = found["val_outputs"].double(), found["test_outputs"].double()
        truth, rows, groups = found["test_targets"], found["test_rows"], found.get("test_groups")
        val_targets, split = found["val_targets"], path.with_name("split.safetensors")
        if split.exists():  # a snapshot has none beside it, and no folds
            judged = ~torch.isin(rows, load_file(split)["val"])
            test, truth, rows = test[judged], truth[judged], rows[judged]
            groups = None if groups is None else groups[judged]
    except (OSError, SafetensorError, LookupError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): train the member anew") from None
    if task == "multilabel":
        val, test = val.sigmoid(), test.sigmoid()
    return Answers(val, val_targets, test, truth, rows, groups)


def choose(answers: Sequence[Answers], mean: Mean, task: str) -> tuple[list[int], float]:
    """Returns which members answer, in the order of their choice, and the temperature of their mean.

    Both are chosen on the validation part alone, for the lowest log loss (or what stands for it in other tasks): that
    of the mean with its best temperature, as a mean is less sure than its members, which alone is no fault.
    """
    val, targets = [answer.val for answer in answers], answers[0].val_targets
    if task != "classification":
        return _chosen(val, targets, mean, LOSSES[task]), 1.0
    kept = _chosen(val, targets, mean, _tempered_log_loss)
    return kept, temperature(combined([val[k] for k in kept], mean), targets)


def _chosen(val: list[Tensor], targets: Tensor, mean: Mean, loss: Callable[[Tensor, Tensor], float]) -> list[int]:
    stacked = torch.stack([_at_least_2d(outputs).flatten(1) for outputs in val])
    if mean == "geometric":  # is the arithmetic one of logarithms
        logs = stacked.clamp_min(scores.LEAST).log()
        return select(logs, targets, lambda outputs, truth: loss(outputs.softmax(1), truth))
    return select(stacked, targets, lambda outputs, truth: loss(outputs.reshape(val[0].shape), truth))


def _at_least_2d(outputs: Tensor) -> Tensor:
    return outputs[:, None] if outputs.ndim == 1 else outputs


def _log_loss(probabilities: Tensor, targets: Tensor) -> float:
    return scores.log_loss(probabilities.numpy(), targets.numpy())


def _tempered_log_loss(probabilities: Tensor, targets: Tensor) -> float:
    return _log_loss(tempered(probabilities, temperature(probabilities, targets)), targets)


def _binary_loss(probabilities: Tensor, targets: Tensor) -> float:
    p = probabilities.clamp(scores.LEAST, 1 - scores.LEAST)
    return float(nn.functional.binary_cross_entropy(p.double(), targets.double()))


def _squared_error(values: Tensor, targets: Tensor) -> float:
    return float(nn.functional.mse_loss(values.double(), targets.double()))


LOSSES = {"classification": _log_loss, "multilabel": _binary_loss, "regression": _squared_error}


def judge(answers: Sequence[Answers], kept: list[int], mean: Mean, T: float, task: str) -> dict[str, Any]:
    """Returns the figures of each member, of the ensemble, and of the gain, on data never seen, with 95 % intervals.

    Args:
        answers: of all members.
        kept: which of them answer; the first is the best alone on validation.
        mean: of their probabilities.
        T: its temperature.
        task: "classification", "multilabel" or "regression".
    """
    test = [answer.test for answer in answers]
    together = combined([test[k] for k in kept], mean, T)
    single = [_figures(outputs, answers[0], task) for outputs in test]
    found: dict[str, Any] = {
        "test_samples": len(together),
        "ensemble": _figures(together, answers[0], task),
        "all_untempered": _figures(combined(test, mean), answers[0], task),
        "single": single,
        "by_number": _by_number(test, mean, answers[0], task),
    }
    if task == "classification":
        truth, groups = answers[0].test_targets.numpy(), answers[0].groups
        # Beside the first chosen, which is the best on validation: what one would have had instead, with a temperature
        # of its own, as a gain of that is no gain of the ensemble's.
        best = answers[kept[0]]
        instead = tempered(best.test, temperature(best.val, best.val_targets))
        found["gain"] = scores.gain(together.numpy(), instead.numpy(), truth, groups)
        figures = found["ensemble"]
        found["test_accuracy"], found["test_interval"] = figures["accuracy"]["value"], figures["accuracy"]["interval"]
    loss = "log_loss" if task == "classification" else "loss"
    return found | {"test_loss": found["ensemble"][loss]["value"]}


def _figures(outputs: Tensor, answers: Answers, task: str) -> dict[str, Any]:
    if task == "classification":
        return dict(scores.scores(outputs.numpy(), answers.test_targets.numpy(), answers.groups))
    loss = LOSSES[task]
    interval = bootstrap_interval(loss, outputs, answers.test_targets, groups=answers.groups)
    return {"loss": {"value": loss(outputs, answers.test_targets), "interval": interval}}


def _by_number(test: list[Tensor], mean: Mean, answers: Answers, task: str) -> list[dict[str, Any]]:
    """Returns the mean figures of the ensembles of so many members, without temperature: of all, or of a drawn few."""
    rows = []
    for count in range(1, len(test) + 1):
        found = [combined([test[k] for k in chosen], mean) for chosen in _subsets(len(test), count)]
        row: dict[str, Any] = {"members": count, "ensembles": len(found)}
        row["loss"] = float(np.mean([LOSSES[task](outputs, answers.test_targets) for outputs in found]))
        if task == "classification":
            right = [float((outputs.argmax(1) == answers.test_targets).double().mean()) for outputs in found]
            row["accuracy"] = float(np.mean(right))
        rows.append(row)
    return rows


def _subsets(n: int, count: int) -> list[tuple[int, ...]]:
    if math.comb(n, count) <= _MOST_SUBSETS:
        return list(itertools.combinations(range(n), count))
    return [tuple(random.permutation(n, "subset", count, draw)[:count].tolist()) for draw in range(_MOST_SUBSETS)]


# ---------------------------------------------------------------------- what is written down


def read(folder: Path) -> dict[str, Any]:
    """Returns what `ensemble.json` holds.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        _check(about)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no ensemble; give the folder that --out named") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
    found: dict[str, Any] = about
    return found


def _check(about: Any) -> None:
    members = about["members"]
    for member in members:
        for name in (member["run"], member["weights"]):
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or any(sign in name for sign in "\\:\0"):
                raise ValueError(f"{name!r} is no place within the ensemble")
    if about["mean"] not in ("arithmetic", "geometric"):
        raise ValueError(f"mean is {about['mean']!r}")
    if "result" in about:
        kept = about["kept"]
        known = all(isinstance(number, int) and 0 <= number < len(members) for number in kept)
        if not kept or not known or len(set(kept)) < len(kept):
            raise ValueError(f"{kept} are not its members")
        if not 0 < float(about["temperature"]) < math.inf or not isinstance(about["result"], dict):
            raise ValueError("the result is none")


def name_of(member: dict[str, str], number: int) -> str:
    """Returns what to call a member, which stands at place `number`, from 1 on.

    >>> name_of({"run": "members/3", "weights": "model.safetensors"}, 2)  # the second failed
    'member 3'
    >>> name_of({"run": ".", "weights": "snapshots/step-00003000.safetensors"}, 1)
    'after step 3,000'
    """
    if numbered := re.fullmatch("members/([0-9]{1,9})", member["run"]):
        number = int(numbered[1])
    elif step := re.fullmatch(r"snapshots/step-([0-9]{1,12})\.safetensors", member["weights"]):
        return f"after step {int(step[1]):,}"
    elif PurePosixPath(member["run"]) == PurePosixPath():
        return "the kept weights"
    return f"member {number}"


def sentence(about: dict[str, Any]) -> str:
    """Returns an ensemble's result in a sentence."""
    result, kept, of = about["result"], len(about["kept"]), len(about["members"])
    who = f"{kept} of {of} members together" if kept < of else f"all {of} members together"
    if kept == 1:  # there is no gain to tell of
        first = about["kept"][0]
        name = name_of(about["members"][first], first + 1).replace("after", "the weights after")
        who = f"{name} alone, as no other helps on validation" if of > 1 else "the only member"
    if "gain" not in result:
        value, (low, high) = (result["ensemble"]["loss"][name] for name in ("value", "interval"))
        return f"{who}: test loss {value:.4g} (95 % interval {low:.4g} to {high:.4g})"
    low, high = result["test_interval"]
    right = (
        f"{who}: {result['test_accuracy']:.1%} right on {result['test_samples']:,} samples never seen (95 % interval "
        f"{low:.1%} to {high:.1%})"
    )
    if kept == 1:
        return right
    gain = result["gain"]["accuracy"]
    points, (least, most) = 100 * gain["value"], (100 * end for end in gain["interval"])
    return f"{right}; {points:+.1f} points ({least:+.1f} to {most:+.1f}) beside the one that is best on validation"
