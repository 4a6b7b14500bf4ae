"""What keeping freed memory (glibc's `mallopt`, see `trainwell.train.hardware`) does to a training step.

Fresh processes with and without it, in turn; the median step of each, and the median ratio of the pairs.
"""

import argparse
import statistics
import subprocess
import sys
import time

CASES = {"fp32 contiguous": (False, False), "fp32 channels_last": (False, True), "bf16 channels_last": (True, True)}


def step_milliseconds(keep: bool, case: str, threads: int, model_name: str) -> float:
    """Returns the median of 20 steps of 128 images of 32×32, in this process."""
    import torch
    from torch.nn import functional as F

    from trainwell.models import create
    from trainwell.train.hardware import keep_freed_memory

    torch.set_num_threads(threads)
    if keep and not keep_freed_memory():
        sys.exit("this is not glibc")
    bf16, last = CASES[case]
    layout = torch.channels_last if last else torch.contiguous_format
    model = create(model_name, num_classes=10, in_chans=3).to(memory_format=layout)
    x, y = torch.randn(128, 3, 32, 32).to(memory_format=layout), torch.randint(0, 10, (128,))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = []
    for _ in range(25):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(x)
        F.cross_entropy(out.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--one", nargs=2, metavar=("KEEP", "CASE"), help="one measurement, in this process")
    options = parser.parse_args()
    if options.one:
        print(step_milliseconds(options.one[0] == "keep", options.one[1], options.threads, options.model))
        return
    for case in CASES:
        pairs = []
        for _ in range(options.rounds):
            pair = []
            for keep in ("as it is", "keep"):
                words = [sys.executable, __file__, "--one", keep, case, "--threads", str(options.threads)]
                words += ["--model", options.model]
                pair.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
            pairs.append(pair)
        plain, kept = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{case:20} {plain:6.1f} ms as it is, {kept:6.1f} ms keeping: {ratio:.2f}x as fast (n {options.rounds})")


if __name__ == "__main__":
    main()
