"""What the first step of an optimizer costs, in a process that compiles, and in one that finds the compiled pass.

    python bench/first_step.py [--rounds 5]

Fresh processes, in pairs with a cache that is empty at first. Importing numba is told apart: `fit` needs it anyway.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

ONE = """
import time, torch
from trainwell import optim
optimizers = []
for name in ("SGD", "Adam", "NAdam"):
    p = torch.nn.Parameter(torch.zeros(10)); p.grad = torch.ones(10)
    optimizers.append(getattr(optim, name)([p], 0.1))
begun = time.perf_counter(); import numba; imported = time.perf_counter() - begun
times = []
for optimizer in optimizers:
    begun = time.perf_counter(); optimizer.step(); times.append(time.perf_counter() - begun)
print(imported, *times)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {"compiles": [], "finds it compiled": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TRAINWELL_CACHE": cache}
            for row in rows.values():
                done = subprocess.run([sys.executable, "-c", ONE], env=environment, capture_output=True, check=True)
                row.append(list(map(float, done.stdout.split())))
    for name, row in rows.items():
        numba, *steps = (statistics.median(column) for column in zip(*row, strict=True))
        told = ", ".join(f"{step:.3f} s" for step in steps)
        print(f"{name}: first step of SGD, Adam, NAdam {told}; importing numba {numba:.2f} s (n {options.rounds})")


if __name__ == "__main__":
    main()
