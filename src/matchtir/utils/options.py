"""Checks of option values and names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class UserError(ValueError):
    """What the user gave cannot be used; the message says all that is needed to correct it."""


def check_option(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError naming the option and its allowed values where `value` is not one."""
    if value not in allowed:
        raise UserError(f"{option}={value!r} is not one of {', '.join(allowed)}")


def check_at_least(least: float, **values: float) -> None:
    """Raise UserError naming the first option whose value is below `least`."""
    for option, value in values.items():
        if value < least:
            raise UserError(f"{option}={value} must be {least} or more")


def suggest(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: what it may have been meant to be."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
