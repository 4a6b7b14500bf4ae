"""Where features put the images, before a pretrained model was trained further and after: a map of each to look at."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainwell import random
from trainwell.data.batches import Batches
from trainwell.data.dataset import Data
from trainwell.files import write_json, write_tensors
from trainwell.images import Images
from trainwell.train.evaluate import outputs_of
from trainwell.train.loop import Trainer
from trainwell.train.result import thumbnail
from trainwell.transfer.features import pooled
from trainwell.transfer.surgery import find_head

ABOUT, FILE = "transfer.json", "feature_map.safetensors"
_MOST = 300  # images: as many points are still told apart by eye, and take a second
_THUMBNAIL = 40  # pixels of the longer side
_FEW = 12  # images; among fewer t-SNE has no neighbours to keep
_PERPLEXITY = 30.0  # of t-SNE; at most a third of the images

Points = npt.NDArray[np.float64]


def write_feature_map(folder: Path, trainer: Trainer, data: Data) -> None:
    """Writes down what of a pretrained model was trained and, for classes, where its features put images.

    The images are at most 300 of the test part, or of the validation part where there is no test part. What comes to
    the head for them is mapped to the plane by t-SNE, or by principal components where there are fewer than 12.

    Two files are written, this one first:

    - `feature_map.safetensors`, for classes: `after` and, where more than the head was trained, `before`, each of shape
      `(n, 2)` within -1 and 1; the classes `targets` and `predicted`; and by its number each image, of at most 40
      pixels a side.
    - `transfer.json`: `trained`, a line on what was frozen; with a map also the images' `part` and `names`.

    Args:
        folder: the run directory.
        trainer: after `trainwell.train.result.keep_best`, so that its model has the weights that are kept. It is left
            in the mode and on the device in which it is.
        data: what it was trained on.
    """
    about: dict[str, Any] = {"trained": trainer.tuning.sentence() if trainer.tuning is not None else ""}
    inputs = data.train.inputs
    if data.task == "classification" and isinstance(inputs, Images):
        name, part = ("test", data.test) if len(data.test) else ("validation", data.val)
        chosen = np.sort(random.permutation(len(part), trainer.recipe.seed, "feature map")[:_MOST])
        rows = part.indices[chosen]
        if (tensors := _mapped(trainer, data, rows)) is not None:
            thumbnails = {str(number): thumbnail(inputs[int(row)], _THUMBNAIL) for number, row in enumerate(rows)}
            write_tensors(folder / FILE, tensors | thumbnails)
            names = [data.names[row] if data.names else f"sample {row}" for row in rows.tolist()]
            about |= {"part": name, "names": names}
    write_json(folder / ABOUT, about)


def _mapped(trainer: Trainer, data: Data, rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor] | None:
    """Returns the maps and the classes of some images; `None` where the features are no finite vector an image."""
    batches = trainer.val.plain(dataclasses.replace(data.train, indices=rows))
    features = {}
    if trainer.recipe.transfer != "linear":  # below its head a model is otherwise what it was
        features["before"], _, _ = _seen(trainer, _as_it_began(trainer, data), batches)
    features["after"], predicted, targets = _seen(trainer, trainer.model, batches)
    if not all(len(values) == len(rows) and np.isfinite(values).all() for values in features.values()):
        return None
    maps = {name: _in_the_plane(values) for name, values in features.items()}
    if "before" in maps:
        maps["after"] = _turned(maps["after"], maps["before"])
    tensors = {name: torch.from_numpy(_within_one(points)) for name, points in maps.items()}
    return {**tensors, "targets": targets, "predicted": predicted}


def _as_it_began(trainer: Trainer, data: Data) -> nn.Module:
    assert trainer.backbone is not None
    model = copy.deepcopy(trainer.backbone.model)
    if trainer.choice is not None:
        model = trainer.choice.cut_off(model, len(data.classes))
    return model.to(trainer.val.device)


def _seen(trainer: Trainer, model: nn.Module, batches: Batches) -> tuple[Points, torch.Tensor, torch.Tensor]:
    """Returns what comes to a model's head, a vector an image, the classes that it predicts, and the true ones."""
    seen: list[torch.Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(pooled([*args, *kwargs.values()][0]).float().cpu())

    random.seed_everything(trainer.recipe.seed, "feature map")
    hook = model.get_submodule(find_head(model)).register_forward_pre_hook(see, with_kwargs=True)
    try:
        outputs, targets = outputs_of(model, batches, trainer.hardware.autocast())
    finally:
        hook.remove()
    return torch.cat(seen).numpy().astype(np.float64), outputs.argmax(1).cpu(), targets.cpu()


def _in_the_plane(features: Points) -> Points:
    """Returns a map `(n, 2)` of features `(n, d)`: of likes beside each other, the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    centred = features - features.mean(0)
    with threadpool_limits(1):  # the same sums each time; and threads that wait for each other take ten times as long
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        plane = np.zeros((len(features), 2))  # there may be but one feature, or one image
        plane[:, : len(s)] = (u * s)[:, :2]
        if len(features) < _FEW or not plane.std(0).all():  # few images, or such as t-SNE cannot spread
            return plane
        start = 1e-4 * plane / plane[:, 0].std()  # as `init="pca"` has it, for features of which there may be but two
        found = TSNE(init=start.astype(np.float32), perplexity=min(_PERPLEXITY, len(features) / 3), random_state=0)
        points: Points = found.fit_transform(features.astype(np.float32)).astype(np.float64)
    points -= points.mean(0)
    return points


def _turned(points: Points, other: Points) -> Points:
    """Turns and mirrors a map to lie on another as well as it can: how t-SNE lays it says nothing."""
    from scipy.linalg import orthogonal_procrustes

    turned: Points = points @ orthogonal_procrustes(points, other)[0]
    return turned


def _within_one(points: Points) -> npt.NDArray[np.float32]:
    return (points / (np.abs(points).max() or 1.0)).astype(np.float32)
