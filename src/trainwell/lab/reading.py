"""Reading what a page is made of. It may come from a stranger: all is checked, nothing is run or unpickled."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from trainwell.errors import InputError, in_one_line

T = TypeVar("T")
Table = dict[str, Any]
NUMBER = int | float


def load(path: Path, read: Callable[[Path], T]) -> T | None:
    """Returns what `read` makes of a file, or None where there is none; whatever fails in it is the file's damage."""
    from safetensors import SafetensorError

    try:
        return read(path) if path.is_file() else None
    except InputError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise InputError(f"{path}: damaged ({in_one_line(error)}); restore the file, or train again.") from error


def check(table: Mapping[str, Any], **kinds: Any) -> None:
    """Raises what `load` takes for damage where an entry of a table is missing, or of another kind."""
    for name, kind in kinds.items():
        if not isinstance(table[name], kind):
            raise ValueError(f"{name!r} is of a wrong kind")


def finite(value: object) -> TypeGuard[float]:
    """Says whether something is a number, and neither NaN nor infinite."""
    return isinstance(value, NUMBER) and math.isfinite(value)


def run_facts(path: Path) -> Table:
    """Returns what `run.json` holds."""
    facts: Table = json.loads(path.read_bytes())
    check(facts, trainwell=str, source=str, task=str, command=str, fingerprint=str, classes=list, skipped=list)
    check(facts, sizes=dict, model=dict, environment=dict, given=dict)
    check(facts["sizes"], train=int, val=int, test=int)
    check(facts["model"], name=str, parameters=int)
    check(facts["given"], recipe=dict)
    check(facts["environment"], device=str)
    told = [item[key] for item in facts["skipped"] for key in ("path", "reason")]
    told += [text for item in facts.setdefault("notices", []) for text in (item["text"], *item["paths"])]
    for name in (*facts["classes"], *told):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not text")
    return facts
