"""Fractional max pooling: each side shrinks by a factor between 1 and 2, over regions that are drawn at random.

Graham, *Fractional max-pooling* (arXiv 1412.6071, 2014).
"""

import functools
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from trainwell import jit
from trainwell.errors import InputError
from trainwell.regularize import masks
from trainwell.regularize.noise import Noise, splitmix64
from trainwell.threads import share


class FractionalMaxPool2d(Noise):
    """Takes the maximum over regions whose borders are drawn for each row of the batch, in training.

    Along a side, borders `a[0] < a[1] < …` are one or two pixels apart. Region `i` is from `a[i]` to `a[i + 1]`, both
    included, if regions overlap (2 or 3 pixels), and else without the last (1 or 2). Evaluation takes the pseudorandom
    borders of `u = 1/2`: always the same, and an approximation of the average.

    `torch.nn.FractionalMaxPool2d` has pseudorandom borders with regions of a fixed size, and draws in evaluation too.

    Args:
        output_ratio: the output's side over the input's, from 1/2 to below 1, rounded down to whole pixels.
        output_size: the output's height and width, in place of a ratio; a number for both.
        mode: how borders are drawn: "random" gives each order of ones and twos the same chance, "pseudorandom" is
            `ceil(alpha * (i + u))` for one uniform `u`.
        overlapping: whether neighbouring regions share their border.

    Shape: `(n, c, h, w)` to `(n, c, h', w')`.

    Raises:
        InputError: an argument is out of its range, or the output's sides are not between the half and all of the
            input's.

    >>> FractionalMaxPool2d(0.7)(torch.randn(2, 3, 20, 30)).shape
    torch.Size([2, 3, 14, 21])
    """

    average = "approximate"

    def __init__(
        self,
        output_ratio: float | None = None,
        *,
        output_size: int | tuple[int, int] | None = None,
        mode: Literal["random", "pseudorandom"] = "pseudorandom",
        overlapping: bool = True,
    ) -> None:
        super().__init__()
        if output_ratio is not None and output_size is not None:
            raise InputError("output_ratio and output_size say the same: give one of them")
        if output_ratio is None and output_size is None:
            output_ratio = 2**-0.5
        if output_ratio is not None and not 0.5 <= output_ratio < 1:
            raise InputError(f"output_ratio is {output_ratio}: it is from 1/2 to below 1")
        if mode not in ("random", "pseudorandom"):
            raise InputError(f"mode is {mode!r}: it is random or pseudorandom")
        self.output_ratio, self.output_size = output_ratio, output_size
        self.mode, self.overlapping = mode, overlapping

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        size = f"{self.output_ratio}" if self.output_size is None else f"output_size={self.output_size}"
        return f"{size}, mode={self.mode!r}, overlapping={self.overlapping}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maxima."""
        if x.ndim != 4:
            raise InputError(f"an input has shape {tuple(x.shape)}: images are (n, c, h, w)")
        keys = self.row_keys(x) if self.noisy else None
        rows, columns = (
            self._borders(x.shape[side + 2], out, side, keys, x) for side, out in enumerate(self._sizes(x))
        )
        return maxima(x, rows, columns, overlapping=self.overlapping)

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        if self.output_size is not None:
            return self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
        assert self.output_ratio is not None
        return int(x.shape[2] * self.output_ratio), int(x.shape[3] * self.output_ratio)

    def _borders(self, size: int, out: int, side: int, keys: Tensor | None, x: Tensor) -> Tensor:
        """Returns the borders along a side, `(n, out + 1)`, or `(1, out + 1)` if they are the same for all rows."""
        way = size - 1 if self.overlapping else size
        if not 0 < out <= way <= 2 * out:
            least, most = -(-way // 2), way
            raise InputError(f"a side of {size} pixels cannot become {out}: it can become {least} to {most}")
        mine = None if keys is None else splitmix64(keys ^ side)
        if self.mode == "random" and mine is not None:
            return random_borders(mine, way, out)
        u = torch.full((1,), 2**31, device=x.device) if mine is None else masks.words(mine, 1)[:, 0]
        return pseudorandom_borders(u, way, out)


def pseudorandom_borders(u: Tensor, way: int, steps: int) -> Tensor:
    """Returns `ceil(alpha * (i + u))`, moved to begin at 0, for each `u`: int64 `(n, steps + 1)`.

    Whole numbers, `u` from 0 to below 2**32 as a fraction of that, because a rounded product may miss its ceiling.

    >>> pseudorandom_borders(torch.tensor([0, 2**31]), 5, 3).tolist()
    [[0, 2, 4, 5], [0, 2, 4, 5]]
    """
    places = (torch.arange(steps + 1, device=u.device) << 32) + u[:, None]
    borders = -(-way * places // (steps << 32))
    return borders - borders[:, :1]


def random_borders(keys: Tensor, way: int, steps: int) -> Tensor:
    """Returns borders of which `way - steps` are two apart and the others one, in an order drawn by each key."""
    twos = masks.words(keys, steps).argsort(dim=1, stable=True).argsort(dim=1) < way - steps
    return torch.nn.functional.pad((1 + twos.long()).cumsum(1), (1, 0))


def maxima(x: Tensor, rows: Tensor, columns: Tensor, *, overlapping: bool, kernel: str = "auto") -> Tensor:
    """Returns the maxima over the regions between borders, which are the same for all images or differ.

    Args:
        x: images, `(n, c, h, w)`.
        rows, columns: the borders along the height and the width, `(n, h' + 1)` and `(n, w' + 1)`, or of one row.
        overlapping: whether regions end with their last border, and not before it.
        kernel: "auto" for the compiled pass where there is one, "reference" for tensor operations.
    """
    if kernel == "auto" and jit.reads(x) and x.is_floating_point() and _compiled():
        result: Tensor = _Maxima.apply(x, rows, columns, overlapping)  # type: ignore[no-untyped-call]
        return result
    for dim, borders in ((2, rows), (3, columns)):
        x = _along(x, dim, borders, overlapping)
    return x


def _along(x: Tensor, dim: int, borders: Tensor, overlapping: bool) -> Tensor:
    """Returns the maxima over the regions along a dimension."""
    last = borders[:, 1:] if overlapping else borders[:, 1:] - 1
    # A region's two or three places; a shorter one has its last place again.
    offsets = torch.arange(3 if overlapping else 2, device=x.device)
    places = torch.minimum(borders[:, :-1, None] + offsets, last[..., None])
    before, after = x.shape[1:dim], x.shape[dim + 1 :]
    flat = places.flatten(1).expand(len(x), -1)
    index = flat.view(len(x), *[1] * len(before), flat.shape[1], *[1] * len(after))
    read = x.gather(dim, index.expand(len(x), *before, -1, *after))
    return read.view(len(x), *before, *places.shape[1:], *after).max(dim + 1).values


# ---------------------------------------------------------------------- the compiled pass


@functools.cache
def _compiled() -> ModuleType | None:
    try:
        from trainwell.regularize import compiled_maxima
    except ImportError:
        return None
    return compiled_maxima


class _Maxima(torch.autograd.Function):
    """Keeps where the maxima are: all else follows from that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, overlapping: bool) -> Tensor:
        numbers = _channels_innermost(x)
        shape = len(x), rows.shape[1] - 1, columns.shape[1] - 1, x.shape[1]
        best, places = torch.empty(shape, dtype=numbers.dtype), torch.empty(shape, dtype=torch.int32)
        borders = (one.expand(len(x), -1).contiguous().numpy() for one in (rows, columns))
        how = numbers.numpy(), *borders, int(overlapping), best.numpy(), places.numpy()
        _for_images("find", how)
        ctx.places, ctx.shape = places.permute(0, 3, 1, 2), x.shape
        return _laid_out(best, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _AtMaxima.apply(grads[0], ctx.places, ctx.shape), None, None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _read(tangents[0], ctx.places)


class _AtMaxima(torch.autograd.Function):
    """Puts numbers where the maxima are, and zeros elsewhere; what several regions share is added."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
        ctx.places, ctx.shape = places, shape
        n, c, h, w = shape
        numbers = _channels_innermost(g)
        total = torch.zeros(n, h * w, c, dtype=numbers.dtype)
        _for_images("add_at", (numbers.numpy(), places.permute(0, 2, 3, 1).numpy(), total.numpy()))
        return _laid_out(total.view(n, h, w, c), g)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _read(grads[0], ctx.places), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _AtMaxima.apply(tangents[0], ctx.places, ctx.shape)  # type: ignore[no-untyped-call]
        return result


def _read(x: Tensor, places: Tensor) -> Tensor:
    """Returns what is at the places, with the derivatives of torch's own operations."""
    return x.flatten(2).gather(2, places.flatten(2).long()).view(places.shape)


def _channels_innermost(x: Tensor) -> Tensor:
    """Returns images as `(n, h, w, c)`, in memory too, of floats that NumPy knows."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.detach().to(wide).permute(0, 2, 3, 1).contiguous()


def _laid_out(numbers: Tensor, x: Tensor) -> Tensor:
    """Returns what is `(n, h, w, c)` as images of the dtype and the memory format of `x`."""
    memory_format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return numbers.permute(0, 3, 1, 2).to(x.dtype).contiguous(memory_format=memory_format)


def _for_images(name: str, how: tuple[Any, ...]) -> None:
    """Calls a pass on all images, in threads."""
    run, images = getattr(_compiled(), name), how[0]
    threads = torch.get_num_threads() if images.size > masks.FEW else 1
    share(run, how, len(images), threads)
