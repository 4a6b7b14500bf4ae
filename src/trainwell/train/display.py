"""What a person sees while a run goes on, on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from trainwell.train.history import Row
from trainwell.train.loop import Trainer


class Display:
    """Shows the progress of a run.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self._shown = quiet, 0.0
        self.bar: Any = None

    def __enter__(self) -> "Display":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}/{task.total}"),
                       TimeRemainingColumn(), TextColumn("left"))  # fmt: skip
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Shows a line of text."""
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def step(self, trainer: Trainer) -> None:
        """Moves the bar."""
        if self.bar is not None:
            if not self.bar.tasks:
                self.bar.add_task("", total=trainer.total_steps)
            text = f"epoch {trainer.epoch + 1}"
            self.bar.update(self.bar.tasks[0].id, completed=trainer.step, description=text)

    def epoch(self, trainer: Trainer, row: Row) -> None:
        """Shows an epoch's row; off a terminal at most one every two seconds, and the last."""
        now, last = time.monotonic(), bool(trainer.stop_reason)
        if self.quiet or (self.bar is None and now - self._shown < 2 and not last):
            return
        self._shown = now
        left = trainer.seconds / trainer.step * (trainer.total_steps - trainer.step)
        self.say(describe(row, trainer) + ("" if self.bar is not None else f"  {duration(left)} left"))


def describe(row: Row, trainer: Trainer) -> str:
    """Returns an epoch's row as a line: epoch, rate, losses, accuracy and other metrics, the best so far."""
    metrics = [
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in row.items()
        if name.startswith("val_") and name != "val_loss" and isinstance(value, float)
    ]
    loss = f"loss {row['train_loss']:.4f}, val {row['val_loss']:.4f}"
    best = [] if trainer.stopping.best is None else [f"best {trainer.stopping.best:.4f} at {trainer.best_epoch}"]
    return "  ".join([f"epoch {row['epoch']:>3}", f"rate {row['lr']:.1e}", loss, *metrics, *best])


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
