"""The members of an ensemble: what each says, which of them help, and how good they are together."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainwell import random
from trainwell.ensemble.combine import mean_of, select, temperature, tempered
from trainwell.errors import InputError, in_one_line
from trainwell.metrics import calibration
from trainwell.metrics.correctness import bootstrap_interval
from trainwell.train.snapshots import evaluation_of

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
        raise InputError(f"{path} is damaged ({in_one_line(error)}): train the member anew") from None
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
        logs = stacked.clamp_min(calibration.LEAST).log()
        return select(logs, targets, lambda outputs, truth: loss(outputs.softmax(1), truth))
    return select(stacked, targets, lambda outputs, truth: loss(outputs.reshape(val[0].shape), truth))


def _at_least_2d(outputs: Tensor) -> Tensor:
    return outputs[:, None] if outputs.ndim == 1 else outputs


def _log_loss(probabilities: Tensor, targets: Tensor) -> float:
    return calibration.log_loss(probabilities.numpy(), targets.numpy())


def _tempered_log_loss(probabilities: Tensor, targets: Tensor) -> float:
    return _log_loss(tempered(probabilities, temperature(probabilities, targets)), targets)


def _binary_loss(probabilities: Tensor, targets: Tensor) -> float:
    p = probabilities.clamp(calibration.LEAST, 1 - calibration.LEAST)
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
        found["gain"] = calibration.gain(together.numpy(), instead.numpy(), truth, groups)
        figures = found["ensemble"]
        found["test_accuracy"], found["test_interval"] = figures["accuracy"]["value"], figures["accuracy"]["interval"]
    loss = "log_loss" if task == "classification" else "loss"
    return found | {"test_loss": found["ensemble"][loss]["value"]}


def _figures(outputs: Tensor, answers: Answers, task: str) -> dict[str, Any]:
    if task == "classification":
        return dict(calibration.scores(outputs.numpy(), answers.test_targets.numpy(), answers.groups))
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
