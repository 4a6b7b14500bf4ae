"""A model's parameters: which are weights, which decay and are penalised, which lie in a part; and the model itself."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # all batch and instance norms

from trainwell.errors import InputError

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameters_of_norms(model: nn.Module) -> set[int]:
    """Returns the ids of the parameters of norm layers."""
    norms = (module for module in model.modules() if isinstance(module, _NORMS))
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}


def is_weight(name: str, parameter: nn.Parameter, of_norms: set[int]) -> bool:
    """Says whether it multiplies inputs, so that it may decay: no bias, no norm's, of two dimensions or more.

    A scale for each channel of an image, `(c, 1, 1)`, has one dimension in truth.
    """
    if parameter.ndim == 3 and sum(side > 1 for side in parameter.shape) == 1:
        return False
    return parameter.ndim > 1 and id(parameter) not in of_norms and name.rpartition(".")[2] != "bias"


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yields the name of each parameter that is trained, itself, and whether it is a weight; shared ones once.

    Raises:
        InputError: a lazy layer has no shape yet.
    """
    of_norms = parameters_of_norms(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"the parameter {name!r} has no shape yet: run one batch through the model first")
        yield name, parameter, is_weight(name, parameter, of_norms)


def is_within(name: str, part: str | None) -> bool:
    """Says whether a module or a tensor is a part of a model, or in it; the part `""` is the model, `None` none.

    >>> is_within("fc.weight", "fc"), is_within("fc2.weight", "fc"), is_within("fc", "fc"), is_within("fc.weight", None)
    (True, False, True, False)
    """
    return part is not None and (part == "" or f"{name}.".startswith(f"{part}."))


def bare(model: nn.Module) -> nn.Module:
    """Returns the model itself: what wraps it for several devices or compiles it puts words before its names."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
