"""What a synthetic task is made of, and what the making of one goes by."""

from __future__ import annotations

import calendar
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from matchtir.tasks.rows import SPLITS
from matchtir.tasks.synthetic.difficulty import Difficulty, draw, draw_share, for_scenario

CALCULATOR = "arithmetic_calculator"  # the one tool that looks nothing up

Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that may be asked for: other = round(base * factor)."""

    base: str
    other: str
    factor: float


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
    wording: str  # with a place for the value
    description: str
    choices: tuple[str, ...] = ()

    @property
    def default(self) -> Scalar | None:
        """What a lookup goes by where the qualifier is optional and left out."""
        if self.form == "flag":
            return False
        return self.choices[0] if self.choices else None

    def words(self, value: Scalar) -> str:
        """The part of a question that says a value: 1923-04-05 is April 5, 1923."""
        said = str(value).replace("_", " ")
        if self.form == "date":
            year, month, day = map(int, said.split("-"))
            said = f"{calendar.month_name[month]} {day}, {year}"
        return self.wording.format(said)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a task asks for a relation, wherever it does."""

    values: Mapping[Qualifier, Scalar]  # of the parameters that narrow it
    in_other_unit: bool


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
    def tool(self) -> str:
        """Name of the tool that is called."""
        return self.relation.tool

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gold call."""
        arguments: dict[str, Any] = {self.relation.parameter: self.subject}
        arguments |= {item.parameter: value for item, value in self.terms.values.items()}
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
    tool: str = CALCULATOR

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gold call."""
        return {"operation": self.operation, "numbers": list(self.numbers)}


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


def split_of(entity: str) -> str:
    """The split that owns an entity: 80 % train, 10 % validation, 10 % test.

    It depends on the name alone, so that tasks of different seeds or difficulties (a warm start
    and the training that follows it) never share an entity across splits.
    """
    bucket = zlib.crc32(entity.encode()) % 10
    return SPLITS[max(0, bucket - 7)]


class Names:
    """Draws names of one split, each once."""

    def __init__(self, lexicon: Lexicon, split: str, rng: Random) -> None:
        self._lexicon, self._split, self._rng = lexicon, split, rng
        self._drawn: set[str] = set()

    def draw(self, kind: str) -> str:
        """A name that this task has not seen yet."""
        while True:
            name = self._lexicon.invent(kind, self._rng)
            if name not in self._drawn and split_of(name) == self._split:
                self._drawn.add(name)
                return name


@dataclass(frozen=True, slots=True)
class World:
    """The surroundings of one task."""

    scenario: str
    difficulty: Difficulty
    lexicon: Lexicon
    names: Names
    rng: Random

    def draw_fact(self, relation: Relation) -> str | int:
        """Any value that the relation may lead to, as a tool stores it."""
        if relation.target == "number":
            return self.rng.randint(relation.low, relation.high)
        return self._draw_date() if relation.target == "date" else self.names.draw(relation.target)

    def draw_qualifiers(self) -> tuple[Qualifier, ...]:
        """Qualifiers of one tool, no two of one parameter name; as many as the knobs say."""
        count = draw(for_scenario(self.difficulty.qualifiers, self.scenario), self.rng)
        drawn: dict[str, Qualifier] = {}
        while len(drawn) < min(count, len(self.lexicon.qualifiers)):
            form = draw_share(self.difficulty.qualifier_forms, self.rng)
            choices = [item for item in self.lexicon.qualifiers if item.form == form]
            if choices:
                qualifier = self.rng.choice(choices)
                drawn.setdefault(qualifier.parameter, qualifier)
        return tuple(drawn.values())

    def draw_values(self, qualifiers: tuple[Qualifier, ...]) -> dict[Qualifier, Scalar]:
        """A value for each that is not the default: the question has a reason to say it."""
        return {qualifier: self._draw_value(qualifier) for qualifier in qualifiers}

    def _draw_value(self, qualifier: Qualifier) -> Scalar:
        if qualifier.form == "choice":
            return self.rng.choice(qualifier.choices[1:])
        if qualifier.form == "date":
            return self._draw_date()
        if qualifier.form == "year":
            return self.rng.randint(1850, 2020)
        return True if qualifier.form == "flag" else self.names.draw("region")

    def _draw_date(self) -> str:
        year, month, day = (self.rng.randint(*ends) for ends in ((1850, 2020), (1, 12), (1, 28)))
        return f"{year}-{month:02d}-{day:02d}"

    def number(self, value: int) -> str:
        """A number as gold outputs and answers write it."""
        return format(value, self.lexicon.number_format)
