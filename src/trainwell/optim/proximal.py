"""The proximal step of the elastic net."""

from typing import Any

from trainwell.optim.formula import maximum, sign


def proximal(p: Any, l1: float, l2: float, step_size: Any) -> Any:
    """Returns the `q` with the least `(q - p)**2 / 2 + step_size * (l1 * |q| + l2 / 2 * q**2)`.

    Zou and Hastie, *Regularization and variable selection via the elastic net* (2005), equation 6; with `l1` alone it
    is the soft threshold.

    >>> proximal(-1.0, l1=2.0, l2=0.0, step_size=0.25), proximal(0.4, l1=2.0, l2=0.0, step_size=0.25)
    (-0.5, 0.0)
    >>> proximal(1.0, l1=0.0, l2=2.0, step_size=0.5)
    0.5
    """
    if l1:
        p = sign(p) * maximum(abs(p) - l1 * step_size, 0.0)
    return p / (1 + l2 * step_size) if l2 else p
