"""Former names on the command line, which stay in use for a while and say what to write now."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

RENAMED: Mapping[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def with_current_names(arguments: Sequence[str], renamed: Mapping[str, str] = RENAMED) -> list[str]:
    """The arguments of a program with former names replaced, a warning for each.

    Raises:
        SystemExit: a former option among several that are swept over, which are several words now.
    """
    current = []
    for argument in arguments:
        words = _current(argument, renamed)
        if words != [argument]:
            log.warning("%s is a former name: write %s", argument, " ".join(words))
        current += words
    return current


def _current(argument: str, renamed: Mapping[str, str]) -> list[str]:
    if argument in renamed:
        return renamed[argument].split()
    key, equals, value = argument.partition("=")
    for option in value.split(",") if equals else ():
        if (words := renamed.get(f"{key}={option}")) is not None:
            raise SystemExit(f"{argument}: {key}={option} is a former name of `{words}`")
    bare = key.lstrip("+~")
    for former, now in renamed.items():
        if "=" not in former and f"{bare}.".startswith(f"{former}."):
            signs = key[: len(key) - len(bare)]
            return [f"{signs}{now}{bare.removeprefix(former)}{equals}{value}"]
    return [argument]
