"""Checks of option values."""

from __future__ import annotations

from collections.abc import Sequence


def check_option(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError naming the option and its allowed values where `value` is not one."""
    if value not in allowed:
        raise ValueError(f"{option}={value!r} is not one of {', '.join(allowed)}")


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError naming the first option whose value is below `least`."""
    for option, value in values.items():
        if value < least:
            raise ValueError(f"{option}={value} must be {least} or more")
