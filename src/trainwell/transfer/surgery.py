"""A model's last layer and its stages: found, replaced, frozen, drawn anew."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from trainwell.errors import InputError, nearest
from trainwell.freezing import freeze_parameters, thaw
from trainwell.regularize import DropConnect
from trainwell.weights import bare, is_weight, is_within, parameters_of_norms

_USUAL = ("fc", "classifier", "head", "heads")
_STAGES = 5  # a model is taken apart until it has so many


# ---------------------------------------------------------------------- the last layer


def find_head(model: nn.Module) -> str:
    """Returns the name of a model's last layer: an `nn.Linear`, or an `nn.Conv2d` of 1×1 pixels as in SqueezeNet.

    It is the one that the model tells, as timm's do in `pretrained_cfg["classifier"]`, or else that of a usual name
    (`fc`, `classifier`, `head`, `heads`); in what these name, such as an `nn.Sequential`, it is the last such layer.
    In a model without them it is the last that was added.

    Raises:
        InputError: there is no such layer where it should be.

    >>> find_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    '2'
    """
    model = bare(model)
    modules = dict(model.named_modules())
    told = _told(model)
    if told is not None and told not in modules:
        raise InputError(f"the model says that its last layer is {told!r}, which it does not have")
    for name in [told] if told is not None else _USUAL:
        if name in modules:
            layers = _layers(modules[name], name)
            if layers:
                return layers[-1]
            if told is not None or isinstance(modules[name], nn.Identity) or [*modules[name].parameters()]:
                kind = type(modules[name]).__name__
                raise InputError(
                    f"the model's last layer {name!r} is {kind}, no Linear or 1×1 Conv2d: make the model with classes"
                )
    layers = [layer for name, child in model.named_children() for layer in _layers(child, name)]
    if not layers:
        raise InputError(
            f"the {type(model).__name__} has no Linear and no 1×1 Conv2d in it: it needs one as its last layer"
        )
    return layers[-1]


def _told(model: nn.Module) -> str | None:
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        told = config.get("classifier") if isinstance(config, dict) else None
        if isinstance(told, str):
            return told
    return None


def _layers(module: nn.Module, name: str) -> list[str]:
    """Returns the names of the layers in a module, itself among them, that could be a last one."""
    return [inner for inner, layer in module.named_modules(prefix=name) if _is_last(layer)]


def _is_last(layer: nn.Module) -> bool:
    if isinstance(layer, DropConnect):  # in a Linear's place
        return layer.weight.ndim == 2
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    )


def replace_head(model: nn.Module, num_classes: int, *, name: str | None = None, zero: bool = True) -> nn.Module:
    """Puts a new last layer for `num_classes` into a model, in place, and returns the layer.

    It is of the same kind as the old one, on its device and of its dtype, with a bias, and is trained. Hooks of the old
    one, such as noise that was put before it, go with it: put noise in afterwards. An int `num_classes` of the model is
    set.

    Args:
        model: the model.
        num_classes: how many outputs, at least 1.
        name: of the layer to be replaced; None for that of `find_head`.
        zero: start with the same output for all classes, so that the first loss is ln(num_classes) and the first
            gradients do not disturb what lies below; else as torch draws a layer.

    Raises:
        InputError: there are less than 1 classes, or there is no such layer of that name.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> replace_head(model, 5)
    Linear(in_features=3, out_features=5, bias=True)
    >>> model(torch.randn(1, 4)).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}: it must be at least 1")
    model = bare(model)
    name = find_head(model) if name is None else name
    old = _named(model, name)
    if not name or not _is_last(old):
        raise InputError(f"{name!r} is a {type(old).__name__}: only a Linear or a 1×1 Conv2d in a model is replaced")
    if isinstance(old, DropConnect):
        raise InputError(f"{name!r} is a {type(old).__name__}, which a new layer would not be: put it in afterwards")
    assert isinstance(old, nn.Linear | nn.Conv2d)
    if nn.parameter.is_lazy(old.weight):
        raise InputError(f"the layer {name!r} has no shape yet: run one batch through the model first")
    where: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, **where)
    else:
        where |= {"stride": old.stride, "padding": old.padding}
        new = nn.Conv2d(old.in_channels, num_classes, 1, **where)
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    setattr(parent, own, new.train(old.training))
    if zero:
        assert new.bias is not None
        nn.init.zeros_(new.weight)
        nn.init.constant_(new.bias, 1.0 if _before_relu(parent, new) else 0.0)
    if type(getattr(model, "num_classes", None)) is int:
        model.num_classes = num_classes  # type: ignore[assignment]
    return new


def _before_relu(parent: nn.Module, layer: nn.Module) -> bool:
    """Says whether a ReLU follows, as in SqueezeNet: at 0 it would let no gradient through, and nothing be learned."""
    after = [*parent.children()][[*parent.children()].index(layer) + 1 :] if isinstance(parent, nn.Sequential) else []
    return any(isinstance(module, nn.ReLU) for module in after)


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        raise InputError(f"the model has no module {name!r}{nearest(name, modules)}")
    return modules[name]


class Reached(Exception):
    """The forward pass has come to where it is to end, with what comes there: the layer's first argument."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.value = [*args, *kwargs.values()][0]


def head_inputs(model: nn.Module, x: Any) -> Tensor:
    """Returns what comes to the last layer for a batch; neither that layer nor what follows it is run.

    The model is in the mode in which it is, and gradients are computed as they would be: for features, put it in
    evaluation and use `torch.no_grad`.

    Args:
        model: of which `find_head` finds the last layer.
        x: what the model is called with.

    Raises:
        InputError: the pass does not come to the last layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> head_inputs(model, torch.ones(1, 2, 2)).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    model = bare(model)
    name = find_head(model)

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise Reached(args, kwargs)

    hook = model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(x)
    except Reached as reached:
        inputs: Tensor = reached.value
        return inputs
    finally:
        hook.remove()
    raise InputError(f"the pass through the model does not come to its last layer {name!r}")


# ---------------------------------------------------------------------- stages


def stages(model: nn.Module) -> list[tuple[str, ...]]:
    """Returns the names of the modules of each stage of a model, from the input up; the last is the head.

    A stage is what is frozen or thawed at once. Stages are the model's children in the order in which they were added,
    which must be that of their use. While there are fewer than five, the largest is taken apart, if it is a chain
    (`nn.Sequential`, `nn.ModuleList`) or a whole network in a model: a residual block stays whole, and so does what
    holds the last layer, an `nn.Sequential` called `classifier` say. What has no weight of its own, like a norm,
    belongs to the stage before it, or to the first; a parameter of the model itself (`cls_token`), by its own name, to
    the first. What has no parameters at all is left out.

    Returns:
        The names, which together cover each parameter once; `trainwell.optim.layer_decay_groups` takes them.

    Raises:
        InputError: the model has no last layer, see `find_head`, or a parameter has no shape yet.

    >>> stages(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    [('0', '1'), ('3',)]
    """
    return _Parts(bare(model)).stages()


def stage_names(model: nn.Module) -> list[str]:
    """Returns for each of a model's `stages` the name of its first module, by which it is called.

    >>> from trainwell.models import create
    >>> stage_names(create("resnet8", num_classes=10, in_chans=3))
    ['conv1', 'layer1', 'layer2', 'layer3', 'fc']
    """
    modules = dict(bare(model).named_modules(remove_duplicate=False))
    return [next(name for name in names if name in modules) for names in stages(model)]


class _Parts:
    """The parts of a model, by their names; a shared parameter is of the first that has it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.head = model, find_head(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = dict(model.named_parameters())
        for name, parameter in self.parameters.items():
            if nn.parameter.is_lazy(parameter):
                raise InputError(f"the parameter {name!r} has no shape yet: run one batch through the model first")
        if not self.within(self.head, self.parameters):
            raise InputError(f"the last layer {self.head!r} has only parameters of other layers: replace it first")
        norms = parameters_of_norms(model)
        self.weights = {name for name, parameter in self.parameters.items() if is_weight(name, parameter, norms)}

    def stages(self) -> list[tuple[str, ...]]:
        parts = self.inside("")
        while True:
            found = self.grouped(parts)
            closed = [part for part in parts if self.can_be_opened(part, alone=len(found) == 1)]
            if len(found) >= _STAGES or not closed:
                return found
            place = parts.index(max(closed, key=self.size))
            parts[place : place + 1] = self.inside(parts[place])

    def inside(self, name: str) -> list[str]:
        """Returns the parts of a module that have parameters: first its own parameters, then its children."""
        module = self.modules[name]
        own = [key for key, _ in module.named_parameters(recurse=False)]
        children = [key for key, _ in module.named_children()]
        return [part for key in [*own, *children] if self.within(part := f"{name}.{key}".lstrip("."), self.parameters)]

    def within(self, part: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if is_within(name, part)]

    def size(self, part: str) -> int:
        return sum(self.parameters[name].numel() for name in self.within(part, self.parameters))

    def grouped(self, parts: list[str]) -> list[tuple[str, ...]]:
        """Returns the parts by stages; the head is the last, wherever it was added."""
        found: list[list[str]] = []
        first: list[str] = []  # of the next stage: its container's own parameters, and what precedes all weights
        head = [part for part in parts if self.within(part, [self.head])]
        for part in parts:
            if part in head:
                continue
            if part not in self.parameters and self.within(part, self.weights):
                found.append([*first, part])
                first = []
            else:
                (found[-1] if found and part not in self.parameters else first).append(part)
        if not found:
            return [(*first, *head)]
        found[-1] += first
        return [*map(tuple, found), tuple(head)]

    def can_be_opened(self, part: str, *, alone: bool) -> bool:
        """Says whether taking a part apart gives stages that can be frozen one by one; `alone` is all there is."""
        module = self.modules.get(part)
        if module is None or part == self.head:
            return False
        inner = [name for key, _ in module.named_children() if self.within(name := f"{part}.{key}", self.weights)]
        if not inner:
            return False
        if alone or self.holds_blocks(part):
            return True
        if self.within(part, [self.head]):
            return False
        if len(inner) == 1:
            return self.can_be_opened(inner[0], alone=False)
        return _is_chain(module)

    def holds_blocks(self, part: str) -> bool:
        """Says whether there is a chain of blocks, each of several layers, in a part: then it is no block itself."""
        for prefix, module in self.modules[part].named_modules(prefix=part):
            blocks = [self.within(f"{prefix}.{key}", self.weights) for key, _ in module.named_children()]
            if _is_chain(module) and sum(len(weights) > 1 for weights in blocks) > 1:
                return True
        return False


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or type(module).forward is nn.Sequential.forward


def freeze_all_but(model: nn.Module, top: int) -> list[str]:
    """Freezes the stages of a model but for the last few, which are thawed; see `stages` and `trainwell.freezing`.

    Modules all of whose parameters are frozen are frozen whole, with the dropout in them, as are the statistics of a
    batch norm without parameters below the first stage that is trained. Other things without parameters that stand
    beside the stages, like a dropout before the last layer, go on as before.

    Args:
        model: the model.
        top: how many stages are trained, from 1, the head alone, to all.

    Returns:
        The names of what is frozen, modules and parameters, from the input up.

    Raises:
        InputError: there are fewer stages, or `stages` refuses the model.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> freeze_all_but(model, 2)
    ['0']
    """
    model = bare(model)
    found = stages(model)
    if not 1 <= top <= len(found):
        raise InputError(f"top is {top}: the model has {len(found)} stages, of which 1 to {len(found)} can be trained")
    names = [name for stage in found[:-top] for name in stage]
    thaw(model)
    freeze_parameters(
        model, {name for name, _ in model.named_parameters() if any(is_within(name, part) for part in names)}
    )
    return names


# ---------------------------------------------------------------------- weights drawn anew


def reinitialize(model: nn.Module, *names: str) -> None:
    """Draws modules of a model anew, by their own `reset_parameters`; norms forget their statistics too.

    So a residual network's convolutions get torch's own start, which is narrower than that of our ResNets and, before
    batch norm, as good.

    Args:
        model: the model.
        names: of modules of it; all in them is drawn anew.

    Raises:
        InputError: there is no module of a name, or one has parameters that it cannot draw; then nothing was changed.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    >>> _ = nn.init.zeros_(model[1].weight), model[0].running_mean.fill_(5)
    >>> reinitialize(model, "0", "1")
    >>> model[0].running_mean.tolist(), model[1].weight.any().item()
    ([0.0, 0.0], True)
    """
    model = bare(model)
    found: dict[str, nn.Module] = {}
    for name in names:
        found |= dict(_named(model, name).named_modules(prefix=name))
    for name, module in found.items():
        if (
            not callable(getattr(module, "reset_parameters", None))
            and next(module.parameters(recurse=False), None) is not None
        ):
            raise InputError(
                f"the {type(module).__name__} {name!r} has no reset_parameters() to draw its parameters by"
            )
    for module in reversed(found.values()):  # a module's own last, which may set those in it
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
