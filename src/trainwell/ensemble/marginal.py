"""The average over everything that is random in a prediction: noise in the model, crops of the image, the members."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainwell import random
from trainwell.errors import InputError
from trainwell.regularize import evaluating, keyed, sampling
from trainwell.regularize.noise import noise_layers

View = Callable[[Tensor], Tensor]


class Marginal(NamedTuple):
    """A mean over draws, and how far they are apart. There are `n` rows and `k` classes, or labels.

    Attributes:
        probabilities: the mean, `(n, k)`.
        std: the standard deviation of each probability over the draws, `(n, k)`; 0 if there is one draw.
        entropy: of the mean, in nats, `(n,)`, from 0 to `log(k)`; with several labels the sum of theirs, up to
            `k * log(2)`.
        disagreement: the fraction of draws that name another class than the mean does, `(n,)`; with several labels, of
            the draws' decisions, each of a label from 0.5 on, those that are not the mean's.
        draws: how many predictions were averaged: samples times crops times members.
    """

    probabilities: Tensor
    std: Tensor
    entropy: Tensor
    disagreement: Tensor
    draws: int


@torch.no_grad()
def marginalize(
    model: nn.Module | Sequence[nn.Module],
    x: Tensor,
    *,
    samples: int = 0,
    crops: Sequence[View] = (),
    batch_size: int = 256,
    seed: int = 0,
    probabilities: Callable[[Any], Tensor] | None = None,
    multilabel: bool = False,
) -> Marginal:
    """Averages the probabilities of noise samples × test-time crops × members, in bounded memory.

    Models are in evaluation throughout, but for their noise if it is sampled, see `trainwell.regularize.sampling`;
    afterwards their modes and all random states are as before. Probabilities are averaged, never logits. Noise that is
    no layer is not seen: `F.dropout(x, p, self.training)` in a forward of your own stays in evaluation.

    Args:
        model: a model, or the members of an ensemble.
        x: inputs, `(n, ...)`, where the models are.
        samples: how often the noise is drawn for each crop and member; 0 for plain evaluation. It is a function of
            the seed and the row, whatever the batch size; that of torch's own layers of the batch size too, which
            holds for what draws even in evaluation, as `nn.FractionalMaxPool2d` does.
        crops: functions from a batch of inputs to a batch of views of them; none for the inputs as they are.
        batch_size: rows that pass at once.
        seed: of the noise.
        probabilities: what makes probabilities `(n, k)` of what a model returns, in float32 if that is a tensor; by
            default softmax, or sigmoid with `multilabel`.
        multilabel: whether the outputs are yes-or-no labels, independent of each other, and not classes.

    Raises:
        InputError: there is no model, no row, no noise to sample, or a count is out of its range; the probabilities
            are no table of a row for each input; or softmax would be of one column.

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
    if samples and not any(noise_layers(member) for member in members):
        raise InputError("there is no noise to sample in the model: samples=0, or "
                         "tw.regularize.apply(model, dropout=…)")  # fmt: skip
    views = list(crops) or [_as_it_is]
    made = functools.partial(_probabilities, by=probabilities, multilabel=multilabel)
    parts = [
        _averaged(_draws(members, x[start : start + batch_size], start, samples, views, seed, made), multilabel)
        for start in range(0, len(x), batch_size)
    ]
    mean, std, entropy, disagreement = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Marginal(mean, std, entropy, disagreement, len(members) * len(views) * max(1, samples))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _averaged(draws: Iterable[Tensor], multilabel: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns mean, standard deviation, entropy and disagreement of one batch, from sums alone."""
    count, mean, squares, votes = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for count, p in enumerate(draws, 1):
        if count == 1:
            mean, squares, votes = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
        change = p - mean
        mean = mean + change / count
        squares = squares + change * (p - mean)  # Welford's sums, which do not cancel
        votes = votes + _decided(p, multilabel)
    std = (squares / max(1, count - 1)).sqrt()
    apart = (votes / count - _decided(mean, multilabel)).abs()
    if multilabel:
        return mean, std, (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum(1), apart.mean(1)
    return mean, std, torch.special.entr(mean).sum(1), apart.sum(1) / 2  # a vote for another class is apart in both


def _decided(p: Tensor, multilabel: bool) -> Tensor:
    """Returns 1 for the most probable class, or for each label from 0.5 on, and else 0."""
    return (p >= 0.5).to(p) if multilabel else torch.zeros_like(p).scatter(1, p.argmax(1, keepdim=True), 1)


def _draws(
    members: list[nn.Module],
    x: Tensor,
    start: int,
    samples: int,
    views: list[View],
    seed: int,
    made: Callable[[Any, int], Tensor],
) -> Iterator[Tensor]:
    rows = range(start, start + len(x))
    for member, model in enumerate(members):
        for crop, view in enumerate(views):
            seen = view(x)
            for sample in range(max(1, samples)):
                where = seed, "marginalize", member, crop, sample
                with _drawn(model, where, rows, sampled=samples > 0):
                    outputs = model(seen)
                yield made(outputs, len(x)).double()


def _probabilities(outputs: Any, rows: int, *, by: Callable[[Any], Tensor] | None, multilabel: bool) -> Tensor:
    """Returns what is averaged, `(rows, k)`, of what a model returns."""
    outputs = outputs.float() if isinstance(outputs, Tensor) else outputs
    p = outputs if by is None else by(outputs)
    if not isinstance(p, Tensor) or p.ndim != 2 or len(p) != rows:
        what = f"shape {tuple(p.shape)}" if isinstance(p, Tensor) else f"type {type(p).__name__}"
        raise InputError(f"what is averaged for {rows} rows is of {what}, not of shape ({rows}, k): give the function "
                         "`probabilities` that makes it of what the model returns")  # fmt: skip
    if by is not None:
        return p
    if p.shape[1] == 1 and not multilabel:
        raise InputError("the model has one output, of which softmax always makes 1: give multilabel=True for one "
                         "yes-or-no output")  # fmt: skip
    return p.sigmoid() if multilabel else p.softmax(1)


@contextlib.contextmanager
def _drawn(model: nn.Module, where: tuple[int | str, ...], rows: range, *, sampled: bool) -> Iterator[None]:
    """Evaluates a model, or samples its noise, at a place: ours by its key, torch's from generators that are put back.

    In evaluation too, where some draw all the same.
    """
    mode = sampling if sampled else evaluating
    with random.preserved(), mode(model), keyed(model, *where, rows=rows):
        random.seed_everything(*where, rows.start)
        yield
