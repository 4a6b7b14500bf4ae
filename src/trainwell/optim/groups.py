"""Parameter groups for any optimizer."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # all batch and instance norms

from trainwell.errors import InputError

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def no_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits a model's parameters into a group with weight decay and one without.

    Decay is for weights that multiply inputs. Left without are biases (parameters called `bias`), the parameters of
    norm layers, and whatever has fewer than two dimensions: scales, slopes, temperatures. Decaying those limits what
    the network can express and regularises nothing.

    Frozen parameters (`requires_grad=False`) are left out, shared ones are there once, and both groups keep the order
    of `model.named_parameters()`.

    Args:
        model: the model to be optimized.
        weight_decay: decay of the first group, 0 or more.

    Returns:
        Two groups, with decay and without, that any `torch.optim` optimizer takes: `params`, their names as
        `param_names`, and `weight_decay`. Either may be empty.

    Raises:
        InputError: nothing is to be trained, a lazy layer has no shape yet, or `weight_decay` is negative.

    >>> groups = no_decay_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), weight_decay=0.1)
    >>> [(group["weight_decay"], group["param_names"]) for group in groups]
    [(0.1, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    if not weight_decay >= 0:
        raise InputError(f"weight_decay is {weight_decay}: it must be 0 or more")
    of_norms = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    decayed: dict[str, Any] = {"params": [], "param_names": [], "weight_decay": weight_decay}
    others: dict[str, Any] = {"params": [], "param_names": [], "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"the parameter {name!r} has no shape yet: run one batch through the model first")
        plain = parameter.ndim > 1 and id(parameter) not in of_norms and name.rpartition(".")[2] != "bias"
        group = decayed if plain else others
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not decayed["params"] and not others["params"]:
        raise InputError("the model has no parameter to train: set requires_grad=True on those that shall change")
    return [decayed, others]
