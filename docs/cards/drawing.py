"""What all pictures of the cards have in common: their look, their panels, and optimizers that descend."""

import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f6fb2", "#c4622d", "#3a8f5c", "#7a5ca8", "#8a95a1"
mpl.use("svg")
plt.rcParams |= {
    "svg.fonttype": "none", "svg.hashsalt": "trainwell", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "lines.linewidth": 1.6, "legend.frameon": False, "legend.fontsize": 8.5,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, PURPLE]), "figure.facecolor": "white",
}  # fmt: skip
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[torch.Tensor], torch.Tensor]


def panels(*titles: str, height: float = 2.7, widths: tuple[float, ...] | None = None) -> Any:
    """Makes panels side by side and returns their axes."""
    _, axes = plt.subplots(
        1, len(titles), figsize=(7.6, height), layout="constrained", squeeze=False, width_ratios=widths
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return axes[0] if len(titles) > 1 else axes[0][0]


def bowl(steepness: float = 20.0, angle: float = 0.0) -> Loss:
    """Makes a long valley: `(a² + steepness · b²) / 2`, where `a` and `b` are the axes turned by an angle."""
    cos, sin = math.cos(angle), math.sin(angle)

    def loss(p: torch.Tensor) -> torch.Tensor:
        along, across = cos * p[0] + sin * p[1], cos * p[1] - sin * p[0]
        return (along**2 + steepness * across**2) / 2

    return loss


def walk(make: Make, loss: Loss, start: tuple[float, ...], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lets an optimizer descend; returns the points, the start among them, and the losses there."""
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer, points, losses = make([p]), [], []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        value = loss(p)
        value.backward()
        points.append(p.detach().clone())
        losses.append(float(value.detach()))
        optimizer.step()
    return torch.stack(points).numpy(), np.array(losses)


def fed(optimizer: torch.optim.Optimizer, gradients: Any) -> np.ndarray:
    """Gives an optimizer of one parameter these gradients; returns the parameter before and after each step."""
    [p] = optimizer.param_groups[0]["params"]
    points = [p.detach().clone()]
    for g in gradients:
        p.grad = torch.as_tensor(g, dtype=p.dtype).reshape(p.shape)
        optimizer.step()
        points.append(p.detach().clone())
    return torch.stack(points).numpy()


def at_zero(size: int = 1) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))]


def valley(axis: Any, steepness: float = 20.0, angle: float = 0.0, box: Any = ((-10.5, 2), (-2.4, 2.4))) -> None:
    """Draws the lines of equal loss of a bowl, and its minimum."""
    turn = np.linspace(0, 2 * math.pi, 90)
    for radius in (1.5, 3.5, 6, 9, 12.5):
        a, b = radius * np.cos(turn), radius / math.sqrt(steepness) * np.sin(turn)
        x, y = math.cos(angle) * a - math.sin(angle) * b, math.sin(angle) * a + math.cos(angle) * b
        axis.plot(x, y, color="#d5dbe1", linewidth=0.9, zorder=0)
    axis.plot(0, 0, marker="*", color=GREY, markersize=9, zorder=1)
    axis.set(xlim=box[0], ylim=box[1], xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def path(axis: Any, points: np.ndarray, label: str, color: str, dots: bool = True) -> None:
    axis.plot(*points.T, color=color, label=label, linewidth=1.3, marker="o" if dots else None, markersize=2.6)


def legend(axis: Any, **options: Any) -> None:
    axis.legend(**{"loc": "best", "handlelength": 1.6, **options})


def on_log(axis: Any, losses: dict[str, tuple[np.ndarray, str]], least: float) -> None:
    for name, (values, color) in losses.items():
        axis.semilogy(np.maximum(values, least / 10), color=color, label=name)
    axis.set(xlabel="step", ylim=(least, None))
    legend(axis)


def curve(axis: Any, schedule: Callable[[int], float], steps: int, label: str | None = None, **style: Any) -> None:
    at = sorted({*range(0, steps + 1, max(1, steps // 250)), steps})
    axis.plot(at, [schedule(step) for step in at], label=label, **style)
    axis.set(ylim=(0, None), xlabel="step")


def noisy(make: Make, steps: int, noise: float = 3.0, runs: int = 200) -> np.ndarray:
    """Descends a bowl with noise in the gradient; returns the mean loss of many runs at each step."""
    random = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 10.0], dtype=torch.float64)
    p = torch.nn.Parameter(torch.tensor([8.0, 2.0], dtype=torch.float64).repeat(runs, 1))
    optimizer, losses = make([p]), []
    for _ in range(steps):
        losses.append(float((p.detach() ** 2 * scale).sum(1).mean() / 2))
        p.grad = p.detach() * scale + noise * torch.randn(p.shape, generator=random, dtype=torch.float64)
        optimizer.step()
    return np.array(losses)
