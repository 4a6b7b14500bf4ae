"""What is wrong with a command, in one line."""

import contextlib
import dataclasses
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

from trainwell.errors import InputError, nearest

T = TypeVar("T")

_RULE = re.compile(r"[\s│|]*[─-]{8,}[\s│|]*")
_KINDS = {int: "a whole number", float: "a number"}


def parsed(parse: Callable[[], T], words: list[str], commands: dict[str, Any]) -> T:
    """Parses a command with tyro, whose framed message about a wrong one becomes a line.

    Args:
        parse: calls tyro.
        words: the command.
        commands: name to the dataclass of each, in which nested dataclasses are flags too.

    Raises:
        InputError: the command is wrong.
    """
    if {"--help", "-h"} & set(words):
        return parse()
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return parse()
    except SystemExit as end:
        if not end.code:
            raise
    named = [word for word in words if word in commands][:1]
    see = " ".join(["trainwell", *named, "--help"])
    kinds = {flag: kind for name in named or commands for flag, kind in _flags(commands[name])}
    raise InputError(f"{_wrong(_message(told.getvalue()), words, named, kinds, commands)}; see {see}") from None


def _flags(command: Any) -> Iterable[tuple[str, Any]]:
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(kind := (get_args(field.type) or (field.type,))[0]):
            yield from _flags(kind)
        else:
            yield "--" + field.name.replace("_", "-"), field.type


def _message(told: str) -> str:
    """Returns what a frame says between its title and the next rule."""
    parts: list[list[str]] = [[]]
    for line in told.splitlines()[1:]:
        if _RULE.fullmatch(line):
            parts.append([])
        else:
            parts[-1] += line.strip().strip("│|").split()
    return next((" ".join(words) for words in parts if words), "")


def _wrong(message: str, words: list[str], named: list[str], kinds: dict[str, Any], commands: Iterable[str]) -> str:
    if not named:
        known = ", ".join(commands)
        given = next((word for word in words if not word.startswith("-")), "") if words else ""
        if words and words[0].startswith("-"):
            return f"the command comes first, one of {known}"
        return f"unknown command {given!r}{nearest(given, commands)}" if given else f"give a command, one of {known}"
    if message.startswith("Unrecognized"):
        given = _first_unknown(message, words)
        flag = given.partition("=")[0]
        if flag.startswith("-"):
            hint = nearest("--" + flag.lstrip("-").replace("_", "-"), kinds).replace("'", "")
            return f"unknown flag {flag}{hint}"
        joined = next((word for word in words if word.endswith(f"={given}")), "")
        before = joined.partition("=")[0] or (words[words.index(given) - 1] if given in words else "")
        if kinds.get(before) is bool:
            return f"{before} takes no value; it is given {given!r}"
        return f"{given!r} is one too many"
    if match := re.match(r"Error parsing (--\S+?):", message):
        flag = match[1]
        for kind, wanted in _KINDS.items():
            if kind in (kinds.get(flag), *get_args(kinds.get(flag))):
                return f"{flag} takes {wanted}, not {_value(flag, words)!r}"
    if match := re.match(r"Missing value for argument '(--\S+?)'", message):
        return f"{match[1]} lacks its value"
    if match := re.match(r"invalid choice '(.*)' for argument '(--\S+)'\. Expected one of \((.*)\)", message):
        choices = [choice.strip(" '") for choice in match[3].split(",") if choice.strip()]
        return f"{match[2]} must be one of {', '.join(choices)}; it is {match[1]!r}{nearest(match[1], choices)}"
    if match := re.match(r"Missing from trainwell \w+: (\S+)", message):
        return f"{match[1]} is missing"
    return message.rstrip(".")


def _first_unknown(message: str, words: list[str]) -> str:
    rest = message.partition(":")[2].strip()
    found = re.split(r",? (?:\(applied to [^)]*\))?|,", rest)[0]
    return next((word for word in words if word.partition("=")[0] == found or word == found), found)


def _value(flag: str, words: list[str]) -> str:
    for place, word in enumerate(words):
        name, given, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if given else (words[place + 1] if place + 1 < len(words) else "")
    return ""


def not_written(error: OSError) -> str:
    """Returns in words what the system did not let a command do."""
    reason = error.strerror or str(error)
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"the output cannot be written ({reason}): it is not whole"
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def discard_output() -> None:
    """Sends to nowhere what waits to be written, which else would fail once more when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
