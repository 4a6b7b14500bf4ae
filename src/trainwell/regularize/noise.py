"""The contract of everything random in a model: sampled in training, its average in evaluation, or sampled there too.

A `Noise` layer draws by where it stands: by the step, the layer's name and the row of the global batch. So the noise is
the same for any number of devices and pieces of a batch, and there is nothing to save.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trainwell import random
from trainwell.errors import InputError
from trainwell.freezing import is_frozen
from trainwell.weights import bare

Rows: TypeAlias = range | Tensor | None


class Noise(nn.Module):
    """A layer that is random in training and in `sampling`.

    A subclass returns in its `forward` a sample where `noisy` is true, drawn from `row_keys`, and else what stands for
    the average over samples. Rows are the first dimension of its input.

    Attributes:
        average: whether evaluation is "exact", the mean of the layer's output over its noise, or "approximate".
    """

    average: Literal["exact", "approximate"]

    def __init__(self) -> None:
        super().__init__()
        self._sampling = False
        self._place: tuple[Tensor, Rows] | None = None

    @property
    def noisy(self) -> bool:
        """Whether the layer is to be sampled now."""
        return self.training or self._sampling

    def row_keys(self, x: Tensor) -> Tensor:
        """Returns 64 random bits for each row of `x`, as an int64 tensor on its device.

        Within `keyed` they are a function of the place; else of torch's generator on the CPU.

        Raises:
            InputError: `keyed` was told rows, and `x` has neither as many nor a multiple.
        """
        base, rows = self._place or (_drawn(), None)
        return splitmix64(_row_numbers(rows, len(x), x.device) ^ base.to(x.device))

    def batch_key(self, x: Tensor) -> Tensor:
        """Returns 64 random bits for the whole batch of which `x` is a part, as an int64 tensor of shape `(1,)`."""
        base, _ = self._place or (_drawn(), None)
        return splitmix64(base.to(x.device).reshape(1))


def _drawn() -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (), device="cpu")


def _row_numbers(rows: Rows, count: int, device: torch.device) -> Tensor:
    """Returns the numbers of the rows in the global batch; a sample of `k` rows has `k` numbers in turn."""
    if rows is None:
        return torch.arange(count, device=device)
    each, left = divmod(count, len(rows)) if len(rows) else (0, count)
    if left:
        raise InputError(f"an input has {count} rows where {len(rows)} samples were announced: the first dimension is "
                         "the batch, or a multiple of it")  # fmt: skip
    if isinstance(rows, range) and rows.step == 1:
        return torch.arange(rows.start * each, rows.stop * each, device=device)
    numbers = torch.as_tensor(rows, dtype=torch.int64).to(device)
    return (numbers[:, None] * each + torch.arange(each, device=device)).reshape(-1)


def splitmix64(x: Tensor) -> Tensor:
    """Scrambles 64-bit words, one to one, as `trainwell.random.splitmix64` does, on any device.

    >>> splitmix64(torch.tensor([0])).item() % 2**64 == 0xE220A8397B1DCDAF
    True
    """
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch's own shift keeps the sign


def _signed(word: int) -> int:
    return (word + 2**63) % 2**64 - 2**63


# ---------------------------------------------------------------------- contexts

# Torch's layers that are random in training, or always, and keep no statistics.
_TORCHS = (
    nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention,
    nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
)  # fmt: skip
SKIPPING = ("StochasticDepth", "DropPath")
"""The names of the layers that skip a branch: torchvision's and timm's, which are not imported."""


def noise_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of a model that are random within `sampling`: see there; none that is frozen or drops nothing.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.0), nn.BatchNorm1d(8))
    >>> noise_layers(model)
    [Dropout(p=0.5, inplace=False)]
    """
    return [module for module in model.modules() if _is_noise(module) and not is_frozen(module)]


def _is_noise(module: nn.Module) -> bool:
    known = isinstance(module, (Noise, *_TORCHS)) or type(module).__name__ in SKIPPING
    named = [getattr(module, name, None) for name in ("p", "dropout", "drop_prob")]
    fractions = [fraction for fraction in named if isinstance(fraction, float | int)]
    return known and (any(fractions) or not fractions)


@contextlib.contextmanager
def keyed(model: nn.Module, *where: int | str, rows: Rows = None) -> Iterator[None]:
    """Makes all noise within the block, forward and backward, a function of the place.

    Args:
        model: whose `Noise` layers are keyed; each by its name too. Torch's own layers are not: they draw from torch's
            generators, see `trainwell.random.seed_everything`.
        where: what the noise depends on, such as the seed and the step.
        rows: which rows of the global batch the model is called with, by default all from 0 on: on device `r` of
            several, `range(r * n, (r + 1) * n)`.

    >>> from trainwell.regularize import Dropout
    >>> layer = Dropout(0.5)
    >>> with keyed(layer, 0, 7):
    ...     whole = layer(torch.ones(4, 100))
    >>> with keyed(layer, 0, 7, rows=range(2, 4)):
    ...     half = layer(torch.ones(2, 100))
    >>> torch.equal(whole[2:], half)
    True
    """
    layers = [(name, layer) for name, layer in bare(model).named_modules() if isinstance(layer, Noise)]
    words = np.array([random.word(name) for name, _ in layers], np.uint64)
    # As tensors: of numbers, which change, torch.compile would compile each step anew.
    keys = torch.from_numpy(random.keys(random.key(*where), words).view(np.int64)).unbind()
    before = [layer._place for _, layer in layers]
    try:
        for (_, layer), key in zip(layers, keys, strict=True):
            layer._place = key, rows
        yield
    finally:
        for (_, layer), place in zip(layers, before, strict=True):
            layer._place = place


@contextlib.contextmanager
def sampling(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation, but for its noise, which is sampled; afterwards all is as before.

    Batch norm and everything else with statistics stays in evaluation, and so does what is frozen. Noise are our
    layers; torch's `Dropout`, `RReLU`, and the dropout within its recurrent and attention layers; and layers whose
    class is called `StochasticDepth` or `DropPath`, as torchvision's and timm's are. What is no layer is not seen:
    `F.dropout(x, p, self.training)` in a forward of your own stays in evaluation.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8))
    >>> with sampling(model):
    ...     model[0].training, model[1].training
    (True, False)
    """
    layers = noise_layers(model)
    ours, others = [x for x in layers if isinstance(x, Noise)], [x for x in layers if not isinstance(x, Noise)]
    before = [layer._sampling for layer in ours]
    fast = torch.backends.mha.get_fastpath_enabled()
    with evaluating(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # which would leave out the dropout of attention's layers
            for layer in ours:
                layer._sampling = True
            for other in others:
                other.training = True
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for layer, sampled in zip(ours, before, strict=True):
                layer._sampling = sampled


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation; afterwards every module is in the mode in which it was.

    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8).eval())
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model[0].training, model[1].training
    (True, False)
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
