"""Stochastic depth: whole residual branches are skipped at random in training.

Huang, Sun, Liu, Sedra and Weinberger, *Deep networks with stochastic depth* (ECCV 2016).
"""

from typing import Literal

import torch
from torch import Tensor

from trainwell.errors import InputError
from trainwell.regularize import masks
from trainwell.regularize.dropout import check_fraction
from trainwell.regularize.noise import Noise


class StochasticDepth(Noise):
    """Zeroes a whole row with probability `p` in training; it stands at the end of a residual branch.

    `x + StochasticDepth(p)(branch(x))` is then `x` alone for that row. Evaluation gives the branch's mean over the
    noise, exactly; after the next nonlinearity that is approximate.

    Args:
        p: the fraction of rows that skip the branch, from 0 to 1; it rises with depth, see `depth_rates`.
        mode: "row" draws for each row of the batch, "batch" once for all.
        scaling: "inverted" multiplies by `1 / (1 - p)` in training, as torchvision and timm do; "classic", as in the
            paper, by `1 - p` in evaluation.

    Shape: `(n, ...)`, of rows; the result has the same shape and dtype.

    Raises:
        InputError: `p` is out of its range, or `mode` or `scaling` is another word.

    >>> branch = StochasticDepth(0.5)
    >>> sorted(set(branch(torch.ones(100, 3)).sum(1).tolist()))
    [0.0, 6.0]
    """

    average = "exact"

    def __init__(
        self,
        p: float,
        mode: Literal["row", "batch"] = "row",
        *,
        scaling: Literal["inverted", "classic"] = "inverted",
    ) -> None:
        super().__init__()
        check_fraction(p)
        for name, value, known in (("mode", mode, ("row", "batch")), ("scaling", scaling, ("inverted", "classic"))):
            if value not in known:
                raise InputError(f"{name} is {value!r}: it is {known[0]} or {known[1]}")
        self.p, self.mode, self.scaling = p, mode, scaling

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        return f"p={self.p}, mode={self.mode!r}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with rows skipped in training, or scaled in evaluation."""
        if not self.noisy:
            return x * (1 - self.p) if self.scaling == "classic" else x
        if self.p == 0:
            return x
        keys = self.row_keys(x) if self.mode == "row" else self.batch_key(x)
        kept = masks.kept(keys, 1, self.p) if self.p < 1 else torch.zeros(len(keys), 1, dtype=torch.bool)
        factor = kept.to(x).view(-1, *[1] * (x.ndim - 1))
        return x * (factor / (1 - self.p) if self.scaling == "inverted" and self.p < 1 else factor)


def depth_rates(p: float, blocks: int) -> list[float]:
    """Returns the rate of each residual block: it rises by equal steps from 0 at the first to `p` at the last.

    As in timm, but that a single block has `p`; the paper's section 3.2 begins one step higher.

    >>> depth_rates(0.2, 3), depth_rates(0.2, 1)
    ([0.0, 0.1, 0.2], [0.2])
    """
    return [p] if blocks == 1 else [p * block / (blocks - 1) for block in range(blocks)]
