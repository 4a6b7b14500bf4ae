"""The file that says of an ensemble which members it has, and how good it is: `ensemble.json`."""

import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any

from trainwell.errors import InputError, in_one_line

FILE = "ensemble.json"


def read(folder: Path) -> dict[str, Any]:
    """Returns what `ensemble.json` holds.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        _check(about)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no ensemble; give the folder that --out named") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({in_one_line(error)})") from None
    found: dict[str, Any] = about
    return found


def _check(about: Any) -> None:
    members = about["members"]
    for member in members:
        for name in (member["run"], member["weights"]):
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts or any(sign in name for sign in "\\:\0"):
                raise ValueError(f"{name!r} is no place within the ensemble")
    if about["mean"] not in ("arithmetic", "geometric"):
        raise ValueError(f"mean is {about['mean']!r}")
    if "result" in about:
        kept = about["kept"]
        known = all(isinstance(number, int) and 0 <= number < len(members) for number in kept)
        if not kept or not known or len(set(kept)) < len(kept):
            raise ValueError(f"{kept} are not its members")
        if not 0 < float(about["temperature"]) < math.inf or not isinstance(about["result"], dict):
            raise ValueError("the result is none")


def name_of(member: dict[str, str], number: int) -> str:
    """Returns what to call a member, which stands at place `number`, from 1 on.

    >>> name_of({"run": "members/3", "weights": "model.safetensors"}, 2)  # the second failed
    'member 3'
    >>> name_of({"run": ".", "weights": "snapshots/step-00003000.safetensors"}, 1)
    'after step 3,000'
    """
    if numbered := re.fullmatch("members/([0-9]{1,9})", member["run"]):
        number = int(numbered[1])
    elif step := re.fullmatch(r"snapshots/step-([0-9]{1,12})\.safetensors", member["weights"]):
        return f"after step {int(step[1]):,}"
    elif PurePosixPath(member["run"]) == PurePosixPath():
        return "the kept weights"
    return f"member {number}"


def sentence(about: dict[str, Any]) -> str:
    """Returns an ensemble's result in a sentence."""
    result, kept, of = about["result"], len(about["kept"]), len(about["members"])
    who = f"{kept} of {of} members together" if kept < of else f"all {of} members together"
    if kept == 1:  # there is no gain to tell of
        first = about["kept"][0]
        name = name_of(about["members"][first], first + 1).replace("after", "the weights after")
        who = f"{name} alone, as no other helps on validation" if of > 1 else "the only member"
    if "gain" not in result:
        value, (low, high) = (result["ensemble"]["loss"][name] for name in ("value", "interval"))
        known = "no interval" if low is None or high is None else f"95 % interval {low:.4g} to {high:.4g}"
        return f"{who}: test loss {value:.4g} ({known})"
    low, high = result["test_interval"]
    right = (
        f"{who}: {result['test_accuracy']:.1%} right on {result['test_samples']:,} samples never seen (95 % interval "
        f"{low:.1%} to {high:.1%})"
    )
    if kept == 1:
        return right
    gain = result["gain"]["accuracy"]
    points, (least, most) = 100 * gain["value"], (100 * end for end in gain["interval"])
    return f"{right}; {points:+.1f} points ({least:+.1f} to {most:+.1f}) beside the one that is best on validation"
