"""The recipe: everything that decides what a run computes, in one frozen object."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from trainwell.errors import InputError, nearest
from trainwell.files import write_atomically

# How long to train where nothing else says so: at least so many steps, within so many epochs.
_PRESETS = {"quick": (300, 5, 40), "good": (1_500, 15, 150), "best": (6_000, 60, 400)}
_MOST_THREADS = 1_024
_BATCH_SIZE = 128
_RATES = {
    "adamw": 2e-3, "adam": 2e-3, "adamax": 4e-3, "nadam": 2e-3, "radam": 2e-3, "lion": 2e-4, "sgd": 0.1,
    "rmsprop": 1e-3, "adagrad": 1e-2, "muon": 2e-3, "soap": 3e-3,
}  # fmt: skip
_DECAYS = {"adamw": 0.05, "lion": 0.5, "muon": 0.05, "soap": 0.05, "sgd": 5e-4}
SCHEDULES = (
    "cosine", "constant", "linear", "step", "exponential", "inverse_time", "restarts", "triangular", "one_cycle", "wsd",
    "plateau",
)  # fmt: skip
AUGMENTS = ("auto", "none", "light", "standard", "strong")
AVERAGES = ("ema", "swa", "latest")
_TRANSFER = re.compile(r"auto|none|linear|stage|top[1-9]\d*|all|gradual|lp_ft")
LENGTHS = ("epochs", "steps", "minutes")
OWN_RISE = ("triangular", "one_cycle")  # schedules that begin low by themselves

# The ranges of the numbers, where they are given.
_AT_LEAST: dict[str, float] = {
    "epochs": 1, "steps": 0, "batch_size": 1, "grad_accum_steps": 1, "img_size": 1, "threads": 1, "patience": 1,
    "average_epochs": 1, "ema_decay": 0, "snapshots": 0, "momentum": 0, "weight_decay": 0, "label_smoothing": 0,
    "drop_rate": 0, "drop_path_rate": 0, "drop_map_rate": 0, "dropconnect": 0, "l1": 0, "l2": 0, "sam": 0, "mixup": 0,
    "cutmix": 0, "min_delta": 0, "warmup": 0, "l2_sp": 0, "transfer_minutes": 0,
}  # fmt: skip
_ABOVE_0 = ("lr", "minutes", "clip_grad", "backbone_lr", "layer_decay")
_BELOW_1 = ("momentum", "label_smoothing", "warmup", "drop_rate", "drop_path_rate", "drop_map_rate", "dropconnect")


@dataclass(frozen=True)
class Recipe:
    """How to train. Fields that are None or "auto" are chosen when the data are known, and written beside the run."""

    preset: Literal["quick", "good", "best"] = "good"
    """how long to train, where epochs, steps and minutes are not given"""

    model: str = "auto"
    """mlp, resnet8, resnet20 …, resnet18, resnet34, resnet50, or package.module:function"""

    pretrained: str = "auto"
    """where a pretrained model comes from: embedded (the small one in the package), a run's folder, a .safetensors
    file, hub:NAME, timm:NAME, transformers:NAME; of several, with commas between, the one that knows most of the data;
    none trains from scratch; auto, where no model is named, is one of the hub for photographs, and embedded for small
    images"""

    pretrained_partial: bool = False
    """take of pretrained weights what fits, where others than the last layer's do not; by default that is refused"""

    transfer: str = "auto"
    """what of a pretrained model is trained: linear (a new last layer, on features computed once), stage (the same on
    the stage that does best), top1, top2 … (the stages below it too), all, gradual (more and more of them), lp_ft (the
    last layer alone first, to its optimum); auto tries what suits the data"""

    transfer_stage: str = "auto"
    """for transfer=stage: which one, by its name, such as layer2; auto is the one that does best"""

    transfer_minutes: float = 5.0
    """for transfer=auto: how long ways of fine-tuning are tried, in all"""

    backbone_lr: float = 0.1
    """of the pretrained stages: their learning rate as a fraction of that of the new last layer"""

    layer_decay: float = 1.0
    """the factor from the learning rate of each pretrained stage to that of the one below"""

    l2_sp: float = 0.0
    """pull of the pretrained weights toward what they were, in place of their decay: alpha of L2-SP, such as 0.01"""

    img_size: int | None = None
    """side of the square images that the model sees; by default their own up to 64, else 224"""

    drop_rate: float = 0.0
    """dropout before the last layer, or where the model has dropout already (mlp: in each hidden layer): the fraction
    dropped"""

    drop_path_rate: float = 0.0
    """stochastic depth: the fraction of images that skip the last residual block, falling to 0 at the first"""

    drop_map_rate: float = 0.0
    """dropout of whole feature maps before each convolution but the first and those of one pixel: the fraction of the
    maps that is dropped"""

    dropconnect: float = 0.0
    """DropConnect in the last layer: the fraction of its weights that is dropped, in each sample others"""

    epochs: int | None = None
    """how often to go through the training images"""

    steps: int | None = None
    """how many steps of the optimizer to take, in place of epochs; 0, for transfer=linear, solves for the optimum"""

    minutes: float | None = None
    """how long to train by the clock, in place of epochs; the speed is measured first and the steps then fixed"""

    batch_size: int | None = None
    """images that pass through the model at once; by default 128, or less, down to 16, for 8 steps an epoch"""

    grad_accum_steps: int = 1
    """batches whose gradients are averaged into one step"""

    optimizer: Literal[
        "adamw", "adam", "nadam", "radam", "adamax", "lion", "sgd", "rmsprop", "adagrad", "muon", "soap"
    ] = "adamw"
    """how a step is taken"""

    lr: float | None = None
    """the highest learning rate; by default the optimizer's (adamw 0.002, sgd 0.1, …)"""

    momentum: float = 0.9
    """of sgd and rmsprop"""

    nesterov: bool = True
    """sgd's momentum looks ahead, as Nesterov's; else it is the heavy ball's"""

    weight_decay: float | None = None
    """on weights alone; by default adamw, muon, soap 0.05, lion 0.5, sgd 0.0005, others 0"""

    decay_all: bool = False
    """let biases and the scales of norms decay as well"""

    l1: float = 0.0
    """penalty on the sum of all absolute weights, in proximal form: weights that do not pay become exactly 0"""

    l2: float = 0.0
    """penalty on half the sum of all squared weights, in proximal form; with l1 the elastic net"""

    sam: float = 0.0
    """sharpness-aware minimisation: how far up the gradient is taken, such as 0.05; 0 is off; twice the time"""

    schedule: str = "cosine"
    """how the learning rate falls: cosine, constant, linear, step, exponential, inverse_time, restarts, triangular,
    one_cycle, wsd, plateau; or written out with its rates, as piecewise(0.1, {500: 0.1})"""

    warmup: float = 0.05
    """the fraction of all steps in which the rate rises to its highest"""

    augment: str = "auto"
    """how images are changed in training: none, light, standard, strong, or with other amounts, as standard(rotate=5);
    auto is standard, without flips for digits and letters, and none for regression"""

    label_smoothing: float = 0.0
    """the share of each target that is spread over all classes"""

    mixup: float = 0.0
    """blend each sample with another: alpha of the Beta distribution of the shares, such as 0.2; 0 is off"""

    cutmix: float = 0.0
    """paste a box of another image into each: alpha of the shares, such as 1; beside mixup, every other batch or so"""

    average: Literal["none", "ema", "swa", "latest"] = "none"
    """average the weights too, and hand over what does better on validation: ema, exponentially, over the steps; swa,
    equally, over the ends of the last quarter of the epochs; latest, over those of the last five"""

    ema_decay: float | None = None
    """of ema; by default such that it spans a quarter of all steps, at most 10,000"""

    average_epochs: int | None = None
    """how many epochs swa and latest average"""

    snapshots: int = 0
    """keep the weights of so many moments, and hand over the ensemble of those that help on validation: with
    schedule='restarts', which then has as many equal cycles, their ends; else the ends of the last epochs"""

    class_weight: Literal["none", "balanced"] = "none"
    """balanced: the loss of each class counts as if all classes were equally common"""

    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """balanced: each class is drawn equally often, samples of small classes several times an epoch"""

    clip_grad: float | None = None
    """the longest gradient (2-norm over all parameters) that is not shortened"""

    monitor: str = "auto"
    """which figure of the history decides what is best: val_accuracy, val_balanced_accuracy, val_loss, or val_NAME"""

    monitor_mode: Literal["auto", "min", "max"] = "auto"
    """whether less or more of it is better; to be said for a metric of your own"""

    patience: int | None = None
    """stop after so long without a gain; by default never before the end"""

    patience_unit: Literal["epochs", "steps"] = "epochs"
    """what patience counts"""

    min_delta: float = 0.0
    """what a gain must exceed"""

    restore_best: bool = True
    """whether the weights of the best epoch are handed over, or else of the last"""

    on_nonfinite: Literal["stop", "halve"] = "stop"
    """when loss or gradient are not finite: stop, or go back to the last epoch's end with half the rate"""

    seed: int = 0
    """of the weights, the order of samples, and all noise; the split has a seed of its own"""

    device: str = "auto"
    """cuda, mps, cpu, or one of them by number, as cuda:1"""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """of the arithmetic in convolutions and matrix products; auto is bf16 where the hardware has it"""

    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """how images lie in memory"""

    threads: int | None = None
    """of the CPU; by default as many as torch finds"""

    def __post_init__(self) -> None:
        if callable(self.schedule):
            object.__setattr__(self, "schedule", repr(self.schedule))
        if not isinstance(self.augment, str) and type(self.augment).__name__ == "Augment":
            object.__setattr__(self, "augment", repr(self.augment))
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        _check_texts(self)
        _check_ranges(self)
        _check_together(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """Makes a recipe from names and values.

        Raises:
            InputError: a name is none of a recipe's fields (the nearest is suggested), or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise InputError(f"a recipe has no field {name!r}{nearest(name, known)}")
        return cls(**fields)

    def but(self, **fields: Any) -> "Recipe":
        """Returns the recipe with some fields changed; a length among them takes the place of any other.

        Raises:
            InputError: as `from_dict`.

        >>> Recipe(epochs=3, lr=0.1).but(steps=5) == Recipe(steps=5, lr=0.1)
        True
        """
        lengths = dict.fromkeys(LENGTHS) if fields.keys() & set(LENGTHS) else {}
        return Recipe.from_dict({**dataclasses.asdict(self), **lengths, **fields})

    @classmethod
    def load(cls, path: Path | str) -> "Recipe":
        """Reads a recipe from a TOML file of the names and values that differ from the defaults."""
        path = Path(path)
        try:
            return cls.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: no recipe can be read from it ({reason})") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save(self, path: Path | str) -> None:
        """Writes the recipe as a TOML file."""
        write_atomically(path, self.to_toml())

    def to_toml(self) -> str:
        """Returns the recipe as TOML; fields that are None are left out, because TOML has no word for them."""
        import tomli_w

        return tomli_w.dumps({name: value for name, value in dataclasses.asdict(self).items() if value is not None})

    def changes(self) -> dict[str, Any]:
        """Returns the fields that differ from the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def resolve(self, *, task: str, sizes: dict[str, int], side: tuple[int, int] | None, images: bool) -> "Recipe":
        """Returns the recipe with every choice made that the data decide; the device's are made apart.

        Args:
            task: "classification", "multilabel" or "regression".
            sizes: how many samples "train", "val" and "test" have.
            side: height and width if all images share them.
            images: whether samples are images.
        """
        from trainwell.models import default_name

        changes: dict[str, Any] = {}
        batch_size = self.batch_size or _BATCH_SIZE
        while (
            self.batch_size is None and batch_size > 16 and sizes["train"] // (batch_size * self.grad_accum_steps) < 8
        ):
            batch_size //= 2
        changes["batch_size"] = batch_size
        img_size = self.img_size
        if images and img_size is None and (side is None or max(side) > 64):
            changes["img_size"] = img_size = 224
        if self.model == "auto":
            changes["model"] = default_name((img_size or max(side or (224,))) if images else None)
        if self.lr is None and self.schedule in SCHEDULES:
            changes["lr"] = _RATES[self.optimizer]
        if self.weight_decay is None:
            changes["weight_decay"] = _DECAYS.get(self.optimizer, 0.0)
        monitor = self.monitor
        if monitor == "auto":
            balanced = "balanced" in (self.class_weight, self.sampling)
            right = "val_balanced_accuracy" if balanced else "val_accuracy"
            changes["monitor"] = monitor = right if task == "classification" else "val_loss"
        if self.monitor_mode == "auto":
            if monitor not in ("val_accuracy", "val_balanced_accuracy", "val_loss"):
                raise InputError(f"monitor is {monitor!r}: say with monitor_mode whether 'min' or 'max' of it is best")
            changes["monitor_mode"] = "min" if monitor == "val_loss" else "max"
        if self.steps is None and self.epochs is None and self.minutes is None:
            least, low, high = _PRESETS[self.preset]
            steps_per_epoch = max(1, sizes["train"] // (batch_size * self.grad_accum_steps))
            changes["epochs"] = min(max(-(-least // steps_per_epoch), low), high)
        return dataclasses.replace(self, **changes)


def _check_texts(recipe: Recipe) -> None:
    """Refuses texts of a form that cannot be read."""
    if recipe.schedule not in SCHEDULES:
        _check_written_out(recipe.schedule, recipe.lr)
    if not _TRANSFER.fullmatch(recipe.transfer):
        raise InputError(
            f"transfer must be auto, linear, stage, top1, top2 …, all, gradual, lp_ft or none; it is "
            f"{recipe.transfer!r}"
        )
    if recipe.augment not in AUGMENTS:
        from trainwell.augment import parse  # torch comes with it, and is not needed to read a recipe

        parse(recipe.augment)


def _check_ranges(recipe: Recipe) -> None:
    """Refuses numbers out of their range."""
    for name, least in _AT_LEAST.items():
        value = getattr(recipe, name)
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}; it is {value}")
    for name in _ABOVE_0:
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise InputError(f"{name} must be above 0; it is {value}")
    for name in _BELOW_1:
        if not getattr(recipe, name) < 1:
            raise InputError(f"{name} must be below 1; it is {getattr(recipe, name)}")
    if not recipe.layer_decay <= 1:
        raise InputError(f"layer_decay must be above 0 and at most 1; it is {recipe.layer_decay}")
    if recipe.threads is not None and recipe.threads > _MOST_THREADS:
        raise InputError(f"threads must be at most {_MOST_THREADS}; it is {recipe.threads}")


def _check_together(recipe: Recipe) -> None:
    """Refuses fields that do not go together."""
    if recipe.steps == 0 and recipe.transfer not in ("linear", "stage", "auto"):
        raise InputError("steps must be at least 1, but for transfer='linear', whose optimum is solved for at 0")
    if recipe.ema_decay is not None and not (recipe.ema_decay < 1 and recipe.average == "ema"):
        raise InputError(f"ema_decay must be below 1, and is for average='ema'; it is {recipe.ema_decay}")
    if recipe.average_epochs is not None and recipe.average not in ("swa", "latest"):
        raise InputError("average_epochs is for average='swa' and average='latest'; leave it out")
    lengths = [name for name in LENGTHS if getattr(recipe, name) is not None]
    if len(lengths) > 1:
        raise InputError(f"{' and '.join(lengths)} each say how long to train; give one of them")


def _check_written_out(schedule: str, lr: float | None) -> None:
    """Refuses a schedule that is neither a name nor one that can be read."""
    from trainwell.optim.schedules import parse  # torch comes with it, and is not needed to read a recipe

    if "(" not in schedule:
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, or written out; it is {schedule!r}"
                         f"{nearest(schedule, SCHEDULES)}")  # fmt: skip
    parse(schedule)
    if lr is not None:
        raise InputError(f"lr is {lr}, and {schedule} says the rates itself: leave one of them out")


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _check_type(field: "dataclasses.Field[Any]", value: Any) -> None:
    """Refuses a value of a wrong type, as a TOML file can hold."""
    if get_origin(field.type) is Literal:
        choices = get_args(field.type)
        if value not in choices:
            hint = nearest(str(value), choices)
            raise InputError(f"{field.name} must be one of {', '.join(choices)}; it is {value!r}{hint}")
        return
    kinds = get_args(field.type) or (field.type,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        wanted = next(words for kind, words in _WORDS.items() if kind in kinds)
        raise InputError(f"{field.name} must be {wanted}; it is {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{field.name} must be finite; it is {value}")
