"""What is said about outputs for samples that a model has never seen: how good, for which class, how sure."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainwell import metrics

Groups = npt.NDArray[np.int64] | None
_CERTAIN = 0.5  # the probability from which a label counts as given


def of_classes(outputs: torch.Tensor, targets: torch.Tensor, groups: Groups = None) -> dict[str, Any]:
    """Returns accuracy, balanced accuracy and the recall of each class, each with a 95 % interval.

    Where samples do not come in groups, also which accuracies of another model could be chance beside this one.

    Args:
        outputs: logits or probabilities, shape `(n, classes)`.
        targets: int64 classes, shape `(n,)`.
        groups: the group of each sample (its animal, patient or day), if groups were told apart; samples of one group
            tell less than as many of different ones.
    """
    chosen, truth = outputs.argmax(1).numpy(), targets.numpy()
    right = chosen == truth
    classes = outputs.shape[1]
    alone = {"indistinguishable": metrics.indistinguishable(float(right.mean()), len(right))}
    return ({} if groups is not None else alone) | {
        "test_accuracy": float(right.mean()),
        "test_interval": metrics.accuracy_interval(right, groups),
        "test_balanced_accuracy": metrics.balanced_accuracy(outputs, targets),
        "test_balanced_interval": metrics.balanced_accuracy_interval(right, truth, groups),
        "by_class": [_recall(right[truth == label], None if groups is None else groups[truth == label])
                     | {"predicted": int((chosen == label).sum())} for label in range(classes)],
    }  # fmt: skip


def _recall(right: npt.NDArray[np.bool_], groups: Groups) -> dict[str, Any]:
    if not len(right):
        return {"samples": 0, "recall": None, "interval": None}
    interval = metrics.accuracy_interval(right, groups)
    return {"samples": len(right), "recall": float(right.mean()), "interval": interval}


def of_labels(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
    """Returns what is said of several labels a sample.

    Args:
        outputs: logits, shape `(n, labels)`.
        targets: 0 and 1, shape `(n, labels)`.

    Returns:
        Mean average precision over the labels that occur, the share of samples whose labels are all right, and of each
        label how many samples have it, how many of those were found (recall), how many of those found have it
        (precision), and its average precision. `None` where there is nothing to divide by.
    """
    chances, truth = outputs.sigmoid().numpy(), targets.numpy() > 0
    given = chances >= _CERTAIN
    precision = metrics.average_precision(chances, truth)
    return {
        "mean_average_precision": float(np.nanmean(precision)) if np.isfinite(precision).any() else None,
        "exact_match": float((given == truth).all(1).mean()),
        "by_label": [
            {
                "samples": int(truth[:, label].sum()),
                "recall": _share(given[truth[:, label], label]),
                "precision": _share(truth[given[:, label], label]),
                "average_precision": float(precision[label]),
            }
            for label in range(truth.shape[1])
        ],
    }


def _share(values: npt.NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


# ---------------------------------------------------------------------- in words


def sentence(result: dict[str, Any]) -> str:
    """Returns the result in a sentence."""
    low, high = result["test_interval"]
    size, folds = result["test_samples"], result.get("folds")
    how = f", each by one of {len(folds)} models that had not seen it" if folds else " never seen"
    if "test_accuracy" not in result:
        known = "no interval" if math.isnan(low) or math.isnan(high) else f"95 % interval {low:.4g} to {high:.4g}"
        figure = f"{result['test_loss']:.4g} ({known})"
        right = f"; all labels right on {result['exact_match']:.1%}" if "exact_match" in result else ""
        return f"test loss {figure} on {size:,} samples{how}{right}"
    beside = ""
    if "indistinguishable" in result:
        worst, best = result["indistinguishable"]
        beside = f"; another model with {worst:.1%} to {best:.1%} on as many others could be as good"
    return (
        f"{result['test_accuracy']:.1%} right on {size:,} samples{how} (95 % interval {low:.1%} to {high:.1%}){beside}"
    )


def short(result: dict[str, Any]) -> str:
    """Returns the result in a few words."""
    if "test_accuracy" in result:
        return f"{result['test_accuracy']:.1%} right on {result['test_samples']:,}"
    loss = result["test_loss"]
    return f"test loss {math.nan if loss is None else loss:.4g} on {result['test_samples']:,}"
