"""The learning-rate range test: which learning rate suits a model, its optimizer and its data.

The rate rises geometrically, a step at a time, and the loss is watched (L. N. Smith, *Cyclical learning rates for
training neural networks*, 2017, section 3.3). That shows where the loss begins to fall and where it diverges. What lies
between is several decades wide, and where in it the best rate lies depends on the noise and on the optimizer, which a
sweep of a hundred steps cannot tell; so short trials at constant rates follow, and their losses decide.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainwell import files, progress
from trainwell.errors import InputError
from trainwell.unchanged import generators_of, unchanged

_FEWEST_STEPS = 20
_SMOOTHING = 0.9
_RECENT = 50  # losses, before which the smoothed loss has forgotten all
_BETWEEN_TRIALS = 10 ** (1 / 3)  # three rates a decade
_MOST_TRIALS = 14  # more than four decades
_SHARE_OF_MINIMUM = 0.1  # of the rate with the lowest smoothed loss, where there are no trials
_LONGER_RUNS = 0.75  # of the best trial's rate: real runs are longer than a trial, and like lower rates


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw; `print` it for its one line.

    Attributes:
        rates: of each step of the sweep, rising; where groups differ, the highest group's.
        losses: of each step's batch, before the step.
        smoothed: the losses without most of their noise.
        trials: rate and loss at the end of each trial, `inf` where it diverged; from the highest rate down.
        suggestion: the rate to train with; `None` where the loss never fell by more than its noise.
        lowest: the rate from which on the loss falls; `None` where it never does.
        diverges: the rate at which the loss was above its start, or not finite; `None` if it never was.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    trials: tuple[tuple[float, float], ...]
    suggestion: float | None
    lowest: float | None
    diverges: float | None

    def __str__(self) -> str:
        end = f"diverges at {self.diverges:.2g}" if self.diverges else f"does not diverge up to {self.rates[-1]:.2g}"
        if self.suggestion is None:
            return f"no learning rate to suggest: the loss never fell by more than its noise, and {end}"
        start = "" if self.lowest is None else f"falls from {self.lowest:.2g} on and "
        return f"learning rate {self.suggestion:.2g} (the loss {start}{end})"

    def picture(self) -> Any:
        """Returns the losses over the rate as a `plotly.graph_objects.Figure`, the suggestion marked."""
        from plotly import graph_objects

        figure = graph_objects.Figure()
        figure.add_scatter(
            x=self.rates, y=self.losses, mode="markers", name="a batch", marker={"size": 5, "color": "#9db4c8"}
        )
        figure.add_scatter(x=self.rates, y=self.smoothed, name="smoothed", line={"width": 2.5, "color": "#1f6fb2"})
        ended = [(rate, loss) for rate, loss in self.trials if math.isfinite(loss)]
        if ended:
            figure.add_scatter(
                x=[rate for rate, _ in ended], y=[loss for _, loss in ended], mode="lines+markers",
                name="at the end of a trial", marker={"size": 8}, line={"dash": "dot", "color": "#c4622d"},
            )  # fmt: skip
        for rate, words, dash, height in (
            (self.lowest, "begins to fall", "dot", 0.0),
            (self.suggestion, f"suggestion {self.suggestion or 0:.2g}", "solid", 0.95),
            (self.diverges, "diverges", "dot", 0.0),
        ):
            if rate is not None:
                figure.add_vline(x=rate, line_dash=dash, line_width=1)
                figure.add_annotation(  # of which a log axis wants the logarithm
                    x=math.log10(rate), y=height, yref="paper", text=words, showarrow=False,
                    xanchor="right", yanchor="bottom",
                )  # fmt: skip
        # What diverges would press everything else flat.
        start, low = self.smoothed[0], min([*self.smoothed, *(loss for _, loss in ended)])
        margin = max(start - low, max(self.losses[: len(self.losses) // 5 + 1]) - start, 1e-12)
        figure.update_layout(template="plotly_white", title=str(self), legend={"orientation": "h", "y": -0.15})
        figure.update_xaxes(type="log", title="learning rate", exponentformat="power")
        figure.update_yaxes(title="loss", range=[low - 0.1 * margin, start + margin])
        return figure

    def save(self, path: Path | str) -> None:
        """Writes the picture as an HTML file that needs no other and no network, whole or not at all."""
        files.write_atomically(path, self.picture().to_html(include_plotlyjs=True))


def lr_range(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    *,
    closure: Callable[[Any], Any] | None = None,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    trial_steps: int = 100,
    quiet: bool = False,
) -> RangeTest:
    """Finds a learning rate for a model, an optimizer and data; leaves everything as it was.

    First a sweep: the rate rises geometrically from `low` to `high`, until the smoothed loss is above its start or is
    not finite. Then trials, each `trial_steps` steps at a constant rate, from the rate at which the sweep ended down,
    until two lower ones did worse; mostly five to nine. The suggestion lies a little below the lowest of the
    rates whose loss at the end is within a standard error of the best.

    The model with its buffers, the gradients, the optimizer with its state, rates and schedules, the modes of training
    and evaluation, and the random states of torch, NumPy and Python are the same bits afterwards, also when the loss
    raises or Ctrl-C is pressed. Where parameter groups have different rates, these keep their ratios.

    Args:
        model: as it is before training; is put in training mode as a whole if it is in evaluation.
        optimizer: of the model; any one of `torch.optim` or like it, with a rate for each group.
        batches: pairs of inputs and targets: a `DataLoader`, a list. Gone through as often as needed.
        loss: a function of `model(inputs)` and targets, which returns the mean over the batch.
        closure: in place of `loss`, for any other step: takes a batch of any kind, computes and backpropagates its
            loss, and returns it. Gradients are cleared before.
        low: the first rate, above 0.
        high: the last rate.
        steps: of the sweep, at least 20.
        trial_steps: of each trial, at least 20; or 0 for no trials: then the suggestion is a tenth of the rate with the
            lowest smoothed loss, which is quick and often far off.
        quiet: show no progress.

    Returns:
        The suggestion and what it comes from.

    Raises:
        InputError: the loss is not finite at the start, or something given cannot be used.

    >>> _ = torch.manual_seed(0)
    >>> model, inputs = nn.Linear(4, 1), torch.randn(64, 4)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = torch.utils.data.DataLoader([(x, x.sum(0, keepdim=True)) for x in inputs], batch_size=16)
    >>> found = lr_range(model, optimizer, batches, nn.functional.mse_loss, quiet=True)
    >>> 0.03 < found.suggestion < 1, optimizer.param_groups[0]["lr"]
    (True, 0.1)
    """
    if (loss is None) == (closure is None):
        raise InputError("give either loss, a function of outputs and targets, or closure, a function of a batch")
    check_range(low, high, steps, trial_steps)
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError("the model has parameters without a shape yet: call it once, then make the optimizer")
    shares, backward = _shares(optimizer), closure or _closure(model, loss)

    def losses_at(rates: Iterable[float], ends: Callable[[list[float]], bool]) -> list[float]:
        """Takes a step at each rate, from where everything is now; returns the losses, each from before its step."""
        losses: list[float] = []
        with unchanged(model, optimizer, loss, closure, *generators_of(batches)):
            if not model.training:  # as a whole; parts that were put in evaluation stay there
                model.train()
            for rate, batch in zip(rates, _cycled(batches), strict=False):
                _set_rate(optimizer, shares, rate)
                optimizer.zero_grad()
                losses.append(_number(backward(batch)))
                if not math.isfinite(losses[-1]) or ends(losses):
                    break
                optimizer.step()
        return losses

    rates = np.geomspace(low, high, steps).tolist()
    told: Any = progress.track(rates, steps, "raising the learning rate", quiet)
    with contextlib.closing(told):
        losses = losses_at(told, lambda losses: len(losses) > steps // 5 and _Start(losses, steps).is_left(losses))
    if not math.isfinite(losses[0]):
        raise InputError(f"the loss is {losses[0]} before the first step: see whether inputs and targets are finite")
    start, reached = _Start(losses, steps), rates[len(losses) - 1]
    diverges = reached if not math.isfinite(losses[-1]) or start.is_left(losses) else None
    losses = [loss for loss in losses if math.isfinite(loss)]
    smoothed = _smooth(losses)

    trials: list[_Trial] = []
    if trial_steps:
        ladder = [rate for k in range(_MOST_TRIALS) if (rate := reached / _BETWEEN_TRIALS**k) >= low]
        told = progress.track(ladder, len(ladder), "trying rates, of at most", quiet)
        with contextlib.closing(told):
            for rate in told:
                seen = losses_at(
                    [rate] * trial_steps, lambda losses: len(losses) >= trial_steps // 4 and start.is_left(losses)
                )
                whole = len(seen) == trial_steps and math.isfinite(seen[-1]) and not start.is_left(seen)
                trials.append(_Trial(rate, seen[-max(5, trial_steps // 5) :] if whole else []))
                if _is_past_the_best(trials) and _best(trials).loss <= min(smoothed):
                    break
        suggestion = _lowest_of_the_best(trials, start)
    else:
        lowest_loss = int(np.argmin(smoothed))
        suggestion = _SHARE_OF_MINIMUM * rates[lowest_loss] if start.is_beaten(smoothed[lowest_loss]) else None
    return RangeTest(
        rates=tuple(rates[: len(losses)]), losses=tuple(losses), smoothed=tuple(smoothed),
        trials=tuple((trial.rate, trial.loss) for trial in trials),
        suggestion=suggestion, lowest=_begins_to_fall(rates, smoothed, start), diverges=diverges,
    )  # fmt: skip


def check_range(low: float, high: float, steps: int, trial_steps: int) -> None:
    """Raises `InputError` if these arguments of `lr_range` are none, before anything is read or built."""
    if not 0 < low < high < math.inf:
        raise InputError(f"low and high must be rates with 0 < low < high; they are {low} and {high}")
    if steps < _FEWEST_STEPS:
        raise InputError(f"a sweep takes at least {_FEWEST_STEPS} steps, not {steps}")
    if 0 != trial_steps < _FEWEST_STEPS:
        raise InputError(f"a trial takes at least {_FEWEST_STEPS} steps, or 0 for no trials, not {trial_steps}")


# --- What the losses say. ---


class _Start:
    """The loss before it moves: its mean and its noise, from the first fifth of a sweep.

    The noise comes from the differences of neighbours, which a loss that falls already leaves nearly alone (J. von
    Neumann, *Distribution of the ratio of the mean square successive difference to the variance*, 1941).
    """

    def __init__(self, losses: Sequence[float], steps: int) -> None:
        first = [loss for loss in losses[: steps // 5] if math.isfinite(loss)]
        self.mean = float(np.mean(first))
        self.noise = math.sqrt(float(np.mean(np.square(np.diff(first)))) / 2) if len(first) > 1 else 0.0

    def is_left(self, losses: Sequence[float]) -> bool:
        """Says whether the loss has risen above its start for good."""
        return _smooth(losses[-_RECENT:])[-1] > self.mean + 2 * self.noise

    def is_beaten(self, loss: float) -> bool:
        """Says whether a mean of several losses is below the start by more than noise."""
        return loss < self.mean - self.noise - 1e-6 * abs(self.mean)


@dataclass(frozen=True)
class _Trial:
    """The last losses at a constant rate; none if it diverged."""

    rate: float
    losses: list[float]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses)) if self.losses else math.inf


def _best(trials: list[_Trial]) -> _Trial:
    return min(trials, key=lambda trial: trial.loss)


def _is_past_the_best(trials: list[_Trial]) -> bool:
    """Says whether two lower rates than the best did worse."""
    return trials.index(_best(trials)) <= len(trials) - 3


def _smooth(losses: Sequence[float]) -> list[float]:
    """Returns the exponential moving means, without their bias towards 0 at the start (Kingma and Ba, *Adam*, 2015)."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed.append(mean / (1 - _SMOOTHING**count))
    return smoothed


def _lowest_of_the_best(trials: list[_Trial], start: _Start) -> float | None:
    """Returns a bit less than the lowest rate that is as good as the best, to within a standard error.

    The trials saw the same batches, so that the error is that of their differences.
    """
    best = _best(trials)
    if not start.is_beaten(best.loss):
        return None
    good = []
    for trial in trials:
        if trial.losses:
            behind = np.subtract(trial.losses, best.losses)
            if behind.mean() <= behind.std(ddof=1) / math.sqrt(len(behind)):
                good.append(trial.rate)
    return _LONGER_RUNS * min(good)


def _begins_to_fall(rates: list[float], smoothed: list[float], start: _Start) -> float | None:
    """Returns the rate after which the smoothed loss, on its way to its minimum, is below its start."""
    lowest = int(np.argmin(smoothed))
    if not start.is_beaten(smoothed[lowest]):
        return None
    return rates[max((k for k in range(lowest) if not start.is_beaten(smoothed[k])), default=0)]


# --- One step. ---


def _closure(model: nn.Module, loss: Any) -> Callable[[Any], torch.Tensor]:
    device = next((parameter.device for parameter in model.parameters()), None)

    def moved(part: Any) -> Any:
        return part.to(device) if isinstance(part, torch.Tensor) else part

    def backward(batch: Any) -> torch.Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(f"a batch must be inputs and targets, not a {type(batch).__name__}; else give closure")
        value = loss(model(moved(batch[0])), moved(batch[1]))
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise InputError("the loss must return a tensor with one number, the mean over the batch")
        if not value.requires_grad:
            raise InputError("the loss depends on no parameter that requires a gradient")
        value.backward()  # type: ignore[no-untyped-call]
        return value

    return backward


def _number(loss: Any) -> float:
    try:
        return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the closure must return the loss, one number, not a {type(loss).__name__}") from None


def _shares(optimizer: torch.optim.Optimizer) -> list[float]:
    """Returns the groups' rates as shares of the highest; where all are 0, as before a warmup, they are equal."""
    try:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
    except (KeyError, TypeError):
        raise InputError("the optimizer must have one rate, lr, for each of its groups") from None
    highest = max(rates)
    return [rate / highest if highest > 0 else 1.0 for rate in rates]


def _set_rate(optimizer: torch.optim.Optimizer, shares: list[float], rate: float) -> None:
    for group, share in zip(optimizer.param_groups, shares, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(share * rate)
        else:
            group["lr"] = share * rate


def _cycled(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches without end."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise InputError("there are no batches, or no more: give what can be gone through again, as a DataLoader")
