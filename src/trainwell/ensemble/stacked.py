"""Several models of one architecture as one program, whose layers compute all of them at once.

An activation of `k` members is `(n, k * c, ...)`: the first member's channels, then the second's. So whatever works on
each element or each channel by itself runs unchanged; linear layers, convolutions and batch norms have a form for all
members, and every other layer is called for one member after the other.
"""

import contextlib
import copy
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.regularize import Dropout, Noise, StochasticDepth, evaluating, keyed
from trainwell.regularize.dropout import dropped
from trainwell.unchanged import unchanged

Modules: TypeAlias = tuple[nn.Module, ...]

# They treat each element, or each channel, alike.
_SHARED = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Threshold, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.Upsample,
)  # fmt: skip
_CLOSE = {torch.float64: 1e-8, torch.float32: 1e-3}  # of what is compared, beside the largest number; else _COARSE
_COARSE = 0.05


class Stacked(nn.Module):
    """Several models of one architecture that compute, and learn, as one.

    Its parameters have a leading dimension of the members, along which an optimizer of ours takes hyper-parameters of
    each member's own, as lists. The members' parameters, and the statistics of their batch norms, become views of
    these: each member can be validated, saved and loaded at any time, and is at the newest weights, until `release`.

    Linear layers, convolutions of images, batch norms and what works element by element compute all members at once;
    layers of any other kind, and blocks with parameters of their own, one member after the other, with the same
    result. Noise of ours is each member's, as it is within `keyed`; each has the mode in which the members are.

    Args:
        members: models of one architecture, on one device, in the same modes.
        probe: a few inputs, `(n, ...)`, for which the outputs of each member within and alone are compared.

    Attributes:
        members: the models.
        stacks: pairs of a parameter of this module and the members' own parameters that are views of it.

    Raises:
        InputError: the members differ in more than numbers; a layer draws from torch's generators, where members
            would draw otherwise than alone; or within, the members do not compute what they do alone, because the
            model's `forward` mixes channels or counts them. The members then are as they were.

    >>> members = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(5)]
    >>> x = torch.randn(6, 4)
    >>> stacked = Stacked(members, x)
    >>> stacked(x).shape
    torch.Size([5, 6, 3])
    >>> torch.allclose(stacked(x)[2], members[2](x), atol=1e-6)
    True
    """

    def __init__(self, members: Sequence[nn.Module], probe: Tensor) -> None:
        super().__init__()
        if not members:
            raise InputError("there is nothing to stack: give at least one model")
        self.members, self._flat = tuple(members), False  # whether a member's outputs have one dimension
        builder = _Builder(self.members)
        self.model = builder.of(self.members, "")
        self.stacks: list[tuple[nn.Parameter, tuple[nn.Parameter, ...]]] = list(builder.parameters.values())
        self._buffers_of = builder.buffers
        self._flat = self._prove(probe)
        for stack, parts in [*self.stacks, *self._buffers_of]:
            for own, view in zip(parts, stack.data.unbind(), strict=True):
                own.data = view

    def train(self, mode: bool = True) -> "Stacked":
        """Puts this module and the members in training, or in evaluation."""
        super().train(mode)
        for member in self.members:
            member.train(mode)
        return self

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Returns the outputs of all members, `(k, n, ...)`.

        Args:
            inputs: for each member its own, `(n, ...)`, or a tensor that is for all of them.
        """
        count = len(self.members)
        parts = [inputs] * count if isinstance(inputs, Tensor) else list(inputs)
        if len(parts) != count:
            raise InputError(f"there are inputs for {len(parts)} members, and {count} members")
        rows = len(parts[0])
        if parts[0].ndim < 2:
            raise InputError(f"an input has shape {tuple(parts[0].shape)}: members are stacked along its second "
                             "dimension, which it has not")  # fmt: skip
        joined: Tensor = self.model(torch.cat(parts, 1) if count > 1 else parts[0])
        if self._flat:
            return joined.reshape(rows, count).T
        return joined.reshape(rows, count, -1, *joined.shape[2:]).transpose(0, 1)

    @torch.no_grad()
    def release(self) -> None:
        """Gives each member memory of its own again; from here on it goes its own way."""
        for _, parts in [*self.stacks, *self._buffers_of]:
            for own in parts:
                own.data = own.data.clone()

    # ------------------------------------------------------------------ the proof

    def _prove(self, probe: Tensor) -> bool:
        """Compares with each member alone, in evaluation and in training, which leaves everything as it was."""
        inputs = [probe.roll(k, 0) for k in range(len(self.members))]  # no two members see the same
        with torch.no_grad(), unchanged(self, *self.members), contextlib.ExitStack() as stack:
            for member in self.members:
                stack.enter_context(keyed(member, "probe", rows=range(len(probe))))
            with contextlib.ExitStack() as modes:
                for module in (*self.members, self):  # whose modes follow it
                    modes.enter_context(evaluating(module))
                self._compare(inputs)
            if len(probe) > 1:  # batch norm cannot train on one
                self._compare(inputs)
            return self._flat

    def _compare(self, inputs: list[Tensor]) -> None:
        state = torch.get_rng_state()
        alone = [member(x) for member, x in zip(self.members, inputs, strict=True)]
        if not torch.equal(state, torch.get_rng_state()):
            raise InputError("the model's forward draws from torch's generator, where members would draw otherwise "
                             "together than alone: take trainwell's layers in its place")  # fmt: skip
        why = ""
        try:
            self._flat = all(isinstance(one, Tensor) and one.ndim == 1 for one in alone)
            within = self(inputs)
            for k, one in enumerate(alone):
                if not _close(within[k], one):
                    why = why or f"member {k + 1} computes something else than alone"
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = in_one_line(error)
        if why:
            raise InputError("the models cannot be stacked, because their forward mixes channels of different members "
                             f"or counts them, as a softmax or a view with fixed sizes does ({why}): train them one by "
                             "one")  # fmt: skip


def _close(within: Tensor, alone: Tensor) -> bool:
    if within.shape != alone.shape:
        return False
    most = _CLOSE.get(alone.dtype, _COARSE)
    scale = float(alone.nan_to_num(0, 0, 0).abs().max()) if alone.numel() else 0.0
    return torch.allclose(within, alone, rtol=most, atol=most * scale, equal_nan=True)


# ---------------------------------------------------------------------- building


class _Builder:
    """Makes the modules for all members of the members' own; keeps which tensors belong together."""

    def __init__(self, members: Modules) -> None:
        self.parameters: dict[int, tuple[nn.Parameter, tuple[nn.Parameter, ...]]] = {}
        self.buffers: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        self._taken: set[int] = set()  # parameters, by their ids
        self._made: dict[int, tuple[Modules, nn.Module]] = {}
        _refuse_shared(members)

    def of(self, modules: Modules, name: str) -> nn.Module:
        """Returns the module for all members of those that stand at the same place in each."""
        first = modules[0]
        if id(first) in self._made:  # it stands at two places
            before, made = self._made[id(first)]
            if any(a is not b for a, b in zip(before, modules, strict=True)):
                raise InputError(f"the members differ: {name or 'the model'} is shared in some of them alone")
            return made
        _refuse_other(modules, name)
        made = self._layer(modules, name)
        made.train(first.training) if isinstance(made, Each) else None
        self._made[id(first)] = modules, made
        return made

    def _layer(self, modules: Modules, name: str) -> nn.Module:
        first = modules[0]
        plain = not _tensors(first)
        alike = _alike(modules)
        if not _hooks(first) and alike and not first._modules:
            if type(first) in _SHARED or (type(first) is nn.Flatten and first.start_dim > 0):
                return copy.copy(first)
            if type(first) is Dropout:
                return _Dropout(self, modules, name)
        if type(first) is StochasticDepth and not _hooks(first):
            return _StochasticDepth(self, modules, name)
        if alike and _same_hooks(modules):
            for kind, form in ((nn.Linear, _Linear), (nn.Conv2d, _Conv2d), (nn.BatchNorm1d, _BatchNorms),
                               (nn.BatchNorm2d, _BatchNorms)):  # fmt: skip
                if type(first).forward is kind.forward and "forward" not in vars(first) and _usual(first):
                    return self._with_children(form(self, modules, name), modules, name)
        container = type(first) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        if plain and first._modules and _same_hooks(modules) and (container or not _is_torchs(first)):
            made = copy.copy(first)
            made._parameters, made._buffers = {}, dict(first._buffers)
            return self._with_children(made, modules, name)
        return Each(self, modules, name)

    def _with_children(self, made: nn.Module, modules: Modules, name: str) -> nn.Module:
        """Gives a module the children of all members, and the hooks that they have in common."""
        first = modules[0]
        made._modules = {
            key: self.of(tuple(module.get_submodule(key) for module in modules), f"{name}.{key}".lstrip("."))
            for key in _children(first)
        }
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs",
                     "_forward_hooks_with_kwargs"):  # fmt: skip
            setattr(made, kind, copy.copy(getattr(first, kind)))
        return made

    def parameter(self, own: Sequence[nn.Parameter | None], name: str) -> nn.Parameter | None:
        """Returns the parameter for all members; the same one for the same ones."""
        if own[0] is None:
            return None
        parts = tuple(p for p in own if p is not None)
        known = [id(p) in self._taken for p in parts]
        if not any(known):
            stack = nn.Parameter(_stack(parts), requires_grad=parts[0].requires_grad)
            self.parameters[id(parts[0])] = stack, parts
            self._taken |= {id(p) for p in parts}
        elif not all(known) or any(a is not b for a, b in zip(self.parameters[id(parts[0])][1], parts, strict=True)):
            raise InputError(f"the members differ: the parameter {name!r} is shared in some of them alone")
        return self.parameters[id(parts[0])][0]

    def buffer(self, own: Sequence[Tensor | None]) -> Tensor | None:
        """Returns the buffer for all members."""
        if own[0] is None:
            return None
        parts = tuple(b for b in own if b is not None)
        self.buffers.append((_stack(parts), parts))
        return self.buffers[-1][0]


@torch.no_grad()
def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Returns a copy of all tensors along a new first dimension, each laid out in memory as it is."""
    first = torch.empty_like(parts[0])  # dense
    stack = torch.empty_strided(
        (len(parts), *first.shape), (first.numel(), *first.stride()), dtype=first.dtype, device=first.device
    )
    for part, own in zip(stack, parts, strict=True):
        part.copy_(own)
    return stack


def _refuse_shared(members: Modules) -> None:
    """Refuses members with common parameters, and parameters that share memory without being the same."""
    seen: set[int] = set()
    for member in members:
        tensors = {id(x): x for x in member.parameters()}
        if seen & tensors.keys():
            raise InputError("two members share parameters: give models of their own")
        seen |= tensors.keys()
        if any(nn.parameter.is_lazy(x) for x in tensors.values()):
            raise InputError("a parameter has no shape yet: run one batch through each model first")
        places = [x.data_ptr() for x in tensors.values() if x.numel()]
        if len(places) > len(set(places)):
            raise InputError("two parameters of a model share memory without being the same: such models are not "
                             "stacked; train them one by one")  # fmt: skip


def _refuse_other(modules: Modules, name: str) -> None:
    """Refuses what differs between members, and what cannot be together what it is alone."""
    first, where = modules[0], name or "the model"
    if first._compiled_call_impl is not None or hasattr(first, "_orig_mod"):
        raise InputError(f"{where} is compiled: stack the models before torch.compile")
    if _draws(first):
        raise InputError(f"{where} is torch's {type(first).__name__}, which draws from torch's generator, where the "
                         "members would draw otherwise than alone: take trainwell's in its place")  # fmt: skip
    for k, other in enumerate(modules[1:], 2):
        for what, read in (("kind", _kind), ("mode", _mode), ("children", _children), ("tensors", _tensors)):
            mine, theirs = read(first), read(other)
            if mine != theirs:
                raise InputError(f"the members differ: the {what} of {where} is {mine} in the first, {theirs} in "
                                 f"member {k}; models of one architecture can be stacked")  # fmt: skip


def _kind(module: nn.Module) -> str:
    return type(module).__qualname__


def _mode(module: nn.Module) -> str:
    return "training" if module.training else "evaluation"


def _children(module: nn.Module) -> list[str]:
    return [key for key, child in module._modules.items() if child is not None]


def _tensors(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    named: Iterable[tuple[str, Tensor | None]] = [*module._parameters.items(), *module._buffers.items()]
    return {key: (tuple(x.shape), x.dtype, str(x.device), x.requires_grad) for key, x in named if x is not None}


def _draws(module: nn.Module) -> bool:
    """Says whether a layer of torch's is random."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)


def _alike(modules: Modules) -> bool:
    """Says whether layers have the same settings, as they print them."""
    return len({module.extra_repr() for module in modules}) == 1


def _hooks(module: nn.Module) -> list[Any]:
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return [hook for hooks in kinds for hook in hooks.values()]


def _same_hooks(modules: Modules) -> bool:
    """Says whether the hooks are the same functions, so that they keep nothing of a member, and of the way forward."""
    first = modules[0]
    same = all(_hooks(module) == _hooks(first) for module in modules)
    return same and not first._backward_hooks and not first._backward_pre_hooks


def _usual(layer: nn.Module) -> bool:
    """Says whether a layer has the parameters of its kind, which normalisations by hooks change, and no others."""
    if isinstance(layer, _BatchNorm) and (layer.momentum is None or layer.affine != (layer.weight is not None)):
        return False
    return set(layer._parameters) == {"weight", "bias"} and (
        not isinstance(layer, nn.Conv2d) or type(layer)._conv_forward is nn.Conv2d._conv_forward
    )


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


# ---------------------------------------------------------------------- layers


class Each(nn.Module):
    """Calls each member's own layer, with its slice of a parameter for all; the base of all forms for all members."""

    def __init__(self, builder: _Builder, layers: Modules, name: str) -> None:
        super().__init__()
        self.layers = layers  # in a tuple, so that their parameters are not counted among this module's
        self._names = [key for key, _ in layers[0].named_parameters(remove_duplicate=False)]
        for key in self._names:
            own = [layer.get_parameter(key) for layer in layers]
            self.register_parameter(key.replace(".", "/"), builder.parameter(own, f"{name}.{key}".lstrip(".")))
        for inner, _ in layers[0].named_modules():
            if inner:
                _refuse_other(tuple(layer.get_submodule(inner) for layer in layers), f"{name}.{inner}".lstrip("."))

    def forward(self, *inputs: Any) -> Tensor:
        """Returns the outputs of the layers, one member's behind the other's."""
        parts = [self._parts(x) for x in inputs]
        outputs = [self._call(k, *own) for k, own in enumerate(zip(*parts, strict=True))]
        if not all(isinstance(output, Tensor) and output.ndim > 1 for output in outputs):
            raise InputError(f"a {type(self.layers[0]).__name__} does not return one tensor of two dimensions or more")
        return torch.cat(outputs, 1)

    def _parts(self, x: Any) -> Sequence[Any]:
        """Returns what of an input is each member's."""
        count = len(self.layers)
        if not isinstance(x, Tensor):
            return [x] * count
        if x.ndim < 2 or x.shape[1] % count:
            raise InputError(f"an input of shape {tuple(x.shape)} does not hold {count} members along its second "
                             "dimension")  # fmt: skip
        return [part.contiguous(memory_format=_format(x)) for part in x.chunk(count, 1)]

    def _call(self, k: int, *inputs: Any) -> Any:
        layer = self.layers[k]
        if not self._names:
            return layer(*inputs)
        own = {key: self._parameters[key.replace(".", "/")][k] for key in self._names}  # type: ignore[index]
        return functional_call(layer, own, inputs)


def _format(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _Linear(Each):
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, builder: _Builder, layers: Modules, name: str) -> None:
        super().__init__(builder, layers, name)
        if "bias" not in self._parameters:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(n, k * out)` for `(n, k * in)`, or `(n, k * m, ..., out)` for `(n, k * m, ..., in)`."""
        n, count = len(x), len(self.layers)
        if x.ndim == 2:
            y = _linear(x.reshape(n, count, -1).transpose(0, 1), self.weight, self.bias)
            return y.transpose(0, 1).reshape(n, -1)
        each = x.reshape(n, count, -1, *x.shape[2:]).transpose(0, 1)
        y = _linear(each.flatten(1, -2), self.weight, self.bias)
        return y.view(*each.shape[:-1], -1).transpose(0, 1).flatten(1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _Products.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _Products(torch.autograd.Function):
    """`x[k] @ weight[k].T + bias[k]`; torch's own gradient of the weight would be laid out as its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        turned = weight.transpose(1, 2)
        return torch.bmm(x, turned) if bias is None else torch.baddbmm(bias[:, None], x, turned)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if of_x else None,
            torch.bmm(grad.transpose(1, 2), x) if of_weight else None,
            grad.sum(1) if of_bias else None,
        )


class _Conv2d(Each):
    def forward(self, x: Tensor) -> Tensor:
        """Returns `(n, k * out, ...)` for `(n, k * in, ...)`: each member is a group, or several."""
        own: Any = self.layers[0]
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        assert weight is not None
        padding = own.padding
        if own.padding_mode != "zeros":
            x, padding = F.pad(x, own._reversed_padding_repeated_twice, mode=own.padding_mode), 0
        flat = None if bias is None else bias.flatten()
        groups = len(self.layers) * own.groups
        return F.conv2d(x, weight.flatten(0, 1), flat, own.stride, padding, own.dilation, groups)


class _BatchNorms(Each):
    def __init__(self, builder: _Builder, layers: Modules, name: str) -> None:
        super().__init__(builder, layers, name)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(key, builder.buffer([layer._buffers[key] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each channel of each member over the batch."""
        own: Any = self.layers[0]
        values = {**self._parameters, **self._buffers}
        tracked = values["num_batches_tracked"]
        if self.training and tracked is not None:
            tracked.add_(1)
        flat = [values.get(key) for key in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (None if value is None else value.flatten() for value in flat)
        return F.batch_norm(x, mean, var, weight, bias, self.training or mean is None, own.momentum, own.eps)


class _Dropout(Each):
    def forward(self, *inputs: Tensor) -> Tensor:
        """Drops all members' units in one pass, by each member's own keys, where they lie so in memory."""
        (x,) = inputs
        own: Any = self.layers[0]
        if not own.noisy or own.p in (0, 1):
            output: Tensor = own(x)
            return output
        if not x.is_contiguous():
            return super().forward(x)
        count = len(self.layers)
        each = x.view(len(x) * count, -1, *x.shape[2:])
        rows = x[:, :1]  # as many as a member has
        keys = torch.stack([layer.row_keys(rows) for layer in self.layers if isinstance(layer, Noise)], 1).flatten()
        return dropped(each, keys, own.p, own.scale, maps=own.maps).view(x.shape)


class _StochasticDepth(Each):
    def forward(self, *inputs: Tensor) -> Tensor:
        """Multiplies by what each member's layer makes of ones."""
        (x,) = inputs
        ones = x.new_ones(len(x), 1)
        factors = [layer(ones) for layer in self.layers]
        if all(factor is ones for factor in factors):
            return x
        each = torch.cat([factor.expand(len(x), 1) for factor in factors], 1)
        wide = each.repeat_interleave(x.shape[1] // len(factors), 1)
        return x * wide.view(*wide.shape, *[1] * (x.ndim - 2))
