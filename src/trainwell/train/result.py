"""What a finished run leaves: the kept weights, and how well they do on data never seen."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trainwell.data.dataset import Data
from trainwell.errors import InputError, in_one_line
from trainwell.files import write_json, write_tensors
from trainwell.metrics.correctness import bootstrap_interval
from trainwell.random import seed_everything
from trainwell.regularize import sparsity
from trainwell.train import figures
from trainwell.train.evaluate import outputs_of
from trainwell.train.loop import Metric, Trainer
from trainwell.train.snapshots import evaluation_of, taken

_MOST_MISTAKES, _THUMBNAIL = 24, 160


class Tested(NamedTuple):
    """Outputs for samples that the models which made them had never seen.

    Attributes:
        outputs: logits or values, on the CPU, in float32.
        targets: the truth, on the CPU.
        rows: which samples of the source they are.
        loss: the mean loss.
        folds: of cross-validation, one table of figures a fold.
    """

    outputs: torch.Tensor
    targets: torch.Tensor
    rows: npt.NDArray[np.int64]
    loss: float
    folds: tuple[dict[str, Any], ...] = ()


def finish(folder: Path, trainer: Trainer, data: Data, tested: Tested | None = None) -> dict[str, Any]:
    """Puts the kept weights into a trainer's model, judges them, and writes all of it down (see `write_result`).

    Args:
        folder: the run directory.
        trainer: at its end.
        data: what it was trained on.
        tested: outputs for samples never seen, where they are not of this model on the test part.
    """
    evaluate_snapshots(folder, trainer, data)
    kept = keep_best(trainer)
    return write_result(folder, trainer, data, kept, tested or on_test_part(trainer, data))


def keep_best(trainer: Trainer) -> int:
    """Puts the weights that are handed over into the trainer's model; returns the epoch that they are of."""
    trainer.model.eval()
    if trainer.best_state is not None:
        trainer.model.load_state_dict(trainer.best_state)
        return trainer.best_epoch if trainer.recipe.restore_best else trainer.epoch
    return trainer.epoch


@torch.no_grad()
def on_test_part(trainer: Trainer, data: Data) -> Tested:
    """Looks at the test part, once, with the weights that the trainer's model has."""
    seed_everything(trainer.recipe.seed, "result")
    outputs, targets = outputs_of(trainer.model, trainer.val.plain(data.test), trainer.hardware.autocast())
    return Tested(outputs.cpu(), targets.cpu(), data.test.indices, float(trainer.reported(outputs, targets)))


@torch.no_grad()
def write_result(folder: Path, trainer: Trainer, data: Data, kept: int, tested: Tested) -> dict[str, Any]:
    """Writes down the kept weights, and how well they, or those of the folds, do on data never seen.

    Args:
        folder: the run directory.
        trainer: at its end, its model with the kept weights.
        data: what it was trained on.
        kept: the epoch that the weights are of.
        tested: the outputs for samples never seen.

    Returns:
        What `result.json` holds.
    """
    write_tensors(  # first of all, as metrics may be the user's own code
        folder / "model.safetensors", trainer.model.state_dict(), {"kept": f"epoch {kept}, {trainer.best_weights}"}
    )
    of_kept = "val_" if trainer.best_weights == "raw" else f"{trainer.best_weights}_val_"
    row = trainer.history.rows[kept - 1]
    groups = None if data.groups is None else data.groups[tested.rows]
    outputs, targets = tested.outputs, tested.targets
    result: dict[str, Any] = {
        "monitor": trainer.recipe.monitor,
        **{f"val_{name.removeprefix(of_kept)}": value for name, value in row.items() if name.startswith(of_kept)},
        "test_samples": len(targets),
        "test_loss": tested.loss,
    }
    if trainer.classification:
        result |= figures.of_classes(outputs, targets, groups)
    else:
        result["test_interval"] = bootstrap_interval(_as_float(trainer.reported), outputs, targets, groups=groups)
    if data.task == "multilabel":
        result |= figures.of_labels(outputs, targets)
    result["metrics"] = {
        f"test_{name}": {
            "value": _value(name, metric, outputs, targets),
            "interval": bootstrap_interval(metric, outputs, targets, groups=groups),
        }
        for name, metric in trainer.metrics.items()
    }
    result |= {
        "best_epoch": trainer.best_epoch,
        "best_step": trainer.best_step,
        "kept_epoch": kept,
        "kept_weights": trainer.best_weights,
        "epochs": len(trainer.history.rows),
        "steps": trainer.step,
        "samples": trainer.step * trainer.train.batch_size,
        "halvings": trainer.halvings,
        "first_loss": trainer.first_loss,
        "stop_reason": trainer.stop_reason,
        "seconds": round(trainer.seconds, 2),
    }
    zeros = sparsity(trainer.model)
    if not math.isnan(zeros):
        result["sparsity"] = zeros
    if tested.folds:
        result["folds"] = tested.folds
    if trainer.classification:
        _write_mistakes(folder, data, outputs.softmax(1), targets, tested.rows)
    write_evaluation(folder / "evaluation.safetensors", trainer, tested, groups)
    write_json(folder / "result.json", result)
    return result


@torch.no_grad()
def write_evaluation(path: Path, trainer: Trainer, tested: Tested, groups: npt.NDArray[np.int64] | None = None) -> None:
    """Writes down what the model says of the validation part, and what was found on the test part.

    Args:
        path: the file.
        trainer: its model with the weights that are judged.
        tested: the outputs for samples never seen.
        groups: of those samples, if groups were told apart.
    """
    outputs, targets = (t.cpu() for t in outputs_of(trainer.called, trainer.val, trainer.hardware.autocast()))
    tested_outputs = tested.outputs
    if trainer.classification:
        outputs, tested_outputs = outputs.softmax(1), tested_outputs.softmax(1)
    tensors = {
        "val_outputs": outputs, "val_targets": targets, "test_outputs": tested_outputs, "test_targets": tested.targets,
        "test_rows": torch.from_numpy(tested.rows),
    }  # fmt: skip
    if groups is not None:
        tensors["test_groups"] = torch.from_numpy(groups)
    write_tensors(path, tensors)


def evaluate_snapshots(folder: Path, trainer: Trainer, data: Data) -> None:
    """Writes down what each snapshot says of the validation and the test part; the trainer's model is as before.

    Raises:
        InputError: a snapshot is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    before = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    for path in taken(folder, trainer.step):
        try:
            trainer.model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{path} is damaged ({in_one_line(error)}): train anew") from None
        trainer.model.eval()
        tested = on_test_part(trainer, data)
        groups = None if data.groups is None else data.groups[tested.rows]
        write_evaluation(evaluation_of(path), trainer, tested, groups)
    trainer.model.load_state_dict(before)


def _value(name: str, metric: Metric, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Returns a metric on the test part; NaN, and a warning, where it fails: the model is worth more."""
    try:
        return float(metric(outputs, targets))
    except Exception as error:
        warnings.warn(f"the metric {name!r} failed on the test part ({in_one_line(error)})", stacklevel=2)
        return math.nan


def _as_float(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Metric:
    return lambda outputs, targets: float(loss(outputs, targets))


def _write_mistakes(
    folder: Path, data: Data, chances: torch.Tensor, targets: torch.Tensor, tested: npt.NDArray[np.int64]
) -> None:
    """Keeps the most confident mistakes, as pictures where the samples are images."""
    confidence, predicted = chances.max(1)
    wrong = torch.nonzero(predicted != targets).flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MOST_MISTAKES]
    rows = [int(tested[i]) for i in wrong.tolist()]
    told = [
        {
            "name": data.names[row] if data.names else f"sample {row}",
            "true": int(targets[i]),
            "predicted": int(predicted[i]),
            "confidence": round(float(confidence[i]), 4),
        }
        for i, row in zip(wrong.tolist(), rows, strict=True)
    ]
    if data.images is not None and rows:
        pictures = {str(place): thumbnail(data.images[row], _THUMBNAIL) for place, row in enumerate(rows)}
        write_tensors(folder / "mistakes.safetensors", pictures)
    write_json(folder / "mistakes.json", told)


def thumbnail(image: npt.NDArray[np.uint8], side: int) -> torch.Tensor:
    """Returns an image `(h, w, c)` made so small that no side is longer than `side` pixels."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((side, side))
    return torch.from_numpy(np.array(picture).reshape(picture.height, picture.width, -1))
