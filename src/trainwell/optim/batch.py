"""Batches: the parameters that take their step together, by one kernel and with the same numbers."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.optim.formula import Program, state_of, trace
from trainwell.optim.kernels import cpu, gpu, reference
from trainwell.optim.proximal import proximal

if TYPE_CHECKING:
    from trainwell.optim.optimizer import Group, Optimizer

REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
"""What the compiled passes take, and in which numbers they compute it."""


class _Traced(NamedTuple):
    program: Program
    numbers: list[float]
    left: list[float]  # the new numbers of the state


class Batch:
    """Parameters that step together.

    Args:
        optimizer: whose state they have.
        parameters: all of one dtype, at the same step.
        path: "numba", "reference", "triton" or "sparse"; afterwards what the last step went by, which is "reference"
            where no kernel can be had.
        members: how many have their own hyper-parameters along the leading dimension; 0 for none.
    """

    def __init__(self, optimizer: "Optimizer", parameters: list[Tensor], path: str, members: int) -> None:
        self.optimizer, self.parameters, self.members = optimizer, parameters, members
        self.path = self._wanted = path
        self.states = [optimizer.state[p] for p in parameters]
        self.first = not any(name in self.states[0] for name in optimizer.arrays)
        self.counters = {name: self._linked(name, start) for name, start in _counters(optimizer).items()}
        self._tables: dict[Any, _Table] = {}
        if members and path == "sparse":
            raise InputError("sparse gradients cannot have hyper-parameters per member")

    def _linked(self, name: str, start: float) -> npt.NDArray[Any]:
        """Puts a number of the state of all parameters into one array, of which each state holds its element."""
        shape = (len(self.parameters), self.members) if self.members and name != "step" else (len(self.parameters),)
        kind = torch.float64 if name != "step" or torch.get_default_dtype() == torch.float64 else torch.float32
        value = self.states[0].get(name, start)
        tensor = torch.empty(shape, dtype=kind, device="cpu")
        tensor.copy_(value.detach() if isinstance(value, Tensor) else torch.tensor(float(value)))
        for values, element in zip(self.states, tensor.unbind(), strict=True):
            values[name] = element
        return tensor.numpy()

    def in_step(self) -> bool:
        """Says whether all parameters are at the same step still; somebody may have written into the state."""
        return all((array == array[0]).all() for array in self.counters.values())

    def step(self, group: "Group", grads: list[Any]) -> None:
        """Takes the step, with the parameters' gradients."""
        traced = [self._traced(group, k) for k in range(self.members)] if self.members else [self._traced(group, None)]
        names = tuple(dict.fromkeys(name for one in traced for name in state_of(one.program)))
        for name in names:
            if name not in self.states[0]:
                self._create(name, group)
        self.path = self._wanted
        if self.path == "sparse":
            self._step_sparse(group, traced[0], grads)
        elif self.path == "reference" or not self._step_compiled(traced, grads):
            self.path = "reference"
            self._step_by_reference(traced, grads)
        for name, array in self.counters.items():
            if name == "step":
                array += 1
            else:
                left = [one.left[list(self.optimizer.numbers).index(name)] for one in traced]
                array[:] = left if self.members else left[0]
        self.first = self.first and not names

    def _create(self, name: str, group: "Group") -> None:
        start = self.optimizer.initial.get(name)
        for p, values in zip(self.parameters, self.states, strict=True):
            values[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if start is not None:
                values[name].fill_(complex(group[start], group[start]) if p.is_complex() else group[start])

    def _traced(self, group: "Group", member: int | None) -> _Traced:
        """Traces the rule with the numbers of this step."""
        optimizer = self.optimizer
        values = {name: _own(group[name], member) for name in optimizer.wanted if name in group}
        if "t" in optimizer.wanted:
            values["t"] = int(self.counters["step"][0]) + 1
        if "first" in optimizer.wanted:
            values["first"] = self.first
        for name in optimizer.numbers:
            values[name] = float(self.counters[name][0] if member is None else self.counters[name][0, member])
        decay = 0.0
        if "weight_decay" in group and "weight_decay" not in optimizer.wanted:
            decay = _own(group["weight_decay"], member)
        shrink = 1 - _own(group["lr"], member) * decay if decay and group.get("decoupled_weight_decay") else None

        l1, l2 = (_own(group[name], member) for name in ("l1", "l2"))
        if l1 or l2:
            optimizer.check_penalties(group)  # they may have been written in by hand, or loaded

        def rule(p: Any, g: Any, *state: Any, **numbers: Any) -> Any:
            if group["maximize"]:
                g = -g
            if shrink is not None:
                p = p * shrink
            elif decay:
                g = g + decay * p
            updated = optimizer.update(p, g, *state, **numbers)
            return _penalised(optimizer, updated, numbers, l1, l2) if l1 or l2 else updated

        return _Traced(*trace(rule, ("p", "g", *optimizer.arrays), **values))

    # ------------------------------------------------------------------ the paths

    def _step_compiled(self, traced: list[_Traced], grads: list[Any]) -> bool:
        """Steps by the compiled pass; returns whether there is one."""
        dtype = REAL[self.parameters[0].dtype]
        together: dict[Program, list[int]] = {}
        for k, one in enumerate(traced):
            together.setdefault(one.program, []).append(k)
        compiled = gpu.compiled if self.path == "triton" else cpu.compiled
        kernels = [compiled(program, dtype) for program in together]
        if None in kernels:
            return False
        for kernel, (program, members) in zip(kernels, together.items(), strict=True):
            names = state_of(program)
            table = self._tables.get((names, *members))
            if table is None:
                table = self._tables[names, *members] = self._table(names, members)
            numbers = np.array([traced[k].numbers for k in members], dtype=table.dtype)
            table.addresses[1] = table.spread(list(map(Tensor.data_ptr, grads)))
            assert kernel is not None
            if self.path == "triton":
                gpu.run(kernel, table, numbers, self.parameters[0].device)
            else:
                cpu.run(kernel, table.addresses, table.cuts, table.rows, numbers, table.count)
        torch.autograd.graph.increment_version(self.parameters)
        return True

    def _table(self, names: tuple[str, ...], members: list[int]) -> "_Table":
        state = [[values[name] for values in self.states] for name in names]
        chunk = gpu.CHUNK if self.path == "triton" else cpu.CHUNK
        return _Table(self.parameters, state, members, self.members, chunk)

    def _step_by_reference(self, traced: list[_Traced], grads: list[Any]) -> None:
        in_place = not self.optimizer.defaults["differentiable"]
        for k, one in enumerate(traced):
            arrays: dict[str, list[Any]] = {"p": self.parameters, "g": [_strided(g) for g in grads]}
            arrays |= {name: [values[name] for values in self.states] for name in state_of(one.program)}
            if self.parameters[0].is_complex():
                arrays = {name: [torch.view_as_real(x) for x in tensors] for name, tensors in arrays.items()}
            if self.members:
                arrays = {name: [x[k] for x in tensors] for name, tensors in arrays.items()}
            _run(one, arrays, in_place=in_place)

    def _step_sparse(self, group: "Group", traced: _Traced, grads: list[Any]) -> None:
        """Steps the rows that have a gradient, if the others would rest; else all of them."""
        if not self._rests(group):
            self._step_by_reference([traced], grads)
            return
        names = state_of(traced.program)
        for p, values, grad in zip(self.parameters, self.states, grads, strict=True):
            g = grad.coalesce()
            rows, whole = tuple(g.indices()), {"p": p, **{name: values[name] for name in names}}
            arrays = {name: [x[rows]] for name, x in whole.items()}
            _run(traced, {**arrays, "g": [g.values()]})
            for name, x in whole.items():
                x[rows] = arrays[name][0]

    def _rests(self, group: "Group") -> bool:
        """Says whether an element without a gradient stays as it is, and its state too."""
        if any(group.get(name) for name in ("weight_decay", "l1", "l2")):
            return False
        optimizer, start = self.optimizer, [0.5] * len(self.optimizer.arrays)
        values = {name: _own(group[name], None) for name in optimizer.wanted if name in group}
        values |= {"t": 2} if "t" in optimizer.wanted else {}
        values |= {"first": False} if "first" in optimizer.wanted else {}
        return bool(optimizer.update(0.5, 0.0, *start, **values) == (0.5, *start))


def _run(traced: _Traced, arrays: dict[str, list[Tensor]], *, in_place: bool = True) -> None:
    """Applies a program as tensor operations; to float16 in float32, as there a square of 256 is infinite."""
    narrow = arrays["p"][0].dtype == torch.float16
    wide = {name: [x.float() for x in tensors] for name, tensors in arrays.items()} if narrow else arrays
    reference.run(traced.program, traced.numbers, wide, in_place=in_place)
    if narrow:
        for name, _ in traced.program.outputs:
            for x, new in zip(arrays[name], wide[name], strict=True):
                x.copy_(new)


def _penalised(optimizer: "Optimizer", updated: Any, numbers: dict[str, Any], l1: float, l2: float) -> tuple[Any, ...]:
    """Returns what a rule gave, with penalties on its new `p`."""
    p, *state = updated if isinstance(updated, tuple) else (updated,)
    assert optimizer.step_size is not None
    known = {**numbers, **dict(zip(optimizer.arrays, state, strict=False))}
    size = optimizer.step_size(**{name: known[name] for name in optimizer.scaled_by})
    return proximal(p, l1, l2, size), *state


def _counters(optimizer: "Optimizer") -> dict[str, float]:
    return ({"step": 0.0} if "t" in optimizer.wanted else {}) | optimizer.numbers


def _own(value: Any, member: int | None) -> Any:
    """Returns a hyper-parameter as plain numbers, of a member if it differs by member."""
    if isinstance(value, tuple):
        return tuple(_own(x, member) for x in value)
    if isinstance(value, list):
        return value[member] if member is not None else tuple(value)
    return value.item() if isinstance(value, Tensor) else value


def _strided(g: Tensor) -> Tensor:
    return g if g.layout == torch.strided else g.to_dense()


class _Table:
    """Addresses of all arrays, and how they are cut, for the compiled pass over all parameters and some members.

    Args:
        parameters: dense ones.
        state: for each array of the state, its tensors.
        members: which members are passed over.
        of: how many there are, 0 for none.
        chunk: how many elements are worked on in a piece.
    """

    def __init__(
        self, parameters: list[Tensor], state: list[list[Tensor]], members: list[int], of: int, chunk: int
    ) -> None:
        itemsize = REAL[parameters[0].dtype].itemsize
        parts = 2 if parameters[0].is_complex() else 1
        sizes = [p.numel() * parts // max(of, 1) for p in parameters] * len(members)
        self.dtype = np.float64 if itemsize == 8 else np.float32
        self.cuts = cpu.chunks(sizes, itemsize, chunk)
        self.count = sum(sizes)
        self.there: Any = None  # the same on a GPU
        self.rows = np.repeat(np.arange(len(members)), len(parameters))
        self._offsets = None
        if of:
            steps = np.array([p.stride(0) * p.element_size() for p in parameters], dtype=np.uint64)
            self._offsets = np.outer(np.array(members, dtype=np.uint64), steps)
        rows = [[x.data_ptr() for x in tensors] for tensors in (parameters, parameters, *state)]
        self.addresses = np.array([self.spread(row) for row in rows])

    def spread(self, addresses: list[int]) -> npt.NDArray[np.uint64]:
        """Returns the addresses of the members' pieces."""
        base = np.array(addresses, dtype=np.uint64)
        return base if self._offsets is None else (base + self._offsets).reshape(-1)
