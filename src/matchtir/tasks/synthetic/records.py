"""What a synthetic task is made of before it is written out as text, schemas and sources."""

from __future__ import annotations

import calendar
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that may be asked for: other = round(base * factor)."""

    base: str
    other: str
    factor: float

    def convert(self, number: int) -> int:
        """A number of base units in the other unit."""
        return round(number * self.factor)


@dataclass(frozen=True, slots=True)
class Relation:
    """Leads from an entity of kind `domain` to its `target`: a kind of entity, number or date.

    A question says `the <noun> <link> <entity>`. Numbers lie between `low` and `high`.
    """

    name: str
    domain: str
    target: str
    tool: str
    parameter: str
    noun: str
    link: str = "of"
    low: int = 1
    high: int = 99
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool; its default, where it has one, stands in the schema."""

    name: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Qualifier:
    """A parameter beside the entity that narrows a lookup, and how a question says it.

    `form` is "choice" (an enum), "date" (said in words, given as YYYY-MM-DD), "year", "flag" or
    "place" (free text).
    """

    parameter: str
    form: str
    description: str
    wording: str  # with a place for the value
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Narrowing:
    """A qualifier with its value."""

    qualifier: Qualifier
    value: Scalar

    @property
    def words(self) -> str:
        """The part of the question that says the value."""
        return self.qualifier.wording.format(in_words(self.qualifier.form, self.value))


@dataclass(frozen=True, slots=True)
class Terms:
    """How a task asks for a relation, wherever it does."""

    narrowings: tuple[Narrowing, ...] = ()
    in_other_unit: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """One gold call: `relation` of `subject` is `value`."""

    relation: Relation
    subject: str
    value: str  # the gold output
    fact: str | int  # as the tool stores it
    terms: Terms

    @property
    def number(self) -> int:
        """The value of a hop that ends in a number."""
        return int(self.value.replace(",", ""))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gold call."""
        arguments: dict[str, Any] = {self.relation.parameter: self.subject}
        for narrowing in self.terms.narrowings:
            arguments[narrowing.qualifier.parameter] = narrowing.value
        if self.relation.unit is not None and self.terms.in_other_unit:
            arguments["unit"] = self.relation.unit.other
        return arguments


@dataclass(frozen=True, slots=True)
class Calculation:
    """A gold call to the calculator."""

    operation: str
    numbers: tuple[int, ...]
    result: int
    value: str  # the gold output


@dataclass(frozen=True, slots=True)
class Plan:
    """The chains of a task, side by side; hop k of every chain belongs to turn k.

    `closing` names how the ends of the chains become the answer; some closings take one call
    more, in the turn after the longest chain.
    """

    chains: tuple[tuple[Hop, ...], ...]
    closing: str
    answer: str
    final_call: Hop | Calculation | None = None

    def gold_steps(self) -> list[tuple[int, Hop | Calculation]]:
        """(turn, step) of every gold call, turn by turn and from the first chain to the last."""
        longest = max(len(chain) for chain in self.chains)
        steps: list[tuple[int, Hop | Calculation]] = [
            (turn, chain[turn])
            for turn in range(longest)
            for chain in self.chains
            if turn < len(chain)
        ]
        if self.final_call is not None:
            steps.append((longest, self.final_call))
        return steps

    @property
    def lookups(self) -> list[Hop]:
        """The gold calls but for a calculation."""
        return [step for _, step in self.gold_steps() if isinstance(step, Hop)]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The vocabulary of a world.

    `relations` lead from an entity to an entity, `attributes` to a number or a date; `invent`
    makes up a name for an entity of some kind, `quote` stands around names in questions.
    `distance`, between two entities of one kind, and `fillers`, `calculator_fillers`
    (parameters that no gold call needs, by type) and `remarks` (sentences for descriptions of
    tools and of parameters) serve the richer worlds.
    """

    invent: Callable[[str, Random], str]
    relations: tuple[Relation, ...]
    attributes: tuple[Relation, ...]
    quote: str = ""
    pronoun: str = ""  # `the height of A and that of B`; empty: the noun is said again
    number_format: str = "d"
    questions: Mapping[str, str] = field(default_factory=dict)  # beginning, by kind of answer
    distance: Relation | None = None
    qualifiers: tuple[Qualifier, ...] = ()
    fillers: Mapping[str, tuple[Parameter, ...]] = field(default_factory=dict)
    calculator_fillers: tuple[Parameter, ...] = ()
    tool_remarks: tuple[str, ...] = ()
    parameter_remarks: tuple[str, ...] = ()


def in_words(form: str, value: Scalar) -> str:
    """A qualifier's value as a question says it: 1923-04-05 is April 5, 1923."""
    if form == "date":
        year, month, day = str(value).split("-")
        return f"{calendar.month_name[int(month)]} {int(day)}, {year}"
    return str(value).replace("_", " ")
