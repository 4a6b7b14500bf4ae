"""Parameter groups for any optimizer."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from trainwell.errors import InputError, nearest
from trainwell.optim.checks import as_number
from trainwell.optim.schedules import Scaled, Value
from trainwell.weights import bare, is_weight, is_within, parameters_of_norms, trained


def no_decay_groups(
    model: nn.Module, weight_decay: Value = 0.0, *, l1: Value = 0.0, l2: Value = 0.0
) -> list[dict[str, Any]]:
    """Splits a model's parameters into a group with weight decay and one without.

    Decay is for weights that multiply inputs. Left without are biases (parameters called `bias`), the parameters of
    norm layers, and whatever has fewer than two dimensions, or is a `(c, 1, 1)`: scales, slopes, temperatures. Decaying
    those limits what the network can express and regularises nothing.

    Frozen parameters (`requires_grad=False`) are left out, shared ones are there once, and both groups keep the order
    of `model.named_parameters()`.

    Args:
        model: the model to be optimized.
        weight_decay: decay of the first group, 0 or more.
        l1, l2: proximal penalties of the first group, 0 or more, for our optimizers (see `trainwell.optim.Optimizer`).

    Returns:
        Two groups, with decay and without, that any `torch.optim` optimizer takes: `params`, their names as
        `param_names`, and `weight_decay`. Either may be empty. With penalties they have `l1` and `l2` too.

    Raises:
        InputError: nothing is to be trained, a lazy layer has no shape yet, or an argument is negative.

    >>> groups = no_decay_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), weight_decay=0.1)
    >>> [(group["weight_decay"], group["param_names"]) for group in groups]
    [(0.1, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    strengths = {"weight_decay": weight_decay, **({"l1": l1, "l2": l2} if l1 or l2 else {})}
    for name, value in strengths.items():
        if not callable(value) and not value >= 0:
            raise InputError(f"{name} is {value}: it must be 0 or more")
    decayed: dict[str, Any] = {"params": [], "param_names": [], **strengths}
    others: dict[str, Any] = {"params": [], "param_names": [], **dict.fromkeys(strengths, 0.0)}
    for name, parameter, weight in trained(model):
        group = decayed if weight else others
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not decayed["params"] and not others["params"]:
        raise InputError("the model has no parameter to train: set requires_grad=True on those that shall change")
    return [decayed, others]


def layer_decay_groups(
    model: nn.Module,
    lr: Value,
    decay: float,
    weight_decay: float = 0.0,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Gives each stage of a model a learning rate of its own: the last has `lr`, each one below `decay` times as much.

    For fine-tuning: what lies near the input is the most general and shall change the least. Clark, Luong, Le and
    Manning, *ELECTRA* (2020); Bao et al., *BEiT* (2022). Within a stage, weights and the others are parted as by
    `no_decay_groups`, with the same care for frozen and shared parameters. Frozen stages count for the depth.

    Without `stages`, these are the model's children in the order in which they were added, which must be that of their
    use; `nn.Sequential` and `nn.ModuleList` are opened, so that each block is a stage. What has no weight of its own
    belongs to the stage before it, like a norm, or to the first, and so do parameters of the model itself. A ResNet's
    stages are its stem, each residual block, and `fc`.

    Args:
        model: the model to be optimized; what wraps it (`DistributedDataParallel`, `torch.compile`) adds no names.
        lr: learning rate of the last stage, a number or a schedule.
        decay: factor from each stage to the one below, above 0 and at most 1; 0.65 to 0.9 is usual.
        weight_decay: decay of the weights, 0 or more.
        stages: from the input up, the names of the modules or parameters of each stage: one name or several. All of a
            module's parameters go with it; where several names fit, the first does.

    Returns:
        Groups for any `torch.optim` optimizer, from the input up: `params`, `param_names`, `weight_decay`, `lr`. With a
        schedule, `lr` is a `scaled` one. Empty groups are left out.

    Raises:
        InputError: an argument is out of its range, a name fits no parameter, a parameter is in no stage, or
            `no_decay_groups` refuses the model.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    >>> for group in layer_decay_groups(model, lr=0.1, decay=0.5, weight_decay=0.01):
    ...     print(group["lr"], group["weight_decay"], group["param_names"])
    0.05 0.01 ['0.weight']
    0.05 0.0 ['0.bias', '1.weight', '1.bias']
    0.1 0.01 ['2.weight']
    0.1 0.0 ['2.bias']
    """
    if not 0 < as_number(decay, "decay") <= 1:
        raise InputError(f"decay is {decay}: it must be above 0 and at most 1")
    top = lr if callable(lr) else as_number(lr, "lr")
    model = bare(model)
    parted = no_decay_groups(model, weight_decay)
    if stages is None:
        named_stages, strict = _blocks_with_weights(model), False
    else:
        named_stages, strict = [[stage] if isinstance(stage, str) else [*stage] for stage in stages], True
    depth_of = _depths(model, named_stages, strict)
    groups = []
    for depth in range(len(named_stages)):
        factor = decay ** (len(named_stages) - 1 - depth)
        for group in parted:
            pairs = zip(group["param_names"], group["params"], strict=True)
            chosen = {name: parameter for name, parameter in pairs if depth_of[name] == depth}
            if chosen:
                rate = Scaled(top, factor) if callable(top) else top * factor
                named = {"params": [*chosen.values()], "param_names": [*chosen]}
                groups.append({**named, "weight_decay": group["weight_decay"], "lr": rate})
    return groups


def _blocks_with_weights(model: nn.Module) -> list[list[str]]:
    """The names of the blocks of each stage, from the input up; what comes before the first weights is in none."""
    of_norms = parameters_of_norms(model)
    stages: list[list[str]] = []
    for name, block in _blocks(model, ""):
        if any(is_weight(key, parameter, of_norms) for key, parameter in block.named_parameters()):
            stages.append([name])
        elif stages:
            stages[-1].append(name)
    return stages or [[]]


def _blocks(module: nn.Module, prefix: str) -> Iterable[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _depths(model: nn.Module, stages: list[list[str]], strict: bool) -> dict[str, int]:
    """The stage of each parameter, the first for what is in none; `strict` refuses that, and names that fit nothing."""
    depths: dict[str, int] = {}
    names = [name for name, _ in model.named_parameters()]
    for depth, prefixes in enumerate(stages):
        for prefix in prefixes:
            fitting = [name for name in names if name not in depths and is_within(name, prefix)]
            if strict and not fitting:
                told = nearest(prefix, [name for name, _ in model.named_modules()])
                raise InputError(f"stages: no parameter is left for {prefix!r}{told}; write a module before its parent")
            depths.update(dict.fromkeys(fitting, depth))
    lost = [name for name in names if name not in depths]
    if strict and lost:
        raise InputError(f"stages: the parameter {lost[0]!r} is in none, like {len(lost) - 1} more: add its module")
    return dict.fromkeys(lost, 0) | depths
