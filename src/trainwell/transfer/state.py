"""Weights from a file, read without running anything, and put into a model where names and shapes fit."""

import itertools
import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainwell.errors import InputError, in_one_line
from trainwell.weights import bare, is_within

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DEEPEST = 6  # how many words a prefix may have: a hostile name has millions
_COUNTER = "num_batches_tracked"  # of batch norm, which older files lack


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, by name; nothing in it is run.

    Raises:
        InputError: there is no such file, it is a pickle (which can run code as it is read), it is damaged, or it
            holds something else than finite numbers.

    >>> read_weights("weights.pth")
    Traceback (most recent call last):
    trainwell.errors.InputError: there is no file weights.pth: weights are read from a .safetensors file
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}: weights are read from a .safetensors file")
    if path.suffix.lower() in _PICKLES:
        raise InputError(_why_no_pickle(path))
    try:
        weights: dict[str, Tensor] = load_file(path)
    # What torch raises for a type that it lacks, or a shape that it cannot hold, differs by version.
    except (SafetensorError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if _begins_as_pickle(path):
            raise InputError(_why_no_pickle(path)) from None
        raise InputError(
            f"{path} is no whole safetensors file ({in_one_line(error)}): download or save it again"
        ) from None
    check_finite(weights, path)
    return weights


def check_finite(weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Checks that there are weights, all of them finite numbers.

    Raises:
        InputError: says which are not, and that they are from `source`.
    """
    if not weights:
        raise InputError(f"{source} holds no weights: it is the file of something else")
    for name, value in weights.items():
        if value.dtype not in _FLOATS + _WHOLE:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"{source}: {name} is of type {kind}, which no model here has: save it as float32")
        if not value.isfinite().all():
            raise InputError(f"{source}: {name} is not finite everywhere: its training diverged, or it is damaged")


def _begins_as_pickle(path: Path) -> bool:
    """Says whether a file that is no safetensors begins as torch's zip files or as pickles since protocol 2 do."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5"))


def _why_no_pickle(path: Path) -> str:
    safe = path.with_name(f"{path.stem}-safe.safetensors")
    convert = (
        "import torch, safetensors.torch as s; "
        f"w = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        "w = w.get('state_dict') or w.get('model') or w; "  # as training scripts save them, beside an epoch or so
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}}, {str(safe)!r})"
    )
    command = shlex.join(["python", "-c", convert])
    return f"{path} is a pickle, which can run code: if you trust it, convert it by {command}"


@dataclass(frozen=True)
class Match:
    """How the weights of a file went into a model.

    Attributes:
        matched: names of the model's tensors that have theirs from the file.
        reinitialised: names of those that stay as the model has them, for want of fitting weights. Batch norm's
            counters, which change nothing, are not told where they are missing.
        left_over: names in the file that the model has no place for.
        wrong_shape: name in the model, shape in the file, shape in the model.
        head: name of the model's last layer, if it was said.
        channels: the first convolution's weights, if the images have another number of channels than those that they
            were trained on, which comes second, and then that of the model.
    """

    matched: tuple[str, ...]
    reinitialised: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    head: str | None = None
    channels: tuple[str, int, int] | None = None

    def sentence(self) -> str:
        """Returns all of it in one line.

        >>> shapes = (("fc.weight", (1000, 512), (2, 512)), ("fc.bias", (1000,), (2,)))
        >>> Match(("conv1.weight",), ("fc.weight", "fc.bias"), wrong_shape=shapes, head="fc").sentence()
        '1 of 3 tensors matched; fc.weight, fc.bias are new (1000 classes there, 2 here)'
        """
        told = f"{len(self.matched)} of {len(self.matched) + len(self.reinitialised)} tensors matched"
        if self.reinitialised:
            new = f"{_some(self.reinitialised)} {'is' if len(self.reinitialised) == 1 else 'are'} new"
            classes = next((s for s in self.wrong_shape if is_within(s[0], self.head) and s[1] and s[2]), None)
            told += f"; {new}" + (f" ({classes[1][0]} classes there, {classes[2][0]} here)" if classes else "")
        if self.left_over:
            told += f"; {len(self.left_over)} in the file not used ({_some(self.left_over)})"
        if self.channels:
            name, there, here = self.channels
            told += f"; {name} {'summed' if here == 1 else 'repeated'} from {there} channels to {here}"
        return told

    def __str__(self) -> str:
        return self.sentence()


def _some(names: Collection[str]) -> str:
    """Returns the first names, and how many more there are."""
    first = ", ".join(itertools.islice(names, 3))
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def load_into(
    model: nn.Module, weights: Mapping[str, Tensor], *, head: str | None = None, partial: bool = False
) -> Match:
    """Puts weights into a model where they fit by name and shape; all else stays as the model has it.

    Names fit as they are, or without the words before them that most in the file share (`module.`, `backbone.`), or
    with those that most of the model's have. The first convolution of a model for images of another number of channels
    than the 3 (or the 1) of the weights gets their sum if that is 1, else their repetition times the quotient of the
    numbers, as `in_chans` does in timm: so its outputs keep their size.

    Args:
        model: is changed in place, or not at all if it is refused.
        weights: by name, as of `read_weights`.
        head: name of the last layer, which may be missing in the file or differ in shape.
        partial: take what fits where other tensors than the head's and batch norm's counters do not.

    Raises:
        InputError: nothing fits, or not all of it and `partial` is not said.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> file = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict()
    >>> load_into(model, {f"module.{name}": value for name, value in file.items()}, head="1").sentence()
    '2 of 4 tensors matched; 1.weight, 1.bias are new (5 classes there, 1 here)'
    """
    model = bare(model)
    match, sources = fit(model, weights, head)
    body = [name for name in match.matched if not is_within(name, head) and not name.endswith(_COUNTER)]
    lacking = [name for name in match.reinitialised if not is_within(name, head)]
    if not body or (lacking and not partial):
        shapes = {name: f" ({_size(there)} there, {_size(here)} here)" for name, there, here in match.wrong_shape}
        raise InputError(
            f"the weights do not fit the model: {len(lacking)} of its {len(match.matched) + len(match.reinitialised)} "
            f"tensors are missing or of another shape{', first ' if lacking else ''}"
            f"{lacking[0] + shapes.get(lacking[0], '') if lacking else ''}; name their architecture"
            + (
                ", or take what fits: partial=True (in fit pretrained_partial=True, --pretrained-partial)"
                if body
                else ""
            )
        )
    values = {name: weights[sources[name]] for name in match.matched}
    if match.channels:
        name, _, channels = match.channels
        values[name] = _with_channels(values[name], channels)
    model.load_state_dict(values, strict=False)
    return match


def fit(model: nn.Module, weights: Mapping[str, Tensor], head: str | None = None) -> tuple[Match, dict[str, str]]:
    """Returns how weights would go into a model, and for each of its tensors that they have the name in the file."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    first = next((name for name, value in own.items() if value.ndim == 4), None)

    def fits(name: str, value: Tensor) -> bool:
        alike = own[name].is_floating_point() == value.is_floating_point()
        return alike and (own[name].shape == value.shape or (name == first and _adaptable(value, own[name])))

    def fitting(sources: dict[str, str]) -> int:
        return sum(fits(name, weights[source]) for name, source in sources.items())

    without_or_with = itertools.product(_shared(weights), _shared(own))
    sources = max((_sources(weights, own, *prefixes) for prefixes in without_or_with), key=fitting)
    matched = tuple(name for name in own if name in sources and fits(name, weights[sources[name]]))
    new = [name for name in own if name not in matched and (name in sources or not name.endswith(_COUNTER))]
    wrong = ((name, weights[sources[name]].shape, own[name].shape) for name in new if name in sources)
    used = set(sources.values())
    adapted = first in matched and weights[sources[first]].shape != own[first].shape
    match = Match(
        matched, tuple(new), tuple(name for name in weights if name not in used),
        tuple((name, tuple(there), tuple(here)) for name, there, here in wrong if there != here), head,
        (first, weights[sources[first]].shape[1], own[first].shape[1]) if first and adapted else None,
    )  # fmt: skip
    return match, sources


def _shared(names: Collection[str]) -> list[str]:
    """Returns what more than half of the names begin with, dot and all, and nothing; the shortest first.

    >>> _shared(["module.net.a", "module.net.b", "module.fc"])
    ['', 'module.', 'module.net.']
    """
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".", _DEEPEST)[:-1]
        counts.update(itertools.accumulate(f"{word}." for word in words))
    return ["", *sorted((prefix for prefix, count in counts.items() if 2 * count > len(names)), key=len)]


def _sources(names: Collection[str], own: Collection[str], without: str, to: str) -> dict[str, str]:
    """Returns the name in the file for each of the model's, with one prefix in place of another where there is one."""
    renamed = {to + name.removeprefix(without): name for name in names if name.startswith(without)}
    found = {name: source for name, source in renamed.items() if name in own}
    beside = set(names).intersection(own).difference(found.values())  # such as a head that is not under the prefix
    return {name: name for name in beside} | found


def _adaptable(there: Tensor, here: Tensor) -> bool:
    return there.ndim == here.ndim and there.shape[1] in (1, 3) and there[:, :1].shape == here[:, :1].shape


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """Returns a convolution's weights `(out, given, h, w)` for another number of channels."""
    given, exact = weight.shape[1], weight.float()
    if channels == 1:
        return exact.sum(1, keepdim=True)
    return exact.repeat(1, -(-channels // given), 1, 1)[:, :channels] * (given / channels)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
