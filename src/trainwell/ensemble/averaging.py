"""Averages of the weights along one run: an exponential one, an equal one, and that of the latest few."""

import contextlib
import math
import re
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # all batch and instance norms

from trainwell.errors import InputError
from trainwell.weights import bare

Weights = dict[str, Tensor]

_NONE = "there is no average yet: call update() after a step of the optimizer"

# Those in which an average stands for a while. Not a mark of the module's own, which a copy of it would bear for good.
_averaged: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def holds_average(model: nn.Module) -> bool:
    """Says whether a model, or a part of it, has an average in the place of its weights now.

    >>> model = nn.Linear(1, 1)
    >>> ema = EMA(model)
    >>> ema.update()
    >>> with ema.weights():
    ...     holds_average(model)
    True
    >>> holds_average(model)
    False
    """
    return bool(_averaged) and any(module in _averaged for module in bare(model).modules())


class WeightAverage:
    """An average of a model's weights, which `update` goes on with and `weights` puts in their place for a while.

    Averaged are the parameters, in float32 at least, and the running statistics of norms, as an estimate for the
    averaged weights until `refresh_batchnorm` computes theirs. Other buffers (counters, constants) stay the model's
    own. Names are the bare model's, whatever compiles it or spreads it over devices.

    Args:
        model: whose weights are averaged; where it is moved to before the first update, the average is too.

    Attributes:
        updates: how many weights were seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.updates = bare(model), 0

    def update(self) -> None:
        """Takes the weights that the model has now; call it after a step of the optimizer.

        Raises:
            InputError: an average is in the model, this one or another.
        """
        if holds_average(self.model):
            raise InputError("the model holds an average now: call update() after the `with` block")
        self.updates += 1
        with torch.no_grad():
            self._take(_averaged_of(self.model))

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Puts the average into the model; afterwards its weights and buffers are as before, to the bit.

        Raises:
            InputError: nothing was averaged yet, or an average is in the model already.
        """
        if holds_average(self.model):
            raise InputError("the model holds an average already: end that `with` block first")
        kept = {name: value.detach().clone() for name, value in _all_of(self.model).items()}
        self.copy_to_model()
        modules = list(self.model.modules())
        _averaged.update(modules)
        try:
            yield
        finally:
            _averaged.difference_update(modules)
            _copy(kept, _all_of(self.model))

    def copy_to_model(self) -> None:
        """Puts the average into the model for good.

        Raises:
            InputError: nothing was averaged yet, or an average is in the model for a while.
        """
        if holds_average(self.model):
            raise InputError("the model holds an average for a while: call copy_to_model() after the `with` block")
        if not self.updates:
            raise InputError(_NONE)
        _copy(self.average(), _averaged_of(self.model))

    def average(self) -> Weights:
        """Returns the average by name; it may be the object's own."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to go on."""
        return {"kind": type(self).__name__, "updates": self.updates, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            InputError: it is of another kind of average, or of another model.
        """
        own = type(self).__name__
        if (kind := state.get("kind", own)) != own:
            raise InputError(f"the state is of another kind of average, {kind}: load it into one of those, not {own}")
        here, saved = _averaged_of(self.model), state["weights"]
        for weights in saved if isinstance(saved, list) else [saved] if saved else []:
            if _shapes(weights) != _shapes(here):
                wrong = sorted(name for name, _ in _shapes(weights).items() ^ _shapes(here).items())
                raise InputError(f"the average is of another model: {', '.join(wrong[:3])} differ")
        self.updates = state["updates"]
        self._load(saved, here)

    _weights: Any

    def _take(self, weights: Weights) -> None:
        raise NotImplementedError

    def _load(self, saved: Any, here: Weights) -> None:
        raise NotImplementedError


class _Running(WeightAverage):
    """An average that each update moves by a share of the way to the newest weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._weights: Weights = {}

    def _share(self, t: int) -> float:
        """Returns by which share of the way update `t`, from 1 on, moves the average; 1 for the first."""
        raise NotImplementedError

    def average(self) -> Weights:
        """Returns the average by name; it is the object's own, which the next update changes."""
        return self._weights

    def _take(self, weights: Weights) -> None:
        if not self._weights:
            self._weights = {name: _precise(value) for name, value in weights.items()}
            return
        share = self._share(self.updates)
        for name, average in self._weights.items():
            average.lerp_(weights[name].to(average.dtype), share)

    def _load(self, saved: Weights, here: Weights) -> None:
        self._weights = {name: _like(value, here[name]) for name, value in saved.items()}


class EMA(_Running):
    r"""The exponential moving average of the weights $x_1 \ldots x_t$, corrected for its start.

    $$\bar x_t = \frac{1 - d}{1 - d^t} \sum_{i=1}^{t} d^{t-i} x_i$$

    which is right from the first step on, where an average that begins at $x_1$ still is 60 % $x_1$ after 500 steps of
    $d = 0.999$. Polyak and Juditsky, *Acceleration of stochastic approximation by averaging* (1992); the correction is
    Adam's (Kingma and Ba 2015, section 7.2), in the running form $\bar x_t = \bar x_{t-1} + (1-d)/(1-d^t)
    (x_t - \bar x_{t-1})$.

    Args:
        model: whose weights are averaged.
        decay: d, in [0, 1): about the last $1/(1-d)$ updates count.

    Raises:
        InputError: the decay is out of its range.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(model, decay=0.5)
    >>> for value in (1.0, 4.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     ema.update()
    >>> with ema.weights():
    ...     print(model.weight.item())
    3.0
    >>> model.weight.item()
    4.0
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__(model)
        if not 0 <= decay < 1:
            raise InputError(f"decay must be at least 0 and below 1; it is {decay}")
        self.decay = decay

    def _share(self, t: int) -> float:
        if self.decay == 0:
            return 1.0
        return (1 - self.decay) / -math.expm1(t * math.log(self.decay))


class SWA(_Running):
    """Stochastic weight averaging: the equal average of the weights at all updates.

    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, *Averaging weights leads to wider optima and better
    generalization* (2018), algorithm 1. Update it at the end of each epoch from three quarters of the training on, at a
    constant rate, or at the end of each cycle of one; and refresh the statistics of batch norms before use.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> swa = SWA(model)
    >>> for value in (1.0, 4.0, 7.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     swa.update()
    >>> with swa.weights():
    ...     print(round(model.weight.item(), 6))
    4.0
    """

    def _share(self, t: int) -> float:
        return 1 / t


class LatestK(WeightAverage):
    """The equal average of the weights at the latest k updates, all of which are kept.

    Kaddour, *Stop wasting my time! Saving days of ImageNet and BERT training with latest weight averaging* (2022).

    Args:
        model: whose weights are averaged.
        k: how many, at least 1; before so many updates, all there are.

    Raises:
        InputError: k is below 1.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> latest = LatestK(model, k=2)
    >>> for value in (1.0, 4.0, 8.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     latest.update()
    >>> with latest.weights():
    ...     print(model.weight.item())
    6.0
    """

    def __init__(self, model: nn.Module, k: int = 5) -> None:
        super().__init__(model)
        if k < 1:
            raise InputError(f"k must be at least 1; it is {k}")
        self.k = k
        self._latest: deque[Weights] = deque(maxlen=k)

    @property
    def _weights(self) -> list[Weights]:
        return list(self._latest)

    def average(self) -> Weights:
        """Returns the average by name.

        Raises:
            InputError: nothing was noted yet.
        """
        if not self._latest:
            raise InputError(_NONE)
        newest = self._latest[-1]
        # By their distances from one of them, so that weights that did not change are what they were, to the bit.
        apart = {name: [(_doubled(w[name]) - value) for w in self._latest] for name, value in newest.items()}
        return {
            name: (_doubled(value) + sum(apart[name], torch.zeros(())) / len(self._latest)).to(value.dtype)
            for name, value in newest.items()
        }

    def _take(self, weights: Weights) -> None:
        self._latest.append({name: _precise(value) for name, value in weights.items()})

    def _load(self, saved: list[Weights], here: Weights) -> None:
        self._latest = deque(
            ({name: _like(value, here[name]) for name, value in weights.items()} for weights in saved), maxlen=self.k
        )


def _averaged_of(model: nn.Module) -> Weights:
    """Returns what is averaged: the parameters, shared ones once, and the running statistics of norms."""
    found: Weights = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            for name in ("running_mean", "running_var"):
                value = getattr(module, name)
                if value is not None:
                    found[f"{prefix}.{name}" if prefix else name] = value
    return _uncompiled(
        {name: value for name, value in found.items() if value.is_floating_point() or value.is_complex()}
    )


def _all_of(model: nn.Module) -> Weights:
    return _uncompiled({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _uncompiled(weights: Weights) -> Weights:
    """Returns the same by the names that there are while no part of the model is compiled."""
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): value for name, value in weights.items()}


@torch.no_grad()
def _copy(values: Weights, to: Weights) -> None:
    for name, value in values.items():
        to[name].copy_(value)


def _shapes(weights: Weights) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _precise(value: Tensor) -> Tensor:
    """Returns a copy in float32 at least: in bfloat16 a thousandth of a difference would be lost."""
    low = value.dtype in (torch.float16, torch.bfloat16)
    return value.detach().to(torch.float32 if low else value.dtype, copy=True)


def _doubled(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _like(saved: Tensor, here: Tensor) -> Tensor:
    return _precise(here).copy_(saved)
