"""Modules, optimizers and random states as they were before a block, to the bit."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from trainwell import random


@contextlib.contextmanager
def unchanged(*things: Any) -> Iterator[None]:
    """Leaves modules, optimizers, their gradients and all random states as they were before the block."""
    before = _Before(*things)
    try:
        with random.preserved():
            for tensor in before.leaves:
                tensor.grad = None  # and not set to zero: it is the caller's
            yield
    finally:
        try:
            before.restore()
        except KeyboardInterrupt:  # in the middle of it; a second time does no harm
            before.restore()
            raise


def generators_of(batches: Iterable[Any]) -> list[torch.Generator | None]:
    """Returns the generators of a `DataLoader`'s own."""
    parts = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    return [getattr(part, "generator", None) for part in parts]


class _Before:
    """What modules, optimizers, tensors, generators, and dicts and lists of them hold, to be put back in place."""

    def __init__(self, *things: Any) -> None:
        self.leaves: list[torch.Tensor] = []
        self._seen: dict[int, Any] = {}  # held, so that nothing else gets the same id
        self._restore: list[Callable[[], object]] = []
        self._look_at_all(things)

    def restore(self) -> None:
        """Puts everything back."""
        for restore in self._restore:
            restore()

    def _look(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._restore.append(self._tensor(value))
        elif isinstance(value, nn.Module | torch.optim.Optimizer):
            self._look(vars(value))
        elif isinstance(value, dict):
            items = dict(value)
            self._restore += [value.clear, lambda: value.update(items)]
            self._look_at_all(items.values())
        elif isinstance(value, list | deque):
            parts = list(value)
            self._restore += [value.clear, lambda: value.extend(parts)]
            self._look_at_all(parts)
        elif isinstance(value, tuple):
            self._look_at_all(value)
        elif isinstance(value, np.ndarray):
            array = value.copy()
            self._restore.append(lambda: np.copyto(value, array))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._restore.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            numpy_state = value.bit_generator.state
            self._restore.append(lambda: setattr(value.bit_generator, "state", numpy_state))

    def _look_at_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._look(value)

    def _tensor(self, tensor: torch.Tensor) -> Callable[[], object]:
        """Returns what puts a tensor's values, gradient and flag back."""
        values = None if is_expanded(tensor) else tensor.detach().clone()
        wanted, gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        if tensor.is_leaf:
            self.leaves.append(tensor)

        def restore() -> None:
            if values is not None:
                with torch.no_grad():
                    tensor.copy_(values)
            if tensor.is_leaf:
                tensor.requires_grad_(wanted)
                tensor.grad = gradient

        return restore


def is_expanded(tensor: torch.Tensor) -> bool:
    """Says whether one place in memory stands for several values; torch never writes to such a tensor."""
    return tensor.layout is torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
