"""The vocabulary of the `ftrl` worlds: ten kinds of invented entities and what connects them."""

from __future__ import annotations

from random import Random

from matchtir.tasks.synthetic.ftrl_parameters import (
    CALCULATOR_FILLERS,
    FILLERS,
    PARAMETER_REMARKS,
    QUALIFIERS,
    TOOL_REMARKS,
)
from matchtir.tasks.synthetic.lexicon import ADJECTIVES, NOUNS
from matchtir.tasks.synthetic.records import Lexicon, Relation, Unit

# Syllables of invented names.
_ONSETS = "B Br C Cal D Dr F Fen G Gr H Hal J K Kar L Lor M Mar N Nor P Pel Q R S Sel T Tor V W Z"
_MIDDLES = "a ad al an ar e el en er i il in ir o ol on or u ul un ur"
_ENDS = "bar den dra fell gar ham kin las len mond na nor ra rin sk stad ta ven vik wyn"

# What a name looks like, by kind of entity: {} is a stem.
_NAME_FORMS = {
    "person": ("{} {}",),
    "city": ("{}", "Port {}", "{} Falls"),
    "institution": ("{} Academy", "{} Institute", "{} Conservatory", "University of {}"),
    "landmark": ("{} Tower", "{} Citadel", "{} Lighthouse", "{} Viaduct"),
    "river": ("{} River", "Lake {}"),
    "company": ("{} Foundry", "{} Shipping", "{} Textiles", "{} and Sons"),
    "species": ("{} orchid", "{} warbler", "{} trout", "{} cypress"),
    "event": ("{} Congress", "{} Uprising", "{} Regatta", "{} Expedition"),
    "invention": ("{} turbine", "{} lens", "{} loom", "{} engine"),
    "region": ("{} district", "{} province"),
}

# domain > target: noun, link. The domain's name and the noun make the name of the tool.
_RELATIONS = """
person > city: birthplace, of
person > person: teacher, of
person > company: company, that employed
person > institution: university, attended by
person > work: best known book, by
person > invention: invention, patented by
person > species: species, first described by
person > event: expedition, led by
city > person: mayor, of
city > landmark: tallest landmark, in
city > river: river, that crosses
city > city: twin city, of
city > company: largest employer, in
city > event: annual festival, held in
city > institution: oldest school, in
institution > person: founder, of
institution > city: city, that houses
institution > company: company, that funds
institution > work: manuscript, kept at
institution > species: species, bred at
landmark > person: architect, of
landmark > city: city, nearest to
landmark > company: company, that built
landmark > river: river, that flows past
landmark > event: ceremony, that opened
river > city: largest city, on
river > person: explorer, of
river > species: rarest species, found in
river > institution: institute, that studies
river > landmark: bridge, over
work > person: author, of
work > city: city, portrayed in
work > company: publisher, of
work > work: sequel, to
work > event: event, that inspired
company > person: chairman, of
company > city: headquarters city, of
company > invention: main product, of
company > company: fiercest rival, of
company > event: event, sponsored by
species > person: discoverer, of
species > river: water, inhabited by
species > city: city, whose emblem shows
species > species: natural enemy, of
species > work: monograph, on
event > person: organiser, of
event > landmark: venue, of
event > city: city, that hosted
event > work: chronicle, of
event > company: principal sponsor, of
invention > person: inventor, of
invention > company: manufacturer, of
invention > city: city, that first used
invention > invention: predecessor, of
invention > institution: museum, that exhibits
"""

# domain: noun, link, low, high [, base unit, other unit, factor]; dates have no bounds.
_NUMBERS = """
person: age at retirement, of, 41, 89
person: number of patents, held by, 2, 240
city: population, of, 12000, 2900000
city: elevation, of, 3, 2400, metres, feet, 3.28
city: area, of, 20, 1900, square_kilometres, square_miles, 0.386
institution: enrolment, of, 300, 42000
institution: number of volumes, in the library of, 5000, 900000
landmark: height, of, 25, 420, metres, feet, 3.28
landmark: number of steps, in, 90, 1900
river: length, of, 30, 3900, kilometres, miles, 0.621
river: greatest depth, of, 3, 320, metres, feet, 3.28
work: page count, of, 80, 1300
work: first print run, of, 200, 60000
company: workforce, of, 40, 88000
company: annual revenue, of, 2, 9400
species: life span, of, 2, 130
species: typical weight, of, 2, 900, grams, ounces, 0.0353
event: attendance, of, 150, 210000
event: duration in days, of, 2, 60
invention: price, of, 15, 48000
invention: weight, of, 2, 5200, kilograms, pounds, 2.205
"""
_DATES = """
person: birth date, of
person: date of death, of
city: founding date, of
institution: date of foundation, of
landmark: opening date, of
river: date of the first crossing, of
work: publication date, of
company: date of registration, of
species: date of the first description, of
event: opening day, of
invention: patent date, of
"""

_SUFFIXES = ("finder", "locator", "identifier", "retriever", "lookup", "info_finder", "explorer")


def _relation(domain: str, target: str, noun: str, link: str, rest: list[str]) -> Relation:
    """A relation whose identifiers are made from its words; `rest` holds bounds and units."""
    name = noun.replace(" ", "_")
    # The suffix depends on the words alone, so that a relation always has the same tool.
    suffix = _SUFFIXES[sum(map(ord, domain + target + noun)) % len(_SUFFIXES)]
    own_words = noun.split()[-1] if noun.count(" ") else noun
    tool = f"{domain}_{own_words if len(noun) > 12 else name}_{suffix}"
    low, high = (int(rest[0]), int(rest[1])) if rest else (1, 99)
    unit = Unit(rest[2], rest[3], float(rest[4])) if len(rest) > 2 else None
    return Relation(name, domain, target, tool, f"{domain}_name", noun, link, low, high, unit)


def _read(table: str, target: str = "") -> tuple[Relation, ...]:
    relations = []
    for line in table.strip().splitlines():
        ends, _, words = line.partition(": ")
        domain, _, own_target = ends.partition(" > ")
        noun, link, *rest = words.split(", ")
        relations.append(_relation(domain, own_target or target, noun, link, rest))
    return tuple(relations)


def _stem(rng: Random) -> str:
    middle = "".join(rng.choice(_MIDDLES.split()) for _ in range(rng.randint(1, 2)))
    return rng.choice(_ONSETS.split()) + middle + rng.choice(_ENDS.split())


def _invent(kind: str, rng: Random) -> str:
    """A capitalised name that shows its kind, as in Karelven Citadel."""
    if kind == "work":
        return f"The {rng.choice(ADJECTIVES).title()} {rng.choice(NOUNS).title()} of {_stem(rng)}"
    form = rng.choice(_NAME_FORMS[kind])
    return form.format(*(_stem(rng) for _ in range(form.count("{}"))))


(_DISTANCE,) = _read("city: road distance, from, 12, 2600, kilometres, miles, 0.621", "number")

FTRL = Lexicon(
    _invent,
    _read(_RELATIONS),
    _read(_NUMBERS, "number") + _read(_DATES, "date"),
    pronoun="that",
    number_format=",d",
    questions={"person": "Who is"},
    distance=_DISTANCE,
    qualifiers=QUALIFIERS,
    fillers=FILLERS,
    calculator_fillers=CALCULATOR_FILLERS,
    tool_remarks=TOOL_REMARKS,
    parameter_remarks=PARAMETER_REMARKS,
)
