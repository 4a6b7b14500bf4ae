"""Pretrained weights from the Hugging Face hub, and timm's layout of a repository there."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainwell.errors import InputError, in_one_line
from trainwell.transfer.found import CONFIG, PROCESSOR, WEIGHTS, Found, figures_in, read_json, table_in
from trainwell.transfer.state import read_weights

_CARD = "README.md"
ON_THE_HUB = ("resnet18", "resnet34", "resnet50")  # of our ResNets
_PATIENCE = 20.0  # seconds, for the hub's first answer


def from_hub(name: str, offline: bool, say: Callable[[str], object]) -> Found:
    """Reads one of our ResNets in timm's layout."""
    folder = fetch(name, offline, say)
    found = timm_layout(folder, f"hub:{name.partition('@')[0]}@{folder.name}")
    if found.architecture not in ON_THE_HUB or found.config:
        raise InputError(
            f"hub:{name} is no plain resnet18, resnet34 or resnet50 but {found.architecture!r}: "
            "take timm:NAME, or transformers:NAME"
        )
    return found


def timm_layout(folder: Path, source: str) -> Found:
    """Reads a folder as timm saves models; the architecture is as it is called there."""
    path = folder / CONFIG
    told = read_json(path)
    data = table_in(told, "pretrained_cfg", path) or told
    size, arguments = data.get("input_size"), table_in(told, "model_args", path)
    licence = data.get("license")
    return Found(
        source, str(told.get("architecture")), read_weights(folder / WEIGHTS),
        config={"model_args": arguments} if arguments else {},
        mean=figures_in(data, "mean", path), std=figures_in(data, "std", path),
        img_size=size[-1] if isinstance(size, list) and size and isinstance(size[-1], int) else None,
        licence=licence_in(folder) or (licence if isinstance(licence, str) else None),
    )  # fmt: skip


def fetch(name: str, offline: bool, say: Callable[[str], object]) -> Path:
    """Returns the folder with a repository's config and weights, from the hub's local cache or by a download.

    Args:
        name: of the repository, with `@` and a revision if it is not the newest.
        offline: take them from the cache alone.
        say: is told size and licence before the download.

    Raises:
        InputError: they are not to be had.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    repository, _, revision = name.partition("@")
    at = revision or None
    with _hub_errors(name):
        cached = [try_to_load_from_cache(repository, file, revision=at) for file in (WEIGHTS, CONFIG)]
        if all(isinstance(path, str) for path in cached):
            return Path(str(cached[0])).parent
        if offline:
            raise InputError(f"{name} of the hub is not on this machine: download it once while not offline")
        hub = HfApi()
        info = hub.model_info(repository, revision=at, files_metadata=True, timeout=_PATIENCE)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        for file in (WEIGHTS, CONFIG):
            if file not in sizes:
                raise InputError(f"{name} of the hub has no {file}: other formats can run code, or say too little")
        wanted = [file for file in (_CARD, PROCESSOR, CONFIG, WEIGHTS) if file in sizes]
        megabytes = sum(sizes[file] for file in wanted) / 1e6
        licence = _licence_of(info.card_data) or "not stated"
        say(f"downloading {name} from the Hugging Face hub: {megabytes:.1f} MB, licence {licence}")
        return Path([hub.hf_hub_download(repository, file, revision=at) for file in wanted][-1]).parent


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Says in one line what the hub, or the way there, has against a repository."""
    utils: Any = importlib.import_module("huggingface_hub.utils")  # it does not say that it exports them, but it does

    try:
        yield
    except InputError:
        raise
    except utils.GatedRepoError:
        raise InputError(
            f"{name} of the hub must be asked for: accept its terms on its page, then run `hf auth login`"
        ) from None
    except utils.RepositoryNotFoundError:
        raise InputError(
            f"there is no repository {name} on the hub, or it is private: check the name, or run `hf auth login`"
        ) from None
    except utils.RevisionNotFoundError:
        raise InputError(
            f"{name} of the hub has no such revision: leave out what follows the @ for the newest"
        ) from None
    except utils.HFValidationError:
        raise InputError(f"{name!r} is no name of the hub: it is as in hub:timm/resnet18.a1_in1k") from None
    except utils.OfflineModeIsEnabled:
        raise InputError(
            f"{name} of the hub is not on this machine, and HF_HUB_OFFLINE forbids a download: unset it, and try again"
        ) from None
    except Exception as error:  # the client connects through requests, httpx or httpx2, by its version
        raise InputError(
            f"{name} could not be had from the hub ({in_one_line(error)}): check the network, or give a file"
        ) from None


def licence_in(folder: Path) -> str | None:
    """Returns what a model's card gives as its licence."""
    from huggingface_hub import ModelCard

    if not (folder / _CARD).exists():
        return None
    try:
        return _licence_of(ModelCard.load(folder / _CARD, ignore_metadata_errors=True).data)
    except Exception:  # a card is for people: no error of a parser of YAML stops the rest
        return None


def _licence_of(card: Any) -> str | None:
    licence = getattr(card, "license", None)
    if licence == "other":
        licence = getattr(card, "license_name", None) or licence
    return str(licence) if licence else None
