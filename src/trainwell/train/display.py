"""What a person sees while a run goes on, on standard error: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from typing import Any

from trainwell import progress
from trainwell.train.history import Row
from trainwell.train.loop import Trainer


class Display:
    """Shows the progress of a run.

    Args:
        quiet: show warnings alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self._shown = quiet, 0.0
        self.bar: Any = None
        self.what = ""  # of several runs, which one this is: "fold 2 of 5, "

    def __enter__(self) -> "Display":
        if not self.quiet and progress.on_terminal():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}/{task.total}"),
                       TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_of_training()

    def end_of_training(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None

    def say(self, line: str) -> None:
        """Shows a line of text."""
        if self.bar is not None:
            with contextlib.suppress(OSError):  # the terminal is gone; the run goes on
                self.bar.console.print(line, highlight=False, markup=False)
        elif not self.quiet:
            progress.say(line)

    def warn(self, line: str) -> None:
        """Shows a line that must not be missed, even when quiet."""
        if self.quiet:
            progress.say(f"trainwell: {line}")
        else:
            self.say(line)

    def step(self, trainer: Trainer) -> None:
        """Moves the bar."""
        if self.bar is not None:
            if not self.bar.tasks:
                self.bar.add_task("", total=trainer.total_steps)
            text = f"{self.what}epoch {trainer.epoch + 1}"
            self.bar.update(self.bar.tasks[0].id, completed=trainer.step, total=trainer.total_steps, description=text)

    def epoch(self, trainer: Trainer, row: Row) -> None:
        """Shows an epoch's row; off a terminal at most one every two seconds, and the last."""
        now, last = time.monotonic(), bool(trainer.stop_reason)
        if self.quiet or (self.bar is None and now - self._shown < 2 and not last):
            return
        self._shown = now
        best = f"  best {trainer.stopping.best:.4f} (epoch {trainer.best_epoch})" if trainer.best_epoch else ""
        if self.bar is not None:  # which shows the time left itself, on a line that may be short
            self.say(describe(row) + best)
        else:
            left = trainer.seconds / max(1, trainer.step) * (trainer.total_steps - trainer.step)
            self.say(f"{describe(row)}{best}  rate {row['lr']:.1e}  {duration(left)} left")


def describe(row: Row) -> str:
    """Returns an epoch's row in words.

    >>> describe({"epoch": 3, "train_loss": 0.5, "val_loss": 0.625, "val_accuracy": 0.75})
    'epoch   3  loss 0.5000, val 0.6250  val acc 0.7500'
    """
    metrics = [
        f"{name.replace('val_accuracy', 'val_acc').replace('_', ' ')} {value:.4f}"
        for name, value in row.items()
        if "val_" in name and name != "val_loss" and isinstance(value, float)
    ]
    loss = f"loss {row['train_loss']:.4f}, val {row['val_loss']:.4f}"
    return "  ".join([f"epoch {row['epoch']:>3}", loss, *metrics])


def duration(seconds: float) -> str:
    """Returns a time span as a person says it.

    >>> duration(41.2), duration(200), duration(7_500)
    ('41 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"
