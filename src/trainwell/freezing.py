"""Parts of a model that stay as they are while the rest of it trains."""

from collections.abc import Collection
from typing import Any

from torch import nn

from trainwell.errors import InputError, nearest
from trainwell.weights import bare, is_within

_HELD = "_trainwell_held"  # the names of a module's own parameters that were trained
_HANDLES = "_trainwell_handles"
_MODES = "_trainwell_modes"


def freeze(module: nn.Module) -> None:
    """Keeps a module as it is: its parameters are not trained, and it computes as in evaluation.

    No optimizer changes its parameters, by decay or momentum either: they have `requires_grad=False` and no gradient.
    Whatever mode it is put in, batch norm uses its running statistics and leaves them alone, and dropout and other
    noise is off. `training` says the mode in which it will be again when it is thawed.

    That holds for the module and all modules in it now, also where one of them is called alone. What is put into it
    later is not frozen, nor is what replaces a part (`nn.SyncBatchNorm.convert_sync_batchnorm` does). A parameter that
    it shares with another part of the model is not trained there either. It holds for copies and after pickling, and
    is no part of a `state_dict`.

    Args:
        module: a model or a part of one; one that is frozen already stays so. `DistributedDataParallel` waits for the
            gradients of all parameters that were trained when it was made: freeze before. `torch.compile` looks but
            once at modules without parameters: freeze before the first pass.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    >>> freeze(model[:2])
    >>> x = torch.ones(1, 2)
    >>> torch.equal(model.train()[1](x), x)
    True
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['2.weight', '2.bias']
    """
    for part in bare(module).modules():
        for name in part._parameters:
            _hold(part, name)
        if not _stays(part):
            # First, since older hooks read the mode too, those of nn.utils.spectral_norm for one. The handles are kept
            # because a process that unpickles the model learns from them which numbers are taken for hooks.
            enter = part.register_forward_pre_hook(_enter, prepend=True)
            vars(part)[_HANDLES] = enter, part.register_forward_hook(_leave, always_call=True)


def freeze_parameter(module: nn.Module, name: str) -> None:
    """Lets one parameter, such as `cls_token`, be trained no more, until its module is thawed.

    Args:
        module: a model or a part of one.
        name: as in `module.named_parameters()`.

    Raises:
        InputError: the module has no such parameter.

    >>> layer = nn.Linear(2, 2)
    >>> freeze_parameter(layer, "bias")
    >>> layer.weight.requires_grad, layer.bias.requires_grad, is_frozen(layer)
    (True, False, False)
    """
    module = bare(module)
    known = [known for known, _ in module.named_parameters(remove_duplicate=False)]
    if name not in known:
        raise InputError(f"there is no parameter {name!r}{nearest(name, known)}")
    path, _, own = name.rpartition(".")
    _hold(module.get_submodule(path), own)


def freeze_parameters(model: nn.Module, names: Collection[str]) -> None:
    """Freezes parameters, and whole the modules that have no others, so that their statistics stay as well.

    Whole too is what notes statistics without parameters, as `BatchNorm2d(affine=False)` does, below all that trains.

    Args:
        model: the model, whose modules were added in the order of their use.
        names: as in `model.named_parameters()`.

    Raises:
        InputError: as for `freeze_parameter`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    >>> freeze_parameters(model, ["0.weight", "0.bias"])
    >>> [is_frozen(layer) for layer in model]
    [True, True, False]
    """
    model, frozen = bare(model), set(names)
    for name in frozen:
        freeze_parameter(model, name)
    all_names = [name for name, _ in model.named_parameters()]
    below = True
    for part, module in model.named_modules():
        own = {name for name in all_names if is_within(name, part)}
        if own <= frozen if own else below and any(True for _ in module.buffers()):
            freeze(module)
        below = below and not any(name.rpartition(".")[0] == part for name in own - frozen)


def thaw(module: nn.Module) -> None:
    """Undoes `freeze` and `freeze_parameter` for a module and all modules in it.

    Parameters that were not trained before stay so, and each module is in the mode in which it was last put.

    >>> layer = nn.Linear(2, 2)
    >>> freeze(layer)
    >>> thaw(layer)
    >>> is_frozen(layer), layer.weight.requires_grad
    (False, True)
    """
    for part in bare(module).modules():
        for name in vars(part).pop(_HELD, ()):
            parameter = part._parameters.get(name)
            if parameter is not None:
                parameter.requires_grad_(True)
        for handle in vars(part).pop(_HANDLES, ()):
            handle.remove()


def is_frozen(module: nn.Module) -> bool:
    """Says whether a module and all modules in it are frozen."""
    return all(_stays(part) for part in bare(module).modules())


def _hold(part: nn.Module, name: str) -> None:
    """Freezes one of a module's own parameters; `thaw` learns from its name that it was trained."""
    parameter = part._parameters[name]
    if parameter is None:
        return
    if parameter.requires_grad:
        vars(part).setdefault(_HELD, set()).add(name)
    parameter.requires_grad_(False)
    parameter.grad = None


def _stays(part: nn.Module) -> bool:
    return _enter in part._forward_pre_hooks.values()


# The mode is put back after each pass, so that `thaw` need not know who put which part in which mode meanwhile. It is a
# stack since a module may call itself.


def _enter(part: nn.Module, _: Any) -> None:
    vars(part).setdefault(_MODES, []).append(part.training)
    part.training = False


def _leave(part: nn.Module, _: Any, __: Any) -> None:
    if modes := vars(part).get(_MODES):  # none if the pass ended before it was entered
        part.training = modes.pop()
