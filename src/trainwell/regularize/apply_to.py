"""Noise put into any model, in place: dropout, DropConnect and stochastic depth."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from trainwell.errors import InputError
from trainwell.regularize.depth import StochasticDepth, depth_rates
from trainwell.regularize.dropconnect import DropConnect
from trainwell.regularize.dropout import Dropout, check_fraction
from trainwell.regularize.noise import Noise, evaluating


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
    the kind that are there already get the new fraction, and torch's become ours. Else noise is put in:

    - `dropout`, of units, at the input of the last linear layer;
    - `feature_dropout`, of whole feature maps, at the input of each convolution but the first and those of one pixel:
      in a residual network within the branches;
    - `dropconnect`, of weights, in the last linear layer, which it wraps;
    - `stochastic_depth` at the end of each residual branch, rising by equal steps from 0 at the first to the given
      fraction at the last. A branch is the operand of a sum, of two paths from a common point, on which more layers
      with parameters lie; it is found by `torch.fx`, in models that it can trace. `DropPath` and its like, and
      identities that are called `drop_path`, as timm has them, take its place where there are any.

    What is put in is a child of the layer before or after it, called by a hook of that layer. It can be copied, saved
    and compiled with the model.

    Args:
        model: any; not within DistributedDataParallel yet.
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
    for fraction, below_1 in (
        (dropout, False),
        (feature_dropout, False),
        (dropconnect, True),
        (stochastic_depth, False),
    ):
        if fraction is not None:
            check_fraction(fraction, below_1=below_1)
    plans: list[Iterator[Change]] = []
    if dropconnect is not None:  # before what is then called by its wrapper
        plans.append(_dropconnect(model, dropconnect))
    if dropout is not None:
        plans.append(_dropout(model, dropout))
    if feature_dropout is not None:
        plans.append(_feature_dropout(model, feature_dropout))
    if stochastic_depth is not None:
        plans.append(_stochastic_depth(model, stochastic_depth, branches))
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
    yield _FOUND
    for name, module in there:
        module.p = p
        yield Change(name, f"DropConnect {p}")
    if not there:
        layer = model.get_submodule(last)
        wrapper = DropConnect(layer, p)
        _put(model, last, wrapper)
        _move_noise(layer, wrapper)
        yield Change(last, f"DropConnect {p}")


def _stochastic_depth(model: nn.Module, p: float, branches: Sequence[str] | None) -> Iterator[Change]:
    there = [] if branches else [name for name, module in model.named_modules() if _skips(name, module)]
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
    place = isinstance(module, nn.Identity) and name.rpartition(".")[2].startswith("drop_path")
    return place or type(module).__name__ in ("StochasticDepth", "DropPath")


def _last_linear(model: nn.Module, wish: str) -> str:
    inner = {id(module.layer) for module in model.modules() if isinstance(module, DropConnect)}
    names: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, DropConnect) or (_is_called(module) and id(module) not in inner)
    ]
    if not names or not names[-1]:
        raise InputError(f"{wish}: the model has no linear layer within it: put the layer in yourself")
    return names[-1]


def _is_called(module: nn.Module) -> bool:
    """Says whether it is a linear layer; the one in torch's attention is not called, only its weight is used."""
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _branches(model: nn.Module, named: Sequence[str] | None) -> list[str]:
    known = dict(model.named_modules())
    if named is not None:
        for name in named:
            if name not in known:
                raise InputError(f"branches: the model has no module {name!r}")
        return list(named)
    try:
        with evaluating(model):
            graph = _Tracer().trace(model)
    except Exception as error:
        why = " ".join(str(error).split())[:150]
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
        if isinstance(module, Dropout):
            module.p = p
        else:
            _put(model, name, Dropout(p, maps=maps))
        yield Change(name, f"{'feature ' if maps else ''}dropout {p}")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another, in its mode."""
    path, _, child = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(path), child, module)


def _before(layer: nn.Module, noise: nn.Module) -> None:
    layer.add_module("noise_before", noise.train(layer.training))
    layer.register_forward_pre_hook(_noise_before)


def _after(layer: nn.Module, noise: nn.Module) -> None:
    layer.add_module("noise_after", noise.train(layer.training))
    layer.register_forward_hook(_noise_after)


def _move_noise(layer: nn.Module, wrapper: nn.Module) -> None:
    """Gives the noise at a layer's ends to what wraps it, which uses its weights without calling it."""
    for kept, hook, put in (
        (layer._forward_pre_hooks, _noise_before, _before),
        (layer._forward_hooks, _noise_after, _after),
    ):
        for key in [key for key, value in kept.items() if value is hook]:
            del kept[key]
            noise = layer.get_submodule(hook.__name__.removeprefix("_"))
            delattr(layer, hook.__name__.removeprefix("_"))
            put(wrapper, noise)


def _noise_before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return layer.noise_before(inputs[0]), *inputs[1:]  # type: ignore[operator]


def _noise_after(layer: nn.Module, _: Any, output: Tensor) -> Any:
    return layer.noise_after(output)  # type: ignore[operator]
