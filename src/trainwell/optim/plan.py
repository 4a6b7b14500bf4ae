"""Plans: which parameters of a group step together, and by which kernel, as long as nothing moves."""

import itertools
import operator
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.optim.batch import REAL, Batch
from trainwell.optim.kernels import gpu

if TYPE_CHECKING:
    from trainwell.optim.optimizer import Group, Optimizer


class Plan:
    """The batches of a group; they hold as long as nothing moved and the same parameters have gradients."""

    def __init__(self, optimizer: "Optimizer", group: "Group", parameters: list[Tensor], grads: list[Tensor]) -> None:
        members = _members(optimizer, group, parameters)
        alike: dict[Any, list[int]] = {}
        for i, p in enumerate(parameters):
            alike.setdefault(_kind(optimizer, p, members), []).append(i)
        self.batches = [
            (Batch(optimizer, [parameters[i] for i in same], path, members), same) for (path, *_), same in alike.items()
        ]
        self.optimizer, self.group, self.lengths = optimizer, group, _lengths(optimizer, group)
        self.parameters, self.looks_alike = parameters, _guard([*parameters, *grads])
        self.states = [optimizer.state[p] for p in parameters]
        self.values: list[Any] = []
        self.tensors: list[Tensor] = []

    def holds(self, parameters: list[Tensor], grads: list[Tensor]) -> bool:
        """Says whether the batches are still right for the parameters that have a gradient now.

        That each has the state that it had is for the optimizer to say, once for all groups.
        """
        return (
            same(parameters, self.parameters)
            and same(self._values(), self.values)
            and self.looks_alike(*parameters, *grads)
            and self.addresses == _addresses(self.tensors)
            and self.lengths == _lengths(self.optimizer, self.group)
            and all(batch.in_step() for batch, _ in self.batches)
        )

    def step(self, group: "Group", grads: list[Tensor]) -> None:
        """Takes the step of each batch."""
        for batch, places in self.batches:
            batch.step(group, grads if len(places) == len(grads) else [grads[i] for i in places])
        if not self.tensors:  # by now the state is there
            self.values = self._values()
            arrays = [values[name] for values in self.states for name in self.optimizer.arrays if name in values]
            self.tensors = [*self.parameters, *arrays]
            self.addresses = _addresses(self.tensors)

    def _values(self) -> list[Any]:
        """Returns all that the states hold, some of which somebody may have replaced."""
        return list(itertools.chain.from_iterable(map(dict.values, self.states)))


def same(these: Collection[Any], those: Collection[Any]) -> bool:
    """Says whether both hold the very same objects."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


def _addresses(tensors: list[Any]) -> list[int]:
    """Returns where tensors lie: with `.data` the same one gets other memory."""
    try:
        return list(map(_address, tensors))
    except (RuntimeError, NotImplementedError, TypeError):  # other kinds, which the reference steps; or none
        return []


def _guard(tensors: list[Tensor]) -> Callable[..., bool]:
    """Returns a function that says whether tensors are like these: their kind, dtype, device, sizes and strides."""
    try:
        from torch._C._dynamo.guards import TensorGuards  # torch.compile's own check, in C++

        check: Callable[..., bool] = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        return check
    except (ImportError, AttributeError, TypeError, RuntimeError):
        likes = [_like(x) for x in tensors]
        return lambda *others: [_like(x) for x in others] == likes


def _like(x: Tensor) -> Any:
    strides = x.stride() if x.layout == torch.strided else None
    return type(x), x.dtype, x.device, x.layout, x.shape, strides, x.is_neg(), x.is_conj()


_NOTHING: dict[str, Any] = {}
_address = Tensor.data_ptr  # a hundred calls a step: it is not looked up each time


def _members(optimizer: "Optimizer", group: "Group", parameters: list[Tensor]) -> int:
    """Returns how many members the parameters have, for which hyper-parameters differ; 0 if there is none.

    Raises:
        InputError: the lists are of different lengths, or a parameter's leading dimension is another.
    """
    lengths = _lengths(optimizer, group)
    if not lengths:
        return 0
    if len(lengths) > 1:
        raise InputError(f"lists of hyper-parameters have {sorted(lengths)} values: each has one per member")
    (members,) = lengths
    for p in parameters:
        if p.ndim == 0 or len(p) != members:
            raise InputError(f"a parameter has shape {tuple(p.shape)}: for {members} members, of which the "
                             "hyper-parameters hold one value each, its first dimension must be so long")  # fmt: skip
    return members


def _lengths(optimizer: "Optimizer", group: "Group") -> set[int]:
    values = [group[name] for name in optimizer.fields if name in group]
    values += [x for value in values if isinstance(value, tuple) for x in value]
    return {len(value) for value in values if isinstance(value, list)}


def _kind(optimizer: "Optimizer", p: Tensor, members: int) -> tuple[Any, ...]:
    """Returns what parameters that step together have in common: their path first."""
    state = optimizer.state.get(p, _NOTHING)
    numbers = [state.get(name) for name in ("step", *optimizer.numbers)]
    numbers = [tuple(x.reshape(-1).tolist()) if isinstance(x, Tensor) else x for x in numbers]
    first = not any(name in state for name in optimizer.arrays)
    return _path(optimizer, p, state, members), p.dtype, p.device, first, *numbers


def _path(optimizer: "Optimizer", p: Tensor, state: dict[str, Any], members: int) -> str:
    """Returns what steps a parameter: "numba", "triton", "reference" or "sparse"."""
    g = p.grad
    assert g is not None
    if g.layout != torch.strided:
        if g.layout != torch.sparse_coo or not optimizer.sparse:
            raise InputError(f"{type(optimizer).__name__} does not support sparse gradients")
        return "sparse"
    path = "triton" if optimizer.kernel == "triton" else "numba"
    if path == "triton":
        gpu.refuse_if_missing(p.device)
    elif optimizer.kernel == "reference" or p.device.type != "cpu":
        return "reference"
    arrays = [p, g, *[state[name] for name in optimizer.arrays if name in state]]
    plain = all(type(x) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) for x in (p, g))
    alike = all(x.dtype == p.dtype and x.device == p.device and _lies_like(x, p) for x in arrays)
    in_pieces = members == 0 or p.stride(0) * members == p.numel()  # each member's lies together
    differentiable = optimizer.defaults["differentiable"]
    return (
        path if plain and alike and p.dtype in REAL and _dense(p) and in_pieces and not differentiable else "reference"
    )


def _lies_like(x: Tensor, p: Tensor) -> bool:
    if x.shape != p.shape or x.is_neg() or x.is_conj():
        return False
    return (x.is_contiguous() and p.is_contiguous()) or x.stride() == p.stride()


def _dense(x: Tensor) -> bool:
    """Says whether a tensor fills its piece of memory without gap or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return x.numel() == 0
        expected *= size
    return True
