"""A run on disk: its result, its model, its predictions."""

import dataclasses
import functools
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainwell import models
from trainwell.augment import Augment, View, parse, parse_views
from trainwell.data.arrays import array as as_array
from trainwell.data.batches import Batches
from trainwell.data.dataset import Part, Skipped
from trainwell.data.folder import files_below
from trainwell.ensemble import marginalize
from trainwell.errors import InputError, in_one_line, is_out_of_memory
from trainwell.images import Images
from trainwell.train import augmentation, hardware, history, pretrained
from trainwell.train.evaluate import outputs_of
from trainwell.train.losses import aligned
from trainwell.train.recipe import Recipe

_SHORT_SIDE = 256  # of images that a model of arrays is shown: they are held in memory before they are resized
_FILES_AT_ONCE = 512  # decoded and predicted together, so that a large folder does not fill the memory


_NOTHING = type(None)
_INFO: dict[str, Any] = {  # of run.json, what is relied on: the types of the entries
    "source": str, "task": str, "classes": list, "data_options": dict, "fingerprint": str, "mean": list, "std": list,
    "environment": dict,
    "model": {
        "name": str, "num_classes": int, "in_chans": (int, _NOTHING), "img_size": (int, _NOTHING), "in_features": int,
        "size": (list, _NOTHING), "sample_shape": (list, _NOTHING),
    },
    "given": {"recipe": dict, "data": dict, "model": bool, "loss": bool, "metrics": list},
}  # fmt: skip


def _wrong(content: Any, kinds: dict[str, Any]) -> str:
    """Returns in words which entry is missing or of another type; "" if none is."""
    if not isinstance(content, dict):
        return "it holds no table"
    for name, kind in kinds.items():
        if name not in content:
            return f"it lacks {name}"
        if wrong := _wrong(content[name], kind) if isinstance(kind, dict) else "":
            return f"{name}: {wrong}"
        if not isinstance(kind, dict) and not isinstance(content[name], kind):
            return f"{name} is a {type(content[name]).__name__}"
    return ""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of some inputs.

    Attributes:
        names: the file of each input, or its number.
        outputs: probabilities, of the classes `(n, classes)` or of each label `(n, k)`; else values.
        classes: the names of the classes or labels; empty where they have none.
        skipped: files that could not be read, with the reason.
        task: "classification", "multilabel" or "regression".
    """

    names: tuple[str, ...]
    outputs: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    task: str = "classification"

    @property
    def labels(self) -> list[str]:
        """The most probable class of each input.

        Raises:
            InputError: the model tells no classes apart.
        """
        self._refuse("classification", "tells no classes apart")
        return [self.classes[best] for best in self.outputs.argmax(1)]

    @property
    def confidences(self) -> list[float]:
        """The probability of each label, likewise."""
        self._refuse("classification", "tells no classes apart")
        return [float(p) for p in self.outputs.max(1)]

    @property
    def label_sets(self) -> list[list[str]]:
        """The labels of each input that are more probable than not, where an input may have several.

        Raises:
            InputError: the model gives no named labels.
        """
        self._refuse("multilabel", "gives no named labels")
        return [[name for name, p in zip(self.classes, row, strict=True) if p >= 0.5] for row in self.outputs]

    def _refuse(self, task: str, lack: str) -> None:
        if not self.classes or self.task != task:
            raise InputError(f"the model {lack}; its answers are in outputs")


class Run:
    """A run that `fit` has made, or is making.

    What a run directory holds is data: nothing in it is ever executed, whoever it comes from.

    Args:
        path: the run directory.
        model: where the run's model is code of yours: the module for its weights to be loaded into, or its name again,
            "package.module:function".
        weights: the file in it that holds the weights: those that were kept, or a snapshot, such as
            "snapshots/step-00000300.safetensors".

    Raises:
        InputError: there is no run at `path`.
    """

    def __init__(
        self, path: Path | str, model: nn.Module | str | None = None, weights: str = "model.safetensors"
    ) -> None:
        self.path, self._given, self._weights = Path(path), model, weights
        try:
            self.info: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            self.recipe = Recipe.load(self.path / "recipe.toml")
        except (FileNotFoundError, NotADirectoryError):
            several = (self.path / "ensemble.json").exists()
            hint = "but an ensemble: tw.Ensemble(path)" if several else "give the folder that --out named"
            raise InputError(f"{self.path} holds no run{',' if several else ';'} {hint}") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path / 'run.json'} is damaged ({error})") from None
        if wrong := _wrong(self.info, _INFO):
            raise InputError(f"{self.path / 'run.json'} is damaged ({wrong})")

    def __repr__(self) -> str:
        figures = {name: self.result.get(name) for name in ("test_accuracy", "test_loss")}
        told = "".join(f", {name}={value:.4f}" for name, value in figures.items() if value is not None)
        return f"{type(self).__name__}({str(self.path)!r}{told})"

    @property
    def result(self) -> dict[str, Any]:
        """What `result.json` holds; empty while the run goes on."""
        path = self.path / "result.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}); remove it: resuming the run writes it anew") from None
        return content

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row an epoch."""
        path = self.path / "history.jsonl"
        return history.read(path) if path.exists() else []

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.info["classes"])

    @cached_property
    def model(self) -> nn.Module:
        """The model with the kept weights, on the CPU, in evaluation.

        Raises:
            InputError: the run is not finished, its model is code that must be given, or the weights do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path, about = self.path / self._weights, self.info["model"]
        if not path.exists():
            again = shlex.join(["trainwell", "fit", "--resume", "--out", str(self.path)])
            raise InputError(
                f"{self.path} has no model yet; go on with `{again}`, or tw.resume, if data or code are yours"
            )
        if isinstance(self._given, str) and self._given != about["name"]:
            raise InputError(f"the model of {self.path} is {about['name']!r}, not {self._given!r}")
        if self._given is None and self.info["given"]["model"]:
            raise InputError(f"{self.path} was trained with a model of yours; give it: Run(path, model=…)")
        backbone = pretrained.rebuilt(self.info.get("backbone"), about)
        module = models.create(
            self._given if self._given is not None else backbone or about["name"],
            num_classes=about["num_classes"], in_chans=about["in_chans"], img_size=about["img_size"],
            in_features=about["in_features"], allow_code=self._given is not None,
            **{name: getattr(self.recipe, name) for name in models.NOISE},
        )  # fmt: skip
        try:
            module.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise InputError(f"{path} does not fit the model {about['name']} ({in_one_line(error)})") from None
        return module.eval()

    def predict(self, inputs: Any, batch_size: int = 64, average: str = "") -> Predictions:
        """Returns the model's predictions.

        Args:
            inputs: an image file, a folder, or several of them; an image of Pillow's; or an array or tensor: uint8
                images of shape `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`, or features of shape `(n, …)`.
            batch_size: how many pass through the model at once.
            average: views of each image that probabilities are averaged over, such as `flips`, `shifts`, `ten-crop`,
                `multi-scale` or `samples:8`, some draws of the augmentation of training; separated by commas for all of
                them together. Mirror images are among them where training showed some, or, without augmentation, where
                there are classes that are not called as digits or letters are. By default the image's centre as it is.

        Raises:
            InputError: there is nothing that can be read, or it is of another kind than the model was trained on; or
                `average` names no views, or `flips` where there are to be no mirror images.
        """
        if isinstance(inputs, str | Path):
            inputs = [inputs]
        if isinstance(inputs, Iterable) and not hasattr(inputs, "shape"):
            inputs = list(inputs)
            if inputs and all(isinstance(item, str | Path) for item in inputs):
                return self._predict_files([Path(item) for item in inputs], batch_size, average)
        array = as_array(_one_image(inputs), "inputs")
        if array.ndim == 0 or not len(array):
            raise InputError("there is nothing to predict: give files, folders, or an array with a row for each sample")
        if array.ndim == 3 and array.dtype == np.uint8 and self.info["model"]["in_chans"] == 3:
            raise InputError(f"images are (n, h, w, 3), not {array.shape}: give one image as image[None]")
        names = tuple(str(number) for number in range(len(array)))
        outputs = self._outputs(self._as_samples(array), batch_size, average)
        return Predictions(names, outputs, self.classes, task=self.info["task"])

    def report(self) -> Path:
        """Writes `report.html` into the run directory and returns its path."""
        from trainwell.lab.report import write_report

        return write_report(self.path)

    def _as_samples(self, array: npt.NDArray[Any]) -> Images | npt.NDArray[np.float32]:
        if self.info["model"]["in_chans"] is not None:
            images = Images.from_array(array)
            if self.info["model"]["in_chans"] == 1 and images.channels == 3:
                images = Images.from_list([_in_grey(images[row]) for row in range(len(images))])
            return images
        shape = tuple(self.info["model"]["sample_shape"])
        if array.shape[1:] != shape:
            raise InputError(f"the model takes samples of shape {shape}, not {array.shape[1:]}")
        if not np.isfinite(array).all():
            raise InputError("the samples hold values that are not finite (NaN or infinite)")
        return array.astype(np.float32)

    def _predict_files(self, paths: Sequence[Path], batch_size: int, average: str) -> Predictions:
        from trainwell.data.decode import decode

        if self.info["model"]["in_chans"] is None:
            raise InputError(
                "the model was trained on features, not on image files: tw.Run(path).predict(array), in Python"
            )
        names: list[str] = []
        skipped: list[Skipped] = []
        outputs: list[npt.NDArray[np.float32]] = []
        files = list(_image_files(paths))
        for start in range(0, len(files), _FILES_AT_ONCE):
            decoded = []
            for file in files[start : start + _FILES_AT_ONCE]:
                try:
                    image = decode(file, self.info["data_options"].get("short_side") or _SHORT_SIDE)
                except InputError as error:
                    skipped.append(Skipped(str(file), str(error).removeprefix(f"{file}: ")))
                    continue
                decoded.append(_in_grey(image) if self.info["model"]["in_chans"] == 1 else image)
                names.append(str(file))
            if decoded:
                outputs.append(self._outputs(Images.from_list(decoded), batch_size, average))
        if not outputs:
            reasons = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:3])
            raise InputError(f"no image could be read{' (' + reasons + ')' if reasons else ''}")
        return Predictions(tuple(names), np.concatenate(outputs), self.classes, tuple(skipped), self.info["task"])

    def _outputs(
        self, samples: Images | npt.NDArray[np.float32], batch_size: int, average: str
    ) -> npt.NDArray[np.float32]:
        about = self.info["model"]
        images = isinstance(samples, Images)
        try:
            device = hardware.choose(self.recipe, images)
        except InputError:  # it was trained on a device that is not here
            device = hardware.choose(dataclasses.replace(self.recipe, device="auto"), images)
        size = tuple(about["size"]) if images else None
        augment, views = self._views(average, size)
        nothing = np.zeros(len(samples), np.float32 if self.info["task"] == "regression" else np.int64)
        batches = Batches(
            Part(samples, nothing, np.arange(len(samples))), batch_size, size=size, augment=augment,
            mean=self.info["mean"], std=self.info["std"], channels_last=device.channels_last, device=device.device,
        )  # fmt: skip
        try:
            model = self.model.to(device.device)
            if views:
                with device.autocast():
                    crops = [functools.partial(_seen, batches, view) for view in views]
                    rows = torch.arange(len(samples))
                    averaged = marginalize(
                        model, rows, crops=crops, batch_size=batch_size,
                        probabilities=lambda outputs: self._probabilities(outputs).reshape(len(outputs), -1),
                    )  # fmt: skip
                outputs = aligned(averaged.probabilities.float(), torch.from_numpy(nothing).to(device.device))
            else:
                outputs = self._probabilities(outputs_of(model, batches, device.autocast())[0])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"out of memory at {batch_size} samples at once: close other programs, or predict fewer at once: "
                f"tw.Run({str(self.path)!r}).predict(…, batch_size={max(1, batch_size // 4)})"
            ) from error
        finally:
            self.model.to("cpu")
        return outputs.cpu().numpy()

    def _probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns what is averaged: probabilities, or the outputs themselves where they are values."""
        task = self.info["task"]
        return (
            outputs if task == "regression" else outputs.softmax(1) if task == "classification" else outputs.sigmoid()
        )

    def _views(self, average: str, size: tuple[int, int] | None) -> tuple[Augment | None, list[View]]:
        """Returns what is seen beyond the border, and the views that are averaged over."""
        if average == "":
            return None, []
        if size is None:
            raise InputError("average is for images, and the model was trained on features")
        # Without the colours' components, which belong to the training set, and with nothing wiped out.
        taught = parse(self.recipe.augment.replace("auto", "none"))
        trained = dataclasses.replace(taught, pca=0.0, erase=0.0, cutout=0.0)
        # A model that was taught no mirror images may take them where they show the same, not where a b becomes a d.
        usual = parse(augmentation.chosen(self.info["task"], self.classes, True)[0])
        flip = (usual if taught == taught.off() else taught).flip > 0
        views = parse_views(average, trained, min(size), flip)
        if "samples" in average and trained == trained.off():
            raise InputError(f"{self.path} was trained without augmentation, of which there are no samples")
        return trained.off(), views


def _seen(batches: Batches, view: View, rows: torch.Tensor) -> torch.Tensor:
    """Returns a view of some images, as a model's batch."""
    images, size, numbers = batches.part.inputs, batches.size, rows.numpy()
    assert isinstance(images, Images)
    assert size is not None
    return batches.changed(numbers, view.at(images.shapes[numbers], size)).to(batches.device)


def _one_image(inputs: Any) -> Any:
    """Returns an image of Pillow's as a batch of one; anything else as it is."""
    from PIL import Image

    if not isinstance(inputs, Image.Image):
        return inputs
    return np.asarray(inputs if inputs.mode == "L" else inputs.convert("RGB"))[None]


def _in_grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns what a model that was trained on grey images can take."""
    from PIL import Image

    return image if image.shape[2] == 1 else np.array(Image.fromarray(image).convert("L"))[..., None]


def _image_files(paths: Iterable[Path]) -> Iterable[Path]:
    """Yields the files themselves, and of folders every file that is not hidden, in order."""
    for path in paths:
        if path.is_dir():
            yield from files_below(path)
        elif path.exists():
            yield path
        else:
            raise InputError(f"there is no file {path}")
