"""Noise put into any model, in place: dropout, DropConnect and stochastic depth."""

import contextlib
import copy
import inspect
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from trainwell.errors import InputError, in_one_line
from trainwell.regularize.depth import StochasticDepth, depth_rates
from trainwell.regularize.dropconnect import DropConnect
from trainwell.regularize.dropout import Dropout, check_fraction
from trainwell.regularize.noise import SKIPPING, Noise


class Change(NamedTuple):
    """What was changed in a model.

    Attributes:
        where: the module's name in the model.
        what: what was done to it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def apply(
    model: nn.Module,
    *,
    dropout: float | None = None,
    feature_dropout: float | None = None,
    dropconnect: float | None = None,
    stochastic_depth: float | None = None,
    branches: Sequence[str] | None = None,
) -> list[Change]:
    """Puts noise into a model, in place, and says where.

    Weights and their names in `state_dict` stay as they are; the model in evaluation computes what it did. Layers of
    the kind that are there already get the new fraction, and torch's within the model become ours. Else noise is put
    in:

    - `dropout`, of units, at the input of the last linear layer;
    - `feature_dropout`, of whole feature maps, at the input of each convolution but the first and those of one pixel:
      in a residual network within the branches;
    - `dropconnect`, of weights, in the last linear layer, which it wraps;
    - `stochastic_depth` at the end of each residual branch, rising by equal steps from 0 at the first to the given
      fraction at the last; one branch alone has the given one. A branch is the operand of a sum, of two paths from a
      common point, on which more layers with parameters lie; it is found by `torch.fx`, in models that it can trace.
      `DropPath` and its like, and identities that are called `drop_path`, as timm has them, take its place where there
      are any.

    What is put in is a child of the layer before or after it, called by a hook of that layer. It can be copied, saved
    and compiled with the model.

    Args:
        model: any that is not compiled yet, nor within DistributedDataParallel.
        dropout, feature_dropout, stochastic_depth: fractions that are dropped, from 0 to 1; `None` changes nothing.
        dropconnect: the fraction of weights that is dropped, from 0 to below 1.
        branches: the names of the modules whose outputs end the residual branches, from the input up, where they are
            not to be found by themselves.

    Returns:
        The changes, in the order in which they were made.

    Raises:
        InputError: a fraction is out of its range, or the model has no place for what is asked for. Nothing is
            changed then.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> for change in apply(model, dropout=0.5, feature_dropout=0.1):
    ...     print(change)
    4: dropout 0.5 at its input
    2: feature dropout 0.1 at its input
    >>> model.state_dict().keys() == nn.Sequential(*model).state_dict().keys()
    True
    """
    fractions = {"dropout": dropout, "feature_dropout": feature_dropout, "dropconnect": dropconnect,
                 "stochastic_depth": stochastic_depth}  # fmt: skip
    for name, fraction in fractions.items():
        if fraction is not None:
            check_fraction(fraction, name=name, below_1=name == "dropconnect")
    plans: list[Iterator[Change]] = []
    if dropconnect is not None:  # before what is then called by its wrapper
        plans.append(_dropconnect(model, dropconnect))
    if dropout is not None:
        plans.append(_dropout(model, dropout))
    if feature_dropout is not None:
        plans.append(_feature_dropout(model, feature_dropout))
    if stochastic_depth is not None:
        plans.append(_stochastic_depth(model, stochastic_depth, branches))
    compiled = (module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in model.modules())
    if plans and any(compiled):
        raise InputError("the model is compiled, and would go on without the noise: apply it before torch.compile")
    for plan in plans:
        next(plan)  # finds the places, and refuses if there are none
    return [change for plan in plans for change in plan]


_FOUND = Change("", "")  # what a plan yields once it knows its places, before it changes anything


def _dropout(model: nn.Module, p: float) -> Iterator[Change]:
    there = [name for name, module in model.named_modules() if type(module) is nn.Dropout or _is_ours(module, False)]
    last = "" if there else _last_linear(model, "dropout")
    yield _FOUND
    if there:
        yield from _replaced(model, there, p, maps=False)
    else:
        _before(model.get_submodule(last), Dropout(p))
        yield Change(last, f"dropout {p} at its input")


def _feature_dropout(model: nn.Module, p: float) -> Iterator[Change]:
    kinds = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    there = [name for name, module in model.named_modules() if type(module) in kinds or _is_ours(module, True)]
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd)][1:]
    wide = [name for name, module in convolutions if any(side > 1 for side in module.kernel_size)]
    if not there and not wide:
        raise InputError("feature_dropout: the model has no convolution after its first, of more than one pixel")
    yield _FOUND
    if there:
        yield from _replaced(model, there, p, maps=True)
    for name in [] if there else wide:
        _before(model.get_submodule(name), Dropout(p, maps=True))
        yield Change(name, f"feature dropout {p} at its input")


def _dropconnect(model: nn.Module, p: float) -> Iterator[Change]:
    there = [(name, module) for name, module in model.named_modules() if isinstance(module, DropConnect)]
    last = "" if there else _last_linear(model, "dropconnect")
    if last:
        layer = model.get_submodule(last)
        with _without_noise(layer):
            wrapper = DropConnect(layer, p)
    yield _FOUND
    for name, module in there:
        module.p = p
        yield Change(name, f"DropConnect {p}")
    if not there:
        _put(model, last, wrapper)
        for key, put in (("noise_before", _before), ("noise_after", _after)):
            if key in layer._modules:
                put(wrapper, layer.get_submodule(key))
        yield Change(last, f"DropConnect {p}")


def _stochastic_depth(model: nn.Module, p: float, branches: Sequence[str] | None) -> Iterator[Change]:
    there = [] if branches is not None else [name for name, module in model.named_modules() if _skips(name, module)]
    ends = [] if there else _branches(model, branches)
    yield _FOUND
    rates = iter(depth_rates(p, len(there) + len(ends)))
    for name in there:
        module, rate = model.get_submodule(name), next(rates)
        if isinstance(module, StochasticDepth):
            module.p = rate
        else:
            _put(model, name, StochasticDepth(rate))
        yield Change(name, f"stochastic depth {rate:.3g}")
    for name in ends:
        rate = next(rates)
        _after(model.get_submodule(name), StochasticDepth(rate))
        yield Change(name, f"stochastic depth {rate:.3g} at its output")


# ---------------------------------------------------------------------- places


def _is_ours(module: nn.Module, maps: bool) -> bool:
    return isinstance(module, Dropout) and module.maps is maps


def _skips(name: str, module: nn.Module) -> bool:
    """Says whether a module is there to skip a branch: ours, torchvision's, timm's, or timm's place for one."""
    if not name:  # the model itself, which cannot be replaced
        return isinstance(module, StochasticDepth)
    place = isinstance(module, nn.Identity) and name.rpartition(".")[2].startswith("drop_path")
    return place or type(module).__name__ in SKIPPING


def _last_linear(model: nn.Module, wish: str) -> str:
    names: list[str] = [name for name, module in model.named_modules() if _is_linear(module)]
    if not names or not names[-1]:
        raise InputError(f"{wish}: the model has no linear layer within it: put the layer in yourself")
    return names[-1]


def _is_linear(module: nn.Module) -> bool:
    """Says whether it is a linear layer that is called; of the one in torch's attention only the weight is used."""
    if isinstance(module, DropConnect):
        return module.weight.ndim == 2
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _branches(model: nn.Module, named: Sequence[str] | None) -> list[str]:
    known = dict(model.named_modules())
    if named is not None and not named:
        raise InputError("branches is empty: name the modules that end the residual branches, or leave it out")
    if named is not None:
        for name in named:
            if name not in known:
                raise InputError(f"branches: the model has no module {name!r}")
        return list(dict.fromkeys(named))
    try:
        probe = copy.deepcopy(model).eval()  # tracing may leave its symbols in what a module keeps
        given = inspect.signature(probe.forward).parameters.values()
        defaults = {x.name: x.default for x in given if x.default is not x.empty}
        graph = _Tracer().trace(probe, concrete_args=defaults)
    except Exception as error:
        why = in_one_line(error, 150)
        raise InputError(f"stochastic_depth: torch.fx cannot trace the model ({why}): name the modules that end its "
                         "residual branches, branches=[…]") from error  # fmt: skip
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    ends = []
    for node in graph.nodes:
        end = _end_of_branch(node, known)
        if end is not None and end not in ends and calls.count(end) == 1:
            ends.append(end)
    if not ends:
        raise InputError("stochastic_depth: the model has no residual branch that ends in a module: name the modules, "
                         "branches=[…]")  # fmt: skip
    return ends


class _Tracer(fx.Tracer):
    """Looks into everything but torch's layers and noise."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Noise) or super().is_leaf_module(m, module_qualified_name)


_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def _end_of_branch(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Returns the module that ends the residual branch of a sum; `None` if it is no such sum."""
    operands = [operand for operand in node.args if isinstance(operand, fx.Node)]
    if node.op not in ("call_function", "call_method") or node.target not in _SUMS or len(operands) != 2:
        return None
    left, right = (_above(operand) for operand in operands)
    if not left & right:
        return None
    own = [_layers(mine - other, modules) for mine, other in ((left, right), (right, left))]
    if own[0] == own[1]:
        return None
    branch = operands[0] if own[0] > own[1] else operands[1]
    ends = branch.op == "call_module" and len(branch.users) == 1
    return str(branch.target) if ends else None


def _above(node: fx.Node) -> set[fx.Node]:
    """Returns a node and all that it is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        for earlier in waiting.pop().all_input_nodes:
            if earlier not in found:
                found.add(earlier)
                waiting.append(earlier)
    return found


def _layers(nodes: set[fx.Node], modules: dict[str, nn.Module]) -> int:
    """Returns how many layers with parameters are called."""
    called = [modules[str(node.target)] for node in nodes if node.op == "call_module"]
    return sum(next(module.parameters(), None) is not None for module in called)


# ---------------------------------------------------------------------- changes


def _replaced(model: nn.Module, names: list[str], p: float, *, maps: bool) -> Iterator[Change]:
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, Dropout) or module is model:  # which has no parent to hold another
            module.p = p  # type: ignore[assignment]
        else:
            _put(model, name, Dropout(p, maps=maps))
        yield Change(name, f"{'feature ' if maps else ''}dropout {p}")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, in its mode."""
    old = model.get_submodule(name)
    module.train(old.training)
    for parent in list(model.modules()):  # which may hold it under several names
        for key in [key for key, child in parent._modules.items() if child is old]:
            setattr(parent, key, module)


def _before(layer: nn.Module, noise: nn.Module) -> None:
    layer.add_module("noise_before", noise.train(layer.training))
    layer.register_forward_pre_hook(_noise_before, with_kwargs=True)


def _after(layer: nn.Module, noise: nn.Module) -> None:
    if isinstance(layer, nn.Sequential):  # where a child is a link of the chain
        if isinstance(layer[-1], StochasticDepth):
            layer.pop(-1)
        layer.append(noise.train(layer.training))
    elif "noise_after" in layer._modules:
        layer.noise_after = noise.train(layer.training)
    else:
        layer.add_module("noise_after", noise.train(layer.training))
        layer.register_forward_hook(_noise_after)


@contextlib.contextmanager
def _without_noise(layer: nn.Module) -> Iterator[None]:
    """Takes the hooks of noise that was put in off a layer for a while."""
    kept = [(hooks, dict(hooks)) for hooks in (layer._forward_pre_hooks, layer._forward_hooks)]
    try:
        for hooks, before in kept:
            for key, hook in before.items():
                if hook in (_noise_before, _noise_after):
                    del hooks[key]
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _noise_before(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    noise = layer.get_submodule("noise_before")
    if inputs:
        return (noise(inputs[0]), *inputs[1:]), named
    (name, x), *others = named.items()
    return (), {name: noise(x), **dict(others)}


def _noise_after(layer: nn.Module, _: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        raise InputError(f"stochastic depth: a {type(layer).__name__} that ends a branch returns a "
                         f"{type(output).__name__}: name a module whose output is a tensor, branches=[…]")  # fmt: skip
    return layer.get_submodule("noise_after")(output)
