"""Checks of option values."""

from __future__ import annotations

from collections.abc import Sequence


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
