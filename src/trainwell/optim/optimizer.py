"""The optimizer that runs any update rule: a `torch.optim.Optimizer` whose hyper-parameters may be schedules."""

import inspect
import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeAlias, dataclass_transform

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from trainwell.errors import InputError
from trainwell.optim import by_name
from trainwell.optim.plan import Plan, same
from trainwell.optim.schedules import Value

Group: TypeAlias = dict[str, Any]
Kernel: TypeAlias = Literal["auto", "reference", "numba", "triton"]

_AT_LEAST_0 = {
    "lr",
    "l1",
    "l2",
    "eps",
    "weight_decay",
    "momentum",
    "alpha",
    "lr_decay",
    "initial_accumulator_value",
    "momentum_decay",
}


class _Option:
    """A default of a hyper-parameter that is given by name alone."""

    def __init__(self, default: Any) -> None:
        self.default = default


def option(*, default: Any, kw_only: Literal[True] = True) -> Any:
    """Gives the default of a hyper-parameter that is given by name alone, as `maximize` is.

    Type checkers believe that it is by name alone only where `kw_only=True` is written out.

    >>> from trainwell.optim.schedules import Value
    >>> class Plain(Optimizer):
    ...     lr: Value = 1e-3
    ...     noisy: bool = option(default=False)
    >>> Plain([torch.nn.Parameter(torch.zeros(2))], 0.1, noisy=True).param_groups[0]["noisy"]
    True
    """
    return _Option(default)


def check_whole(group: Group, rule: str) -> None:
    """Refuses what only a rule on single elements has: values for each member, and autograd through the step."""
    for name, value in group.items():
        values = value if isinstance(value, tuple) else (value,)
        if name not in ("params", "param_names") and any(isinstance(x, list) for x in values):
            raise InputError(f"{name} is a list: {rule} takes one value for all members, as it works on whole tensors")
    if group["differentiable"]:
        raise InputError(f"{rule} cannot be differentiated: its steps are in place; leave differentiable=False")


@dataclass_transform(field_specifiers=(option,))
class _Fields(torch.optim.Optimizer):
    """Tells type checkers that annotations are arguments; those of this class itself would not be."""


class Optimizer(_Fields):
    """Runs an update rule; a rule is a subclass with its hyper-parameters and its formula.

    The class body names the hyper-parameters with their defaults, and `update` is the formula on scalars: from `p`, `g`
    and the state to the new values, in the same order, without `g`. Behind the star stand the hyper-parameters that it
    uses, and if it likes `t`, the parameter's step counted from 1, and `first`, whether it is the first one. A formula
    has arithmetic and the words of `trainwell.optim.formula`; it may branch on numbers. A `weight_decay` that the
    formula leaves alone is done before it: `g += weight_decay * p`, or `p *= 1 - lr * weight_decay` where a
    `decoupled_weight_decay` is true.

    A rule whose step is the gradient by a factor for each element takes penalties in proximal form: with its
    `step_size`, the step for a gradient that has long been 1, the new `p` becomes
    `sign(p) * max(|p| - l1 * step_size, 0) / (1 + l2 * step_size)`. So minima are those of the loss plus
    `l1 * |p| + l2 / 2 * p²`, whatever the scaling, and zeros are exact. Beck and Teboulle, *A fast iterative
    shrinkage-thresholding algorithm* (2009); in a diagonal metric: Duchi, Hazan and Singer, *Adaptive
    subgradient methods* (2011), section 5.1.

    >>> from trainwell.optim.formula import lerp, sign
    >>> from trainwell.optim.schedules import Value
    >>> class Signum(Optimizer):
    ...     lr: Value = 1e-3
    ...     momentum: Value = 0.9
    ...
    ...     @staticmethod
    ...     def update(p, g, momentum_buffer, *, lr, momentum):
    ...         momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    ...         return p - lr * sign(momentum_buffer), momentum_buffer
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, -0.1])
    >>> Signum([weight], lr=0.5).step()
    >>> weight.tolist()
    [-0.5, 0.5]

    Any hyper-parameter takes a number, a schedule (a function of the optimizer's step, counted from 0), or a list of
    these: one for each member along the leading dimension of every parameter, for models that train stacked. A group
    holds the current numbers, so that `torch.optim.lr_scheduler` works too. A number that is written into a group by
    hand takes the place of its schedule until it is written back; a schedule that is written there counts from the next
    step on, so that `constant` pins a number for good. What schedules give is checked at each step, numbers by hand are
    taken as they are.

    Args:
        params: parameters, named parameters, or groups of them, as for any `torch.optim.Optimizer`. With names, a
            loaded state is matched by name.
        maximize: go uphill.
        l1, l2: strengths of the penalties, 0 or more.
        foreach, capturable, fused: torch's choices of an implementation; accepted, and of no influence.
        differentiable: let autograd go through the step; then the reference runs.
        kernel: "auto" takes the fastest that is proved on the device; "reference" is tensor operations, "numba" the
            compiled pass on the CPU, "triton" the one on a GPU.

    Raises:
        InputError: a hyper-parameter is out of its range, also later by its schedule; a gradient is sparse where the
            rule has no use for it; penalties are asked for that have no meaning for the rule; or a step is captured in
            a CUDA graph.
    """

    params: ParamsT
    maximize: bool = option(default=False, kw_only=True)
    l1: Value = option(default=0.0, kw_only=True)
    l2: Value = option(default=0.0, kw_only=True)
    foreach: bool | None = option(default=None, kw_only=True)
    capturable: bool = option(default=False, kw_only=True)
    differentiable: bool = option(default=False, kw_only=True)
    fused: bool | None = option(default=None, kw_only=True)
    kernel: Kernel = option(default="auto", kw_only=True)

    update: ClassVar[Callable[..., Any]]
    step_size: ClassVar[Callable[..., Any] | None] = None  # by name, of the new state and of what `update` takes
    initial: ClassVar[dict[str, str]] = {}  # arrays that do not begin with 0: the hyper-parameter they begin with
    numbers: ClassVar[dict[str, float]] = {}  # in the state too, last before the star: what they begin with
    sparse: ClassVar[bool] = False  # whether sparse gradients are taken

    fields: ClassVar[dict[str, Any]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()  # fields that may be None
    arrays: ClassVar[tuple[str, ...]] = ()
    wanted: ClassVar[tuple[str, ...]] = ()
    scaled_by: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.fields = cls.fields | _taken_fields(cls)
        cls.optional = cls.optional | _optional_fields(cls)
        if "update" in cls.__dict__:
            parameters = inspect.signature(cls.update).parameters.values()
            state = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][2:]
            cls.arrays = tuple(name for name in state if name not in cls.numbers)
            cls.wanted = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        if "update" in cls.__dict__ and "step_size" not in cls.__dict__:
            cls.step_size = None  # a parent's is of another formula
        if "step_size" in cls.__dict__ and cls.step_size is not None:
            cls.scaled_by = tuple(inspect.signature(cls.step_size).parameters)
        cls.__signature__ = _signature(cls.fields)  # type: ignore[attr-defined]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        bound = inspect.signature(type(self)).bind(*arguments, **options)
        bound.apply_defaults()
        defaults = dict(bound.arguments)
        params, self.kernel = defaults.pop("params"), defaults.pop("kernel")
        if self.kernel not in ("auto", "reference", "numba", "triton"):
            raise InputError(f"kernel is {self.kernel!r}: it is one of auto, reference, numba, triton")
        if defaults["foreach"] and defaults["fused"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")  # as torch says it
        self._plans: dict[int, Plan] = {}
        self._seen: list[Any] = []
        self._held: dict[int, list[Any]] = {}  # by group: its hyper-parameters after the last step
        super().__init__(params, defaults)

    # ------------------------------------------------------------------ hyper-parameters

    def add_param_group(self, param_group: Group) -> None:
        """Adds a copy of a group of parameters; its schedules are asked for the step that the optimizer is at."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group is a dict with 'params', not a {type(param_group).__name__}")
        if isinstance(param_group.get("params"), Iterator):  # it can be gone through once
            param_group["params"] = list(param_group["params"])
        # A copy: the dict may be given to another optimizer too, and a list belongs to this group alone.
        param_group = {name: list(x) if isinstance(x, list) else x for name, x in param_group.items()}
        for name, default in self.defaults.items():
            param_group.setdefault(name, list(default) if isinstance(default, list) else default)
        taken = max((group["steps"] for group in self.param_groups), default=0)
        param_group |= {"steps": taken, "schedules": {}}
        for name in self.fields:
            if name in param_group:
                self._take(param_group, name)
        self.check(param_group)
        self.check_penalties(param_group)
        super().add_param_group(param_group)
        for name in self.initial:  # torch has it from the start too
            start = param_group[self.initial[name]]
            for p in param_group["params"]:
                both = complex(start, start) if p.is_complex() else start  # each part is a number of its own
                self.state[p] = {"step": torch.zeros(()), name: torch.full_like(p, both)}

    def _take(self, group: Group, name: str) -> None:
        """Puts a schedule beside the group, and its current number into it."""
        value = group[name]
        if isinstance(self._default(name), tuple) and isinstance(value, Iterable) and not isinstance(value, Tensor):
            value = tuple(value)  # a pair that went through JSON
        group[name] = now = _at(value, group["steps"])
        if now is not value:
            group["schedules"][name] = (value, now)
        self._check_value(group, name)

    def _check_value(self, group: Group, name: str) -> None:
        """Refuses a current number that is none, or out of its range."""
        value, default, kind = group[name], self._default(name), name.removeprefix("adamw_")  # of a companion rule
        if isinstance(value, float) and isinstance(default, float) and value >= 0:  # soon, as it is at each step
            return
        if value is None and (default is None or name in self.optional):
            return
        given = group["schedules"].get(name)
        where = f" at step {group['steps']} of its schedule" if given and given[1] is value else ""
        if kind == "betas" and isinstance(default, tuple):
            _check_betas(name, value, len(default), where)
        elif (isinstance(default, float) or kind in _AT_LEAST_0) and not _is_value(value):
            raise InputError(f"{name} is {value!r}: give a number, a schedule, or a list with one for each member")
        for number in _numbers(value):
            if isinstance(number, Tensor) and number.requires_grad and group["differentiable"]:
                raise InputError(f"{name} requires a gradient: autograd goes through the step to the parameters and "
                                 "their gradients, not to the hyper-parameters")  # fmt: skip
            if isinstance(number, Tensor) and number.numel() != 1:
                raise InputError(f"{name} is a tensor of {number.numel()} values: Tensor {name} must be 1-element; "
                                 "give a list for one value per member")  # fmt: skip
            if kind in _AT_LEAST_0 and not number >= 0:
                raise InputError(f"Invalid {name} value: {number}{where}: it must be 0 or more")

    def _default(self, name: str) -> Any:
        """Returns a hyper-parameter's default in the rule, whatever this optimizer was given."""
        default = self.fields[name]
        return default.default if isinstance(default, _Option) else default

    @staticmethod
    def check(group: Group) -> None:
        """Refuses hyper-parameters that do not go together; a rule may have its own."""

    def check_penalties(self, group: Group) -> None:
        """Refuses penalties of a rule that cannot take them."""
        for name in ("l1", "l2"):
            if self.step_size is None and (group[name] or name in group["schedules"]):
                raise InputError(
                    f"{name} is {group[name]}, and {type(self).__name__} cannot take it: its step is not the gradient "
                    "by a factor for each element; take another rule, such as AdamW, or add the term to the loss "
                    "(trainwell.regularize.ElasticNet)"
                )

    def _follow_schedules(self, group: Group) -> None:
        """Puts the numbers of this step into a group; what was written there since the last one may be a schedule."""
        held, values, schedules = self._held.get(id(group), ()), self._values(group), group["schedules"]
        if not same(held, values):
            for name, value, before in itertools.zip_longest(self.defaults, values, held):
                if value is not before and (callable(value) or isinstance(value, list | tuple)):
                    self._take(group, name)
        elif not schedules:
            return
        for name, (schedule, last) in schedules.items():
            if name == "lr" and "initial_lr" in group:
                raise InputError("lr has a schedule of its own, and one of torch.optim.lr_scheduler: take one of them")
            if group[name] is last or group[name] == last:  # else it was written by hand, which counts
                group[name] = now = _at(schedule, group["steps"])
                schedules[name] = (schedule, now)
                self._check_value(group, name)
        if schedules:
            self.check(group)
        self._held[id(group)] = self._values(group)

    def _values(self, group: Group) -> list[Any]:
        return list(map(group.get, self.defaults))

    # ------------------------------------------------------------------ the step

    @_disable_dynamo  # it would trace the addresses; torch.compiler.disable would load it with this file, in seconds
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step. `torch.compile` leaves it as it is: it is compiled already.

        Args:
            closure: clears the gradients, computes the loss, its gradients, and returns it.

        Returns:
            What the closure returned.

        Raises:
            InputError: a schedule gives a number that is out of its range, or a CUDA graph is being captured; then
                nothing has moved.
        """
        self._refuse_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not same(self._states(), self._seen):  # somebody gave a parameter another state
            self._plans.clear()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                self._follow_schedules(group)
            for group in self.param_groups:
                self._step(group)
                group["steps"] += 1
        self._seen = self._states()
        return loss

    def _refuse_capture(self) -> None:
        """Keeps the step out of a CUDA graph, which would replay the numbers that it was captured with."""
        if not torch.cuda.is_initialized() or not torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            return
        if any(p.is_cuda for group in self.param_groups for p in group["params"]):
            raise InputError("this optimizer's step cannot go into a CUDA graph, as its numbers are computed outside: "
                             "capture forward and backward alone, and call step() after each replay")  # fmt: skip

    def _states(self) -> list[Any]:
        return [*self.state, *self.state.values()]

    def _step(self, group: Group, some: list[Tensor] | None = None) -> None:
        """Steps a group's parameters, or some of them, element by element; a rule on whole matrices has its own."""
        parameters = group["params"] if some is None else some
        grads = [p.grad for p in parameters]
        there = [g for g in grads if g is not None]
        if len(there) < len(grads):
            parameters = [p for p, g in zip(parameters, grads, strict=True) if g is not None]
        if not there:
            return
        plan = self._plans.get(id(group))
        if plan is None or not plan.holds(parameters, there):
            plan = self._plans[id(group)] = Plan(self, group, list(parameters), there)
        plan.step(group, there)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, as `torch.optim` has it; schedules are no state, only the step they are at.

        A group's `schedules` are `None` in it: torch's flattened checkpoints ask for all keys that a group has.
        """
        ours = self.register_state_dict_post_hook(_storable, prepend=True)  # the user's hooks see what is returned
        try:
            return super().state_dict()
        finally:
            ours.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state of this optimizer or of the one in `torch.optim`.

        Parameters with names on both sides are matched by name, whatever the order and the groups; others by their
        place. Schedules stay those of this optimizer, at the saved step. The state of torch's `SGD` has none, and
        they start from 0: write the number of steps into `group["steps"]` of each group after loading.

        Raises:
            InputError: a name is on one side alone, or twice.
            ValueError: the groups do not match.
        """
        old, saved = self.param_groups, state_dict

        def arrange(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            nonlocal saved
            saved = by_name.arranged(state_dict, old)
            if len(old) == len(saved["param_groups"]):  # what was not saved stays as it is
                own = [{k: v for k, v in group.items() if k not in ("params", "steps", "schedules")} for group in old]
                groups = [mine | theirs for mine, theirs in zip(own, saved["param_groups"], strict=True)]
                saved = {**saved, "param_groups": groups}
            return saved

        def adopt(_: Any) -> None:
            for group, before in zip(self.param_groups, old, strict=True):
                group["schedules"] = before["schedules"]
                if "lr" in group["schedules"] and "initial_lr" not in before:
                    group.pop("initial_lr", None)  # of a scheduler that the saved run had in place of our schedule
            keys = [i for group in saved["param_groups"] for i in group["params"]]
            self._after_load({place: saved["state"][i] for place, i in enumerate(keys) if i in saved["state"]})

        # The user's hooks come before ours, and see after them what has become of the state.
        first = self.register_load_state_dict_pre_hook(arrange)
        last = self.register_load_state_dict_post_hook(adopt, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            first.remove()
            last.remove()

    def _after_load(self, saved: dict[int, dict[str, Any]]) -> None:
        """Puts right what was loaded, given the saved state of each parameter by its place."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            values = self.state.get(p, {})
            for name in [name for name, value in values.items() if value is None]:  # torch's SGD has such
                del values[name]
            for name in ("step", *self.numbers):
                if name in values:  # numbers keep their dtype and stay on the CPU
                    values[name] = torch.as_tensor(saved[i][name]).detach().to("cpu", copy=True)
            for name in self.arrays:
                if name in values and values[name].layout != torch.strided:  # torch's momentum of sparse gradients
                    values[name] = values[name].to_dense()
        for group in self.param_groups:
            for name in self.fields:
                if isinstance(self._default(name), tuple) and isinstance(group[name], list):  # it went through JSON
                    group[name] = tuple(group[name])
            if "steps" not in group:  # saved by torch
                steps = [float(self.state[p]["step"]) for p in group["params"] if "step" in self.state.get(p, {})]
                group["steps"] = round(max(steps, default=0))
            for name, (schedule, _) in group["schedules"].items():
                group[name] = now = _at(schedule, group["steps"])
                group["schedules"][name] = (schedule, now)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kernel": self.kernel}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans, self._seen, self._held = {}, [], {}


def _taken_fields(cls: type) -> dict[str, Any]:
    """Takes the hyper-parameters' defaults off a class, where they would look like attributes of the optimizer."""
    own = {}
    for name, kind in inspect.get_annotations(cls).items():
        if name in cls.__dict__ and not str(kind).startswith(("typing.ClassVar", "ClassVar")):
            own[name] = cls.__dict__[name]
            delattr(cls, name)
    return own


def _optional_fields(cls: type) -> frozenset[str]:
    """Returns the hyper-parameters whose types allow `None`; a type may be a text."""
    kinds = inspect.get_annotations(cls).items()
    return frozenset(name for name, kind in kinds if "None" in str(kind) or "Optional" in str(kind))


def _storable(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Takes schedules out of a state, and its numbers out of the array that they share."""
    numbers = ("step", *optimizer.numbers) if isinstance(optimizer, Optimizer) else ()
    for i, values in list(state["state"].items()):
        if values == {}:
            del state["state"][i]
        elif isinstance(values, dict):
            state["state"][i] = {name: value.clone() if name in numbers else value for name, value in values.items()}
    for group in state["param_groups"]:
        group["schedules"] = None
    return state


def _signature(fields: dict[str, Any]) -> inspect.Signature:
    kinds = inspect.Parameter
    by_place = [
        kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=value)
        for name, value in fields.items()
        if not isinstance(value, _Option)
    ]
    by_word = [
        kinds(name, kinds.KEYWORD_ONLY, default=value.default)
        for name, value in fields.items()
        if isinstance(value, _Option)
    ]
    return inspect.Signature([kinds("params", kinds.POSITIONAL_OR_KEYWORD), *by_place, *by_word])


Optimizer.fields = _taken_fields(Optimizer)
Optimizer.__signature__ = _signature(Optimizer.fields)  # type: ignore[attr-defined]


def _at(value: Any, step: int) -> Any:
    """Returns a hyper-parameter at a step: schedules called, in pairs and in lists too."""
    if callable(value) and not isinstance(value, Tensor):
        return float(value(step))  # a plain one, which can be saved without code
    if isinstance(value, tuple | list):
        now = type(value)(_at(x, step) for x in value)
        return value if all(a is b for a, b in zip(value, now, strict=True)) else now
    return value


def _numbers(value: Any) -> list[Any]:
    """Returns the numbers in a hyper-parameter: one, those of a pair, those of the members."""
    if isinstance(value, tuple | list):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, numbers.Real | Tensor) else []


def _is_value(value: Any) -> bool:
    """Says whether this is a number, or a list with one for each member."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(x, numbers.Real | Tensor) for x in values)


def _check_betas(name: str, betas: Any, count: int, where: str) -> None:
    if not (isinstance(betas, tuple) and len(betas) == count and all(map(_is_value, betas))):
        raise InputError(f"{name} is {betas!r}: give {count} numbers, each of which may be a schedule or a list with "
                         "one for each member")  # fmt: skip
    if len({isinstance(beta, Tensor) for beta in betas}) > 1:
        raise InputError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        for number in _numbers(beta):
            if not 0 <= number < 1:
                raise InputError(f"Invalid beta parameter at index {i}: {number}{where}: it must be from 0 to below 1")
