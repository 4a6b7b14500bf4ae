"""An optimizer's saved state, arranged by the parameters' names."""

from collections import Counter
from typing import Any

from trainwell.errors import InputError


def arranged(saved: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a saved state in the order of an optimizer's groups, if both have names; else as it is.

    Names may repeat, as those of two models do, only where all of them are in the same places.

    A group takes the saved hyper-parameters if all of its parameters were in one group when they were saved; if they
    come from several it keeps its own.

    Args:
        saved: a `state_dict` of an optimizer.
        groups: the groups of the optimizer that it is for.

    Raises:
        InputError: a name is on one side alone, or on one side twice.
    """
    if not all("param_names" in group for group in [*saved["param_groups"], *groups]):
        return saved
    wanted, found = ([group["param_names"] for group in side] for side in (groups, saved["param_groups"]))
    if wanted == found:
        return saved
    _check(wanted, found)
    place = {name: (g, i) for g, group in enumerate(saved["param_groups"])
             for name, i in zip(group["param_names"], group["params"], strict=True)}  # fmt: skip
    arranged_groups, state = [], {}
    count = 0
    for group in groups:
        names = group["param_names"]
        sources = {place[name][0] for name in names}
        values = (
            saved["param_groups"][sources.pop()]
            if len(sources) == 1
            else {"steps": saved["param_groups"][0].get("steps", 0)}
        )
        arranged_groups.append({**values, "param_names": list(names), "params": list(range(count, count + len(names)))})
        for i, name in enumerate(names, count):
            if place[name][1] in saved["state"]:
                state[i] = saved["state"][place[name][1]]
        count += len(names)
    return {**saved, "state": state, "param_groups": arranged_groups}


def _check(wanted: list[list[str]], found: list[list[str]]) -> None:
    ours, theirs = (Counter(name for names in side for name in names) for side in (wanted, found))
    twice = {name for name, count in (ours | theirs).items() if count > 1}
    for names, what in (
        (ours.keys() - theirs.keys(), "holds nothing for"),
        (theirs.keys() - ours.keys(), "holds values for parameters that are not here:"),
        (twice, "cannot be matched by names that are there twice:"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"the saved optimizer state {what} {', '.join(map(repr, sorted(names)[:3]))}{more}")
