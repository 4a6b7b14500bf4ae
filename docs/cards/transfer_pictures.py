"""Pictures of transfer learning: a small network that knows the digits 0 to 5 learns 6 to 9. See `pictures.py`."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import colors
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, legend, panels
from trainwell import freezing, models, optim, random, regularize, transfer
from trainwell.models.resnet import resnet8
from trainwell.optim import schedules
from trainwell.train.optimizers import make_schedule
from trainwell.train.recipe import Recipe
from trainwell.train.tuning import Tuning
from trainwell.transfer.features import stage_features
from trainwell.transfer.plan import make_plan
from trainwell.transfer.probes import Probe
from trainwell.transfer.surgery import stage_names

KNOWN, NEW, TESTED = 6, 4, 400  # classes, and digits of the new ones that are not learned from
HEAD = "fc"
AfterStep = Callable[[int], None]


# ---------------------------------------------------------------------- tools


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images and classes of the digits 0 to 5, each six times, and of 6 to 9, whose classes are 0 to 3.

    All are moved by up to a pixel, and noisy: so there is something to be learned that both have in common.
    """
    torch.set_num_threads(1)
    data = load_digits()
    order = random.permutation(len(data.target), 0)
    x = torch.tensor(data.images[order], dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target[order])
    known = (y < KNOWN).nonzero()[:, 0].repeat(6)
    return worse(x[known]), y[known], worse(x[y >= KNOWN]), y[y >= KNOWN] - KNOWN


def worse(x: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    wide = nn.functional.pad(x, (1, 1, 1, 1))
    moved = [image[:, a : a + 8, b : b + 8] for image, (a, b) in zip(
        wide, torch.randint(0, 3, (len(x), 2), generator=draws).tolist(), strict=True)]  # fmt: skip
    return torch.stack(moved) + 0.15 * torch.randn(x.shape, generator=draws)


def few(a_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns so many images of each of the digits 6 to 9."""
    _, _, x, y = digits()
    order = torch.from_numpy(random.permutation(len(x) - TESTED, seed)) + TESTED
    rows = torch.cat([order[y[order] == k][:a_class] for k in range(NEW)])
    return x[rows], y[rows]


def others() -> tuple[Tensor, Tensor]:
    """Returns digits 6 to 9 that are not learned from."""
    _, _, x, y = digits()
    return x[:TESTED], y[:TESTED]


def batches(x: Tensor, y: Tensor, steps: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        for rows in torch.from_numpy(random.permutation(len(x), epoch, "batches")).split(size):
            if not steps:
                return
            steps -= 1
            yield x[rows], y[rows]
        epoch += 1


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    rate: float = 0.1,
    backbone: float = 1.0,
    pull: transfer.L2SP | None = None,
    after_step: AfterStep = lambda _: None,
) -> nn.Module:
    """Trains by SGD with momentum and a cosine, what lies below the head at a part of the rate."""
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith(HEAD)]
    schedule = schedules.cosine(rate, steps=steps)
    groups = [{"params": body, "lr": schedules.scaled(schedule, backbone)}, {"params": model.fc.parameters()}]
    optimizer = optim.SGD(groups, lr=schedule, momentum=0.9)
    for step, (inputs, targets) in enumerate(batches(x, y, steps), 1):
        optimizer.zero_grad()
        cross_entropy(model.train()(inputs), targets).backward()
        if pull:
            pull.add_gradient()
        optimizer.step()
        after_step(step)
    return model.eval()


def fresh(seed: int, classes: int = NEW) -> nn.Module:
    random.seed_everything(seed)
    return resnet8(num_classes=classes, in_chans=1, width=8)


@functools.cache
def _known() -> nn.Module:
    x, y, _, _ = digits()
    return train(fresh(0, KNOWN), x, y, 300)


def known() -> nn.Module:
    """Returns a network that knows the digits 0 to 5, with a new last layer for four classes, which is 0."""
    model = copy.deepcopy(_known())
    transfer.replace_head(model, NEW)
    return model


@torch.no_grad()
def features(model: nn.Module, x: Tensor) -> Tensor:
    """Returns what comes to the head."""
    with regularize.evaluating(model):
        return transfer.head_inputs(model, x)


def fit_head(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """Puts the linear classifier into the head that is best for these images."""
    seen = features(model, x)
    l2 = transfer.best_l2(seen, y, num_classes=NEW, standardize=True)
    model.fc.load_state_dict(transfer.fit_linear(seen, y, num_classes=NEW, l2=l2, standardize=True).state_dict())
    return model


@torch.no_grad()
def figures(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Returns the loss and the share that is right."""
    with regularize.evaluating(model):
        outputs = model(x)
    return float(cross_entropy(outputs, y)), float((outputs.argmax(1) == y).float().mean())


def tested(model: nn.Module) -> tuple[float, float]:
    """Returns loss and accuracy on digits 6 to 9 that were not learned from."""
    return figures(model, *others())


def spread(axis: Any, at: Any, values: np.ndarray, label: str, color: str, offset: float = 1.0) -> None:
    """Draws a line through the means of runs, and a dot for each run."""
    axis.plot(at, values.mean(0), color=color, label=label)
    axis.plot(np.asarray(at) * offset, values.T, color=color, linestyle="", marker="o", markersize=2, alpha=0.6)


# ---------------------------------------------------------------------- the cards


def pretrained() -> None:
    left, right = panels("accuracy on digits 6 to 9 not seen", "loss on them, 5 images a class")
    counts, seeds, steps = (5, 10, 20, 40, 75), 3, 60
    ways = {"from scratch": (fresh, GREY, 1.0), "from a network that knows 0 to 5": (lambda _: known(), BLUE, 0.1)}
    for name, (make, color, backbone) in ways.items():
        found = np.zeros((seeds, len(counts)))
        for seed in range(seeds):
            for column, a_class in enumerate(counts):
                curve = [tested(model := make(seed))[0]]

                def note(step: int, model: nn.Module = model, curve: list[float] = curve,
                         noted: bool = a_class == 5) -> None:  # fmt: skip
                    if noted and step % 3 == 0:
                        curve.append(tested(model)[0])

                train(model, *few(a_class, seed), steps, backbone=backbone, after_step=note)
                found[seed, column] = 100 * tested(model)[1]
                if a_class == 5:
                    right.plot(range(0, steps + 1, 3), curve, color=color, linewidth=1.1)
        spread(left, counts, found, name, color)
    left.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="images a class", ylabel="%")
    left.minorticks_off()
    right.set(xlabel="step", ylim=(0, 2.5))
    legend(left, loc="lower right", fontsize=8)


def linear_head() -> None:
    left, right = panels("features of four new classes, on two axes", "log loss, by the penalty, 15 a class")
    model = known()
    x, y = few(15)
    seen, (tests, answers) = features(model, x), (features(model, others()[0]), others()[1])
    middle = seen.mean(0)
    means = torch.stack([seen[y == k].mean(0) for k in range(NEW)])
    axes = torch.linalg.svd(means - middle, full_matrices=False)[2][:2]  # in which the classes' means differ most
    flat = (seen - middle) @ axes.T
    layer = transfer.fit_linear(flat, y, num_classes=NEW, l2=0.01)
    lines = [np.linspace(float(low), float(high), 60) for low, high in zip(
        flat.amin(0) - 0.3, flat.amax(0) + 0.3, strict=True)]  # fmt: skip
    grid = torch.tensor(np.stack(np.meshgrid(*lines), -1), dtype=torch.float32)
    with torch.no_grad():
        logits = layer(grid)
    for k, color in enumerate((BLUE, ORANGE, GREEN, PURPLE)):
        rest = torch.cat([logits[..., :k], logits[..., k + 1 :]], -1).amax(-1)
        left.contour(*lines, (logits[..., k] - rest).numpy(), [0], colors=[GREY], linewidths=0.8)
        left.plot(*flat[y == k].T, linestyle="", marker=f"${k + KNOWN}$", markersize=5, color=color)
    left.set(xticks=[], yticks=[])
    penalties = np.geomspace(1e-5, 10, 19)
    ends: dict[str, list[float]] = {"learned from": [], "not seen": []}
    for l2 in penalties:
        fitted = transfer.fit_linear(seen, y, num_classes=NEW, l2=float(l2), standardize=True)
        with torch.no_grad():
            for losses, (inputs, classes) in zip(ends.values(), ((seen, y), (tests, answers)), strict=True):
                losses.append(float(cross_entropy(fitted(inputs), classes)))
    for (name, losses), color in zip(ends.items(), (GREY, BLUE), strict=True):
        right.semilogx(penalties, losses, color=color, label=name)
    chosen = transfer.best_l2(seen, y, num_classes=NEW, standardize=True)
    right.axvline(chosen, color=GREEN, linewidth=1, linestyle="--", label=f"best_l2: {chosen:g}")
    right.set(xlabel="penalty")
    legend(right, fontsize=8)


def fine_tuning() -> None:
    ways: dict[str, dict[str, Any]] = {
        "linear": {"transfer": "linear"}, "top2": {"transfer": "top2"}, "gradual": {"transfer": "gradual"},
        "all": {"transfer": "all"}, "all, layer_decay 0.5": {"transfer": "all", "layer_decay": 0.5},
    }  # fmt: skip
    steps, columns = 800, 80
    blues = mpl.colormaps["Blues"].with_extremes(bad="#dfe3e7")  # where nothing is trained
    axes = panels(*ways, height=2.3)
    for number, (axis, fields) in enumerate(zip(axes, ways.values(), strict=True)):
        model = models.create("resnet20", num_classes=NEW, in_chans=3)
        recipe = Recipe(lr=1.0, **fields)
        tuning, schedule = Tuning(model, recipe, steps), make_schedule(recipe, steps)
        names = stage_names(model)
        rates = np.full((len(names), columns), np.nan)
        for column in range(columns):
            step = (2 * column + 1) * steps // (2 * columns)
            tuning.at(step)
            for row, name in enumerate(names):
                trained = [key for key, parameter in model.named_parameters()
                           if key.startswith(f"{name}.") and parameter.requires_grad]  # fmt: skip
                if trained:
                    rates[row, column] = schedule(step) * tuning.rate(trained[0])
        shown = axis.imshow(rates, cmap=blues, norm=colors.LogNorm(1e-4, 1), aspect="auto", origin="lower",
                            interpolation="nearest")  # fmt: skip
        axis.set(xticks=[0, columns - 1], xticklabels=["0", "end"], yticks=range(len(names)))
        axis.set_yticklabels(names if not number else [])
    bar = axes[-1].figure.colorbar(shown, ax=axes[-1], ticks=[1e-4, 1e-2, 1])
    bar.ax.set_yticklabels(["0.0001", "0.01", "1"])
    bar.outline.set_visible(False)


def lp_ft() -> None:
    left, right = panels("features of 0 to 5, change while 6 to 9 are learned", "loss on digits 6 to 9 not seen")
    elsewhere, steps, every, seeds = digits()[0][:300], 60, 4, 5
    before = features(known(), elsewhere)
    heads = {"random": GREY, "zero": ORANGE, "fitted first": BLUE}
    for name, color in heads.items():
        found = np.zeros((2, seeds, steps // every + 1))
        for seed in range(seeds):
            x, y = few(10, seed)
            random.seed_everything(seed)
            model = known()
            if name == "random":
                transfer.replace_head(model, NEW, zero=False)
            elif name == "fitted first":
                fit_head(model, x, y)

            def note(step: int, model: nn.Module = model, into: np.ndarray = found[:, seed]) -> None:
                if step % every == 0:
                    change = features(model, elsewhere) - before
                    into[:, step // every] = float(change.norm() / before.norm()), tested(model)[0]

            freeze_norms(model)
            note(0)
            train(model, x, y, steps, rate=0.02, after_step=note)
        for axis, curves in zip((left, right), found, strict=True):
            at = range(0, steps + 1, every)
            axis.plot(at, curves.mean(0), color=color, label=name)
            axis.plot(at, curves.T, color=color, linewidth=0.5, alpha=0.5)
    left.set(xlabel="step", ylim=(0, None))
    right.set(xlabel="step", ylim=(0, 2))
    legend(left, title="head at the start", title_fontsize=8.5, loc="upper left")


def freeze_norms(model: nn.Module) -> None:
    """Freezes batch norm, so that features change by what is learned alone, and not by new statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            freezing.freeze(module)


def l2_sp() -> None:
    left, right = panels("distance from the pretrained weights", "loss on digits 6 to 9 not seen, 5 runs")
    alphas, steps, seeds = (0.0, 0.01, 0.1, 1.0), 80, 5
    start = {name: value.clone() for name, value in known().named_parameters() if not name.startswith(HEAD)}
    found = np.zeros((seeds, len(alphas)))
    for seed in range(seeds):
        x, y = few(5, seed)
        for column, (alpha, color) in enumerate(zip(alphas, (GREY, GREEN, ORANGE, BLUE), strict=True)):
            model, distances = known(), [0.0]

            def note(step: int, model: nn.Module = model, distances: list[float] = distances,
                     noted: bool = seed == 0) -> None:  # fmt: skip
                if noted:
                    now = dict(model.named_parameters())
                    distances.append(sum(float((now[name] - it).detach().square().sum()) for name, it in start.items()))

            pull = transfer.L2SP(model, alpha, head=HEAD) if alpha else None
            train(model, x, y, steps, pull=pull, after_step=note)
            found[seed, column] = tested(model)[0]
            if not seed:
                left.plot(np.sqrt(distances), color=color, label=f"alpha {alpha:g}")
    spread(right, range(len(alphas)), found, "", BLUE)
    left.set(xlabel="step", ylim=(0, None))
    right.set(xlabel="alpha", xticks=range(len(alphas)), xticklabels=[f"{alpha:g}" for alpha in alphas])
    right.set(ylim=(0, None))
    legend(left, fontsize=8)


def probes() -> None:
    left, right = panels("which of the digits 6 to 9 it is", "how much ink there is, in four parts")
    _, _, x, digit = digits()
    x, digit = x[:300], digit[:300]
    ink = x.flatten(1).sum(1)
    amount = torch.bucketize(ink, ink.quantile(torch.tensor([0.25, 0.5, 0.75])))
    found = stage_features(known(), x.split(100))
    for axis, y in ((left, digit), (right, amount)):
        probed = transfer.probe(found, y, num_classes=4, folds=3)
        shares = 100 * np.array([one.accuracy for one in probed])
        ends = 100 * np.array([one.interval for one in probed])
        axis.errorbar(
            range(len(shares)), shares, np.abs(ends.T - shares), color=BLUE, marker="o", markersize=4, capsize=3
        )
        axis.set(xticks=range(len(shares)), xticklabels=list(found), ylabel="% right", ylim=(20, 101))
        axis.set(xlabel="stage whose features are probed")


def plan() -> None:
    left, right = panels(
        "what the plan tries, the likeliest first", "how often the second is taken instead", widths=(1.45, 1)
    )
    for row, samples in enumerate((40, 4_000)):
        for column, unlike in enumerate((False, True)):
            made = make_plan(_made_probes(unlike), samples=samples, num_classes=4)
            words = "\n".join(f"{number}. {one.name}" for number, one in enumerate(made.candidates, 1))
            color = (BLUE, GREEN, PURPLE, ORANGE)[2 * row + column]
            left.fill(column + np.array([0.02, 0.98, 0.98, 0.02]), row + np.array([0.02, 0.02, 0.98, 0.98]),
                      color=color, alpha=0.13, linewidth=0)  # fmt: skip
            left.text(column + 0.08, row + 0.5, words, va="center", fontsize=9, linespacing=1.5)
    left.set(xlim=(0, 2), ylim=(0, 2), xticks=[0.5, 1.5], xticklabels=["data like the network's", "unlike"])
    left.set(yticks=[0.5, 1.5])
    left.set_yticklabels(["below 100\na class", "100 and\nmore"])
    left.tick_params(length=0)
    for spine in left.spines.values():
        spine.set_visible(False)
    draws, gains = np.random.default_rng(0), np.linspace(-6, 10, 17)
    for judged, color in ((50, GREY), (200, ORANGE), (1_000, BLUE)):
        taken = []
        for gain in gains:  # 10 % of the samples are judged differently, or as many as the gain needs
            differ = max(0.1, abs(gain) / 100)
            only = draws.multinomial(judged, [(differ + gain / 100) / 2, (differ - gain / 100) / 2, 1 - differ], 2_000)
            mean = (only[:, 0] - only[:, 1]) / judged
            error = np.sqrt(np.maximum((only[:, 0] + only[:, 1]) / judged - mean**2, 0) / judged)
            taken.append(100 * float((mean > error).mean()))
        right.plot(gains, taken, color=color, label=f"judged on {judged:,}")
    right.axvline(0, color=GREY, linewidth=0.7, linestyle=":")
    right.set(xlabel="points by which it is better", ylabel="%", ylim=(-2, 102))
    legend(right, fontsize=8)


def _made_probes(unlike: bool) -> list[Probe]:
    """Makes probes of three stages, of which the last is the best or the worst."""
    shares = (0.7, 0.9, 0.6) if unlike else (0.6, 0.7, 0.9)
    return [
        Probe(f"layer{k}", 16, share, (share, share), 1 - share, (share,), (1.0,), np.arange(200) < 200 * share)
        for k, share in enumerate(shares, 1)
    ]


PICTURES = (pretrained, linear_head, fine_tuning, lp_ft, l2_sp, probes, plan)
