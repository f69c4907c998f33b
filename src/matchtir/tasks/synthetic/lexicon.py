"""The vocabularies: of `laptop` worlds, whose every word is here, and of `ftrl` worlds."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from matchtir.tasks.synthetic.world import Lexicon, Parameter, Qualifier, Relation, Unit

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

# Each kind of entity has six relations, two to each kind, so that a chain never runs dry.
_TARGETS = ("person", "person", "place", "place", "thing", "thing")
_RELATIONS = {
    "person": "mentor rival home birthplace ship sword",
    "place": "mayor founder port capital relic emblem",
    "thing": "owner maker origin shrine replica key",
}
_OTHER_WORDS = "What Find is are the of and in a not found error Error unit person place thing"


def _laptop_relation(
    name: str, domain: str, target: str, unit: Unit | None = None, high: int = 99
) -> Relation:
    # Two digits always: otherwise 4 would be found in the wrong answer 42.
    return Relation(name, domain, target, f"find_{name}", domain, name, "of", 10, high, unit)


def _two_words(kind: str, rng: Random) -> str:
    """A name for an entity of any kind."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


LAPTOP = Lexicon(
    _two_words,
    tuple(
        _laptop_relation(name, domain, target)
        for domain, names in _RELATIONS.items()
        for name, target in zip(names.split(), _TARGETS, strict=True)
    ),
    (  # the largest number in the base unit has two digits in the other one, too
        _laptop_relation("age", "person", "number"),
        _laptop_relation("height", "person", "number", Unit("metres", "feet", 3.28), high=30),
        _laptop_relation("rank", "place", "number"),
        _laptop_relation("distance", "place", "number", Unit("leagues", "miles", 3.0), high=33),
        _laptop_relation("score", "thing", "number"),
        _laptop_relation("weight", "thing", "number", Unit("kilos", "pounds", 2.2), high=45),
    ),
    quote='"',
)


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


def lexicon_of(vocabulary: str) -> Lexicon:
    """The lexicon of a vocabulary, "laptop" or "ftrl"."""
    return LAPTOP if vocabulary == "laptop" else _ftrl_lexicon()


@cache
def _ftrl_lexicon() -> Lexicon:
    """Ten kinds of invented entities; the words are in ftrl_words.toml."""
    words = tomllib.loads(Path(__file__).with_name("ftrl_words.toml").read_text(encoding="utf-8"))
    names = words["names"]
    onsets, middles, endings = (names[part].split() for part in ("onsets", "middles", "endings"))

    def stem(rng: Random) -> str:
        middle = "".join(rng.choice(middles) for _ in range(rng.randint(1, 2)))
        return rng.choice(onsets) + middle + rng.choice(endings)

    def invent(kind: str, rng: Random) -> str:
        """A capitalised name that shows its kind, as in Karelven Citadel."""
        if kind == "work":
            title = f"{rng.choice(ADJECTIVES).title()} {rng.choice(NOUNS).title()}"
            return f"The {title} of {stem(rng)}"
        form = rng.choice(names["forms"][kind])
        return form.format(*(stem(rng) for _ in range(form.count("{}"))))

    def read(table: str, *target: Any) -> tuple[Relation, ...]:
        rows = words[table].items()
        return tuple(_ftrl_relation(domain, *target, *row) for domain, each in rows for row in each)

    fillers = {
        kind: tuple(_filler(kind, *row) for row in rows)
        for kind, rows in words["parameters"]["fillers"].items()
    }
    distance = ("road distance", "from", 12, 2600, "kilometres", "miles", 0.621)
    return Lexicon(
        invent,
        read("relations"),
        read("numbers", "number") + read("dates", "date"),
        pronoun="that",
        number_format=",d",
        questions={"person": "Who is"},
        distance=_ftrl_relation("city", "number", *distance),
        qualifiers=tuple(_qualifier(*row) for row in words["parameters"]["qualifiers"]),
        fillers=fillers,
        calculator_fillers=_calculator_fillers(fillers),
        tool_remarks=tuple(words["remarks"]["tool"]),
        parameter_remarks=tuple(words["remarks"]["parameter"]),
    )


_SUFFIXES = ("finder", "locator", "identifier", "retriever", "lookup", "info_finder", "explorer")


def _ftrl_relation(
    domain: str, target: str, noun: str, link: str, low: int = 1, high: int = 99, *unit: Any
) -> Relation:
    """A relation whose identifiers are made from its words."""
    name = noun.replace(" ", "_")
    # The suffix depends on the words alone, so that a relation always has the same tool.
    suffix = _SUFFIXES[sum(map(ord, domain + target + noun)) % len(_SUFFIXES)]
    own_words = noun.split()[-1] if noun.count(" ") else noun
    tool = f"{domain}_{own_words if len(noun) > 12 else name}_{suffix}"
    ends = (low, high, Unit(*unit) if unit else None)
    return Relation(name, domain, target, tool, f"{domain}_name", noun, link, *ends)


def _qualifier(
    parameter: str, form: str, wording: str, description: str, choices: str = ""
) -> Qualifier:
    return Qualifier(parameter, form, wording, description, tuple(choices.split()))


def _filler(kind: str, name: str, description: str, *more: Any) -> Parameter:
    """A parameter; `more` is its default, its choices, or its fields and their type."""
    schema: dict[str, Any] = {"type": "string" if kind == "choice" else kind}
    schema["description"] = description
    if kind == "choice":
        schema["enum"] = more[0].split()
        schema["default"] = schema["enum"][0]
    elif kind == "array":
        schema |= {"items": {"type": "string"}, "default": []}
    elif kind == "object":
        fields, of_type = more
        schema["properties"] = {
            field: {"type": of_type, "description": f"The {field.replace('_', ' ')}."}
            for field in fields.split()
        }
    else:
        schema["default"] = more[0] if more else ""
    return Parameter(name, schema)


def _calculator_fillers(fillers: dict[str, tuple[Parameter, ...]]) -> tuple[Parameter, ...]:
    shared = {"choice": ("output_format", "priority"), "boolean": ("include_context", "real_time")}
    label = {"type": "string", "description": "Label to log the calculation under"}
    return (
        _filler("integer", "precision", "Digits after the decimal point", 2),
        Parameter("label", label),
        *(item for kind, names in shared.items() for item in fillers[kind] if item.name in names),
    )
