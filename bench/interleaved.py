"""Times of several ways to do one thing, taken in turns: what else the machine does meets all of them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

_WARM_UP = 3  # rounds that are not counted


def medians(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each step; each round times all, in an order drawn anew."""
    times: dict[str, list[float]] = {who: [] for who in steps}
    order = list(steps)
    for number in range(rounds + _WARM_UP):
        random.shuffle(order)
        for who in order:
            start = time.perf_counter()
            steps[who]()
            if number >= _WARM_UP:
                times[who].append(time.perf_counter() - start)
    return {who: statistics.median(taken) for who, taken in times.items()}
