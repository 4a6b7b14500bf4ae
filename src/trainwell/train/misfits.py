"""Model, loss and data that do not go together, told before anything is trained."""

import dataclasses
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.freezing import is_frozen
from trainwell.regularize import evaluating, mixed_loss
from trainwell.train import losses
from trainwell.train.custom import Custom
from trainwell.train.loop import Trainer

_MOST_TRIED = 1000  # of the classes, with the loss


def refuse_misfits(trainer: Trainer, outputs: int, custom: Custom) -> None:
    """Tries model and loss on two samples, in evaluation, so that what cannot work is told before anything is done.

    Args:
        trainer: of a resolved recipe.
        outputs: how many the data want of the model.
        custom: the user's model and loss.

    Raises:
        InputError: the model cannot take the data, or the loss the model's outputs; or either cannot what the recipe
            asks for.
    """
    piece = -(-trainer.train.batch_size // trainer.recipe.grad_accum_steps)
    smallest = trainer.train.batch_size % piece or piece
    if smallest == 1 and any(_uses_its_batch(module) for module in trainer.model.modules()):
        raise InputError("batch norm needs at least 2 samples at once; change batch_size or grad_accum_steps")
    x, y = _two_samples(trainer)
    shape = tuple(x.shape)
    try:
        with torch.no_grad(), evaluating(trainer.model), trainer.hardware.autocast():
            out = trainer.model(x)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the model cannot take a float32 batch of shape {shape} ({in_one_line(error)})") from error
    if not isinstance(out, torch.Tensor):
        raise InputError(f"the model must return a tensor, not a {type(out).__name__}")
    if custom.loss is None and tuple(out.shape) not in [(len(y), outputs), tuple(y.shape)]:
        raise InputError(f"the model returns shape {tuple(out.shape)} for a batch of {len(y)}, not {(len(y), outputs)}")
    try:
        with torch.no_grad():
            loss = trainer.reported(losses.aligned(out.float(), y), y)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"the loss cannot take outputs of shape {tuple(out.shape)} ({in_one_line(error)})") from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise InputError("the loss must return a tensor with one number, the mean over the batch (reduction='mean')")
    if trainer.recipe.mixup or trainer.recipe.cutmix:
        if trainer.classification:  # one sample of each class, from 0 to 1: as logits and as probabilities
            y = torch.arange(min(outputs, _MOST_TRIED), device=y.device)
            out = torch.rand(len(y), *out.shape[1:], generator=torch.Generator().manual_seed(0)).to(y.device)
        _refuse_unmixable(trainer.objective, losses.aligned(out.float(), y), y, plain=trainer.classification)


def refuse_unaveraged(trainer: Trainer, outputs: int) -> None:
    """Refuses a model, beside a loss of the user's, whose answers are not what the data want, as an ensemble's mean is.

    Raises:
        InputError: the outputs have another shape than the targets, such as means and variances.
    """
    x, y = _two_samples(trainer)
    with torch.no_grad(), evaluating(trainer.model), trainer.hardware.autocast():
        shape = tuple(trainer.model(x).shape)
    if shape not in [(len(y), outputs), tuple(y.shape)]:
        raise InputError(
            f"an ensemble averages what its members say, and judges that: outputs are to have the shape "
            f"{(len(y), outputs)}, not {shape}; train with fit, or let the model return what is to be predicted alone"
        )


def _two_samples(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    part = trainer.val.part
    return trainer.val.plain(dataclasses.replace(part, indices=part.indices[:2])).batch(0, 0)


def _uses_its_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and not is_frozen(module)


def _refuse_unmixable(loss: losses.Loss, outputs: torch.Tensor, targets: torch.Tensor, plain: bool) -> None:
    """Refuses a loss that cannot be taken of each sample, or, if it is to be `plain`, is not the mean of those."""
    try:
        with torch.no_grad():
            of_each = mixed_loss(loss, outputs, targets, targets, torch.ones(len(targets), device=targets.device))
            of_all = loss(outputs, targets)
    except InputError:
        raise
    except Exception as error:
        why = in_one_line(error)
        raise InputError(f"mixup and cutmix take the loss of each sample, and this one cannot ({why})") from error
    if plain and not math.isclose(float(of_each), float(of_all), rel_tol=1e-3):
        raise InputError(
            "mixup and cutmix take the loss of each sample, and this one is not the mean of those, as with class "
            "weights: take functools.partial(tw.regularize.cross_entropy, weight=…), or class_weight='balanced'"
        )
