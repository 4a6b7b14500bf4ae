"""Pictures of what regularises, drawn by the layers, functions and optimizers themselves. See `pictures.py`."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, legend, panels
from trainwell import ensemble, lab, optim, random, regularize
from trainwell.models import create
from trainwell.regularize.pooling import pseudorandom_borders, random_borders

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
TRAINED = 600  # digits, of 1,797


# ---------------------------------------------------------------------- tools


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images and classes to learn from, and others."""
    torch.set_num_threads(1)
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    order = torch.from_numpy(random.permutation(len(x), 0))
    learned, other = order[:TRAINED], order[TRAINED:]
    return x[learned], y[learned], x[other], y[other]


def perceptron(seed: int, hidden: int = 64, *, drop: float = 0.0) -> nn.Sequential:
    random.seed_everything(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), regularize.Dropout(drop), nn.Linear(hidden, 10)
    )


def batches(x: Tensor, y: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(epochs):
        for few in torch.from_numpy(random.permutation(len(x), epoch)).split(50):
            yield x[few], y[few]


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def learn(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int = 40, objective: Objective = plain, **options: Any
) -> nn.Module:
    """Trains by Adam; its options may hold penalties."""
    optimizer = optim.Adam(optim.no_decay_groups(model, 0.0, **options), lr=3e-3)
    for step, (inputs, targets) in enumerate(batches(x, y, epochs)):
        optimizer.zero_grad()
        with regularize.keyed(model, step):
            objective(model, inputs, targets).backward()
        optimizer.step()
    return model.eval()


def two_digits() -> Tensor:
    """Returns a zero in blue and a seven in orange, on white: (2, 3, 8, 8)."""
    x, y, *_ = digits()
    pairs = zip((0, 7), (BLUE, ORANGE), strict=True)
    return torch.stack([1 - x[y == k][0] * (1 - torch.tensor(to_rgb(color))[:, None, None]) for k, color in pairs])


def images(axis: Any, shown: list[Tensor], words: list[str]) -> None:
    """Shows images side by side, with words above."""
    side = shown[0].shape[-1]
    strip = np.ones((side, len(shown) * (side + 1) - 1, 3))
    for k, image in enumerate(shown):
        strip[:, k * (side + 1) : k * (side + 1) + side] = image.permute(1, 2, 0).numpy()
        axis.text(k * (side + 1) + side / 2 - 0.5, -1, words[k], ha="center", fontsize=8, color="#444")
    bare(axis).imshow(strip)


def bare(axis: Any) -> Any:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis


def histogram(axis: Any, values: Any, bins: Any, label: str, color: str, **style: Any) -> None:
    heights, edges = np.histogram(np.asarray(values), bins, density=True)
    axis.stairs(heights, edges, color=color, label=label, linewidth=1.4, **style)
    axis.set_yticks([])


# ---------------------------------------------------------------------- noise


def dropout() -> None:
    units, maps, right = panels(
        "units", "whole feature maps", "distance from the mean over all masks", widths=(1, 1, 1.9)
    )
    for axis, whole in ((units, False), (maps, True)):
        with regularize.keyed(layer := regularize.Dropout(0.5, maps=whole), 0, 1):
            kept = layer(torch.ones(1, 9, 7, 7))[0] > 0
        tiled = np.full((23, 23), np.nan)
        for k in range(9):
            row, column = 8 * (k // 3), 8 * (k % 3)
            tiled[row : row + 7, column : column + 7] = 0.25 + 0.5 * kept[k].numpy()
        bare(axis).imshow(tiled, cmap="Blues", vmin=0, vmax=1)
    x, y, others, _ = digits()
    model = learn(perceptron(0, 10, drop=0.5), x, y, 150)
    exact = regularize.exact_marginal(model, others)

    def distance(p: Tensor) -> float:
        return float((p - exact).abs().sum(1).mean() / 2)

    counts = [1, 2, 5, 10, 20, 50, 100]
    sampled = [distance(ensemble.marginalize(model, others, samples=count).probabilities) for count in counts]
    scaled = distance(ensemble.marginalize(model, others).probabilities)
    right.loglog(counts, sampled, color=BLUE, marker="o", markersize=3, label="mean of sampled networks")
    right.axhline(scaled, color=ORANGE, label="evaluation: all units, scaled")
    right.set(xlabel="samples", xticks=counts, xticklabels=counts, ylim=(0.03, 0.5))
    right.set(yticks=(ticks := [0.05, 0.1, 0.2, 0.4]), yticklabels=ticks)
    right.minorticks_off()
    legend(right, loc="upper right")


def dropconnect() -> None:
    figure = panels("a unit with 4 inputs", "a unit with 64 inputs")
    draws = 20_000
    for axis, inputs in zip(figure, (4, 64), strict=True):
        torch.manual_seed(2)
        layer = regularize.DropConnect(nn.Linear(inputs, 1, bias=False), p=0.5)
        nn.init.normal_(layer.weight, std=inputs**-0.5)
        x = torch.randn(1, inputs).expand(draws, -1)
        with torch.no_grad(), regularize.keyed(layer, 0):
            masked, mean = layer(x)[:, 0], float(layer.eval()(x[:1]))
            with regularize.sampling(layer):
                gaussian = layer(x)[:, 0]
        bins = np.linspace(float(masked.min()), float(masked.max()), 45)
        histogram(axis, masked, bins, "training: masks", BLUE, fill=True, alpha=0.35)
        histogram(axis, gaussian, bins, "sampling: the Gaussian", ORANGE)
        axis.axvline(mean, color=GREY, linestyle="--", linewidth=1.2, label="evaluation: the mean")
        axis.set_xlabel("pre-activation")
    figure[1].set_xlim(right=6)
    legend(figure[1], loc="upper right", fontsize=8)


def stochastic_depth() -> None:
    left, right = panels("how often a block is skipped", "a resnet20 in training, drop_path_rate=0.5", widths=(1, 1.7))
    for p, color in ((0.5, BLUE), (0.2, ORANGE)):
        rates = regularize.depth_rates(p, 9)
        left.plot(range(1, 10), rates, color=color, marker="o", markersize=3, label=f"drop_path_rate={p}")
    left.set(xlabel="block", xticks=range(1, 10))
    legend(left, loc="upper left")
    random.seed_everything(0)
    model = create("resnet20", num_classes=10, in_chans=1, drop_path_rate=0.5)
    kept: list[np.ndarray] = []
    for layer in model.modules():
        if isinstance(layer, regularize.StochasticDepth):
            layer.register_forward_hook(lambda _, inputs, output: kept.append(output.flatten(1).any(1).numpy()))
    with torch.no_grad(), regularize.keyed(model, 0, 0):
        model(torch.randn(40, 1, 8, 8))
    shown = np.where(np.stack(kept), 0.75, 0.1)
    right.imshow(shown, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    right.set(xlabel="image of the batch", ylabel="block", xticks=[], yticks=range(9), yticklabels=range(1, 10))


def fractional_pooling() -> None:
    *borders, right = panels(
        "borders, pseudorandom", "borders, random", "sides, from 64 pixels", widths=(1.25, 1.25, 1), height=2.9
    )
    size, sides, rows = 32, 22, 9
    keys = torch.from_numpy(random.keys(random.key(0), np.arange(rows)).view(np.int64))
    drawn = (pseudorandom_borders(keys & 0xFFFF_FFFF, size, sides), random_borders(keys, size, sides))
    for axis, lines in zip(borders, drawn, strict=True):
        for row, places in enumerate(lines.numpy()):
            heights = np.tile([row + 0.1, row + 0.9, np.nan], len(places))  # one path, with gaps
            axis.plot(np.repeat(places, 3), heights, color=BLUE, linewidth=1.1)
        axis.set(xlabel=f"pixel: {size} become {sides}", ylabel="draw", yticks=[])
    seen_at = [4, 8, 16, 32, 64]
    for ratio, color in ((0.5, GREY), (2**-0.5, BLUE), (0.8, ORANGE)):
        x, seen = torch.zeros(1, 1, 64, 64), [64]
        pool = regularize.FractionalMaxPool2d(ratio, overlapping=False)
        while seen[-1] > 4:
            x = pool(x)
            seen.append(x.shape[-1])
        right.plot(seen, color=color, marker="o", markersize=3, label=f"ratio {ratio:.2g}")
    right.set(xlabel="poolings", xticks=range(0, 12, 2), yscale="log",
              yticks=seen_at, yticklabels=seen_at)  # fmt: skip
    right.minorticks_off()
    legend(right)


# ---------------------------------------------------------------------- targets and inputs


def label_smoothing() -> None:
    left, right = panels("loss of a sample, 10 classes", "probability of the answer, digits not seen")
    margins = torch.linspace(-1, 10, 111)
    logits = torch.cat([margins[:, None], torch.zeros(len(margins), 9)], 1)
    right_class = torch.zeros(len(margins), dtype=torch.int64)
    for smoothing, color in ((0.0, GREY), (0.1, BLUE), (0.2, ORANGE)):
        loss = cross_entropy(logits, right_class, label_smoothing=smoothing, reduction="none")
        left.plot(margins, loss, color=color, label=f"label_smoothing={smoothing:g}")
        if smoothing:
            best = loss.argmin()
            left.plot(margins[best], loss[best], marker="o", color=color, markersize=4)
    left.set(xlabel="logit of the right class over the others", ylim=(0, None))
    legend(left)
    x, y, others, _ = digits()
    for smoothing, color in ((0.0, GREY), (0.1, BLUE)):
        model = learn(
            perceptron(0), x, y,
            objective=lambda model, x, y, e=smoothing: cross_entropy(model(x), y, label_smoothing=e),
        )  # fmt: skip
        with torch.no_grad():
            answer = model(others).softmax(1).amax(1)
        histogram(right, answer, np.linspace(0.2, 1, 41), f"label_smoothing={smoothing:g}", color)
    legend(right, loc="upper left")


def mixup() -> None:
    left, right = panels("shares that are drawn", "", widths=(1, 1.9), height=2.2)
    for alpha, color in ((0.2, BLUE), (1.0, ORANGE), (5.0, GREEN)):
        share = regularize.mixup(torch.zeros(20_000, 1), 0, alpha=alpha).share
        histogram(left, share, np.linspace(0, 1, 26), f"alpha={alpha:g}", color)
    left.set(xlabel="share of a sample's own", ylim=(0, 5))
    legend(left, loc="upper center")
    both, shares = two_digits(), [1.0, 0.9, 0.7, 0.5, 0.3, 0.0]
    mixed = [
        regularize.mixup(both, share=torch.tensor([share, 1.0]), partners=torch.tensor([1, 0])).inputs[0]
        for share in shares
    ]
    images(right, mixed, [f"{share:g}" for share in shares])
    right.set_xlabel("share of the first")


def cutmix() -> None:
    left, right = panels("shares, alpha=1", "", widths=(1, 1.9), height=2.2)
    after = regularize.cutmix(torch.zeros(20_000, 1, 32, 32), 0, alpha=1.0).share
    before = regularize.mixup(torch.zeros(20_000, 1), 0, alpha=1.0).share
    bins = np.linspace(0, 1, 26)
    histogram(left, before, bins, "drawn", GREY)
    histogram(left, after, bins, "left, after the border", BLUE)
    left.set(xlabel="share of an image's own", ylim=(0, 3.8))
    legend(left, loc="upper left")
    both, partners = two_digits(), torch.tensor([1, 0])
    shown, words = list(both), ["first", "second"]
    for share, centre in ((0.75, (0.5, 0.5)), (0.75, (0.9, 0.1)), (0.5, (0.6, 0.6)), (0.25, (0.4, 0.7))):
        mixed = regularize.cutmix(
            both, share=torch.tensor([share, 1.0]), partners=partners, centres=torch.tensor([centre, centre])
        )
        shown.append(mixed.inputs[0])
        words.append(f"{float(mixed.share[0]):.2f}")
    images(right, shown, words)
    right.set_xlabel("share of the first that is left")


# ---------------------------------------------------------------------- weights


def penalties() -> None:
    left, right = panels("a weight after a step on the penalty alone", "weights of a network on digits, by size")
    before = torch.linspace(-2, 2, 81)
    for name, strengths, color in (
        ("L1", {"l1": 5.0}, BLUE), ("L2", {"l2": 10.0}, ORANGE), ("both", {"l1": 2.5, "l2": 5.0}, GREEN),
    ):  # fmt: skip
        p = nn.Parameter(before.clone())
        p.grad = torch.zeros_like(p)
        optim.SGD([p], lr=0.1, **strengths).step()
        left.plot(before, p.detach(), color=color, label=name)
    left.plot(before, before, color=GREY, linewidth=0.8, linestyle=":")
    left.set(xlabel="weight before", ylabel="after")
    legend(left, loc="upper left")
    x, y, _, _ = digits()
    strength = 1e-3
    term = regularize.L1(strength)

    def with_term(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y) + term(model)

    for name, options, color in (
        ("no penalty", {}, GREY),
        ("L1 as a term of the loss", {"objective": with_term}, ORANGE),
        ("L1, proximal", {"l1": strength}, BLUE),
    ):
        model = learn(perceptron(0), x, y, 60, **options)
        sizes = model[1].weight.detach().abs().flatten().sort(descending=True).values.numpy()
        zeros = float((sizes == 0).mean())
        at = np.arange(0, len(sizes), 16)
        shown = np.where(sizes[at] > 0, sizes[at], np.nan)
        right.semilogy(100 * at / len(sizes), shown, color=color, label=f"{name}: {100 * zeros:.0f} % are exactly 0")
    right.set(xlabel="% of the weights, largest first", ylim=(1e-7, 3))
    legend(right, loc="lower left", fontsize=8)


def sam() -> None:
    left, right = panels("a narrow valley and a wide one", "sharpness of networks on digits, 3 seeds")

    def loss(x: Tensor) -> Tensor:
        return 1.1 - torch.exp(-((x + 1.0) ** 2) / 0.02) - 0.8 * torch.exp(-((x - 0.6) ** 2) / 0.8)

    places = torch.linspace(-2, 2.2, 250)
    left.plot(places, loss(places), color=GREY, label="loss")
    left.plot(places, _ascended(loss, places, 0.1), color=BLUE, linewidth=1.2, label="a distance of 0.1 uphill")
    left.set(xlabel="weight", ylim=(0, 1.5))
    legend(left, loc="upper right")
    x, y, _, _ = digits()
    rhos = (0.0, 0.05, 0.1, 0.2, 0.4)
    values = np.array([[_sharpness(x, y, distance, seed) for distance in rhos] for seed in range(3)])
    right.plot(range(len(rhos)), values.T, color=BLUE, linestyle="", marker="o", markersize=3.5, alpha=0.6)
    right.plot(range(len(rhos)), values.mean(0), color=BLUE)
    right.set(xlabel="rho", ylabel="largest eigenvalue", xticks=range(len(rhos)), xticklabels=rhos, ylim=(0, None))


def _ascended(loss: Callable[[Tensor], Tensor], places: Tensor, rho: float) -> list[float]:
    """Returns the loss where SAM takes its gradient, for each place."""
    seen = []
    for place in places:
        model = nn.ParameterList([place.clone()])
        loss(model[0]).backward()
        with optim.SAM(model, rho=rho).ascended():
            seen.append(float(loss(model[0].detach())))
    return seen


def _sharpness(x: Tensor, y: Tensor, rho: float, seed: int) -> float:
    """Returns the Hessian's largest eigenvalue after training with SAM."""
    model = perceptron(seed, 32)
    optimizer, ascent = optim.SGD(model.parameters(), lr=0.1, momentum=0.9), optim.SAM(model, rho=rho)
    for inputs, targets in batches(x, y, 40):
        optimizer.zero_grad()
        plain(model, inputs, targets).backward()
        if rho:
            with ascent.ascended():
                plain(model, inputs, targets).backward()
        optimizer.step()
    return lab.sharpness(model, (x, y), k=1, quiet=True).eigenvalues[0]


# ---------------------------------------------------------------------- bookkeeping


def batch_norm() -> None:
    left, right = panels("one sample's value, in batches with others", "loss on digits not seen, first steps")
    torch.manual_seed(0)
    sizes = (4, 16, 64, 256)
    norm = nn.BatchNorm1d(1)
    for place, size in enumerate(sizes):
        others = torch.randn(60, size, 1)
        others[:, 0] = 1.0  # the sample
        values = torch.stack([norm(batch)[0, 0] for batch in others]).detach()
        left.plot(place + 0.5 * (torch.rand(60) - 0.5), values, linestyle="", marker="o", markersize=1.6, color=BLUE)
    left.axhline(1, color=ORANGE, label="evaluation, with the true statistics")
    left.set(xlabel="batch size", xticks=range(len(sizes)), xticklabels=sizes, ylim=(-1.2, 2.2))
    legend(left, loc="lower right")
    x, y, others, answers = digits()
    for momentum, color in ((0.1, BLUE), (0.01, ORANGE)):
        random.seed_everything(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = optim.Adam(model.parameters(), lr=3e-3)
        running, exact = [], []
        for inputs, targets in batches(x, y, 8):
            optimizer.zero_grad()
            plain(model.train(), inputs, targets).backward()
            optimizer.step()
            with torch.no_grad():
                running.append(float(plain(model.eval(), others, answers)))
                exact.append(float(plain(_recomputed(model, x), others, answers)))
        right.plot(running, color=color, label=f"running statistics, momentum={momentum:g}")
    right.plot(exact, color=GREY, linestyle="--", label="statistics of all that is learned from")
    right.set(xlabel="step", ylim=(0, 3.4))
    legend(right, loc="upper right", fontsize=8)


def _recomputed(model: nn.Module, x: Tensor) -> nn.Module:
    """Returns a copy whose batch norms have the statistics of these samples."""
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([x], model)
    return model.eval()


def marginalize() -> None:
    left, right = panels("loss on digits not seen", "draws that name another class (30 samples)")
    x, y, others, answers = digits()
    members = [learn(perceptron(seed, drop=0.5), x, y) for seed in range(3)]
    counts = [1, 2, 5, 10, 20, 50]
    for models, name, color in (([members[0]], "one model", BLUE), (members, "three members", GREEN)):
        losses = [_loss(ensemble.marginalize(models, others, samples=count).probabilities, answers) for count in counts]
        left.semilogx(counts, losses, color=color, marker="o", markersize=3, label=f"{name}, sampled")
        whole = _loss(ensemble.marginalize(models, others).probabilities, answers)
        left.axhline(whole, color=color, linestyle="--", linewidth=1, label=f"{name}, evaluation")
    left.set(xlabel="samples of each", xticks=counts, xticklabels=counts)
    left.minorticks_off()
    legend(left, fontsize=8)
    result = ensemble.marginalize(members[0], others, samples=30)
    correct = result.probabilities.argmax(1) == answers
    for which, name, color in ((correct, "right", BLUE), (~correct, "wrong", PURPLE)):
        histogram(right, result.disagreement[which], np.linspace(0, 0.8, 17), f"{int(which.sum())} {name}", color)
    right.set_xlabel("fraction of the draws")
    legend(right)


def _loss(probabilities: Tensor, answers: Tensor) -> float:
    return float(-probabilities[torch.arange(len(answers)), answers].log().mean())


PICTURES = (
    dropout, dropconnect, stochastic_depth, fractional_pooling, label_smoothing, mixup, cutmix, penalties, sam,
    batch_norm, marginalize,
)  # fmt: skip
