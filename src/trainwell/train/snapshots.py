"""Snapshots: the weights of some moments of one run, as the members of an ensemble."""

from pathlib import Path

from torch import nn

from trainwell.files import write_tensors
from trainwell.train.optimizers import cycle
from trainwell.train.recipe import Recipe

FOLDER = "snapshots"


def due(recipe: Recipe, step: int, total_steps: int, at_epochs_end: bool) -> bool:
    """Says whether a resolved recipe keeps the weights after a step.

    It does at the ends of the rate's cycles (Huang et al., *Snapshot ensembles: train 1, get M for free*, 2017), or,
    with a schedule of another kind, at those of all epochs, of which the last ones stay.

    >>> recipe = Recipe(snapshots=3, schedule="restarts")
    >>> [step for step in range(1, 101) if due(recipe, step, 100, at_epochs_end=step % 10 == 0)]
    [34, 68, 100]
    """
    if not recipe.snapshots:
        return False
    if recipe.schedule == "restarts":
        return step % cycle(recipe, total_steps) == 0 or step == total_steps
    return at_epochs_end


def keep(folder: Path, model: nn.Module, step: int, most: int) -> None:
    """Keeps the weights that a model has after a step in a run's folder, and no more than so many of the newest."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    write_tensors(place / f"step-{step:08d}.safetensors", model.state_dict(), {"kept": f"step {step}"})
    for old in taken(folder, step)[:-most]:
        old.unlink()


def taken(folder: Path, step: int) -> list[Path]:
    """Returns the files of the snapshots that were taken up to a step, in order."""
    last = f"step-{step:08d}.safetensors"
    return sorted(path for path in (folder / FOLDER).glob("step-*.safetensors") if path.name <= last)


def evaluation_of(weights: Path) -> Path:
    """Returns where is written what the model with some weights says of the validation and the test part."""
    return weights.with_name(weights.name.replace("step-", "evaluation-"))
