"""Fractional max pooling, forward and backward, of 64 images: ours beside torch's, in turns in one process.

    python bench/fractional_pooling.py [--rounds 15] [--threads 1 2]

Both shrink sides by 0.71. All regions of torch are 2 pixels wide; ours, the paper's, are 2 or 3 and share borders: more
to read. Figures are medians; each round times both, in an order drawn anew.
"""

import argparse
import functools

import torch
from torch import nn

from interleaved import medians
from trainwell.regularize import FractionalMaxPool2d

RATIO = 2**-0.5
SHAPES = [(64, 16, 32, 32), (64, 64, 16, 16), (64, 64, 56, 56)]
KINDS = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32, channels_last": (torch.float32, torch.channels_last),
    "bfloat16, channels_last": (torch.bfloat16, torch.channels_last),
}


def measure(x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Returns the median seconds of a forward and a backward pass."""
    layers = {"ours": FractionalMaxPool2d(RATIO), "torch": nn.FractionalMaxPool2d(2, output_ratio=RATIO)}
    g = torch.randn_like(layers["ours"](x))
    steps = {who: functools.partial(_step, layer, x, g) for who, layer in layers.items()}
    return medians(steps, rounds)


def _step(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> object:
    return torch.autograd.grad(layer(x), x, g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: ours, and how many times as long torch takes")
        for shape in SHAPES:
            for name, (dtype, layout) in KINDS.items():
                x = torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()
                found = measure(x, options.rounds)
                ratio = found["torch"] / found["ours"]
                print(f"  {shape!s:18} {name:24} {1e3 * found['ours']:6.1f} ms  {ratio:5.1f}×", flush=True)


if __name__ == "__main__":
    main()
