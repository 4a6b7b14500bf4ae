"""The plan: from how much data there are, and how like those of the pretrained network, to what is trained.

Lectures on the subject (such as Stanford's CS231n, *Transfer learning*) have four cases: little or much, like or
unlike. Two coincide here: with data like those of the network all of it is trained gently, little or much, since that
did better than a linear classifier, the lecture's advice for little, from 10 images a class on (`bench/transfer.py`).
What goes first is tried beside the next best where there is time. How long to train is left to the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainwell.transfer.probes import Probe, best, compare

LITTLE = 100  # images a class; below, linear is on the best stage, and unlike data begin with the lower rate
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

    def sentence(self, backbone_lr: float = 0.1, mixup: float = 0.0) -> str:
        """Returns what is trained, and how; the arguments are the recipe's, which some candidates change.

        >>> Candidate("all", {"transfer": "all", "mixup": 0.1}).sentence()
        "all of it, below the head at 0.1 of the head's rate, with mixup 0.1"
        """
        if self.stage is not None:
            return f"a linear classifier on {self.stage}"
        rate, mixup = self.changes.get("backbone_lr", backbone_lr), self.changes.get("mixup", mixup)
        told = "at the full rate" if rate == 1 else f"below the head at {rate:g} of the head's rate"
        return f"all of it, {told}" + (f", with mixup {mixup:g}" if mixup else "")


@dataclass(frozen=True)
class Plan:
    """What is to be tried, and why.

    Attributes:
        candidates: the likeliest first.
        reasons: a line each.
    """

    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]


def make_plan(
    probes: Sequence[Probe],
    *,
    samples: int,
    num_classes: int,
    pixels: Probe | None = None,
    backbone_lr: float = 0.1,
    mixup: float = 0.0,
) -> Plan:
    """Returns what to try with a pretrained model on some data.

    With data like those of the network: all of it at the recipe's lower rate, then a linear classifier, on the best
    stage for little data and on the last one for much. With unlike data: all of it at the lower rate and at the full
    one, for much data the full one first, then a linear classifier on the best stage.

    Args:
        probes: of each stage, the last one of what comes to the head.
        samples: how many images there are to train on.
        num_classes: of how many classes.
        pixels: the probe of the bare pixels of small copies of the images, if there is one. Where that does better than
            the last stage, the network has lost what these images are told apart by.
        backbone_lr: the recipe's, for the reasons: what is trained gently has it.
        mixup: likewise.

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
        candidates: tuple[Candidate, ...] = (gently, freely, head) if little else (freely, gently, head)
    else:
        reasons.append(
            f"a linear classifier on the last stage, {last.stage}, is right on {last.accuracy:.1%}, and nothing before "
            "it is certainly better: these data are like those of the pretrained network"
        )
        candidates = (gently, head)
    words = "; ".join(one.sentence(backbone_lr, mixup) for one in candidates)
    return Plan(candidates, (*reasons, f"what may suit, the likeliest first: {words}"))
