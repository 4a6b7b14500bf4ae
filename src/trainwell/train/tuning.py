"""Which stages of a pretrained model are trained at each step, and how fast."""

import re
from dataclasses import dataclass

from torch import nn

from trainwell.freezing import freeze, freeze_parameter, freeze_parameters, is_frozen
from trainwell.train.recipe import Recipe
from trainwell.transfer.cut import Cut
from trainwell.transfer.l2_sp import L2SP
from trainwell.transfer.surgery import find_head, freeze_all_but, stages
from trainwell.weights import bare, is_within

_OURS = "_trainwell_tuning"  # on a model: the names of what tuning froze, which the next one may thaw again
_THAWED_BY = 0.5  # the fraction of the steps after which gradual unfreezing has come to the input


def stages_trained(way: str, count: int, step: int, total_steps: int) -> int:
    """Returns how many stages, from the head down, are trained at a step.

    Args:
        way: as the recipe's `transfer`.
        count: how many stages the model has.
        step: of the optimizer, from 0.
        total_steps: of the run.

    >>> [stages_trained("gradual", 5, step, 80) for step in (0, 9, 10, 20, 30, 40, 79)]
    [1, 1, 2, 3, 4, 5, 5]
    >>> stages_trained("linear", 5, 0, 80), stages_trained("top2", 5, 0, 80), stages_trained("lp_ft", 5, 0, 80)
    (1, 3, 5)
    """
    if way == "linear":
        return 1
    if top := re.fullmatch(r"top(\d+)", way):
        return min(1 + int(top[1]), count)
    if way == "gradual":
        return min(count, 1 + int(step * (count - 1) / (_THAWED_BY * total_steps)))
    return count


@dataclass
class Tuning:
    """How a pretrained model is trained: see the recipe's `transfer`, `backbone_lr`, `layer_decay`, `l2_sp`.

    Attributes:
        model: it.
        recipe: a resolved recipe.
        total_steps: of the run.
        stages: the names of the modules of each stage, from the input to the head.
        kept: the names of modules and parameters that were frozen before, and stay so.
        pull: toward the pretrained weights, if there is one.
    """

    model: nn.Module
    recipe: Recipe
    total_steps: int

    def __post_init__(self) -> None:
        self.stages = stages(self.model)
        self.head = find_head(self.model)
        frozen, ours = _frozen(self.model), vars(bare(self.model)).get(_OURS, set())
        self.kept = frozen - ours if ours <= frozen else frozen  # else others have thawed since, and frozen anew
        self._trained = 0
        most = self.at(self.total_steps)  # what the optimizer must know
        self.pull = L2SP(self.model, self.recipe.l2_sp, head=self.head) if self.recipe.l2_sp and most > 1 else None

    def at(self, step: int) -> int:
        """Freezes and thaws as a step wants it; returns how many stages are trained, from the head down."""
        trained = stages_trained(self.recipe.transfer, len(self.stages), step, self.total_steps)
        if trained != self._trained:
            freeze_all_but(self.model, trained)
            if self.recipe.transfer == "linear":  # the last stage may have more layers than the last
                below = {name for name, _ in self.model.named_parameters() if not is_within(name, self.head)}
                freeze_parameters(self.model, below)
            _freeze_each(self.model, self.kept)
            vars(bare(self.model))[_OURS] = _frozen(self.model) - self.kept
            self._trained = trained
        return trained

    def rate(self, parameter: str) -> float:
        """Returns by what the learning rate is multiplied for a parameter of that name."""
        depth = self.depth(parameter)
        return 1.0 if depth == 0 else self.recipe.backbone_lr * self.recipe.layer_decay ** (depth - 1)

    def depth(self, parameter: str) -> int:
        """Returns how far below the head the stage of a parameter is; 0 for the head's own."""
        for depth, names in enumerate(reversed(self.stages)):
            if any(is_within(parameter, name) for name in names):
                return depth
        return len(self.stages) - 1

    def sentence(self) -> str:
        """Returns in a line what is trained."""
        count, way = len(self.stages), self.recipe.transfer
        frozen = [name for names in self.stages[: count - stages_trained(way, count, 0, self.total_steps)]
                  for name in names]  # fmt: skip
        if isinstance(self.model, Cut):
            frozen = [name.removeprefix("body.") for name in frozen if name != "body"] or ["all below the head"]
        told = f"frozen: {_listed(frozen)}" if frozen else "nothing is frozen"
        if way == "gradual":
            told += f", all thawed after {round(_THAWED_BY * self.total_steps):,} steps"
        kept = sorted(name for name in self.kept if not any(name.startswith(f"{above}.") for above in self.kept))
        return told + (f"; stays frozen: {_listed(kept)}" if kept else "")


def make_tuning(model: nn.Module, recipe: Recipe, total_steps: int) -> Tuning | None:
    """Makes what a resolved recipe says of a pretrained model, and freezes accordingly; `None` if it says nothing."""
    if recipe.transfer in ("none", "auto"):
        return None
    return Tuning(model, recipe, total_steps)


def _frozen(model: nn.Module) -> set[str]:
    """Returns the names of a model's modules that are frozen, and of its parameters that are not trained."""
    model = bare(model)
    modules = {name for name, module in model.named_modules() if is_frozen(module)}
    return modules | {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _freeze_each(model: nn.Module, names: set[str]) -> None:
    """Freezes modules and parameters of a model by their names."""
    modules = dict(bare(model).named_modules())
    for name in names:
        if name in modules:
            freeze(modules[name])
        else:
            freeze_parameter(model, name)


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
