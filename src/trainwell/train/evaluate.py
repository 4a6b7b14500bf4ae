"""A model's outputs over a whole part, in evaluation."""

import contextlib

import torch
from torch import nn

from trainwell.data.batches import Batches
from trainwell.regularize import evaluating
from trainwell.train.losses import aligned


@torch.no_grad()
def outputs_of(
    model: nn.Module, batches: Batches, autocast: contextlib.AbstractContextManager[None] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the outputs (float32) and the targets of every sample, in the part's order, on the batches' device.

    The outputs are aligned to the targets (see `trainwell.train.losses`).

    The model is put in evaluation, and every module then back in the mode it was in.
    """
    outputs, targets = [], []
    with evaluating(model):
        for number in range(len(batches)):
            x, y = batches.batch(0, number)
            with autocast or contextlib.nullcontext():
                out = model(x)
            outputs.append(out.float())
            targets.append(y)
    all_targets = torch.cat(targets)
    return aligned(torch.cat(outputs), all_targets), all_targets
