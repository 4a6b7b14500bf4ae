"""Dropout of 4 million numbers, forward and backward: ours beside torch's, in turns in one process.

    python bench/dropout.py [--rounds 15] [--threads 1 2] [--csv rows.csv]

Elements and whole feature maps, float32 and bfloat16, contiguous and channels_last. Figures are medians; each round
times both, in an order drawn anew.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from interleaved import medians
from rows import write
from trainwell.regularize import Dropout

SHAPE = (64, 64, 32, 32)  # 4,194,304
CASES = {
    "units, float32": (False, torch.float32, torch.contiguous_format),
    "units, float32, channels_last": (False, torch.float32, torch.channels_last),
    "units, bfloat16, channels_last": (False, torch.bfloat16, torch.channels_last),
    "maps, float32": (True, torch.float32, torch.contiguous_format),
    "maps, bfloat16, channels_last": (True, torch.bfloat16, torch.channels_last),
}


def step(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(x), x, g)


def measure(maps: bool, dtype: torch.dtype, layout: torch.memory_format, rounds: int) -> dict[str, float]:
    """Returns the median seconds of a forward and a backward pass."""
    x = torch.randn(SHAPE).to(dtype).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn_like(x)
    theirs = nn.Dropout2d(0.5) if maps else nn.Dropout(0.5)
    steps = {"ours": step(Dropout(0.5, maps=maps), x, g), "torch": step(theirs, x, g)}
    if not maps:  # native, without the module around it
        steps["F.dropout"] = lambda: torch.autograd.grad(F.dropout(x, 0.5), x, g)
    return medians(steps, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: ours, and how many times as long torch takes")
        for name, case in CASES.items():
            found = measure(*case, options.rounds)
            best = min(seconds for who, seconds in found.items() if who != "ours")
            print(f"  {name:32} {1e3 * found['ours']:6.1f} ms  {best / found['ours']:5.1f}×", flush=True)
            rows += [
                {"case": name, "threads": threads, "who": who, "seconds": seconds, "rounds": options.rounds}
                for who, seconds in found.items()
            ]
    if options.csv:
        write(options.csv, rows)


if __name__ == "__main__":
    main()
