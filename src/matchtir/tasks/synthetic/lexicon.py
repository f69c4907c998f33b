"""The fixed vocabulary of the `laptop` worlds: every word that such a task can contain."""

from __future__ import annotations

from random import Random

from matchtir.tasks.synthetic.records import Lexicon, Relation, Unit

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


def _relation(
    name: str, domain: str, target: str, unit: Unit | None = None, high: int = 99
) -> Relation:
    # Two digits always: otherwise 4 would be found in the wrong answer 42.
    return Relation(name, domain, target, f"find_{name}", domain, name, "of", 10, high, unit)


# Each kind of entity has six relations, two to each kind, so that a chain never runs dry.
_RELATIONS = (
    _relation("mentor", "person", "person"),
    _relation("rival", "person", "person"),
    _relation("home", "person", "place"),
    _relation("birthplace", "person", "place"),
    _relation("ship", "person", "thing"),
    _relation("sword", "person", "thing"),
    _relation("mayor", "place", "person"),
    _relation("founder", "place", "person"),
    _relation("port", "place", "place"),
    _relation("capital", "place", "place"),
    _relation("relic", "place", "thing"),
    _relation("emblem", "place", "thing"),
    _relation("owner", "thing", "person"),
    _relation("maker", "thing", "person"),
    _relation("origin", "thing", "place"),
    _relation("shrine", "thing", "place"),
    _relation("replica", "thing", "thing"),
    _relation("key", "thing", "thing"),
)

# The largest number in the base unit has two digits in the other one, too.
_ATTRIBUTES = (
    _relation("age", "person", "number"),
    _relation("height", "person", "number", Unit("metres", "feet", 3.28), high=30),
    _relation("rank", "place", "number"),
    _relation("distance", "place", "number", Unit("leagues", "miles", 3.0), high=33),
    _relation("score", "thing", "number"),
    _relation("weight", "thing", "number", Unit("kilos", "pounds", 2.2), high=45),
)

_OTHER_WORDS = "What Find is are the of and in a not found error Error unit person place thing"


def _invent(kind: str, rng: Random) -> str:
    """Two words for an entity of any kind."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


LAPTOP = Lexicon(_invent, _RELATIONS, _ATTRIBUTES, quote='"')


def laptop_words() -> tuple[str, ...]:
    """Every word, identifier and number of a `laptop` task, in a fixed order, each once.

    Punctuation and the frames of JSON and of the chat template are not among them.
    """
    words = _OTHER_WORDS.split()
    for relation in (*LAPTOP.relations, *LAPTOP.attributes):
        words += [relation.name, relation.tool]
        if relation.unit is not None:
            words += [relation.unit.base, relation.unit.other]
    words += [*ADJECTIVES, *NOUNS, *(str(number) for number in range(100))]
    return tuple(dict.fromkeys(words))
