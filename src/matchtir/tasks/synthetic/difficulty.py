"""The knobs of the generator, and the named difficulties."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from matchtir.utils.options import check_option

SCENARIOS = ("single", "parallel_single", "multi_hop", "parallel_multi_hop")
VOCABULARIES = ("laptop", "ftrl")
CLOSINGS = (
    "list",  # the ends of the chains, side by side
    "sum",
    "difference",
    "compare",  # the letter of the greatest or earliest
    "rank",  # the letters in ascending order
    "yes_no",
    "calculator",  # sum or difference, by one more call
    "distance",  # a further lookup between the ends of two chains
)
PARAMETER_TYPES = ("choice", "string", "boolean", "object", "number", "array", "integer")

Range = Sequence[float]
Shares = Mapping[str, float]


def draw(spread: Range, rng: random.Random) -> int:
    """A whole number from (low, high), uniform, or from (low, mean, high), binomial in shape."""
    if len(spread) == 2:
        return rng.randint(int(spread[0]), int(spread[1]))
    low, mean, high = int(spread[0]), spread[1], int(spread[2])
    if low == high:
        return low
    share = (mean - low) / (high - low)
    return low + sum(rng.random() < share for _ in range(high - low))


def draw_share(shares: Shares, rng: random.Random) -> str:
    """One of the keys, with probability in proportion to its share."""
    return rng.choices(list(shares), list(shares.values()))[0]


def for_scenario(spread: Range | Mapping[str, Range], scenario: str) -> Range:
    """The range of a knob that may differ by scenario."""
    return spread.get(scenario, (0, 0)) if isinstance(spread, Mapping) else spread


@dataclass(frozen=True, slots=True)
class Difficulty:
    """All knobs of the generator.

    A range is (low, high), uniform, or (low, mean, high), binomial in shape. Shares map names to
    relative weights. Knobs marked with * may differ by scenario: a mapping from scenario to
    value; a scenario that it leaves out has none.

    Raises:
        ValueError: a value that is none of these; the message names the knob.
    """

    name: str
    vocabulary: str  # "laptop" or "ftrl"
    verbose: bool  # descriptions of parameters, checks of every argument
    width: Range  # calls of parallel_single
    depth: Range  # hops of multi_hop
    chains: Range  # chains of parallel_multi_hop
    chain_depth: Range  # hops of each of them
    closings: Mapping[str, Shares]  # * how chain ends become the answer; default: a list
    attribute_share: float  # listed chains that end in a number or date
    other_unit_share: float  # numbers that are asked in the other unit
    repeat_tool_share: float  # parallel_single tasks that use one tool twice
    distractors: Range | Mapping[str, Range]  # * tools beyond the needed ones
    qualifiers: Range | Mapping[str, Range]  # * parameters that narrow a lookup
    qualifier_forms: Shares
    required_share: float  # of qualifiers
    parameters: Range  # of a tool, where its entity and qualifiers are not more already
    parameter_types: Shares  # of the parameters that no gold call needs
    default_shares: Mapping[str, float]  # how many of them have a default, by type
    spare_facts: Range  # further entities that a tool knows
    unknown_entity: Shares  # answer to one that it does not: refuse, soft, wrong (a value)
    error_styles: Shares
    output_styles: Shares

    def __post_init__(self) -> None:
        check_option("vocabulary", self.vocabulary, VOCABULARIES)
        for knob in fields(self):
            value = getattr(self, knob.name)
            if knob.name.endswith("_share"):
                _check_share(knob.name, value)
            elif knob.name in _LEAST:
                for part in value.values() if isinstance(value, Mapping) else [value]:
                    _check_range(knob.name, part, _LEAST[knob.name])
            elif knob.name in _NAMES:
                _check_shares(knob.name, value, _NAMES[knob.name])
        _check_names("closings", self.closings, SCENARIOS)
        for shares in self.closings.values():
            _check_shares("closings", shares, CLOSINGS)
            if "distance" in shares and self.vocabulary != "ftrl":
                raise ValueError("closings: 'distance' needs the vocabulary 'ftrl'")
        _check_names("default_shares", self.default_shares, PARAMETER_TYPES)
        for kind, share in self.default_shares.items():
            _check_share(f"default_shares.{kind}", share)


# The least that the ranges may say, and the names that the shares may give.
_LEAST = dict.fromkeys(("width", "depth", "chains", "chain_depth", "parameters"), 1)
_LEAST |= dict.fromkeys(("distractors", "qualifiers", "spare_facts"), 0)
_NAMES = {
    "qualifier_forms": ("choice", "date", "flag", "year", "place"),
    "parameter_types": PARAMETER_TYPES,
    "unknown_entity": ("refuse", "soft", "wrong"),
    "error_styles": ("object", "text", "raise"),
    "output_styles": ("bare", "sentence", "value", "record", "json"),
}


def _check_share(knob: str, value: Any) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{knob}={value!r}: a share lies between 0 and 1")


def _check_names(knob: str, given: Any, allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise ValueError(f"{knob}: {name!r} is not one of {', '.join(allowed)}")


def _check_shares(knob: str, shares: Any, allowed: Sequence[str]) -> None:
    if not isinstance(shares, Mapping):
        raise ValueError(f"{knob}={shares!r}: expected shares of {', '.join(allowed)}")
    _check_names(knob, shares, allowed)
    if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"{knob}={dict(shares)!r}: shares are not negative, and not all zero")


def _check_range(knob: str, value: Any, least: int) -> None:
    numbers = [] if isinstance(value, int | float | str) else list(value)
    if len(numbers) not in (2, 3) or numbers != sorted(numbers) or numbers[0] < least:
        raise ValueError(
            f"{knob}={value!r}: expected (low, high) or (low, mean, high), ascending, "
            f"from {least} upwards"
        )


def resolve_difficulty(
    difficulty: str | Difficulty, knobs: Mapping[str, Any] | None = None
) -> Difficulty:
    """The named difficulty, with some of its knobs replaced.

    Raises:
        ValueError: an unknown difficulty or knob, or a value that the knob does not take.
    """
    if isinstance(difficulty, str):
        check_option("difficulty", difficulty, tuple(DIFFICULTIES))
        difficulty = DIFFICULTIES[difficulty]
    known = tuple(knob.name for knob in fields(Difficulty))
    for knob in knobs or {}:
        check_option("knobs", knob, known)
    return replace(difficulty, **_plain(knobs or {}))


def _plain(value: Any) -> Any:
    """Configuration nodes as dictionaries and tuples, which are much faster to read."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(item) for item in value)
    return value


_PRESETS = Path(__file__).with_name("difficulties.toml").read_text(encoding="utf-8")
DIFFICULTIES = {
    name: Difficulty(name, **_plain(knobs)) for name, knobs in tomllib.loads(_PRESETS).items()
}
