"""Parameters that narrow a lookup: drawing them, and values for them."""

from __future__ import annotations

from matchtir.tasks.synthetic.difficulty import draw, draw_share, for_scenario
from matchtir.tasks.synthetic.records import Narrowing, Qualifier, Scalar
from matchtir.tasks.synthetic.world import World


def draw_qualifiers(world: World) -> tuple[Qualifier, ...]:
    """Qualifiers of one tool, no two with the same parameter name; as many as the knobs say."""
    count = draw(for_scenario(world.difficulty.qualifiers, world.scenario), world.rng)
    drawn: dict[str, Qualifier] = {}
    while len(drawn) < min(count, len(world.lexicon.qualifiers)):
        form = draw_share(world.difficulty.qualifier_forms, world.rng)
        choices = [item for item in world.lexicon.qualifiers if item.form == form]
        if choices:
            qualifier = world.rng.choice(choices)
            drawn.setdefault(qualifier.parameter, qualifier)
    return tuple(drawn.values())


def draw_value(qualifier: Qualifier, world: World) -> Scalar:
    """A value to ask for, which is not the default: the question has a reason to say it."""
    if qualifier.form == "choice":
        return world.rng.choice(qualifier.choices[1:])
    if qualifier.form == "date":
        return world.draw_date()
    if qualifier.form == "year":
        return world.rng.randint(1850, 2020)
    return True if qualifier.form == "flag" else world.names.draw("region")


def default_of(qualifier: Qualifier) -> Scalar | None:
    """What a lookup goes by where an optional qualifier is left out."""
    if qualifier.form == "flag":
        return False
    return qualifier.choices[0] if qualifier.choices else None


def narrow(qualifiers: tuple[Qualifier, ...], world: World) -> tuple[Narrowing, ...]:
    """A value for each qualifier."""
    return tuple(Narrowing(qualifier, draw_value(qualifier, world)) for qualifier in qualifiers)
