"""Measures how often a suggested learning rate is near the best, for `lr_range` and for rules that read a curve alone.

    python bench/lr_range.py --csv docs/evidence/lr-range.csv > docs/evidence/lr-range.txt

Each case is a planted problem (its size, noise and conditioning drawn at random) and an optimizer. The best rate is the
one, of a grid in steps of 1.5, whose loss over all training samples after 300 steps at that rate is the lowest in the
mean over three seeds. A suggestion is right within a factor of 3. The constants of `lr_range` were chosen on other
draws of the families called "tuned on"; "held out" are fresh draws, families and optimizers that had no say in it.
"""

import argparse
import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import trainwell as tw
from rows import write
from trainwell.metrics.correctness import wilson_interval
from trainwell.optim.range_test import lr_range

GRID = 1.5 ** np.arange(-24, 8.0)  # 6e-5 to 17
STEPS, SEEDS, SAMPLES, FACTOR = 300, 3, 1024, 3
FAMILIES = ("quadratic", "linear", "logistic", "teacher", "digits")
OTHER_FAMILIES = ("cancer", "layernorm", "factors", "autoencoder", "conv")
OPTIMIZERS = ("sgd", "momentum", "adam")
OTHER_OPTIMIZERS = ("nesterov", "adamw", "rmsprop")
Array = npt.NDArray[Any]
Row = dict[str, Any]


@dataclass
class Problem:
    make: Callable[[], nn.Module]
    x: torch.Tensor
    y: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int


# --- Problems. ---


class Point(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.at - x


class Factors(nn.Module):
    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.u, self.v = (nn.Parameter(0.3 * torch.randn(size, rank)) for size in (rows, columns))

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return (self.u[cells[:, 0].long()] * self.v[cells[:, 1].long()]).sum(1)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.b):
            x = F.max_pool2d(F.relu(layer(x)), 2)
        return self.c(x.flatten(1))


def mlp(sizes: list[int], act: type[nn.Module], norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs[..., 0] if outputs.ndim > targets.ndim else outputs, targets)


def draw(family: str, optimizer: str, draw: int) -> Problem:
    rng = np.random.default_rng([zlib.crc32(family.encode()), zlib.crc32(optimizer.encode()), draw])
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    batch_size = int(rng.choice([16, 32, 64]))
    if family == "quadratic":  # half the sum of h (w - noise)², condition number up to 3,000, at any scale
        size = int(rng.choice([10, 50]))
        h = torch.logspace(0, -rng.uniform(0, 3.5), size) * 10 ** rng.uniform(-1, 2)
        x = 10 ** rng.uniform(-2, 0.3) * normal(SAMPLES, size)
        return Problem(
            lambda: Point(size), x, torch.zeros(SAMPLES), lambda o, _: (h * o * o).sum(-1).mean() / 2, batch_size
        )
    if family == "linear":  # condition number up to 1,000
        size = int(rng.choice([10, 50]))
        scales = torch.logspace(0, -rng.uniform(0, 1.5), size) * 10 ** rng.uniform(-0.5, 0.5)
        x = normal(SAMPLES, size) * scales
        y = x @ normal(size) + 10 ** rng.uniform(-2, 0) * normal(SAMPLES)
        return Problem(lambda: nn.Linear(size, 1), x, y, squares, batch_size)
    if family == "logistic":
        size, classes = int(rng.choice([10, 30])), int(rng.choice([2, 5, 10]))
        x = normal(SAMPLES, size) * torch.logspace(0, -rng.uniform(0, 1), size) * 10 ** rng.uniform(-0.3, 0.7)
        gumbel = -torch.log(-torch.log(torch.rand(SAMPLES, classes, generator=generator)))
        y = (0.5 * x @ normal(size, classes) + gumbel).argmax(1)
        return Problem(lambda: nn.Linear(size, classes), x, y, F.cross_entropy, batch_size)
    if family == "teacher":
        size, width, depth = int(rng.choice([8, 16, 32])), int(rng.choice([16, 32, 64])), int(rng.integers(1, 4))
        act = [nn.ReLU, nn.Tanh, nn.GELU][rng.integers(3)]
        x = normal(SAMPLES, size)
        y = torch.tanh(2 * x @ normal(size, 8) / size**0.5) @ normal(8) + 0.1 * normal(SAMPLES)
        return Problem(lambda: mlp([size, *[width] * depth, 1], act), x, y, squares, batch_size)
    if family == "layernorm":
        classes, width = int(rng.choice([3, 10])), int(rng.choice([16, 64]))
        x = normal(SAMPLES, 16)
        y = (torch.tanh(x @ normal(16, 32) / 4) @ normal(32, classes) + 0.5 * normal(SAMPLES, classes)).argmax(1)
        sizes = [16, width, width, classes]
        return Problem(lambda: mlp(sizes, nn.ReLU, norm=True), x, y, F.cross_entropy, batch_size)
    if family == "factors":
        rank = int(rng.choice([2, 5]))
        cells = torch.stack([torch.randint(n, (SAMPLES,), generator=generator) for n in (50, 40)], 1)
        u, v = normal(50, rank), normal(40, rank)
        y = (u[cells[:, 0]] * v[cells[:, 1]]).sum(1) + 0.1 * normal(SAMPLES)
        return Problem(lambda: Factors(50, 40, rank), cells.float(), y, squares, batch_size)
    if family == "autoencoder":
        x = torch.tanh(normal(SAMPLES, 4) @ normal(4, 24)) + 0.05 * normal(SAMPLES, 24)
        return Problem(lambda: mlp([24, 16, 4, 16, 24], nn.Tanh), x, x, F.mse_loss, batch_size)

    from sklearn import datasets

    if family == "cancer":
        x, y = datasets.load_breast_cancer(return_X_y=True)
        x, sizes = (x - x.mean(0)) / x.std(0), [30, int(rng.choice([8, 32])), 2]
        return Problem(
            lambda: mlp(sizes, nn.ReLU), torch.tensor(x).float(), torch.tensor(y), F.cross_entropy, batch_size
        )
    x, y = (torch.tensor(part) for part in datasets.load_digits(return_X_y=True))
    some = torch.randperm(len(x), generator=generator)[:SAMPLES]
    x, y = x[some].float() / 16, y[some]
    batch_size = min(batch_size, 32)
    if family == "conv":
        return Problem(Conv, x.view(-1, 1, 8, 8), y, F.cross_entropy, batch_size)
    act = [nn.ReLU, nn.Tanh][rng.integers(2)]
    sizes = [64, *[int(rng.choice([16, 32]))] * int(rng.integers(1, 4)), 10]
    return Problem(lambda: mlp(sizes, act), x - x.mean() if rng.random() < 0.5 else x, y, F.cross_entropy, batch_size)


# --- The best rate. ---


def made(name: str, parameters: Any) -> torch.optim.Optimizer:
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
        "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    }
    return makers[name](parameters)


def stepped(name: str, p: Any, g: Any, state: Any, lr: Any, t: int) -> tuple[Any, Any]:
    """The formulas of `made`, for copies of a model with a rate for each."""
    if name == "sgd":
        return p - lr * g, None
    if name in ("momentum", "nesterov"):
        buffer = g if state is None else 0.9 * state + g
        return p - lr * (g + 0.9 * buffer if name == "nesterov" else buffer), buffer
    if name == "rmsprop":
        square = 0.01 * g * g if state is None else 0.99 * state + 0.01 * g * g
        return p - lr * g / (square.sqrt() + 1e-8), square
    mean, square = (0 * g, 0 * g) if state is None else state
    mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
    p = p * (1 - 0.05 * lr) if name == "adamw" else p
    return p - lr * mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 1e-8), (mean, square)


def order(problem: Problem, steps: int, seed: int) -> torch.Tensor:
    generator, epochs, n = torch.Generator().manual_seed(seed), [], len(problem.x)
    while sum(map(len, epochs)) < steps:
        rows = torch.randperm(n, generator=generator)[: n // problem.batch_size * problem.batch_size]
        epochs.append(rows.view(-1, problem.batch_size))
    return torch.cat(epochs)[:steps]


def grid_losses(problem: Problem, optimizer: str) -> Array:
    """Returns the loss over all samples at the end, for each rate of the grid: the mean over the seeds."""
    models = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        models.append(problem.make())
    copies = {
        name: value.detach().repeat(len(GRID), *[1] * (value.ndim - 1))
        for name, value in stack_module_state(models)[0].items()
    }
    rates = torch.tensor(GRID, dtype=torch.float32).repeat_interleave(SEEDS)

    def loss(parameters: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return problem.loss(functional_call(models[0], parameters, (x,)), y)

    states: dict[str, Any] = dict.fromkeys(copies)
    orders = torch.stack([order(problem, STEPS, seed) for seed in range(SEEDS)])
    for t in range(STEPS):
        rows = orders[:, t].repeat(len(GRID), 1)
        gradients = vmap(grad(loss))(copies, problem.x[rows], problem.y[rows])
        for name, p in copies.items():
            shaped = rates.view(-1, *[1] * (p.ndim - 1))
            copies[name], states[name] = stepped(optimizer, p, gradients[name], states[name], shaped, t + 1)
    total = torch.zeros(len(rates))
    with torch.no_grad():
        for rows in torch.arange(len(problem.x)).split(128):
            x, y = (part[rows].expand(len(rates), *part[rows].shape) for part in (problem.x, problem.y))
            total += vmap(loss)(copies, x, y) * len(rows) / len(problem.x)
    return total.view(-1, SEEDS).nan_to_num(nan=math.inf).mean(1).numpy()


# --- Rules that read a curve. The peers' sweep: 1e-7 to 10, a smoothing of 0.98, until the loss is four times its
# lowest; a tenth of the steps at the start and five at the end are left out (fastai's lr_find). ---


def sweep(problem: Problem, optimizer: str, steps: int) -> tuple[Array, Array]:
    torch.manual_seed(SEEDS)
    model = problem.make()
    stepper, rates = made(optimizer, model.parameters()), np.geomspace(1e-7, 10, steps)
    mean, lowest, smoothed = 0.0, math.inf, []
    for t, rows in enumerate(order(problem, steps, SEEDS)):
        stepper.param_groups[0]["lr"] = rates[t]
        stepper.zero_grad()
        loss = problem.loss(model(problem.x[rows]), problem.y[rows])
        loss.backward()
        stepper.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        smoothed.append(mean / (1 - 0.98 ** (t + 1)))
        if not math.isfinite(mean) or smoothed[-1] > 4 * lowest:
            break
        lowest = min(lowest, smoothed[-1])
    kept = slice(steps // 10, -5) if len(smoothed) > steps // 10 + 8 else slice(None)
    return rates[: len(smoothed)][kept], np.array(smoothed)[kept]


def steepest(rates: Array, losses: Array) -> float:
    return float(rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))])


def tenth_of_minimum(rates: Array, losses: Array) -> float:
    return float(rates[np.argmin(losses)] / 10)


def valley(rates: Array, losses: Array) -> float:
    """Half-way down the longest valley: a half of the longest falling subsequence's length before its end."""
    length, end = np.ones(len(losses), int), 0
    for i in range(1, len(losses)):
        before = length[:i][losses[:i] > losses[i]]
        length[i] = 1 + before.max(initial=0)
        end = i if length[i] > length[end] else end
    start, third = end - int(length[end]), length[end] / 3
    return float(rates[max(0, start + int(third) + int(third / 2))])


RULES = {"steepest descent": steepest, "valley": valley, "minimum / 10": tenth_of_minimum}


def ours(problem: Problem, optimizer: str, **options: Any) -> tuple[float, int]:
    """Returns our suggestion and how many steps it took."""
    torch.manual_seed(SEEDS)
    model, taken = problem.make(), 0

    def counted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return problem.loss(outputs, targets)

    batches = [(problem.x[rows], problem.y[rows]) for rows in order(problem, 100, SEEDS)]
    found = lr_range(model, made(optimizer, model.parameters()), batches, counted, quiet=True, **options)
    return found.suggestion or math.nan, taken


# --- The table. ---


def cases() -> Iterator[tuple[str, str, str, int]]:
    for family, optimizer, number in itertools.product(FAMILIES, OPTIMIZERS, range(2)):
        yield "tuned on", family, optimizer, number
    for number, family, optimizer in itertools.product((100, 101), FAMILIES + OTHER_FAMILIES, OPTIMIZERS):
        yield "held out", family, optimizer, number
    for family, optimizer in itertools.product(FAMILIES + OTHER_FAMILIES, OTHER_OPTIMIZERS):
        yield "held out", family, optimizer, 100


def measured(part: str, family: str, optimizer: str, number: int) -> Iterator[Row]:
    problem = draw(family, optimizer, number)
    losses = grid_losses(problem, optimizer)
    best = float(GRID[np.argmin(losses)])
    suggestions: dict[str, tuple[float, int]] = {}
    for steps in (100, 700):
        curve = sweep(problem, optimizer, steps)
        suggestions |= {f"{name}, {steps} steps": (rule(*curve), steps) for name, rule in RULES.items()}
    suggestions["lr_range, trial_steps=0"] = ours(problem, optimizer, trial_steps=0)
    suggestions["lr_range"] = ours(problem, optimizer)
    for rule, (rate, steps) in suggestions.items():
        at = losses[np.abs(np.log(GRID / rate)).argmin()] if math.isfinite(rate) else losses[0]
        yield {
            "part": part, "family": family, "optimizer": optimizer, "draw": number, "rule": rule, "steps": steps,
            "best": f"{best:.4g}", "suggested": f"{rate:.4g}", "ratio": f"{rate / best:.4g}",
            "right": int(1 / FACTOR <= rate / best <= FACTOR),
            "fall_lost": f"{(at - losses.min()) / (losses[0] - losses.min()):.4g}",
        }  # fmt: skip


def tell(rows: list[Row]) -> None:
    print(
        f"Suggested learning rates within a factor of {FACTOR} of the best of a grid (steps of 1.5, {STEPS} steps at a"
    )
    print(f"constant rate, {SEEDS} seeds), with Wilson's 95 % interval; the median of suggested/best, and its 5 % and")
    print("95 % quantiles; in how many cases the rate (the grid's nearest) keeps 90 % of the best rate's fall in loss.")
    for part in ("tuned on", "held out"):
        for optimizers in ((OPTIMIZERS + OTHER_OPTIMIZERS), *((o,) for o in OPTIMIZERS + OTHER_OPTIMIZERS)):
            own = [row for row in rows if row["part"] == part and row["optimizer"] in optimizers]
            if not own or (part == "tuned on" and len(optimizers) == 1):
                continue
            n = len(own) // len({row["rule"] for row in own})
            print(f"\n{part}, {optimizers[0] if len(optimizers) == 1 else 'all optimizers'}, n = {n}")
            for rule in dict.fromkeys(row["rule"] for row in own):
                mine = [row for row in own if row["rule"] == rule]
                right, ratios = sum(row["right"] for row in mine), np.array([float(row["ratio"]) for row in mine])
                low, high = wilson_interval(right, len(mine))
                kept = np.mean([float(row["fall_lost"]) <= 0.1 for row in mine])
                middle, few, most = np.nanquantile(ratios, [0.5, 0.05, 0.95])
                steps = np.mean([row["steps"] for row in mine])
                print(
                    f"  {rule:28} {right / n:6.1%} [{low:.1%}, {high:.1%}]  ratio {middle:8.2g} [{few:.2g}, {most:.2g}]"
                    f"  keeps 90 % {kept:6.1%}  {steps:4.0f} steps"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases, to see whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.process_time(), []
    for case in list(cases())[:: 10 if options.quick else 1]:
        rows += measured(*case)
    if options.csv:
        write(options.csv, rows)
    tell(rows)
    print(f"\ntrainwell {tw.__version__}, torch {torch.__version__}, {time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
