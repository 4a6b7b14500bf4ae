"""What a model makes of data on the way to its answer, pooled to vectors, and kept so that it is computed but once."""

import contextlib
import dataclasses
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainwell.errors import InputError, nearest
from trainwell.files import cache_folder, write_tensors
from trainwell.regularize import evaluating
from trainwell.transfer.surgery import stage_names
from trainwell.weights import bare

Autocast: TypeAlias = contextlib.AbstractContextManager[Any]
Progress: TypeAlias = Callable[[int, int], object]
_See: TypeAlias = Callable[[str, Tensor], None]


class _Enough(Exception):
    """The forward pass has come to the last of the modules that are looked at."""


def extract_features(
    model: nn.Module,
    batches: Iterable[Any],
    at: Sequence[str],
    *,
    autocast: Autocast | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Returns the outputs of some modules in evaluation, pooled to a vector a sample, in one pass over the data.

    A pass ends as soon as it has come to all of them: what comes after the last is not computed.

    Args:
        model: on the device of the data. Every module is afterwards in the mode in which it was.
        batches: inputs, or tuples or lists of which the first element is the inputs.
        at: names of modules, as `model.named_modules()` has them. Maps `(n, c, h, w)` become their mean over the
            positions, tokens `(n, t, d)` their mean over the tokens, and vectors `(n, d)` stay as they are. Of an
            output that is a tuple, a dict or a dataclass it is the first tensor; of a module that is used several times
            in a pass, its first output.
        autocast: in which the model runs, such as `torch.autocast("cuda", torch.bfloat16)`.
        progress: called after each batch with how many are done and how many there are, 0 if that is not known.

    Returns:
        For each name a float32 tensor `(n, d)` on the CPU, the samples in the order of the batches.

    Raises:
        InputError: there is no module of that name, it is not used, what it gives is no vector a sample, or there are
            no data.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    >>> found = extract_features(model, torch.zeros(3, 2, 1, 5, 5), at=["1", "3"])  # 3 batches of 2 images
    >>> {name: tuple(values.shape) for name, values in found.items()}
    {'1': (6, 4), '3': (6, 2)}
    """
    model = bare(model)
    modules = {name: _module(model, name) for name in at}

    def watch(see: _See) -> list[RemovableHandle]:
        def hook(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: see(name, _pooled(name, output))

        return [module.register_forward_hook(hook(name)) for name, module in modules.items()]

    return _gathered(model, batches, list(modules), watch, autocast, progress)


def stage_features(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    autocast: Autocast | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Returns what each stage of a model hands to the next one, pooled to a vector a sample, in one pass over the data.

    Args:
        model: as in `extract_features`; its stages are those of `trainwell.transfer.stages`.
        batches: as in `extract_features`.
        autocast: as in `extract_features`.
        progress: as in `extract_features`.

    Returns:
        For each stage below the head, by the name of its first module, a float32 tensor `(n, d)` on the CPU. The last
        is what comes to the head.

    Raises:
        InputError: as in `extract_features`, or there is but the head.

    >>> from trainwell.models import create
    >>> found = stage_features(create("resnet8", num_classes=10, in_chans=1), torch.zeros(3, 2, 1, 8, 8))
    >>> {name: tuple(values.shape) for name, values in found.items()}
    {'conv1': (6, 16), 'layer1': (6, 16), 'layer2': (6, 32), 'layer3': (6, 64)}
    """
    model = bare(model)
    names, modules = stage_names(model), dict(model.named_modules(remove_duplicate=False))
    nexts = dict(itertools.pairwise(names))

    def watch(see: _See) -> list[RemovableHandle]:
        def hook(stage: str) -> Callable[..., None]:
            def look(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
                see(stage, _pooled(stage, (args, options)))

            return look

        return [modules[after].register_forward_pre_hook(hook(stage), with_kwargs=True)
                for stage, after in nexts.items()]  # fmt: skip

    return _gathered(model, batches, [*nexts], watch, autocast, progress)


def inputs_of(
    model: nn.Module,
    name: str,
    batches: Iterable[Any],
    *,
    autocast: Autocast | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Returns what comes to one layer, such as the head, in evaluation: exactly that, neither pooled nor converted.

    Args:
        model: as in `extract_features`.
        name: of the layer, as `model.named_modules()` has it.
        batches: as in `extract_features`.
        autocast: as in `extract_features`.
        progress: as in `extract_features`.

    Returns:
        Shape `(n, d)`, on the CPU, the samples in the order of the batches.

    Raises:
        InputError: there is no layer of that name, it is not used, what comes to it is no vector a sample, or there are
            no data.

    >>> model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
    >>> inputs_of(model, "2", [torch.arange(4.0).view(1, 2, 2)])
    tensor([[0., 1., 2., 3.]])
    """
    model = bare(model)
    layer = _module(model, name)

    def watch(see: _See) -> list[RemovableHandle]:
        def hook(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            value = _first_tensor((args, options))
            if value is None or value.ndim != 2:
                raise InputError(
                    f"what comes to {name!r} is {_shape(value)}, not (n, d): name a layer that takes vectors"
                )
            see(name, value.to("cpu", copy=True))

        return [layer.register_forward_pre_hook(hook, with_kwargs=True)]

    return _gathered(model, batches, [name], watch, autocast, progress)[name]


@torch.no_grad()
def _gathered(
    model: nn.Module,
    batches: Iterable[Any],
    names: list[str],
    watch: Callable[[_See], list[RemovableHandle]],
    autocast: Autocast | None,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Runs the model over the data and puts together what its hooks see under each name."""
    if not names:
        raise InputError("no module is named whose features are wanted: name one at least")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    seen: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> None:
        seen.setdefault(name, value)
        if len(seen) == len(names):
            raise _Enough

    total = operator.length_hint(batches)
    with evaluating(model), contextlib.ExitStack() as undo:
        for handle in watch(see):
            undo.callback(handle.remove)
        for done, batch in enumerate(batches, 1):
            seen.clear()
            inputs = batch[0] if isinstance(batch, list | tuple) else batch
            with contextlib.suppress(_Enough), autocast or contextlib.nullcontext():
                model(inputs)
            _check(seen, names, inputs)
            for name in names:
                rows[name].append(seen[name])
            if progress:
                progress(done, total)
    if not rows[names[0]]:
        raise InputError("there are no data to compute features of: give one batch at least")
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _check(seen: dict[str, Tensor], names: list[str], inputs: Any) -> None:
    for name in names:
        if name not in seen:
            raise InputError(f"the module {name!r} is not used when the model runs: name one that is")
        if isinstance(inputs, Tensor) and len(seen[name]) != len(inputs):
            raise InputError(
                f"the module {name!r} has {len(seen[name])} rows for {len(inputs)} samples: name one around it, whose "
                "first dimension is that of the batch"
            )


def _module(model: nn.Module, name: str) -> nn.Module:
    known: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in known:
        raise InputError(
            f"the model has no module {name!r}{nearest(name, known)}: its modules are those of model.named_modules()"
        )
    return known[name]


def _pooled(name: str, output: Any) -> Tensor:
    value = _first_tensor(output)
    if value is None or value.ndim < 2 or not value.is_floating_point():
        raise InputError(f"the output of {name!r} is {_shape(value)}, not (n, d), (n, t, d) or (n, c, h, w) of numbers")
    return pooled(value).to("cpu", torch.float32, copy=True)  # of its own: a layer after it may work in place


def pooled(value: Tensor) -> Tensor:
    """Returns a vector a sample: of maps `(n, c, h, w)` the mean over the positions, of tokens `(n, t, d)` over those.

    >>> pooled(torch.ones(2, 3, 4, 4)).shape, pooled(torch.ones(2, 7, 5)).shape, pooled(torch.ones(2, 5)).shape
    (torch.Size([2, 3]), torch.Size([2, 5]), torch.Size([2, 5]))
    """
    if value.ndim == 3:
        return value.mean(1, dtype=torch.float32)
    return value.flatten(2).mean(2, dtype=torch.float32) if value.ndim > 3 else value


def _first_tensor(output: Any) -> Tensor | None:
    """Returns the first tensor in a nest of tuples, lists, dicts and dataclasses."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):  # also what transformers returns
        output = tuple(output.values())
    elif dataclasses.is_dataclass(output):
        output = tuple(vars(output).values())
    inside = output if isinstance(output, list | tuple) else ()
    return next((found for one in inside if (found := _first_tensor(one)) is not None), None)


def _shape(value: Tensor | None) -> str:
    return "no tensor" if value is None else f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def key_of(model: nn.Module, *parts: str) -> str:
    """Returns a name for what a model with these weights computes; another weight or part gives another name.

    It is a hash of the names, shapes, types and bytes of the state dict, about 1 GB a second, and of the parts. They
    have to say what the weights do not: the kind of model, the data, how they are prepared, and which features.

    >>> layer = nn.Linear(2, 1)
    >>> key = key_of(layer, "digits", "8 pixels")
    >>> key == key_of(layer, "digits", "8 pixels"), key == key_of(layer, "digits", "9 pixels")
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    _update(digest, bare(model).state_dict())
    return digest.hexdigest()


def cached(
    path_key: str, compute: Callable[[], dict[str, Tensor]], folder: Path | str | None = None
) -> dict[str, Tensor]:
    """Returns what is kept under a key, or else computes it and keeps it.

    It is kept as one safetensors file, which is there whole or not at all, whatever number of processes write it. A
    file that is damaged is made anew. Where it cannot be kept, as on a full disk, it is computed each time.

    Args:
        path_key: of `key_of`; the name of the file.
        compute: returns tensors, by name.
        folder: where the file is; by default `features` in the cache folder (`TRAINWELL_CACHE`).

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> cached("key", lambda: {"x": torch.ones(2)}, folder)
    {'x': tensor([1., 1.])}
    >>> cached("key", lambda: 1 / 0, folder)  # not computed again
    {'x': tensor([1., 1.])}
    """
    path = (cache_folder() / "features" if folder is None else Path(folder)) / f"{path_key}.safetensors"
    kept = _read(path)
    if kept is not None:
        return kept
    tensors = compute()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"digest": _digest(tensors)})
    return tensors


def _read(path: Path) -> dict[str, Tensor] | None:
    """Returns the tensors of a file; None if there is none, or it is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get("digest")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError):
        return None
    return tensors if _digest(tensors) == written else None


def _digest(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, {name: tensors[name] for name in sorted(tensors)})  # a file has an order of its own
    return digest.hexdigest()


def _update(digest: "hashlib.blake2b", tensors: Mapping[str, Any]) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):  # a module's extra state
            digest.update(repr((name, value)).encode())
            continue
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
