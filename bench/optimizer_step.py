"""The time of one optimizer step, ours beside torch's best mode and optax's, on the same tensors in the same process.

    python bench/optimizer_step.py [--rounds 30] [--threads 1 2] [--csv rows.csv]

Three sets of float32 tensors: 100 of 1,000 elements; those of a ResNet-50; one of 25 million. Each round times one step
of every competitor, in an order drawn anew, so that the machine's moods meet all alike; figures are medians. Torch is
timed in each of its modes that it has on a CPU (for loop, foreach, fused) and the fastest counts. optax runs as one
jitted function with donated buffers. The bandwidth of a copy of 25 million numbers is measured among the rest.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rows import append

RULES = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Lion")
OPTIONS: dict[str, dict[str, float]] = {"SGD": {"momentum": 0.9}}
# Arrays that are read and written, beside the gradient that is read.
ARRAYS = {"SGD": 2, "Adam": 3, "AdamW": 3, "Adagrad": 2, "RMSprop": 2, "NAdam": 3, "RAdam": 3, "Adamax": 3, "Lion": 2}
SETS = ("100 x 1,000", "ResNet-50", "1 x 25 M")


def shapes(name: str) -> list[tuple[int, ...]]:
    if name == SETS[0]:
        return [(1_000,)] * 100
    if name == SETS[1]:
        import trainwell as tw

        return [tuple(p.shape) for p in tw.models.create("resnet50", num_classes=1000, in_chans=3).parameters()]
    return [(25_000_000,)]


def competitors(name: str, rule: str) -> dict[str, Callable[[], object]]:
    """Returns the steps to be timed, each on tensors of its own."""
    import torch

    from trainwell import optim

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes(name)]
        for p in made:
            p.grad = torch.randn_like(p)
        return made

    options = OPTIONS.get(rule, {})
    steps: dict[str, Callable[[], object]] = {"ours": getattr(optim, rule)(parameters(), lr=1e-3, **options).step}
    for mode in ({"foreach": False}, {"foreach": True}, {"fused": True}) if hasattr(torch.optim, rule) else ():
        try:
            peer = getattr(torch.optim, rule)(parameters(), lr=1e-3, **options, **mode)
            peer.step()
        except (TypeError, RuntimeError):
            continue  # a mode that it does not have
        steps[f"torch {next(iter(mode))}={next(iter(mode.values()))}"] = peer.step
    if name == SETS[2]:
        source, target = torch.randn(25_000_000), torch.empty(25_000_000)
        steps["copy"] = lambda: target.copy_(source)
    return steps


def optax_step(name: str, rule: str) -> Callable[[], object] | None:
    """Returns a jitted step of optax, on arrays that are handed over from step to step."""
    import jax
    import numpy as np
    import optax

    make = {
        "SGD": lambda: optax.sgd(1e-3, momentum=0.9),
        "Adam": lambda: optax.adam(1e-3),
        "AdamW": lambda: optax.adamw(1e-3, weight_decay=1e-2),
        "Adagrad": lambda: optax.adagrad(1e-3),
        "RMSprop": lambda: optax.rmsprop(1e-3, decay=0.99),
        "NAdam": lambda: optax.nadam(1e-3),
        "RAdam": lambda: optax.radam(1e-3),
        "Adamax": lambda: optax.adamax(1e-3),
        "Lion": lambda: optax.lion(1e-3),
    }[rule]()
    generator = np.random.default_rng(0)
    values = [jax.numpy.asarray(generator.standard_normal(shape, np.float32)) for shape in shapes(name)]
    grads = [jax.numpy.asarray(generator.standard_normal(shape, np.float32)) for shape in shapes(name)]
    held = [values, make.init(values)]

    def update(values: object, state: object, grads: object) -> object:
        change, state = make.update(grads, state, values)
        return optax.apply_updates(values, change), state

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        held[:] = jitted(*held, grads)
        jax.block_until_ready(held)

    return step


def measure(name: str, rule: str, threads: int, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each competitor's step."""
    import torch

    torch.set_num_threads(threads)
    steps = competitors(name, rule)
    peer = optax_step(name, rule)
    if peer is not None:
        steps["optax"] = peer
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {who: [] for who in steps}
    order = list(steps)
    for _ in range(rounds * (10 if name == SETS[0] else 1)):
        random.shuffle(order)
        for who in order:
            start = time.perf_counter()
            steps[who]()
            times[who].append(time.perf_counter() - start)
    return {who: statistics.median(taken) for who, taken in times.items()}


def share_of_a_training_step(rule: str, threads: int) -> tuple[float, float]:
    """Returns the median milliseconds of our optimizer's step, and of the whole training step around it.

    A resnet20 on 128 images of 32×32, in bf16 and channels_last.
    """
    import torch
    from torch.nn import functional as F

    import trainwell as tw

    torch.set_num_threads(threads)
    model = tw.models.create("resnet20", num_classes=10, in_chans=3).to(memory_format=torch.channels_last)
    x = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (128,))
    optimizer = getattr(tw.optim, rule)(model.parameters(), lr=1e-3)
    parts, wholes = [], []
    for _ in range(25):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        F.cross_entropy(out.float(), y).backward()
        middle = time.perf_counter()
        optimizer.step()
        parts.append(time.perf_counter() - middle)
        optimizer.zero_grad()
        wholes.append(time.perf_counter() - began)
    return 1e3 * statistics.median(parts[5:]), 1e3 * statistics.median(wholes[5:])


def told(rule: str, medians: dict[str, float]) -> str:
    """Returns a row of the table."""
    ours = medians["ours"]
    torch_best = (
        min((seconds, who) for who, seconds in medians.items() if who.startswith("torch"))
        if any(who.startswith("torch") for who in medians)
        else None
    )
    row = f"{rule:8} {ours * 1e6:12,.0f} µs"
    row += f"  {torch_best[0] / ours:5.2f}× {torch_best[1]:20}" if torch_best else f"  {'':27}"
    fused = medians.get("torch fused=True")
    row += f"  {fused / ours:5.2f}× fused" if fused else f"  {'':12}"
    row += f"  {medians['optax'] / ours:5.2f}× optax"
    if "copy" in medians:
        bandwidth = (2 * ARRAYS[rule] + 1) / ours / (2 / medians["copy"])
        row += f"  {bandwidth:.2f} of the copy's bandwidth"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--csv", type=Path, help="raw rows are added to it, as they come")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # set, rule, threads: in a process of its own
    options = parser.parse_args()
    if options.one:
        name, rule, threads = options.one
        medians = measure(name, rule, int(threads), options.rounds)
        print(" ".join(f"{who.replace(' ', '_')}:{seconds}" for who, seconds in medians.items()))
        return
    for threads in options.threads:
        for name in options.sets:
            print(f"\n{name}, {threads} thread{'s' * (threads > 1)}: ours, and how many times as long the others take")
            for rule in options.rules:
                # A process for each: its threads are set before the libraries start theirs.
                eigen = "true" if threads > 1 else "false"
                flags = f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}"
                environment = {
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    "XLA_FLAGS": flags,
                    "JAX_PLATFORMS": "cpu",
                }
                cpus = ["taskset", "-c", ",".join(map(str, range(threads)))] if sys.platform == "linux" else []
                one = [sys.executable, __file__, "--rounds", str(options.rounds), "--one", name, rule, str(threads)]
                done = subprocess.run([*cpus, *one], env=environment, capture_output=True, text=True, check=True)
                pairs = (part.rpartition(":") for part in done.stdout.split())
                medians = {who.replace("_", " "): float(seconds) for who, _, seconds in pairs}
                print(told(rule, medians), flush=True)
                for who, seconds in medians.items() if options.csv else ():
                    row = {"set": name, "threads": threads, "rule": rule, "who": who, "seconds": seconds}
                    append(options.csv, {**row, "rounds": options.rounds})
    for threads in options.threads:
        part, whole = share_of_a_training_step("AdamW", threads)
        print(f"\nAdamW in a training step of resnet20, batch 128, {threads} threads: {part:.2f} of {whole:.1f} ms")


if __name__ == "__main__":
    main()
