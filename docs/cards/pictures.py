"""Draws the pictures of the cards from the techniques themselves; needs matplotlib.

    python docs/cards/pictures.py [CARD …]

A function is called by its card, and draws its picture: here for optimizers and schedules, in
`regularizer_pictures.py` for what regularises, in `augment_pictures.py` for augmentation, in `ensemble_pictures.py`
for averages of weights and of members, and in `transfer_pictures.py` for pretrained networks. On the same machine the
files are the same to the byte.
"""

import base64
import io
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch.nn.functional import cross_entropy

import augment_pictures
import ensemble_pictures
import regularizer_pictures
import transfer_pictures
from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Make,
    at_zero,
    bowl,
    curve,
    fed,
    legend,
    noisy,
    on_log,
    panels,
    path,
    valley,
    walk,
)  # fmt: skip
from trainwell import optim
from trainwell.optim import schedules

HERE = Path(__file__).parent


# ---------------------------------------------------------------------- optimizers


def sgd() -> None:
    left, right = panels("40 steps in a valley 20 times as steep across as along", "loss", widths=(1.7, 1))
    valley(left)
    losses = {}
    for lr, color in ((0.095, ORANGE), (0.02, BLUE)):
        points, values = walk(lambda p, lr=lr: optim.SGD(p, lr=lr), bowl(), (-10, 1.5), 40)
        path(left, points, f"rate {lr}", color)
        losses[f"rate {lr}"] = values, color
    losses["rate 0.102"] = walk(lambda p: optim.SGD(p, lr=0.102), bowl(), (-10, 1.5), 40)[1], PURPLE
    legend(left, loc="lower right")
    on_log(right, losses, 0.01)


def momentum() -> None:
    left, right = panels("40 steps at the same rate, 0.02", "along the valley, at each step", widths=(1.7, 1))
    valley(left)
    for rho, color, label in ((0.0, GREY, "no momentum"), (0.8, BLUE, "momentum 0.8")):
        path(
            left, walk(lambda p, rho=rho: optim.SGD(p, lr=0.02, momentum=rho), bowl(), (-10, 1.5), 40)[0], label, color
        )
    legend(left, loc="lower right")
    points, _ = walk(lambda p: optim.SGD(p, lr=0.02, momentum=0.8), bowl(), (-10, 1.5), 30)
    right.plot(np.diff(points[:, 0]) / 0.02, color=BLUE, label="velocity")
    right.plot(-points[:-1, 0], color=ORANGE, label="minus the gradient")
    right.axhline(0, color=GREY, linewidth=0.7)
    right.set(xlabel="step")
    legend(right)


def nesterov() -> None:
    left, right = panels("40 steps, rate 0.04, momentum 0.9", "loss", widths=(1.7, 1))
    valley(left, box=((-10.5, 5), (-2.4, 2.4)))
    losses = {}
    for name, ahead, color in (("momentum", False, GREY), ("Nesterov's", True, BLUE)):
        points, values = walk(
            lambda p, ahead=ahead: optim.SGD(p, lr=0.04, momentum=0.9, nesterov=ahead), bowl(), (-10, 1.5), 60
        )
        path(left, points[:41], name, color)
        losses[name] = values, color
    legend(left, loc="lower right")
    on_log(right, losses, 1e-2)


def adagrad() -> None:
    left, right = panels("a steep slope up to 0, then a nearly flat one: where it is", "its rate: step over gradient")

    def slope(p: torch.Tensor) -> torch.Tensor:  # the minimum is at 6
        return 20 * torch.relu(-p[0]) ** 2 + 0.005 * (p[0] - 6) ** 2

    for make, name, color in (
        (lambda p: optim.RMSprop(p, lr=0.05, alpha=0.9), "RMSprop, rate 0.05", ORANGE),
        (lambda p: optim.Adagrad(p, lr=0.5), "Adagrad, rate 0.5", BLUE),
    ):
        points = walk(make, slope, (-3.0,), 250)[0][:, 0]
        left.plot(points, color=color, label=name)
        gradients = 40 * np.minimum(points, 0)[:-1] + 0.01 * (points - 6)[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.where(np.abs(gradients) > 1e-4, np.abs(np.diff(points) / gradients), np.nan)
        right.semilogy(rates, color=color)
    left.axhline(6, color=GREY, linewidth=0.8, linestyle=":")
    left.text(2, 5.6, "the minimum", color=GREY, va="top")
    left.set(xlabel="step")
    right.set(xlabel="step")
    legend(left, loc="lower right")


def rmsprop() -> None:
    left, right = panels("the gradient gets 100 times smaller at step 50", "40 steps in the valley")
    gradients = [10.0] * 50 + [0.1] * 150
    for make, name, color in (
        (lambda p: optim.Adagrad(p, lr=1.0), "Adagrad", GREY),
        (lambda p: optim.RMSprop(p, lr=1.0, alpha=0.99), "RMSprop, alpha 0.99", BLUE),
        (lambda p: optim.RMSprop(p, lr=1.0, alpha=0.9), "RMSprop, alpha 0.9", ORANGE),
    ):
        left.semilogy(np.abs(np.diff(fed(make(at_zero()), gradients)[:, 0])), color=color, label=name)
    left.set(xlabel="step", ylabel="length of the step")
    legend(left, loc="upper right", fontsize=8)
    valley(right)
    path(right, walk(lambda p: optim.SGD(p, lr=0.095), bowl(), (-10, 1.5), 40)[0], "SGD, rate 0.095", GREY)
    path(right, walk(lambda p: optim.RMSprop(p, lr=0.1), bowl(), (-10, 1.5), 40)[0], "RMSprop, rate 0.1", BLUE)
    legend(right, loc="lower right")


def adam() -> None:
    left, right = panels("steps without the correction, over those with it", "60 steps in the valley")
    for beta, color in ((0.999, ORANGE), (0.99, BLUE), (0.9, GREEN)):
        steps = [
            np.diff(fed(optim.Adam(at_zero(), betas=(0.9, beta), eps=0, bias_correction=on), [1.0] * 300)[:, 0])
            for on in (False, True)
        ]
        left.loglog(range(1, 301), steps[0] / steps[1], color=color, label=f"beta2 = {beta}")
    left.axhline(1, color=GREY, linewidth=0.7)
    left.set(xlabel="step", yticks=[0.3, 1, 3, 6], yticklabels=["0.3", "1", "3", "6"], xticks=[1, 10, 100],
             xticklabels=["1", "10", "100"])  # fmt: skip
    left.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    legend(left, loc="lower right")
    valley(right)
    path(right, walk(lambda p: optim.SGD(p, lr=0.095), bowl(), (-10, 1.5), 60)[0], "SGD, rate 0.095", GREY)
    path(right, walk(lambda p: optim.Adam(p, lr=0.3), bowl(), (-10, 1.5), 60)[0], "Adam, rate 0.3", BLUE)
    legend(right, loc="lower right")


def adamw() -> None:
    figure = panels("Adam, decay through the gradient (L2)", "AdamW, decay beside it")
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1500, 2, generator=random, dtype=torch.float64) * torch.tensor([0.1, 10.0])
    for axis, kind in zip(figure, (optim.Adam, optim.AdamW), strict=True):
        p = [torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]
        start = torch.ones(2, dtype=torch.float64)
        with torch.no_grad():
            p[0].copy_(start)
        points = fed(kind(p, lr=1e-3, weight_decay=1.0), noise)[::10]
        for k, (color, name) in enumerate(((BLUE, "gradients of size 0.1"), (ORANGE, "gradients of size 10"))):
            axis.plot(range(0, 1501, 10), points[:, k], color=color, label=f"weight with {name}")
        axis.set(xlabel="step", ylim=(0, 1.1))
    legend(figure[0], loc="lower left", fontsize=8)


def adamax() -> None:
    left, right = panels("gradients 1, with one of 20 at step 100", "40 steps in the valley")
    gradients = [1.0] * 100 + [20.0] + [1.0] * 500
    for make, name, color in (
        (lambda p: optim.Adam(p, lr=1.0, betas=(0.9, 0.99)), "Adam, beta2 0.99", GREY),
        (lambda p: optim.Adamax(p, lr=1.0, betas=(0.9, 0.99)), "Adamax, beta2 0.99", BLUE),
    ):
        left.plot(-np.diff(fed(make(at_zero()), gradients)[:, 0]), color=color, label=name)
    left.set(xlabel="step", ylabel="length of the step")
    legend(left, loc="lower right")
    valley(right)
    path(right, walk(lambda p: optim.Adam(p, lr=0.3), bowl(), (-10, 1.5), 40)[0], "Adam, rate 0.3", GREY)
    path(right, walk(lambda p: optim.Adamax(p, lr=0.3), bowl(), (-10, 1.5), 40)[0], "Adamax, rate 0.3", BLUE)
    legend(right, loc="lower right")


def nadam() -> None:
    left, right = panels("80 steps at rate 0.3", "loss", widths=(1.7, 1))
    valley(left, box=((-10.5, 3), (-2.4, 2.4)))
    losses = {}
    for name, make, color in (
        ("Adam", lambda p: optim.Adam(p, lr=0.3), GREY),
        ("NAdam", lambda p: optim.NAdam(p, lr=0.3, momentum_decay=None), BLUE),
    ):
        points, values = walk(make, bowl(), (-10, 1.5), 150)
        path(left, points[:81], name, color)
        losses[name] = values, color
    legend(left, loc="lower right")
    on_log(right, losses, 1e-4)


def radam() -> None:
    left, right = panels("RAdam's step over Adam's, gradients of 0.3", "two runs with noise, at one rate")
    for beta, color in ((0.999, ORANGE), (0.99, BLUE), (0.9, GREEN)):
        steps = [
            np.diff(fed(kind(at_zero(), betas=(0.9, beta), eps=0), [0.3] * 2000)[:, 0])
            for kind in (optim.RAdam, optim.Adam)
        ]
        at = np.unique(np.geomspace(1, 2000, 200).astype(int))
        left.semilogx(at, (steps[0] / steps[1])[at - 1], color=color, label=f"beta2 = {beta}")
    left.axhline(1, color=GREY, linewidth=0.7)
    left.set(xlabel="step", ylim=(0, 1.1), xticks=[1, 10, 100, 1000], xticklabels=["1", "10", "100", "1,000"])
    legend(left, loc="lower right")
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(60, 2, generator=random, dtype=torch.float64)
    for kind, color in ((optim.Adam, GREY), (optim.RAdam, BLUE)):
        points = fed(kind(at_zero(2), lr=1.0, betas=(0.9, 0.999)), noise)
        path(right, points, kind.__name__, color)
    right.plot(0, 0, marker="o", color=ORANGE)
    right.annotate("start", (0, 0), xytext=(4, -9), textcoords="offset points", color=ORANGE)
    right.set(xticks=[], yticks=[])
    right.set_title("60 steps on gradients that are noise alone")
    legend(right)


def lion() -> None:
    left, right = panels("60 steps of rate 0.2: Lion's are all diagonal", "loss", widths=(1.7, 1))
    valley(left)
    falling = schedules.linear(0.2, steps=100)
    makes: dict[str, tuple[Make, str]] = {
        "Adam": (lambda p: optim.Adam(p, lr=0.2), GREY),
        "Lion": (lambda p: optim.Lion(p, lr=0.2), BLUE),
        "Lion, rate falling to 0": (lambda p: optim.Lion(p, lr=falling), ORANGE),
    }
    losses = {}
    for name, (make, color) in makes.items():
        points, values = walk(make, bowl(), (-10, 1.5), 100)
        losses[name] = values, color
        if "falling" not in name:
            path(left, points[:61], name, color)
    legend(left, loc="lower right")
    on_log(right, losses, 1e-4)


def muon() -> None:
    left, right = panels("singular values of a gradient and of the steps", "what Newton–Schulz does to one")
    random = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(16, 16, generator=random, dtype=torch.float64))[0] for _ in range(2))
    gradient = u @ torch.diag(torch.logspace(0, -2, 16, dtype=torch.float64)) @ v
    left.semilogy(range(1, 17), torch.linalg.svdvals(gradient), color=GREY, marker="o", markersize=3, label="gradient")
    for kind, color, options in (
        (optim.Adam, ORANGE, {}),
        (optim.Muon, BLUE, {"weight_decay": 0.0, "ns_dtype": "parameter"}),
    ):
        p = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
        p.grad = gradient.clone()
        kind([p], lr=1.0, **options).step()
        label = f"{kind.__name__}'s step"
        left.semilogy(
            range(1, 17), torch.linalg.svdvals(p.detach()), color=color, marker="o", markersize=3, label=label
        )
    left.set(xlabel="number of the singular value", xticks=[1, 4, 8, 12, 16])
    legend(left, loc="lower left")
    s = torch.linspace(0, 1, 201, dtype=torch.float64)
    for steps, color in ((1, GREY), (3, ORANGE), (5, BLUE)):
        y = s.clone()
        for _ in range(steps):
            y = 3.4445 * y - 4.7750 * y**3 + 2.0315 * y**5
        right.plot(s, y, color=color, label=f"{steps} step{'s' * (steps > 1)}")
    right.axhline(1, color=GREY, linewidth=0.7)
    right.set(xlabel="before", ylabel="after")
    legend(right, loc="lower right", ncols=3)


def soap() -> None:
    left, right = panels("60 steps in a valley that lies askew", "loss", widths=(1.05, 1), height=3.0)
    angle, start = math.pi / 4, (-8.0, -5.0)
    valley(left, 100.0, angle, box=((-9.3, 1.8), (-8.6, 1.8)))
    left.set_aspect("equal")
    makes: dict[str, tuple[Make, str]] = {
        "Adam": (lambda p: optim.Adam(p, lr=schedules.cosine(0.5, steps=150), betas=(0.9, 0.95)), GREY),
        "SOAP": (
            lambda p: optim.SOAP(
                p, lr=schedules.cosine(0.5, steps=150), betas=(0.9, 0.95), weight_decay=0.0, precondition_frequency=1
            ),
            BLUE,
        ),
    }
    losses = {}
    straight = (math.cos(angle) * start[0] + math.sin(angle) * start[1],
                math.cos(angle) * start[1] - math.sin(angle) * start[0])  # fmt: skip
    for name, (make, color) in makes.items():
        points, values = walk(make, bowl(100.0, angle), start, 150)
        path(left, points[:61], name, color)
        losses[name] = values, color
    legend(left, loc="lower right")
    losses["Adam, valley along an axis"] = walk(makes["Adam"][0], bowl(100.0), straight, 150)[1], ORANGE
    on_log(right, losses, 1e-6)


def groups() -> None:
    from trainwell.models import create

    axis = panels("a resnet20 with decay=0.8: the rate of each stage, over that of the last", height=2.2)
    model = create("resnet20", num_classes=10, in_chans=3)
    stages: dict[str, float] = {}
    for group in optim.layer_decay_groups(model, lr=1.0, decay=0.8, weight_decay=0.05):
        name = group["param_names"][0]
        stages.setdefault(name.rsplit(".", 2)[0] if name.startswith("layer") else name.partition(".")[0], group["lr"])
    seen: dict[float, str] = {}
    for name, rate in stages.items():
        seen.setdefault(rate, ".".join(name.split(".")[:2]))
    axis.bar(list(seen.values()), list(seen), color=BLUE, width=0.6)
    for place, rate in enumerate(seen):
        axis.text(place, rate + 0.02, f"{rate:.2f}", ha="center", fontsize=8, color="#444")
    axis.set(ylim=(0, 1.15))
    axis.tick_params(axis="x", labelsize=8)


# ---------------------------------------------------------------------- schedules

RUN = 1000  # steps of the run that is drawn


def constant() -> None:
    figure = panels("SGD with momentum, in noise", "Adam, in the same noise")
    for axis, kind, lr, options in (
        (figure[0], optim.SGD, 0.02, {"momentum": 0.9}),
        (figure[1], optim.Adam, 0.1, {}),
    ):
        for rate, name, color in (
            (lr, "no decay", BLUE),
            (schedules.piecewise(lr, {250: 0.1}), "a tenth from step 250 on, where it is flat", ORANGE),
        ):
            losses = noisy(lambda p, kind=kind, rate=rate, options=options: kind(p, lr=rate, **options), 500)
            axis.semilogy(range(0, 500, 2), losses[::2], color=color, label=name)
        axis.set(xlabel="step", ylabel="loss", ylim=(0.005, 100))
    legend(figure[0], loc="upper right", fontsize=8)


def step() -> None:
    left, right = panels("step: every 250 steps", "piecewise: {500: 0.1, 750: 0.1}")
    curve(left, schedules.step(0.1, every=250, factor=0.1), RUN, "factor 0.1")
    curve(left, schedules.step(0.1, every=250, factor=0.5), RUN, "factor 0.5")
    curve(right, schedules.piecewise(0.1, {500: 0.1, 750: 0.1}), RUN)
    legend(left, loc="upper right")
    left.set_ylabel("learning rate")


def _pair(make: Callable[..., Any], variants: dict[str, dict[str, Any]]) -> None:
    """Draws variants on a plain scale, and on a logarithmic one."""
    left, right = panels("learning rate", "on a logarithmic scale")
    for name, options in variants.items():
        schedule = make(0.1, **options)
        curve(left, schedule, RUN, name)
        at = range(0, RUN, 4)
        right.semilogy(at, [max(schedule(step), 1e-9) for step in at])
    right.set(ylim=(1e-5, 0.2), xlabel="step")
    legend(left)


def exponential() -> None:
    _pair(schedules.exponential, {f"to 1/{share}": {"rate": math.log(share) / RUN} for share in (10, 100)})


def inverse_time() -> None:
    _pair(schedules.inverse_time, {f"to 1/{share}": {"rate": (share - 1) / RUN} for share in (10, 100)})


def cosine() -> None:
    _pair(schedules.cosine, {"to 0": {"steps": RUN}, "to a tenth": {"steps": RUN, "final": 0.01}})


def linear() -> None:
    _pair(schedules.linear, {"to 0": {"steps": RUN}, "to a tenth": {"steps": RUN, "final": 0.01}})


def restarts() -> None:
    left, right = panels("cycles that double: mult=2", "cycles of one length: mult=1")
    curve(left, schedules.restarts(0.1, steps=143, mult=2), RUN)
    curve(right, schedules.restarts(0.1, steps=200), RUN)
    left.set_ylabel("learning rate")


def triangular() -> None:
    left, right = panels("decay=1", "decay=0.5: each cycle half as high")
    curve(left, schedules.triangular(0.01, 0.1, steps=250), RUN)
    curve(right, schedules.triangular(0.01, 0.1, steps=250, decay=0.5), RUN)
    left.set_ylabel("learning rate")
    for axis in (left, right):
        axis.set_ylim(0, 0.105)


def one_cycle() -> None:
    left, right = panels("the rate", "momentum, if you let it go the other way")
    curve(left, schedules.one_cycle(0.1, steps=RUN), RUN, "cos")
    curve(left, schedules.one_cycle(0.1, steps=RUN, anneal_strategy="linear"), RUN, "linear")
    curve(right, schedules.one_cycle(0.85, steps=RUN, div_factor=0.85 / 0.95, final_div_factor=1), RUN)
    right.set_ylim(0.8, 1)
    left.set_ylabel("learning rate")
    legend(left)


def warmup() -> None:
    left, right = panels("50 steps of ramp before three schedules", "Adam's first steps on noise alone")
    for name, schedule in (
        ("cosine", schedules.cosine(0.1, steps=RUN)),
        ("constant", schedules.constant(0.1)),
        ("step", schedules.step(0.1, every=500)),
    ):
        curve(left, schedules.warmup(schedule, steps=50), RUN, name)
    left.set_ylabel("learning rate")
    legend(left, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 1000, generator=random, dtype=torch.float64)
    for name, lr, color in (
        ("no warm-up", 1e-3, GREY),
        ("warm-up of 50 steps", schedules.warmup(1e-3, steps=50), BLUE),
    ):
        moved = np.sqrt((fed(optim.Adam(at_zero(1000), lr=lr), noise) ** 2).mean(1)) / 1e-3
        right.plot(moved, color=color, label=name)
    right.set(xlabel="step", ylabel="distance from the start, in rates")
    legend(right)


def wsd() -> None:
    left, right = panels("the end: two shapes", "a run prolonged: the same steps up to the decay")
    for shape in ("1-sqrt", "linear"):
        curve(left, schedules.wsd(0.1, steps=RUN, decay=200, warmup=50, shape=shape), RUN, shape)
    curve(right, schedules.wsd(0.1, steps=500, decay=100, warmup=50), 500, "500 steps", linestyle="--")
    curve(right, schedules.wsd(0.1, steps=RUN, decay=200, warmup=50), RUN, "1,000 steps")
    left.set_ylabel("learning rate")
    legend(left, loc="lower left", bbox_to_anchor=(0.1, 0))
    legend(right, loc="lower left", bbox_to_anchor=(0.55, 0))


def plateau() -> None:
    left, right = panels("loss of each epoch", "the rate that follows")
    random = torch.Generator().manual_seed(2)
    rate, floor, loss, seen, rates = optim.Plateau(0.1, patience=4), 0.5, 2.3, [], []
    for epoch in range(60):
        floor = 0.2 + 3.0 * rate(epoch) if epoch else floor
        loss += 0.35 * (floor - loss)
        seen.append(loss + 0.008 * float(torch.randn((), generator=random)))
        rates.append(rate(epoch))
        if rate.update(seen[-1]):
            for axis in (left, right):
                axis.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
    left.plot(seen)
    right.semilogy(rates, drawstyle="steps-post", color=ORANGE)
    for axis in (left, right):
        axis.set_xlabel("epoch")
    left.set_ylim(0, None)


def lr_range() -> None:
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    left, right = panels("loss at four rates (digits, a small network, Adam)", "the range test on the same")
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)

    def batches(epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        random = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for few in torch.randperm(len(x), generator=random).split(32):
                yield x[few], y[few]

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))

    for name, lr, color in (
        ("very high: 1", 1.0, PURPLE), ("high: 0.1", 0.1, ORANGE),
        ("low: 0.0003", 3e-4, GREY), ("good: 0.02", 0.02, BLUE),
    ):  # fmt: skip
        net = model()
        optimizer, losses = optim.Adam(net.parameters(), lr=lr), []
        for inputs, targets in batches(12):
            optimizer.zero_grad()
            loss = cross_entropy(net(inputs), targets)
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
        smooth = np.convolve(losses, np.ones(30) / 30, "valid")
        left.semilogy(range(0, len(smooth), 3), smooth[::3], color=color, label=name)
    left.set(xlabel="step", ylabel="loss", ylim=(0.01, 200))
    legend(left, ncols=2, loc="upper center", fontsize=8)
    net = model()
    found = optim.lr_range(net, optim.Adam(net.parameters()), list(batches(2)), cross_entropy, low=1e-4, quiet=True)
    right.loglog(found.rates[: len(found.smoothed)], found.smoothed, color=BLUE, label="sweep, smoothed")
    ended = [(rate, loss) for rate, loss in found.trials if math.isfinite(loss)]
    right.plot(*zip(*sorted(ended), strict=True), color=ORANGE, marker="o", markersize=4, label="end of a trial")
    right.axvline(
        found.suggestion, color=GREEN, linewidth=1, linestyle="--", label=f"suggestion: {found.suggestion:.2g}"
    )
    right.set(xlabel="learning rate", ylim=(0.01, 200))
    legend(right, loc="upper left", fontsize=8)


def schedule_grid() -> None:
    """Draws what `fit` makes of each name, for the index."""
    from trainwell.train.optimizers import make_schedule
    from trainwell.train.recipe import SCHEDULES, Recipe

    names = [name for name in SCHEDULES if name != "plateau"]
    _, axes = plt.subplots(2, 5, figsize=(7.6, 2.7), layout="constrained", sharex=True, sharey=True)
    for axis, name in zip(axes.flat, names, strict=True):
        curve(axis, make_schedule(Recipe(schedule=name, lr=1.0), RUN), RUN, linewidth=1.4)
        axis.set(title=name, xlabel="", xticks=[0, RUN], xticklabels=["0", "end"], ylim=(0, 1.05), yticks=[0, 1])


PICTURES = {
    function.__name__: function
    for function in (
        sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, adamax, nadam, radam, lion, muon, soap, groups,
        constant, step, exponential, inverse_time, cosine, linear, restarts, triangular, one_cycle, warmup, wsd,
        plateau, lr_range, schedule_grid, *regularizer_pictures.PICTURES, *augment_pictures.PICTURES,
        *ensemble_pictures.PICTURES, *transfer_pictures.PICTURES,
    )
}  # fmt: skip


def _shortened(svg: str) -> str:
    """Rounds coordinates, which stand in quotes, to hundredths of a point; words and their numbers stay as they are."""
    rounded = re.sub(r'"[^"]*"', lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), svg)
    rounded = re.sub(r'(?<=base64,)[^"]*', lambda found: _in_few_colours(found[0]), rounded)
    return re.sub(r" +$", "", rounded, flags=re.MULTILINE)


def _in_few_colours(image: str) -> str:
    """Writes an image of pixels anew, as PNG in 128 colours; in base64."""
    pixels = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
    buffer = io.BytesIO()
    pixels.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        target = HERE / f"{name}.svg"
        plt.savefig(target, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        plt.close("all")
        target.write_text(_shortened(target.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
