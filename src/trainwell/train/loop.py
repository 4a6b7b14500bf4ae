"""The training loop."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainwell import random
from trainwell.data.batches import Batches
from trainwell.errors import DivergedError, InputError
from trainwell.train import interrupt
from trainwell.train.checkpoint import Checkpoints
from trainwell.train.early_stopping import EarlyStopping
from trainwell.train.evaluate import outputs_of
from trainwell.train.hardware import Hardware
from trainwell.train.history import History, Row
from trainwell.train.losses import Loss
from trainwell.train.metrics import accuracy
from trainwell.train.optimizers import make_optimizer, make_schedule
from trainwell.train.recipe import Recipe

Metric = Callable[[torch.Tensor, torch.Tensor], float]
_MOST_HALVINGS = 10


class _NotFiniteError(Exception):
    """Loss or gradient are not finite."""


class Trainer:
    """Trains a model by a resolved recipe; can be stopped at any step and goes on to the same bits.

    Args:
        model: on its device already.
        train: the batches to learn from; one is one step of the optimizer.
        val: the batches that choices are made on.
        recipe: a resolved recipe, in which `steps` is set.
        hardware: what the model is called with.
        losses: what is minimised and what is reported (see `trainwell.train.losses`).
        metrics: further figures of the validation part: name to function of all outputs and targets.
        classification: whether accuracies are reported.
        history: where the rows go.
        checkpoints: where the state goes.
        save_seconds: how often the state is saved.
        on_epoch_end: called with the trainer and the new row after each epoch; it may call `stop`.
        on_step: called with the trainer after each step, for progress.

    Attributes:
        step: how many steps were taken.
        epoch: the current epoch, from 0.
        batch: how many of the epoch's batches were taken.
        best_state: the weights of the best epoch.
        stop_reason: why the run ended, "" while it goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        val: Batches,
        recipe: Recipe,
        hardware: Hardware,
        losses: tuple[Loss, Loss],
        *,
        metrics: dict[str, Metric] | None = None,
        classification: bool = True,
        history: History | None = None,
        checkpoints: Checkpoints | None = None,
        save_seconds: float = 60.0,
        on_epoch_end: Callable[["Trainer", Row], object] | None = None,
        on_step: Callable[["Trainer"], object] | None = None,
    ) -> None:
        assert recipe.steps is not None
        self.model, self.train, self.val, self.recipe, self.hardware = model, train, val, recipe, hardware
        self.objective, self.reported = losses
        self.metrics, self.classification = metrics or {}, classification
        self.history, self.checkpoints, self.save_seconds = history or History(), checkpoints, save_seconds
        self.on_epoch_end, self.on_step = on_epoch_end, on_step

        self.total_steps = recipe.steps
        self.optimizer = make_optimizer(model, recipe)
        self.schedule = make_schedule(recipe, self.total_steps)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        mode = "min" if recipe.monitor.endswith("loss") else "max"
        self.stopping = EarlyStopping(recipe.patience, recipe.min_delta, mode)

        self.step = self.epoch = self.batch = 0
        self.tally = [0.0, 0.0, 0.0]  # of this epoch: samples, their losses, how many were right
        self.best_state: dict[str, torch.Tensor] | None = None
        self.best_epoch = self.best_step = 0
        self.lr_scale, self.halvings = 1.0, 0
        self.first_loss: float | None = None
        self.stop_reason = ""
        self._epoch_start = 0  # the step of the newest checkpoint at an epoch's start
        self._seconds_before, self._started, self._saved = 0.0, time.monotonic(), time.monotonic()

    # ------------------------------------------------------------------ one step

    def train_step(self) -> None:
        """Takes one step of the optimizer on one batch. Nothing is stepped if loss or gradient are not finite."""
        random.seed_everything(self.recipe.seed, "step", self.step)
        rate = self.set_rate()
        inputs, targets = self.train.batch(self.epoch, self.batch)

        loss, reported, right = self.forward_backward(inputs, targets)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip_grad, norm)

        # One transfer from the device says all that is to be known.
        loss_, reported_, right_, norm_ = torch.stack([loss, reported, right, norm]).tolist()
        if not (math.isfinite(loss_) and math.isfinite(norm_)):
            self.optimizer.zero_grad()
            raise _NotFiniteError(f"step {self.step + 1} (epoch {self.epoch + 1}), at a rate of {rate:.3g}: "
                                  f"the loss is {loss_:.4g}, the gradient's norm {norm_:.4g}")  # fmt: skip
        self.optimizer.step()
        self.optimizer.zero_grad()

        if self.first_loss is None:
            self.first_loss = reported_
        self.tally = [a + b for a, b in zip(self.tally, (len(targets), reported_ * len(targets), right_), strict=True)]
        self.step, self.batch = self.step + 1, self.batch + 1

    def set_rate(self) -> float:
        """Sets the learning rate of the step to come, and returns it."""
        rate = self.lr_scale * self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Adds up the batch's gradient, piece by piece; returns loss, reported loss, and how many were right."""
        totals = torch.zeros(3, device=inputs.device)
        pieces = self.recipe.grad_accum_steps
        for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):
            share = len(y) / len(targets)
            with self.hardware.autocast():
                outputs = self.model(x)
            outputs = outputs.float()
            loss = self.objective(outputs, y)
            torch.autograd.backward(loss * share if share < 1 else loss)
            with torch.no_grad():
                reported = loss if self.reported is self.objective else self.reported(outputs, y)
                right = (outputs.argmax(1) == y).sum() if self.classification else torch.zeros((), device=x.device)
                totals += torch.stack([loss * share, reported * share, right.to(loss.dtype)])
        return tuple(totals.detach())

    # ------------------------------------------------------------------ epochs

    def run(self) -> None:
        """Trains until the steps are done, a gain stays away too long, or somebody calls `stop`.

        Raises:
            DivergedError: loss or gradient were not finite and the recipe says to stop.
            KeyboardInterrupt: Ctrl-C, or a request to end; the state was saved.
        """
        self._started = self._saved = time.monotonic()
        self.model.train()
        with interrupt.deferred() as interrupted:
            if self.checkpoints is not None and not self.checkpoints.steps():
                self.save()
            while not self.stop_reason:
                try:
                    self.train_step()
                except _NotFiniteError as what:
                    self._diverged(str(what))
                    continue
                if self.on_step:
                    self.on_step(self)
                if self.batch == len(self.train) or self.step == self.total_steps:
                    self._end_epoch()
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt(f"interrupted and saved after step {self.step} of {self.total_steps}")
                if time.monotonic() - self._saved >= self.save_seconds or self.stop_reason:
                    self.save()

    def stop(self, reason: str) -> None:
        """Ends the run after this epoch."""
        self.stop_reason = reason

    def _end_epoch(self) -> None:
        row = self._row()
        at = row["epoch"] if self.recipe.patience_unit == "epochs" else self.step
        if self.recipe.monitor not in row:
            raise InputError(f"monitor is {self.recipe.monitor!r}, which is none of {', '.join(row)}")
        if self.stopping.update(row[self.recipe.monitor], at):
            self.best_epoch, self.best_step = row["epoch"], self.step
            self.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.history.append(row)
        if self.step == self.total_steps:
            self.stop_reason = f"all {row['epoch']} epochs done"
        elif self.stopping.should_stop(at):
            self.stop_reason = (
                f"no gain in {self.recipe.monitor} for {self.recipe.patience} {self.recipe.patience_unit}"
            )
        self.epoch, self.batch, self.tally = self.epoch + 1, 0, [0.0, 0.0, 0.0]
        if self.on_epoch_end:
            self.on_epoch_end(self, row)
        if self.recipe.on_nonfinite == "halve":
            self.save()

    @torch.no_grad()
    def validate(self) -> Row:
        """Returns the figures of the validation part."""
        outputs, targets = outputs_of(self.model, self.val, self.hardware.autocast())
        row: Row = {"val_loss": float(self.reported(outputs, targets))}
        if self.classification:
            row["val_accuracy"] = accuracy(outputs, targets)
        return row | {f"val_{name}": float(metric(outputs, targets)) for name, metric in self.metrics.items()}

    def _row(self) -> Row:
        seen, losses, right = self.tally
        row: Row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "samples": self.step * self.train.batch_size,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": losses / seen,
        }
        if self.classification:
            row["train_accuracy"] = right / seen
        return row | self.validate() | {"seconds": round(self.seconds, 3)}

    @property
    def seconds(self) -> float:
        """How long the run has trained, over all its sessions."""
        return self._seconds_before + time.monotonic() - self._started

    # ------------------------------------------------------------------ what went wrong

    def _diverged(self, what: str) -> None:
        """Stops, or goes back to the last epoch's end with half the rate."""
        halve = self.recipe.on_nonfinite == "halve" and self.checkpoints is not None
        if not halve or self.halvings == _MOST_HALVINGS:
            kept = f"; the checkpoints before it are in {self.checkpoints.folder}" if self.checkpoints else ""
            again = f" after {self.halvings} halvings of the rate" if self.halvings else ""
            raise DivergedError(f"not finite at {what}{again}: try a lower lr, clip_grad=1, a longer warmup, "
                                f"precision='fp32' or on_nonfinite='halve'{kept}")  # fmt: skip
        assert self.checkpoints is not None
        scale, halvings = self.lr_scale / 2, self.halvings + 1
        self.load_state_dict(self.checkpoints.load(self._epoch_start))
        self.lr_scale, self.halvings = scale, halvings

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """Saves the whole state as a checkpoint."""
        if self.checkpoints is not None:
            if self.batch == 0:
                self._epoch_start = self.step
            pinned = self._epoch_start if self.recipe.on_nonfinite == "halve" else None
            self.checkpoints.save(self.step, self.state_dict(), pinned)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from the newest checkpoint that is whole."""
        assert self.checkpoints is not None
        self.load_state_dict(self.checkpoints.load())

    _PLAIN = ("step", "epoch", "batch", "tally", "best_epoch", "best_step", "lr_scale", "halvings", "first_loss",
              "stop_reason", "_epoch_start")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that is not a function of the recipe and the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stopping": self.stopping.state_dict(),
            "best": self.best_state,
            "history": len(self.history.rows),
            "seconds": self.seconds,
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back, or on, to a saved state; what is on disk of later steps is removed."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():  # lay them out in memory like their parameter
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.stopping.load_state_dict(state["stopping"])
        best = state["best"]
        self.best_state = best and {name: value.to(self.hardware.device) for name, value in best.items()}
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        self.history.truncate(state["history"])
        if self.checkpoints is not None:
            self.checkpoints.remove_after(self.step)
