"""A backbone as one file: its weights, and beside them what they cannot say of themselves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.errors import InputError, in_one_line
from trainwell.files import write_tensors
from trainwell.transfer.found import Figures, Found, figures_in, table_in
from trainwell.transfer.state import read_weights
from trainwell.transfer.surgery import find_head
from trainwell.weights import bare, is_within

_KEY = "trainwell"


def save_backbone(
    path: Path | str,
    model: nn.Module,
    *,
    architecture: str,
    config: Mapping[str, Any] | None = None,
    mean: Figures = None,
    std: Figures = None,
    img_size: int | None = None,
    licence: str | None = None,
    trained_on: str | None = None,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model without its last layer as one safetensors file, which `pretrained` (`--pretrained`) takes.

    Args:
        path: the file, `….safetensors`.
        model: its weights are kept.
        architecture: what it is, such as "resnet20", as `load_backbone` names it.
        config: what else is needed to make it, such as `{"width": 32}`; JSON can say it.
        mean: what images of values from 0 to 1 were normalised by, a number a channel.
        std: likewise.
        img_size: height and width of the images that it was trained on.
        licence: of the weights.
        trained_on: on what, in a line that people read.
        dtype: of the weights that are no whole numbers; `torch.float16` halves the file.
        extra: further tensors, which are no weights.

    >>> import tempfile
    >>> from trainwell.models import create
    >>> path = tempfile.mkdtemp() + "/small.safetensors"
    >>> save_backbone(path, create("resnet8", num_classes=2, in_chans=3), architecture="resnet8", dtype=torch.float16)
    >>> from trainwell.transfer import load_backbone
    >>> load_backbone(path, num_classes=5).model.fc
    Linear(in_features=64, out_features=5, bias=True)
    """
    model = bare(model)
    head = find_head(model)
    body = {name: value for name, value in model.state_dict().items() if not is_within(name, head)}
    kept = {name: value.to(dtype) if value.is_floating_point() else value for name, value in body.items()}
    if overflown := [name for name, value in kept.items() if value.isinf().any() and not body[name].isinf().any()]:
        raise InputError(f"{overflown[0]} has numbers that are too large for {dtype}: save it in torch.float32")
    about = {
        "architecture": architecture, "config": dict(config or {}), "mean": mean, "std": std, "img_size": img_size,
        "licence": licence, "trained_on": trained_on, "extra": [*(extra or {})],
    }  # fmt: skip
    write_tensors(path, {**kept, **(extra or {})}, {_KEY: json.dumps(about)})


def about_file(path: Path) -> dict[str, Any]:
    """Returns what a file says of its weights; an empty table if it says nothing, or cannot be read.

    Raises:
        InputError: what it says is no table.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError):  # which reading its weights tells better
        return {}
    if told is None:
        return {}
    try:
        about = json.loads(told)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({in_one_line(error)}): save it again") from None
    if not isinstance(about, dict):
        raise InputError(f"{path} is damaged: what it says of its weights is no table")
    return about


def read_saved(path: Path, about: Mapping[str, Any]) -> Found:
    """Reads a file of `save_backbone`, of which `about` is what it says."""
    size, licence, extra = about.get("img_size"), about.get("licence"), about.get("extra")
    beside = set(map(str, extra)) if isinstance(extra, list) else set()
    weights = {name: value for name, value in read_weights(path).items() if name not in beside}
    return Found(
        str(path), str(about.get("architecture")), weights, config=table_in(about, "config", path),
        mean=figures_in(about, "mean", path), std=figures_in(about, "std", path),
        img_size=size if type(size) is int and 0 < size <= 4096 else None,
        licence=licence if isinstance(licence, str) else None,
    )  # fmt: skip
