"""Batch norm's running statistics, computed anew for the weights that a model has now."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainwell.errors import InputError
from trainwell.freezing import is_frozen
from trainwell.regularize import evaluating
from trainwell.weights import bare

_NOTHING_SEEN = "there are no data to compute batch norm's statistics from, or the model uses none of its batch norms"


class _Enough(Exception):
    """The forward pass has come to the layer that is looked at."""


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, data: Iterable[Any], *, exact: bool = True) -> None:
    """Sets the running statistics of batch norms to those of the data, for the weights that the model has now.

    Needed after weights were averaged, whose activations no running statistics have seen. Everything but the batch
    norms is in evaluation meanwhile, dropout and all noise too, and afterwards in the mode in which it was. Means and
    variances are pooled over all values in float64, whatever the sizes of the batches; the variance is the unbiased
    one, as torch's.

    Args:
        model: on the device of the data. Layers that track no statistics, those that are frozen or in evaluation while
            the model is in training, those that a pass does not come to, and a model without any, are left alone.
        data: batches, of which the first element is taken where they are tuples or lists.
        exact: whether each layer sees what it will see in evaluation: the data, normalised by the new statistics of the
            layers before it, as if all were one batch. That takes about half as many passes as there are layers, and so
            data that can be gone through again. Else one pass, in which each layer normalises by its batch, as in
            training (Wu and Johnson, *Rethinking "batch" in batchnorm*, 2021, call it precise batch norm); a layer that
            comes more than once in it pools all that it sees.

    Raises:
        InputError: there are no data, or they can be gone through but once; a layer comes more than once in a pass,
            and `exact` is set; or a pass comes to no layer.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    >>> refresh_batchnorm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])])
    >>> model[0].running_mean.item(), model[0].running_var.item()
    (3.0, 4.0)
    """
    model = bare(model)
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    # A layer in evaluation within a model in training is frozen too, in the way that is usual without our `freeze`.
    layers = [layer for layer in tracking if not is_frozen(layer) and (layer.training or not model.training)]
    if not layers:
        return
    if exact and iter(data) is data:
        raise InputError("the data can be gone through but once: give a list or a DataLoader, or exact=False")
    with evaluating(model):
        if not exact:
            _set(_pooled(model, data, layers, stop=False))
            return
        first = next(iter(data), None)
        if first is None:
            raise InputError(_NOTHING_SEEN)
        for layer in _in_order(model, layers, first):
            _set(_pooled(model, data, [layer], stop=True))


class _Moments:
    """Count, mean and sum of squared deviations of each channel, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.batches = 0, 0
        self.mean = self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Takes all values of each channel, the second dimension."""
        values = x.transpose(0, 1).reshape(x.shape[1], -1)
        count = values.shape[1]
        squares, mean = torch.var_mean(values.double(), dim=1, correction=0)
        squares = squares * count
        total, apart = self.count + count, mean - self.mean
        if count:
            self.mean = self.mean + apart * (count / total)
            self.squares = self.squares + squares + apart**2 * (self.count * count / total)
        self.count, self.batches = total, self.batches + 1


def _pooled(
    model: nn.Module, data: Iterable[Any], layers: list[_BatchNorm], *, stop: bool
) -> dict[_BatchNorm, _Moments]:
    """Returns the moments of what comes to some layers, if it does; `stop` leaves a pass when it has come there."""
    found = {layer: _Moments() for layer in layers}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        found[layer].add(inputs[0])
        if stop:
            raise _Enough

    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(see).remove)
            if not stop:
                undo.enter_context(_by_batch(layer))
        for batch in data:
            with contextlib.suppress(_Enough):
                model(_inputs(batch))
    seen = {layer: moments for layer, moments in found.items() if moments.count}
    if not seen:
        raise InputError(_NOTHING_SEEN)
    return seen


@contextlib.contextmanager
def _by_batch(layer: _BatchNorm) -> Iterator[None]:
    """Lets a layer normalise by its batch, and leave its statistics alone."""
    momentum, counted = layer.momentum, layer.num_batches_tracked
    layer.training, layer.momentum, layer.num_batches_tracked = True, 0.0, None
    try:
        yield
    finally:
        layer.training, layer.momentum, layer.num_batches_tracked = False, momentum, counted


def _in_order(model: nn.Module, layers: list[_BatchNorm], batch: Any) -> list[_BatchNorm]:
    """Returns the layers that a pass comes to, in its order.

    Raises:
        InputError: it comes to none, or to one more than once, whose statistics would then depend on themselves.
    """
    order: list[_BatchNorm] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in layers]
    try:
        model(_inputs(batch))
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        raise InputError(_NOTHING_SEEN)
    if len(set(order)) < len(order):
        raise InputError("a batch norm comes more than once in a pass, so that its statistics would depend on "
                         "themselves: give exact=False")  # fmt: skip
    return order


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) else batch


def _set(found: dict[_BatchNorm, _Moments]) -> None:
    for layer, moments in found.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(moments.mean)
        layer.running_var.copy_(moments.squares / max(1, moments.count - 1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(moments.batches)
