"""The plan: from how much data there are, and how like those of the pretrained network, to what is trained.

Four cases, as lectures on the subject have them (such as Stanford's CS231n, *Transfer learning*): little or much, like
or unlike. What is said here goes first; where there is time, it is tried beside the next best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainwell.transfer.probes import Probe, best, compare

LITTLE = 100  # images a class; below, a linear classifier goes first
_MIXUP_FROM, _MIXUP = 20_000, 0.1  # images, and its alpha: A. Kolesnikov et al., *Big Transfer* (2020), section 3.3


@dataclass(frozen=True)
class Candidate:
    """One way to train a pretrained model.

    Attributes:
        name: what people call it.
        changes: fields of a recipe.
        stage: whose features a linear classifier takes; `None` where more is trained.
    """

    name: str
    changes: Mapping[str, Any]
    stage: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be tried, and why.

    Attributes:
        candidates: the likeliest first.
        reasons: a line each.
    """

    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]


def make_plan(probes: Sequence[Probe], *, samples: int, num_classes: int, pixels: Probe | None = None) -> Plan:
    """Returns what to try with a pretrained model on some data.

    Args:
        probes: of each stage, the last one of what comes to the head.
        samples: how many images there are to train on.
        num_classes: of how many classes.
        pixels: the probe of the bare pixels of small copies of the images, if there is one. Where that does better than
            the last stage, the network has lost what these images are told apart by.

    Raises:
        InputError: there are no probes.
    """
    top, last, a_class = best(probes), probes[-1], samples / num_classes
    better = max(filter(None, (pixels, top)), key=lambda one: one.accuracy)
    gain, low, high = compare(better, last)
    unlike, little = low > 0, a_class < LITTLE
    stage = top.stage if unlike or little else last.stage
    head = Candidate("linear" if stage == last.stage else f"linear on {stage}", {"transfer": "linear"}, stage)
    more = {"mixup": _MIXUP} if samples >= _MIXUP_FROM else {}
    gently = Candidate("all", {"transfer": "all", **more})
    freely = Candidate("all at the full rate", {"transfer": "all", "backbone_lr": 1.0, **more})
    reasons = [f"{samples:,} images, {a_class:,.0f} a class: {'little' if little else 'much'} (below or from {LITTLE})"]
    if unlike:
        reasons.append(
            f"a linear classifier on {better.stage} is right on {better.accuracy:.1%}, on the last stage on "
            f"{last.accuracy:.1%} ({100 * gain:+.1f} points, 95 % interval {100 * low:.1f} to {100 * high:.1f}): "
            "these data are unlike those of the pretrained network"
        )
        words = "all of it trained at the full rate, or more gently, or a linear classifier on the best stage"
        candidates: tuple[Candidate, ...] = (gently, freely, head) if little else (freely, gently, head)
    else:
        reasons.append(
            f"a linear classifier on the last stage, {last.stage}, is right on {last.accuracy:.1%}, and nothing before "
            "it is certainly better: these data are like those of the pretrained network"
        )
        words = "all of it trained gently, from a new last layer, or that layer alone"
        candidates = (gently, head)
    return Plan(candidates, (*reasons, f"what may suit: {words}"))
