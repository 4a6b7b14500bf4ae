"""The average over everything that is random in a prediction: noise in the model, crops of the image, the members."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainwell import random
from trainwell.errors import InputError
from trainwell.regularize import evaluating, keyed, sampling

View = Callable[[Tensor], Tensor]


class Marginal(NamedTuple):
    """A mean over draws, and how far they are apart. There are `n` rows and `k` classes.

    Attributes:
        probabilities: the mean, `(n, k)`.
        std: the standard deviation of each probability over the draws, `(n, k)`; 0 if there is one draw.
        entropy: of the mean, in nats, `(n,)`, from 0 to `log(k)`.
        disagreement: the fraction of draws that name another class than the mean does, `(n,)`.
        draws: how many predictions were averaged: samples times crops times members.
    """

    probabilities: Tensor
    std: Tensor
    entropy: Tensor
    disagreement: Tensor
    draws: int


def softmax(logits: Tensor) -> Tensor:
    """Returns the probabilities of classes, along the second dimension."""
    return logits.softmax(1)


@torch.no_grad()
def marginalize(
    model: nn.Module | Sequence[nn.Module],
    x: Tensor,
    *,
    samples: int = 0,
    crops: Sequence[View] = (),
    batch_size: int = 256,
    seed: int = 0,
    probabilities: Callable[[Tensor], Tensor] = softmax,
) -> Marginal:
    """Averages the probabilities of noise samples × test-time crops × members, in bounded memory.

    Models are in evaluation throughout, but for their noise if it is sampled; afterwards their modes and all random
    states are as before. Probabilities are averaged, never logits.

    Args:
        model: a model, or the members of an ensemble.
        x: inputs, `(n, ...)`, where the models are.
        samples: how often the noise is drawn for each crop and member; 0 for plain evaluation. It is a function of
            the seed and the row, whatever the batch size; that of torch's own layers of the batch size too.
        crops: functions from a batch of inputs to a batch of views of them; none for the inputs as they are.
        batch_size: rows that pass at once.
        seed: of the noise.
        probabilities: what makes probabilities `(n, k)` of a model's outputs; `torch.sigmoid` for several labels.

    Raises:
        InputError: there is no model, no row, or a count is out of its range.

    >>> from trainwell.regularize import Dropout
    >>> model = nn.Sequential(Dropout(0.5), nn.Linear(8, 3))
    >>> result = marginalize(model, torch.randn(5, 8), samples=20)
    >>> result.probabilities.shape, result.draws
    (torch.Size([5, 3]), 20)
    """
    members = [model] if isinstance(model, nn.Module) else list(model)
    if not members or len(x) == 0:
        raise InputError("there is nothing to average: give at least one model and one row")
    if samples < 0 or batch_size < 1:
        raise InputError(f"samples is {samples} and batch_size {batch_size}: they are at least 0 and 1")
    views = list(crops) or [_as_it_is]
    parts = [
        _averaged(_draws(members, x[start : start + batch_size], start, samples, views, seed, probabilities))
        for start in range(0, len(x), batch_size)
    ]
    mean, std, entropy, disagreement = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Marginal(mean, std, entropy, disagreement, len(members) * len(views) * max(1, samples))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _averaged(draws: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns mean, standard deviation, entropy and disagreement of one batch, from sums alone."""
    count, mean, squares, votes = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for count, p in enumerate(draws, 1):
        if count == 1:
            mean, squares, votes = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
        change = p - mean
        mean = mean + change / count
        squares = squares + change * (p - mean)  # Welford's sums, which do not cancel
        votes = votes.scatter_add(1, p.argmax(1, keepdim=True), torch.ones_like(p[:, :1]))
    std = (squares / max(1, count - 1)).sqrt()
    agreeing = votes.gather(1, mean.argmax(1, keepdim=True)).squeeze(1)
    return mean, std, torch.special.entr(mean).sum(1), 1 - agreeing / count


def _draws(
    members: list[nn.Module],
    x: Tensor,
    start: int,
    samples: int,
    views: list[View],
    seed: int,
    probabilities: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    rows = range(start, start + len(x))
    for member, model in enumerate(members):
        for crop, view in enumerate(views):
            seen = view(x)
            for sample in range(max(1, samples)):
                where = seed, "marginalize", member, crop, sample
                with _drawn(model, where, rows) if samples else evaluating(model):
                    outputs = model(seen)
                yield probabilities(outputs.float()).double()


@contextlib.contextmanager
def _drawn(model: nn.Module, where: tuple[int | str, ...], rows: range) -> Iterator[None]:
    """Samples a model's noise at a place: ours by its key, torch's from generators that are set and put back."""
    with random.preserved(), sampling(model), keyed(model, *where, rows=rows):
        random.seed_everything(*where, rows.start)
        yield
