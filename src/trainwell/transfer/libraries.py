"""Models of timm and of transformers, libraries that may be absent, and their pretrained weights."""

import contextlib
import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainwell.errors import InputError, in_one_line, nearest
from trainwell.transfer.found import CONFIG, PROCESSOR, Figures, Found, figures_in, read_json
from trainwell.transfer.hub import fetch, licence_in, timm_layout
from trainwell.transfer.state import check_finite
from trainwell.transfer.surgery import find_head

_FOR_TIMM_ITSELF = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
# What names code to run: files of the repository, kernels of the hub, libraries that quantise.
_RISKY = re.compile(r"auto_map|.*_implementation(_internal)?|use_kernels|quantization_config|(torch_)?dtype")
_OF_OLD_DATA = ("id2label", "label2id", "num_labels")


def _extra(name: str) -> Any:
    """Imports a library that may be absent; timm fails with a `RuntimeError` where it does not go with torchvision."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{name}:NAME needs {name}, which cannot be imported ({in_one_line(error)}): "
            f"pip install 'trainwell[{name}]'"
        ) from None


def timm_model(name: str, config: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """Makes a model of timm's by its name there, with random weights."""
    timm = _extra("timm")
    if not re.fullmatch(r"[\w.-]+", name):  # timm would look elsewhere
        raise InputError(f"{name!r} is no name of timm's: it is as in timm:resnet18.a1_in1k")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict) or _FOR_TIMM_ITSELF & arguments.keys():  # it would load, or unpickle, files
        raise InputError(f"the arguments of timm:{name} say what to load, which only you may: remove them")
    arguments = arguments | {"num_classes": num_classes, "in_chans": in_chans}
    try:
        made: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        raise InputError(f"timm does not make {name} ({in_one_line(error)})") from None
    return made


def from_timm(name: str, offline: bool, say: Callable[[str], object]) -> Found:
    """Reads weights of timm's, from a folder or the hub; ourselves, as timm itself also takes pickles."""
    timm = _extra("timm")
    if Path(name).is_dir():
        found = timm_layout(Path(name), f"timm:{name}")
        return dataclasses.replace(found, architecture=f"timm:{found.architecture}")
    try:
        told = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"timm has no weights {name} ({in_one_line(error)})") from None
    if told is None:
        raise InputError(f"timm has no model {name}{nearest(name, timm.list_models())}")
    if not told.hf_hub_id:
        raise InputError(f"timm has no weights for {name} on the hub: see timm.list_pretrained() for those that it has")
    found = timm_layout(fetch(told.hf_hub_id, offline, say), f"timm:{name}")
    return dataclasses.replace(found, architecture=f"timm:{name}")


class _Logits(nn.Module):
    """A classifier of transformers, which takes images and returns their logits, as other models do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.pretrained_cfg = {"classifier": f"net.{find_head(net)}"}  # for `find_head`: it knows the usual names there

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=x).logits
        return logits


def _plain(config: Any) -> Any:
    """Returns a config of transformers without what may run code or download, at any depth."""
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items() if not _RISKY.fullmatch(str(key))}
    return [_plain(value) for value in config] if isinstance(config, list) else config


def _transformers_config(config: Mapping[str, Any]) -> Any:
    """Returns the library's own kind of config."""
    transformers = _extra("transformers")
    if config.get("model_type") in (None, "timm_wrapper"):  # a wrapper that lets its config name files to unpickle
        raise InputError("the model's config is not one of transformers: take timm:NAME if it is timm's")
    if config.get("quantization_config"):
        raise InputError("quantised weights cannot be trained: take those that they were made from")
    try:
        return transformers.AutoConfig.for_model(**_plain(dict(config)))
    except Exception as error:
        raise InputError(f"transformers cannot read the model's config ({in_one_line(error)})") from None


def transformers_model(config: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """Makes a model of transformers by its config, with random weights."""
    told = _transformers_config(config)
    told.num_labels = num_classes
    if in_chans != getattr(told, "num_channels", 3):
        told.num_channels = in_chans
    try:
        made = _extra("transformers").AutoModelForImageClassification.from_config(told, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"transformers does not make the model ({in_one_line(error)})") from None
    return _Logits(made.float())


def from_transformers(name: str, offline: bool, say: Callable[[str], object]) -> Found:
    """Reads a folder as transformers saves models, through the library, which knows the names of older files."""
    auto = _extra("transformers").AutoModelForImageClassification
    local = Path(name).is_dir()
    folder = Path(name) if local else fetch(name, offline, say)
    source = f"transformers:{name}" if local else f"transformers:{name.partition('@')[0]}@{folder.name}"
    told = _transformers_config(read_json(folder / CONFIG))
    try:
        with _quiet():
            made, info = auto.from_pretrained(
                folder, config=told, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise InputError(f"transformers does not load {folder} ({in_one_line(error)})") from None
    weights = {key: value for key, value in made.state_dict().items() if key not in set(info["missing_keys"])}
    check_finite(weights, folder)
    config = _plain(json.loads(told.to_json_string()))
    config = {key: value for key, value in config.items() if key not in _OF_OLD_DATA}
    mean, std, img_size = _processing(folder)
    size = img_size or getattr(told, "image_size", None)
    return Found(
        source, f"transformers:{name if local else name.partition('@')[0]}", weights, config=config,
        mean=mean, std=std, img_size=size if isinstance(size, int) else None, licence=licence_in(folder),
        left_over=tuple(sorted(info["unexpected_keys"])),
    )  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from telling what `Match` tells."""
    logging = _extra("transformers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _processing(folder: Path) -> tuple[Figures, Figures, int | None]:
    """Returns mean, standard deviation and size of what transformers makes of an image, as far as a file says it."""
    path = folder / PROCESSOR
    if not path.exists():
        return None, None, None
    told = read_json(path)
    size = told.get("crop_size" if told.get("do_center_crop") else "size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    side = size if isinstance(size, int) else None
    if not told.get("do_rescale", True) or told.get("rescale_factor", 1 / 255) != 1 / 255:
        return None, None, side  # its figures are for other values than 0 to 1
    if not told.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3, side
    return figures_in(told, "image_mean", path), figures_in(told, "image_std", path), side
