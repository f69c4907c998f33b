"""What synthetic tasks are made of: words, relations between entities, and the knobs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from random import Random

from matchtir.tasks.rows import SPLITS

SCENARIOS = ("single", "parallel_single", "multi_hop", "parallel_multi_hop")

_ADJECTIVES = """
amber ancient azure bitter bold brass brave bright broken bronze calm clever copper coral
crimson curious distant eager early emerald faded fierce frozen gentle gilded golden grand
green hidden hollow humble idle iron ivory jolly keen lonely loyal lucky marble mellow misty
noble opal pale patient plain proud quiet rapid rusty sacred scarlet shy silent silver sleepy
solemn stern swift tidy velvet vivid wild
"""

_NOUNS = """
acorn anchor anvil badger beacon bear birch breeze bridge canyon castle cedar cliff cloud
comet crane creek crow dune eagle ember falcon fern field forest fox garden glacier harbour
hawk heron hill island jackal lantern lark lily lynx maple meadow mirror moon moth oak
orchard otter owl panther pine raven reef ridge river robin rose sparrow spruce stone storm
swan tiger tower valley willow
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that may be asked for: other = round(base * factor)."""

    base: str
    other: str
    factor: float


@dataclass(frozen=True, slots=True)
class Relation:
    """Leads from an entity of kind `domain` to its `target`: a kind of entity, or a number.

    A question says `the <name> of <entity>`. Numbers lie between 10 and `high`: two digits always,
    otherwise 4 would be found in the wrong answer 42.
    """

    name: str
    domain: str
    target: str
    unit: Unit | None = None
    high: int = 99
    label: str = ""  # name of its tool where that is another

    @property
    def tool(self) -> str:
        """Name of the tool that looks it up."""
        return self.label or f"find_{self.name}"


# Each kind of entity has six relations, two to each kind, so that a chain never runs dry.
_TARGETS = ("person", "person", "place", "place", "thing", "thing")
_NAMES = {
    "person": "mentor rival home birthplace ship sword",
    "place": "mayor founder port capital relic emblem",
    "thing": "owner maker origin shrine replica key",
}
KINDS = tuple(_NAMES)
RELATIONS = tuple(
    Relation(name, domain, target)
    for domain, names in _NAMES.items()
    for name, target in zip(names.split(), _TARGETS, strict=True)
)
ATTRIBUTES = (  # the largest number in the base unit has two digits in the other one, too
    Relation("age", "person", "number"),
    Relation("height", "person", "number", Unit("metres", "feet", 3.28), high=30),
    Relation("rank", "place", "number"),
    Relation("distance", "place", "number", Unit("leagues", "miles", 3.0), high=33),
    Relation("score", "thing", "number"),
    Relation("weight", "thing", "number", Unit("kilos", "pounds", 2.2), high=45),
)


@dataclass(frozen=True, slots=True)
class Toolset:
    """Which relations there are, and how the tools look that know them."""

    relations: tuple[Relation, ...] = RELATIONS  # to entities
    attributes: tuple[Relation, ...] = ATTRIBUTES  # to numbers
    punctuates: bool = False  # outputs end in a full stop
    twins: bool = False  # all relations of one name have a tool, and each tool refuses at a loss


def _moved(relation: Relation) -> Relation:
    """The relation, leading to the next kind of entity."""
    following = {kind: KINDS[(index + 1) % len(KINDS)] for index, kind in enumerate(KINDS)}
    return replace(relation, target=following[relation.target])


def _exchanged(relations: Sequence[Relation]) -> tuple[Relation, ...]:
    """The relations, in pairs each looked up by the tool that is named after the other."""
    others = [relations[index ^ 1] for index in range(len(relations))]
    return tuple(replace(r, label=other.tool) for r, other in zip(relations, others, strict=True))


def _twins(relations: Sequence[Relation]) -> tuple[Relation, ...]:
    """The first relation of each pair, and again by the tool that is named after the second."""
    return (*relations[::2], *_exchanged(relations)[::2])


# "plain" is what policies are trained on. Descriptions are true in all of them.
TOOLSETS = {
    "plain": Toolset(),
    "renamed": Toolset(_exchanged(RELATIONS), _exchanged(ATTRIBUTES)),
    "moved": Toolset(tuple(map(_moved, RELATIONS))),
    "punctuated": Toolset(punctuates=True),
    "twins": Toolset(_twins(RELATIONS), _twins(ATTRIBUTES), twins=True),
}
_OTHER_WORDS = "What Find is are the of and in a not found error Error unit person place thing"


def laptop_words() -> tuple[str, ...]:
    """Every word, identifier and number of a synthetic task, in a fixed order, each once.

    Punctuation and the frames of JSON and of the chat template are not among them.
    """
    words = _OTHER_WORDS.split()
    for relation in (*RELATIONS, *ATTRIBUTES):
        words += [relation.name, relation.tool]
        if relation.unit is not None:
            words += [relation.unit.base, relation.unit.other]
    words += [*ADJECTIVES, *NOUNS, *(str(number) for number in range(100))]
    return tuple(dict.fromkeys(words))


Range = Sequence[int]  # (low, high), uniform


def spend(rng: Random) -> None:
    """Draws for nothing where there once was a knob: later draws stay what they were.

    Policies were trained on these very tasks.
    """
    rng.randrange(1)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The knobs of the generator, by default those of "laptop".

    Raises:
        ValueError: a value that is no range; the message names the knob.
    """

    width: Range = (2, 5)  # calls of parallel_single
    depth: Range = (2, 6)  # hops of multi_hop
    chains: Range = (2, 2)  # chains of parallel_multi_hop
    chain_depth: Range = (2, 3)  # hops of each of them
    distractors: Range = (1, 3)  # tools beyond the needed ones
    spare_facts: Range = (1, 2)  # further entities that a tool knows

    def __post_init__(self) -> None:
        for knob, value in asdict(self).items():
            least = 0 if knob in ("distractors", "spare_facts") else 1
            is_range = isinstance(value, Sequence) and len(value) == 2
            if not (is_range and least <= value[0] <= value[1]):
                raise ValueError(f"{knob}={value!r}: expected (low, high), from {least}")


KNOBS = tuple(knob.name for knob in fields(Difficulty))


def split_of(entity: str) -> str:
    """The split that owns an entity: 80 % train, 10 % validation, 10 % test.

    It depends on the name alone, so that tasks of different seeds or difficulties (a warm start
    and the training that follows it) never share an entity across splits.
    """
    bucket = zlib.crc32(entity.encode()) % 10
    return SPLITS[max(0, bucket - 7)]


@dataclass(frozen=True, slots=True)
class World:
    """The surroundings of one task; no name is drawn twice, and all belong to its split."""

    scenario: str
    split: str
    difficulty: Difficulty
    rng: Random
    toolset: Toolset = TOOLSETS["plain"]
    drawn: set[str] = field(default_factory=set)

    def draw_name(self) -> str:
        """A name for an entity of any kind that this task has not seen yet."""
        while True:
            name = f"{self.rng.choice(ADJECTIVES)} {self.rng.choice(NOUNS)}"
            if name not in self.drawn and split_of(name) == self.split:
                self.drawn.add(name)
                return name

    def draw_fact(self, relation: Relation) -> str | int:
        """Any value that the relation may lead to, as a tool stores it."""
        if relation.target == "number":
            return self.rng.randint(10, relation.high)
        return self.draw_name()
