"""Fractional max pooling, forward and backward, of 64 images: ours beside torch's, in turns in one process.

    python bench/fractional_pooling.py [--rounds 15] [--threads 1 2]

Both shrink sides by 0.71. All regions of torch are 2 pixels wide; ours, the paper's, are 2 or 3 and share borders: more
to read. Figures are medians; each round times both, in an order drawn anew.
"""

import argparse
import random
import statistics
import time

import torch
from torch import nn

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
    times: dict[str, list[float]] = {who: [] for who in layers}
    order = list(layers)
    for number in range(rounds + 3):
        random.shuffle(order)
        for who in order:
            start = time.perf_counter()
            torch.autograd.grad(layers[who](x), x, g)
            if number >= 3:
                times[who].append(time.perf_counter() - start)
    return {who: statistics.median(taken) for who, taken in times.items()}


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
                medians = measure(x, options.rounds)
                ratio = medians["torch"] / medians["ours"]
                print(f"  {shape!s:18} {name:24} {1e3 * medians['ours']:6.1f} ms  {ratio:5.1f}×", flush=True)


if __name__ == "__main__":
    main()
