"""What `import trainwell` costs beside `import torch`: fresh processes in turn, the median of each."""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    codes = {"nothing": "pass", "torch": "import torch", "trainwell": "import trainwell",
             "trainwell, and fit": "import trainwell; trainwell.fit"}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            times[name].append(seconds(code))
    torch = statistics.median(times["torch"])
    for name, values in times.items():
        print(f"import {name:20} {statistics.median(values):6.3f} s  {statistics.median(values) / torch:5.2f}x torch")


if __name__ == "__main__":
    main()
