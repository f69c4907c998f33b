"""A lookup tool before it is written out: its parameters, its records, and how it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matchtir.tasks.synthetic.difficulty import draw, draw_share
from matchtir.tasks.synthetic.parameters import (
    describe,
    draw_fillers,
    qualifier_parameter,
    unit_parameter,
)
from matchtir.tasks.synthetic.qualifiers import default_of, narrow
from matchtir.tasks.synthetic.records import Hop, Parameter, Qualifier, Relation, Scalar
from matchtir.tasks.synthetic.world import World

# What longer results say about their source.
REMARK = {"status": "confirmed", "source": "general register"}

Key = tuple[Scalar | None, ...]  # the entity and a value for each qualifier


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a tool answers; the words are those of the difficulty's knobs."""

    error_style: str
    unknown_entity: str
    output_style: str
    groups_digits: bool  # 5,700 instead of 5700
    tidies_names: bool  # by a helper function
    wording: int  # which of the texts for an entity that is not found


@dataclass(frozen=True, slots=True)
class LookupTool:
    """Looks `relation` up in `facts`."""

    relation: Relation
    qualifiers: tuple[Qualifier, ...]
    parameters: tuple[Parameter, ...]  # the entity, the qualifiers, the unit, the fillers
    facts: Mapping[Key, str | int]
    fallback: str | int  # for an entity that is not in the facts, where it is not refused
    behaviour: Behaviour
    description: str

    def output(self, hop: Hop) -> str:
        """What the policy reads after the gold call `hop`."""
        number = isinstance(hop.fact, int)
        value = hop.number if number else hop.value
        shown = f"{value:,}" if number and self.behaviour.groups_digits else value
        return _as_text(output_value(self, hop.subject, shown))


def output_value(tool: LookupTool, subject: str, value: str | int) -> object:
    """What the tool returns for a value that it has found."""
    relation, style = tool.relation, tool.behaviour.output_style
    if style == "bare":
        return str(value)
    if style == "sentence":
        return f"The {relation.noun} {relation.link} {subject} is {value}."
    if style == "value":
        return {relation.name: value}
    record = {relation.domain: subject, relation.name: value, **REMARK}
    return json.dumps(record) if style == "json" else record


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def draw_tool(
    relation: Relation,
    qualifiers: tuple[Qualifier, ...],
    hops: Sequence[Hop],
    asked: Sequence[Hop],
    world: World,
) -> LookupTool:
    """A tool that knows the facts of `hops`, and others that would mislead.

    Args:
        hops: the gold calls of this tool; a distractor has none.
        asked: all gold calls of the task: their entities may be found here, too.
    """
    behaviour = _draw_behaviour(world)
    own = [
        Parameter(
            relation.parameter,
            {"type": "string", "description": f"Name of the {relation.domain} to look up"},
            required=True,
        ),
        *(qualifier_parameter(qualifier, world) for qualifier in qualifiers),
    ]
    if relation.unit is not None:
        own.append(unit_parameter(relation.unit))
    fillers = draw_fillers(world, len(own), {parameter.name for parameter in own})
    parameters = tuple(describe(parameter, world) for parameter in (*own, *fillers))
    facts = _draw_facts(relation, qualifiers, hops, asked, world)
    description = _describe_tool(relation, world)
    fallback = world.draw_fact(relation)
    return LookupTool(relation, qualifiers, parameters, facts, fallback, behaviour, description)


def _draw_behaviour(world: World) -> Behaviour:
    knobs, rng = world.difficulty, world.rng
    return Behaviour(
        error_style=draw_share(knobs.error_styles, rng),
        unknown_entity=draw_share(knobs.unknown_entity, rng),
        output_style=draw_share(knobs.output_styles, rng),
        groups_digits="," in world.lexicon.number_format and rng.random() < 0.4,
        tidies_names=rng.random() < 0.3,
        wording=rng.randrange(4),
    )


def _describe_tool(relation: Relation, world: World) -> str:
    if not world.difficulty.verbose:
        return f"{relation.name} of a {relation.domain}"
    article = "an" if relation.domain[0] in "aeiou" else "a"
    entry = f"{relation.noun} {relation.link} {article} {relation.domain}"
    first = f"Looks up the {entry} in the registers of the realm."
    return " ".join([first, *world.rng.sample(world.lexicon.tool_remarks, 2)])


def _draw_facts(
    relation: Relation,
    qualifiers: tuple[Qualifier, ...],
    hops: Sequence[Hop],
    asked: Sequence[Hop],
    world: World,
) -> dict[Key, str | int]:
    facts: dict[Key, str | int] = {_key(hop): hop.fact for hop in hops}
    for hop in hops:
        for position, qualifier in enumerate(qualifiers, 1):  # the same entity, otherwise narrowed
            key = list(_key(hop))
            key[position] = default_of(qualifier)
            facts.setdefault(tuple(key), world.draw_fact(relation))
    known = {hop.subject for hop in hops}
    others = [hop.subject for hop in asked if hop.subject not in known]
    fitting = [h.subject for h in asked if h.relation.domain == relation.domain and not hops]
    subjects = [world.rng.choice(fitting)] if fitting else []
    for _ in range(draw(world.difficulty.spare_facts, world.rng)):
        from_task = others and world.rng.random() < 0.5
        subjects.append(
            world.rng.choice(others) if from_task else world.names.draw(relation.domain)
        )
    for subject in subjects:
        values = (narrowing.value for narrowing in narrow(qualifiers, world))
        facts.setdefault((subject, *values), world.draw_fact(relation))
    items = list(facts.items())
    world.rng.shuffle(items)
    return dict(items)


def _key(hop: Hop) -> Key:
    return (hop.subject, *(narrowing.value for narrowing in hop.terms.narrowings))
