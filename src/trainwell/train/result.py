"""What a finished run leaves: the kept weights, and how well they do on data never seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.files import write_atomically, write_json
from trainwell.random import seed_everything
from trainwell.train.evaluate import outputs_of
from trainwell.train.loop import Metric, Trainer
from trainwell.train.metrics import bootstrap_interval, wilson_interval

_MOST_MISTAKES, _THUMBNAIL = 24, 160


@torch.no_grad()
def write_result(folder: Path, trainer: Trainer, data: Data, test: Batches) -> dict[str, Any]:
    """Puts the kept weights into the trainer's model, measures them on the test part, and writes it all down.

    Returns:
        What `result.json` holds.
    """
    restored = trainer.recipe.restore_best and trainer.best_state is not None
    if restored:
        assert trainer.best_state is not None
        trainer.model.load_state_dict(trainer.best_state)
    trainer.model.eval()
    kept = trainer.best_epoch if restored else trainer.epoch
    row = trainer.history.rows[kept - 1]

    seed_everything(trainer.recipe.seed, "result")
    outputs, targets = outputs_of(trainer.model, test, trainer.hardware.autocast())
    val_outputs, val_targets = (
        tensor.cpu() for tensor in outputs_of(trainer.model, trainer.val, trainer.hardware.autocast())
    )
    loss = _as_float(trainer.reported)
    result: dict[str, Any] = {
        "monitor": trainer.recipe.monitor,
        **{name: value for name, value in row.items() if name.startswith("val_")},
        "test_loss": loss(outputs, targets),
    }
    if not trainer.classification:
        result["test_interval"] = bootstrap_interval(loss, outputs, targets)
    outputs, targets = outputs.cpu(), targets.cpu()
    if trainer.classification:
        right = int((outputs.argmax(1) == targets).sum())
        result |= {"test_accuracy": right / len(targets), "test_interval": wilson_interval(right, len(targets))}
    result["metrics"] = {
        f"test_{name}": {
            "value": float(metric(outputs, targets)),
            "interval": bootstrap_interval(metric, outputs, targets),
        }
        for name, metric in trainer.metrics.items()
    }
    result |= {
        "best_epoch": trainer.best_epoch,
        "best_step": trainer.best_step,
        "kept_epoch": kept,
        "epochs": len(trainer.history.rows),
        "steps": trainer.step,
        "samples": trainer.step * trainer.train.batch_size,
        "halvings": trainer.halvings,
        "first_loss": trainer.first_loss,
        "stop_reason": trainer.stop_reason,
        "seconds": round(trainer.seconds, 2),
    }
    if trainer.classification:
        outputs, val_outputs = outputs.softmax(1), val_outputs.softmax(1)
        _write_mistakes(folder, data, outputs, targets)
    _write_tensors(folder / "model.safetensors", trainer.model.state_dict(), {"kept": f"epoch {kept}"})
    evaluation = {
        "val_outputs": val_outputs, "val_targets": val_targets, "test_outputs": outputs, "test_targets": targets,
        "test_rows": torch.from_numpy(data.test.indices),
    }  # fmt: skip
    _write_tensors(folder / "evaluation.safetensors", evaluation)
    write_json(folder / "result.json", result)
    return result


def _as_float(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Metric:
    return lambda outputs, targets: float(loss(outputs, targets))


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    from safetensors.torch import save

    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(path, save(whole, about))


def _write_mistakes(folder: Path, data: Data, chances: torch.Tensor, targets: torch.Tensor) -> None:
    """Keeps the most confident mistakes of the test part, as pictures where the samples are images."""
    confidence, predicted = chances.max(1)
    wrong = torch.nonzero(predicted != targets).flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MOST_MISTAKES]
    rows = [int(data.test.indices[i]) for i in wrong.tolist()]
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
        pictures = {str(place): _thumbnail(data.images[row]) for place, row in enumerate(rows)}
        _write_tensors(folder / "mistakes.safetensors", pictures)
    write_json(folder / "mistakes.json", told)


def _thumbnail(image: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return torch.from_numpy(np.array(picture).reshape(picture.height, picture.width, -1))
