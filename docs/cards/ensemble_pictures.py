"""Pictures of averages of weights and of members, from small runs on digits. See `pictures.py`."""

import copy
import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import swa_utils

from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, legend, panels
from regularizer_pictures import batches, digits, perceptron
from trainwell import ensemble, optim, random, regularize
from trainwell.ensemble.combine import mean_of, select, temperature, tempered
from trainwell.metrics.calibration import log_loss
from trainwell.optim import schedules

PER_EPOCH = 12  # steps
AfterStep = Callable[[int], None]


# ---------------------------------------------------------------------- tools


data = functools.cache(digits)


def train(
    model: nn.Module, rate: float | schedules.Schedule, epochs: int, after_step: AfterStep = lambda _: None
) -> nn.Module:
    """Trains on digits, by SGD with momentum, at a rate or a schedule; the steps are counted from 1."""
    x, y, _, _ = data()
    optimizer = optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for step, (inputs, targets) in enumerate(batches(x, y, epochs), 1):
        optimizer.zero_grad()
        with regularize.keyed(model.train(), 0, step):
            cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        after_step(step)
    return model.eval()


@torch.no_grad()
def loss_of(model: nn.Module) -> float:
    """Returns the loss on digits that were not learned from."""
    _, _, others, answers = data()
    with regularize.evaluating(model):
        return float(cross_entropy(model(others), answers))


@torch.no_grad()
def answers_of(model: nn.Module) -> Tensor:
    """Returns the probabilities of digits that were not learned from."""
    with regularize.evaluating(model):
        return model(data()[2]).double().softmax(1)


# ---------------------------------------------------------------------- the cards


def ema() -> None:
    left, right = panels("a weight in a bowl, under noise", "loss on digits not seen")
    weight = nn.Linear(1, 1, bias=False)
    average = ensemble.EMA(weight, decay=0.98)
    started = swa_utils.AveragedModel(weight, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.98))
    nn.init.constant_(weight.weight, 6.0)
    optimizer, noise = optim.SGD(weight.parameters(), lr=0.12), torch.Generator().manual_seed(0)
    seen: dict[str, list[float]] = {"the weight": [], "EMA": [], "without the correction": []}
    for _ in range(200):
        weight.weight.grad = weight.weight.detach() + 4 * torch.randn(1, 1, generator=noise)
        optimizer.step()
        average.update()
        started.update_parameters(weight)
        values = (weight.weight, average.average()["weight"], started.module.weight)
        for name, value in zip(seen, values, strict=True):
            seen[name].append(value.item())
    for (name, values), color in zip(seen.items(), (GREY, BLUE, ORANGE), strict=True):
        wide = {"linewidth": 0.8} if name == "the weight" else {}
        left.plot(range(1, 201), values, color=color, label=name, **wide)
    left.axhline(0, color=GREY, linewidth=0.7, linestyle=":")
    left.set(xlabel="step")
    legend(left)
    epochs = 40
    steps = epochs * PER_EPOCH
    for rate, name, colors in (
        (0.2, "constant rate", (GREY, BLUE)),
        (schedules.cosine(0.2, steps=steps), "cosine", (ORANGE, GREEN)),
    ):
        model, plain, averaged = perceptron(0, drop=0.5), [], []
        average = ensemble.EMA(model, decay=0.98)

        def note(step: int, model: nn.Module = model, average: ensemble.EMA = average,
                 plain: list[float] = plain, averaged: list[float] = averaged) -> None:  # fmt: skip
            average.update()
            if step % 6 == 0:
                plain.append(loss_of(model))
                with average.weights():
                    averaged.append(loss_of(model))

        train(model, rate, epochs, note)
        for losses, color, words in zip((plain, averaged), colors, (name, f"{name}, EMA"), strict=True):
            right.plot(range(6, steps + 1, 6), losses, color=color, label=words, linewidth=1.2)
    right.set(xlabel="step", ylim=(0.1, 0.32))
    legend(right, fontsize=8)


def swa() -> None:
    left, right = panels("loss on digits not seen", "batch norm's variances, over the true ones")
    model = perceptron(0, drop=0.5)
    equal, latest, plain = ensemble.SWA(model), ensemble.LatestK(model, k=5), []
    averaged: dict[str, list[float]] = {"SWA": [], "the latest 5": []}
    falls, epochs, begins = 20, 60, 30
    rate = schedules.then(schedules.linear(0.3, steps=falls * PER_EPOCH, final=0.15), 0.15, at=falls * PER_EPOCH)

    def note(step: int) -> None:
        epoch, rest = divmod(step, PER_EPOCH)
        if rest or epoch <= begins - 10:
            return
        plain.append(loss_of(model))
        latest.update()
        if epoch >= begins:
            equal.update()
        for losses, average in zip(averaged.values(), (equal, latest), strict=True):
            if epoch >= begins:
                with average.weights():
                    losses.append(loss_of(model))

    train(model, rate, epochs, note)
    left.plot(range(begins - 9, epochs + 1), plain, color=GREY, linewidth=1, label="the weights at an epoch's end")
    for (name, losses), color in zip(averaged.items(), (BLUE, ORANGE), strict=True):
        left.plot(range(begins, epochs + 1), losses, color=color, label=name)
    left.set(xlabel="epoch", ylim=(None, 0.24))
    legend(left, loc="upper left", fontsize=8)
    model = normed()
    equal = ensemble.SWA(model)
    train(model, 0.1, 30, lambda step: equal.update() if step > 240 and step % PER_EPOCH == 0 else None)
    equal.copy_to_model()
    x = data()[0].split(128)
    true, spread = whole(model, data()[0]), torch.linspace(-0.25, 0.25, 64)
    refreshed = {
        "as averaged": lambda _: None,
        "update_bn": lambda model: swa_utils.update_bn(x, model.train()),
        "refreshed,\none pass": lambda model: ensemble.refresh_batchnorm(model, x, exact=False),
        "refreshed,\nexact": lambda model: ensemble.refresh_batchnorm(model, x),
    }
    for place, (refresh, color) in enumerate(zip(refreshed.values(), (GREY, PURPLE, GREEN, BLUE), strict=True)):
        other = copy.deepcopy(model)
        random.seed_everything(0)
        refresh(other)
        ratios = (other[6].running_var / true)[true > 1e-6]
        right.plot(place + spread[: len(ratios)], ratios, linestyle="", marker="o", markersize=2.4, color=color)
    right.axhline(1, color=GREY, linewidth=0.7, linestyle=":")
    right.set(xticks=range(4), xticklabels=list(refreshed))


def normed() -> nn.Sequential:
    """Makes a network whose second batch norm comes behind dropout."""
    random.seed_everything(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), regularize.Dropout(0.3),
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


@torch.no_grad()
def whole(model: nn.Sequential, x: Tensor) -> Tensor:
    """Returns the variances that come to the second batch norm, of all samples as one batch, in float64."""
    other = copy.deepcopy(model).double().eval()
    for place in (2, 6):
        seen = other[:place](x.double())
        other[place].running_mean, other[place].running_var = seen.mean(0), seen.var(0)
    return seen.var(0).float()


def snapshots() -> None:
    left, right = panels("three cycles of the rate, one run", "loss on digits not seen, 5 runs", widths=(1.5, 1))
    epochs, cycles = 45, 3
    steps = epochs * PER_EPOCH
    cycle = steps // cycles
    rate = schedules.restarts(0.3, steps=cycle)
    kept_by_seed = []
    for seed in range(5):
        model, kept, losses = perceptron(seed, drop=0.2), [], []

        def note(step: int, model: nn.Module = model, kept: list[Tensor] = kept,
                 losses: list[float] = losses) -> None:  # fmt: skip
            losses.append(loss_of(model))
            if step % cycle == 0:
                kept.append(answers_of(model))

        train(model, rate, epochs, note)
        if not kept_by_seed:
            left.plot(range(1, steps + 1), losses, color=BLUE, linewidth=1, label="loss on digits not seen")
            left.plot(np.arange(1, cycles + 1) * cycle, [losses[k * cycle - 1] for k in (1, 2, 3)], color=ORANGE,
                      linestyle="", marker="o", markersize=5, label="snapshots")  # fmt: skip
        kept_by_seed.append(kept)
    beside = left.twinx()
    beside.plot([rate(step) for step in range(steps)], color=GREY, linewidth=1, linestyle=":")
    beside.set(ylim=(0, 0.9), yticks=[0, 0.3], yticklabels=["rate 0", "0.3"])
    left.set(xlabel="step", ylim=(0, 0.6))
    legend(left)
    by_number = np.array([[cost(mean_of(torch.stack(kept[-count:]))) for count in (1, 2, 3)] for kept in kept_by_seed])
    cosine = schedules.cosine(0.3, steps=steps)
    alone = np.array([cost(answers_of(train(perceptron(seed, drop=0.2), cosine, epochs))) for seed in range(5)])
    values = np.column_stack([alone, by_number])
    right.plot(range(1, 4), by_number.T, color=BLUE, linewidth=0.7, marker="o", markersize=3, alpha=0.6)
    right.plot([0] * 5, alone, color=GREY, linestyle="", marker="o", markersize=3)
    for column, color in enumerate((GREY, BLUE, BLUE, BLUE)):
        right.plot([column - 0.25, column + 0.25], [values[:, column].mean()] * 2, color=color, linewidth=2.4)
    right.set(xticks=range(4), xticklabels=["one\ncosine", "last\nsnapshot", "last\ntwo", "all\nthree"])


def members() -> None:
    left, right = panels("log loss on digits for the test", "log loss on digits for validation")
    count, truth = 8, data()[3]
    said = torch.stack([answers_of(train(perceptron(seed, drop=0.2), 0.2, 20)) for seed in range(count)])
    val, test, true, answers = said[:, :300], said[:, 300:], truth[:300], truth[300:].numpy()
    plain, calibrated = [], []
    for size in range(1, count + 1):
        found = []
        for chosen in itertools.combinations(range(count), size):
            together = mean_of(test[list(chosen)])
            T = temperature(mean_of(val[list(chosen)]), true)
            found.append([log_loss(p.numpy(), answers) for p in (together, tempered(together, T))])
        plain.append(np.mean(found, axis=0)[0])
        calibrated.append(np.mean(found, axis=0)[1])
    numbers = range(1, count + 1)
    left.plot(numbers, plain, color=ORANGE, marker="o", markersize=3, label="mean of so many")
    left.plot(numbers, calibrated, color=BLUE, marker="o", markersize=3, label="the same, with a temperature")
    kept = select(val, true, lambda p, y: log_loss(tempered(p, temperature(p, y)).numpy(), y.numpy()))
    T = temperature(mean_of(val[kept]), true)
    chosen = log_loss(tempered(mean_of(test[kept]), T).numpy(), answers)
    left.plot(len(kept), chosen, "*", color=PURPLE, markersize=9, label="those chosen of 8, with a temperature")
    left.set(xlabel="members", xticks=numbers)
    legend(left, fontsize=8)
    at = np.geomspace(0.25, 2, 60)
    for p, name, color in ((val[0], "one member", GREY), (mean_of(val), "mean of 8", BLUE)):
        losses = [log_loss(tempered(p, T).numpy(), true.numpy()) for T in at]
        right.semilogx(at, losses, color=color, label=name)
        best = temperature(p, true)
        right.plot(best, log_loss(tempered(p, best).numpy(), true.numpy()), color=color, marker="o", markersize=5)
    right.set(xlabel="temperature", xticks=(ticks := [0.25, 0.5, 1, 2]), xticklabels=ticks)
    right.minorticks_off()
    right.axvline(1, color=GREY, linewidth=0.7, linestyle=":")
    legend(right)


def cost(probabilities: Tensor) -> float:
    """Returns the log loss of answers for digits that were not learned from."""
    return log_loss(probabilities.numpy(), data()[3].numpy())


PICTURES = (ema, swa, snapshots, members)
