"""The training loop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwell import random
from trainwell.data.batches import Batches
from trainwell.errors import DivergedError, InputError, in_one_line
from trainwell.metrics.correctness import accuracy, balanced_accuracy
from trainwell.optim import SAM, Plateau
from trainwell.regularize import Mixed, keyed, mix, mixed_loss
from trainwell.train import interrupt, snapshots
from trainwell.train.averaging import make_average
from trainwell.train.checkpoint import load_optimizer, load_other_buffers, other_buffers
from trainwell.train.checkpoint_folder import CheckpointFolder
from trainwell.train.choice import Choice
from trainwell.train.early_stopping import EarlyStopping
from trainwell.train.evaluate import outputs_of
from trainwell.train.hardware import Hardware
from trainwell.train.history import History, Row
from trainwell.train.losses import Loss, aligned
from trainwell.train.optimizers import make_optimizer, make_schedule
from trainwell.train.recipe import Recipe
from trainwell.train.tuning import make_tuning
from trainwell.transfer.backbones import Backbone
from trainwell.transfer.surgery import find_head

Metric = Callable[[torch.Tensor, torch.Tensor], float]
_MOST_HALVINGS = 10


class Trainer:
    """Trains a model by a resolved recipe; can be stopped at any step and goes on to the same bits.

    Args:
        model: on its device already.
        train: the batches to learn from; one is one step of the optimizer.
        val: the batches that choices are made on.
        recipe: a resolved recipe, in which `steps` or `epochs` is set.
        hardware: what the model is called with.
        losses: what is minimised and what is reported (see `trainwell.train.losses`).
        metrics: further figures of the validation part: name to function of all outputs and targets.
        classification: whether accuracies are reported.
        from_head: whether batches hold what comes to the model's head, which alone is then run and trained.
        save_seconds: how often the state is saved.
        on_epoch_end: called with the trainer and the new row after each epoch; it may call `stop`.
        on_step: called with the trainer after each step, for progress.

    Attributes:
        called: what is called with a batch: the model, or its head.
        tuning: which stages of a pretrained model are trained, and how fast; `None` for one from scratch.
        step: how many steps were taken.
        epoch: the current epoch, from 0.
        batch: how many of the epoch's batches were taken.
        best_state: the weights of the best epoch; among equals, of the one with the lowest validation loss. Where the
            last epoch's are handed over, their average if validation favours it, else `None`.
        best_weights: what those are: "raw", or the recipe's average.
        backbone: the pretrained model that it began as, if it did.
        choice: how it was decided what of that is trained, where that was left open.
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
        from_head: bool = False,
        save_seconds: float = 60.0,
        on_epoch_end: Callable[["Trainer", Row], object] | None = None,
        on_step: Callable[["Trainer"], object] | None = None,
    ) -> None:
        self.model, self.train, self.val, self.recipe, self.hardware = model, train, val, recipe, hardware
        self.objective, self.reported = losses
        self.metrics, self.classification = metrics or {}, classification
        self.backbone: Backbone | None = None
        self.choice: Choice | None = None
        self.history, self.save_seconds = History(), save_seconds
        self.folder: Path | None = None
        self.checkpoints: CheckpointFolder | None = None
        self.on_epoch_end, self.on_step = on_epoch_end, on_step

        self.total_steps = recipe.steps if recipe.steps is not None else (recipe.epochs or 1) * len(train)
        self.tuning = make_tuning(model, recipe, self.total_steps)
        self.called = model.get_submodule(find_head(model)) if from_head else model
        self.optimizer = make_optimizer(model, recipe, self.tuning)
        self.schedule = make_schedule(recipe, max(1, self.total_steps))
        self.averaging = make_average(model, recipe, self.total_steps, len(train))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.stopping = EarlyStopping(recipe.patience, recipe.min_delta, recipe.monitor_mode)
        figures = [*(["accuracy", "balanced_accuracy"] if classification else []), "loss", *self.metrics]
        if recipe.monitor not in [f"val_{name}" for name in figures]:
            known = ", ".join(f"val_{name}" for name in figures)
            raise InputError(f"monitor is {recipe.monitor!r}, which is none of {known}")

        self.step = self.epoch = self.batch = 0
        self.tally = [0.0, 0.0, 0.0]  # of this epoch: samples, their losses, how many were right
        self.best_state: dict[str, torch.Tensor] | None = None
        self.best_weights = "raw"
        self._last = math.nan, math.inf  # of the raw weights: what is monitored, and the loss
        self.best_epoch = self.best_step = 0
        self.best_loss = math.inf
        self.lr_scale, self.halvings = 1.0, 0
        self.first_loss: float | None = None
        self.stop_reason = self._stop_asked = ""
        self._epoch_start = 0  # the step of the newest checkpoint at an epoch's start
        self._seconds_before, self._started, self._saved = 0.0, time.monotonic(), time.monotonic()

    def keep_in(self, folder: Path) -> None:
        """Keeps history and checkpoints in a folder from here on; without this, nothing is on disk."""
        self.folder = folder
        self.history, self.checkpoints = History(folder / "history.jsonl"), CheckpointFolder(folder / "checkpoints")

    # ------------------------------------------------------------------ one step

    def train_step(self) -> None:
        """Takes one step of the optimizer on one batch. Nothing is stepped if loss or gradient are not finite."""
        inputs, targets = self.take_batch()
        loss, reported, right = self.forward_backward(inputs, targets)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip_grad, norm)

        # One transfer from the device says all that is to be known.
        loss_, reported_, right_, norm_ = torch.stack([loss, reported, right, norm]).tolist()
        if not (math.isfinite(loss_) and math.isfinite(norm_)):
            self.optimizer.zero_grad()
            raise self.diverged(f"the loss is {loss_:.4g}, the gradient's norm {norm_:.4g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.count(reported_, right_, len(targets))

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns inputs and targets of the step to come; seeds torch's generators and sets the rate for it."""
        random.seed_everything(self.recipe.seed, "step", self.step)
        self.set_rate()
        return self.train.batch(self.epoch, self.batch)

    def count(self, reported: float, right: float, samples: int) -> None:
        """Counts a step that the optimizer has taken, with its loss and how many were right."""
        if self.first_loss is None:
            self.first_loss = reported
        self.tally = [a + b for a, b in zip(self.tally, (samples, reported * samples, right), strict=True)]
        self.step, self.batch = self.step + 1, self.batch + 1
        if self.averaging is not None:
            self.averaging.after_step(self.step, self._at_epochs_end)

    @property
    def _at_epochs_end(self) -> bool:
        return self.batch == len(self.train) or self.step == self.total_steps

    def set_rate(self) -> None:
        """Sets the learning rate of the step to come, and what of a pretrained model is trained in it."""
        if self.tuning is not None:
            self.tuning.at(self.step)
        rate = self.lr_scale * self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Leaves the gradient to be stepped along; returns loss, reported loss, and how many were right."""
        figures = self._add_gradient(inputs, targets)
        if self.recipe.sam:
            random.seed_everything(self.recipe.seed, "step", self.step)  # the same noise, if a layer draws from torch's
            with SAM(self.model, self.recipe.sam).ascended():
                self._add_gradient(inputs, targets)
        if self.tuning is not None and self.tuning.pull is not None:
            self.tuning.pull.add_gradient()
        return figures

    def _add_gradient(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Adds up the batch's gradient, piece by piece."""
        totals, count = torch.zeros(3, device=inputs.device), len(targets)
        mixed = self.mixed(inputs)
        for rows in torch.arange(count).chunk(self.recipe.grad_accum_steps):
            piece, share = slice(int(rows[0]), int(rows[-1]) + 1), len(rows) / count
            mean = mean_over(piece, targets, mixed)
            with keyed(self.model, self.recipe.seed, "noise", self.step, rows=range(piece.start, piece.stop)):
                with self.hardware.autocast():
                    outputs = self.called((mixed.inputs if mixed else inputs)[piece])
                outputs = aligned(outputs.float(), targets[piece])
                loss = mean(self.objective, outputs)
                torch.autograd.backward(loss * share if share < 1 else loss)
            with torch.no_grad():
                reported = loss if self.reported is self.objective else mean(self.reported, outputs)
                right = mean(fraction_right, outputs) * len(rows) if self.classification else torch.zeros_like(loss)
                totals += torch.stack([loss * share, reported * share, right.to(loss.dtype)])
        return tuple(totals.detach())

    def mixed(self, inputs: torch.Tensor) -> Mixed | None:
        """Returns the batch of the step to come as mixup and CutMix make it; `None` if neither is on."""
        recipe = self.recipe
        return mix(inputs, recipe.seed, "mix", self.step, mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix)

    # ------------------------------------------------------------------ epochs

    def run(self) -> None:
        """Trains until the steps are done, a gain stays away too long, or somebody calls `stop`.

        Raises:
            DivergedError: loss or gradient were not finite and the recipe says to stop.
            KeyboardInterrupt: Ctrl-C, or a request to end; the state was saved.
        """
        with interrupt.deferred() as interrupted:
            self.begin()
            if not self.total_steps and not self.stop_reason:
                self._end_solved()
            while not self.stop_reason:
                try:
                    self.train_step()
                    self.end_step()
                except DivergedError as what:
                    self._go_back(what)
                self.save_if_due(interrupted)

    def begin(self) -> None:
        """Starts the clocks, and saves the state if it never was."""
        if self.called is not self.model:
            self.val.batch(0, 0)  # computes what comes to the head, which is no step's time
        self._started = self._saved = time.monotonic()
        if self.checkpoints is not None and not self.checkpoints.steps():
            self.save()

    def end_step(self) -> None:
        """Tells of the step that was taken, keeps a snapshot if it is time, and ends the epoch if it is over."""
        if self.on_step:
            self.on_step(self)
        if self.folder and snapshots.due(self.recipe, self.step, self.total_steps, self._at_epochs_end):
            snapshots.keep(self.folder, self.model, self.step, self.recipe.snapshots)
        if self._at_epochs_end:
            self._end_epoch()

    @property
    def save_is_due(self) -> bool:
        """Whether it is time to save the state."""
        at_epochs_end = self._halves and self.batch == 0
        return bool(self.stop_reason or at_epochs_end or time.monotonic() - self._saved >= self.save_seconds)

    def save_if_due(self, interrupted: Callable[[], bool], *, due: bool = False) -> None:
        """Saves the state when it is time, or if it is `due` for another reason.

        Raises:
            KeyboardInterrupt: `interrupted` says so; the state was saved.
        """
        if interrupted():
            self.save()
            raise KeyboardInterrupt(f"interrupted and saved after step {self.step} of {self.total_steps}")
        if due or self.save_is_due:
            self.save()

    def _end_solved(self) -> None:
        """Ends a run of no steps, whose head is the best there is already: judges it as at the end of an epoch."""
        outputs, targets = outputs_of(self.called, self.train, self.hardware.autocast())
        loss, right = float(self.reported(outputs, targets)), float(fraction_right(outputs, targets))
        self.tally = [1.0, loss, right]
        self._end_epoch()
        self.stop_reason = self._stop_asked or "the best linear classifier was solved for"

    def stop(self, reason: str) -> None:
        """Ends the run at the end of this epoch."""
        self._stop_asked = reason

    def _end_epoch(self) -> None:
        row = self._row()
        if not math.isfinite(row["val_loss"]):
            raise self.diverged(f"the validation loss is {row['val_loss']:.4g}")
        at = row["epoch"] if self.recipe.patience_unit == "epochs" else self.step
        self._keep("raw", row, at)
        row |= self._judge_average(at)
        if isinstance(self.schedule, Plateau):
            self.schedule.update(row["val_loss"])
        self.history.append(row)
        self.epoch, self.batch, self.tally = self.epoch + 1, 0, [0.0, 0.0, 0.0]
        if self.step == self.total_steps:
            whole = self.step % len(self.train) == 0
            self.stop_reason = f"all {self.epoch} epochs done" if whole else f"all {self.step:,} steps done"
        elif self.stopping.should_stop(at):
            waited = f"{self.recipe.patience} {self.recipe.patience_unit}"
            self.stop_reason = f"no gain in {self.recipe.monitor} for {waited}"
        if self.on_epoch_end:
            self.on_epoch_end(self, row)
        self.stop_reason = self._stop_asked or self.stop_reason

    def _keep(self, weights: str, figures: Row, at: int) -> None:
        """Keeps the weights that the model has, if they are the best so far, or the best of the last epoch."""
        value, loss = figures[self.recipe.monitor], figures["val_loss"]
        # On few samples accuracies are often equal; then the lower loss tells. Patience counts gains alone.
        if self.stopping.update(value, at) or (value == self.stopping.best and loss < self.best_loss):
            self.best_epoch, self.best_step, self.best_loss = self.epoch + 1, self.step, loss
            if self.recipe.restore_best:
                self.best_state, self.best_weights = self._copy_of_state(), weights
        if not self.recipe.restore_best:
            raw = weights == "raw"
            if raw:
                self._last = value, loss
            sign = 1 if self.recipe.monitor_mode == "max" else -1
            if raw or (sign * value, -loss) > (sign * self._last[0], -self._last[1]):
                self.best_state, self.best_weights = None if raw else self._copy_of_state(), weights

    def _copy_of_state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _judge_average(self, at: int) -> Row:
        """Returns the figures of the averaged weights, if there are any, and keeps them if validation favours them."""
        if self.averaging is None or not self.averaging.average.updates:
            return {}
        with self.averaging.average.weights():
            self.averaging.refresh(self.train, self.epoch)
            figures = self.validate()
            if math.isfinite(figures["val_loss"]):
                self._keep(self.recipe.average, figures, at)
        return {f"{self.recipe.average}_{name}": value for name, value in figures.items()}

    @torch.no_grad()
    def validate(self) -> Row:
        """Returns the figures of the validation part."""
        random.seed_everything(self.recipe.seed, "validate", self.step)  # a layer may be random even in evaluation
        outputs, targets = outputs_of(self.called, self.val, self.hardware.autocast())
        row: Row = {"val_loss": float(self.reported(outputs, targets))}
        outputs, targets = outputs.cpu(), targets.cpu()
        if self.classification:
            row["val_accuracy"] = accuracy(outputs, targets)
            if self.recipe.monitor == "val_balanced_accuracy":
                row["val_balanced_accuracy"] = balanced_accuracy(outputs, targets)
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

    @property
    def _halves(self) -> bool:
        return self.recipe.on_nonfinite == "halve" and self.checkpoints is not None

    def diverged(self, what: str) -> DivergedError:
        """Returns the error that says that, and where, something was not finite."""
        rate = self.optimizer.param_groups[0]["lr"]
        again = f", after {self.halvings} halvings" if self.halvings else ""
        kept = f"; the checkpoints before it are in {self.checkpoints.folder}" if self.checkpoints else ""
        return DivergedError(
            f"not finite at step {self.step + 1} (epoch {self.epoch + 1}), at a rate of {rate:.3g}{again}: {what}; "
            f"try a lower lr, clip_grad=1, a longer warmup, precision='fp32' or on_nonfinite='halve'{kept}"
        )

    def _go_back(self, what: DivergedError) -> None:
        """Goes back to the last epoch's end with half the rate, if the recipe says so."""
        if not self._halves or self.halvings == _MOST_HALVINGS:
            raise what
        assert self.checkpoints is not None
        scale, halvings, seconds = self.lr_scale / 2, self.halvings + 1, self.seconds
        self.load_state_dict(self.checkpoints.load(self._epoch_start))
        self.lr_scale, self.halvings, self._seconds_before = scale, halvings, seconds

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """Saves the whole state as a checkpoint."""
        if self.checkpoints is not None:
            if self.batch == 0:
                self._epoch_start = self.step
            pinned = self._epoch_start if self._halves else None
            self.checkpoints.save(self.step, self.state_dict(), pinned)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from the newest checkpoint that is whole.

        Raises:
            InputError: there is none, or it is of another model.
        """
        assert self.checkpoints is not None
        try:
            self.load_state_dict(self.checkpoints.load())
        except (RuntimeError, KeyError) as error:
            raise InputError(f"{self.checkpoints.folder} is of another model ({in_one_line(error)})") from None

    _PLAIN = ("step", "epoch", "batch", "tally", "best_epoch", "best_step", "best_loss", "best_weights", "lr_scale",
              "halvings", "first_loss", "stop_reason", "_stop_asked", "_epoch_start")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that is not a function of the recipe and the step."""
        return {
            "model": self.model.state_dict(),
            "buffers": other_buffers(self.model),
            "optimizer": self.optimizer.state_dict(),
            "stopping": self.stopping.state_dict(),
            "schedule": self.schedule.state_dict() if isinstance(self.schedule, Plateau) else None,
            "best": self.best_state,
            "average": self.averaging.state_dict() if self.averaging is not None else None,
            "pull": self.tuning.pull.state_dict() if self.tuning and self.tuning.pull else None,
            "history": self.history.rows,
            "seconds": self.seconds,
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back, or on, to a saved state; what is on disk of later steps is removed."""
        self.model.load_state_dict(state["model"])
        load_other_buffers(self.model, state["buffers"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.stopping.load_state_dict(state["stopping"])
        if isinstance(self.schedule, Plateau):
            self.schedule.load_state_dict(state["schedule"])
        if self.averaging is not None:
            self.averaging.load_state_dict(state["average"])
        if self.tuning is not None and self.tuning.pull is not None:
            self.tuning.pull.load_state_dict(state["pull"])
        best = state["best"]
        self.best_state = best and {name: value.to(self.hardware.device) for name, value in best.items()}
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        self.history.replace(state["history"])
        if self.checkpoints is not None:
            self.checkpoints.remove_after(self.step)


def mean_over(piece: slice, targets: torch.Tensor, mixed: Mixed | None) -> Callable[[Loss, torch.Tensor], torch.Tensor]:
    """Returns a function from a loss and outputs to its mean over a piece of the batch."""
    if mixed is None:
        return lambda loss, outputs: loss(outputs, targets[piece])
    others, share = targets[mixed.partners][piece], mixed.share[piece]
    return lambda loss, outputs: mixed_loss(loss, outputs, targets[piece], others, share)


def fraction_right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns how much of a batch has its largest output at the true class."""
    return (outputs.argmax(1) == targets).double().mean()
