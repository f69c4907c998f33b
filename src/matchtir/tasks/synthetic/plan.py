"""Draws the plan of a task: puts entities, values and the closing on its routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matchtir.tasks.synthetic.difficulty import draw_share
from matchtir.tasks.synthetic.qualifiers import draw_qualifiers, narrow
from matchtir.tasks.synthetic.records import (
    Calculation,
    Hop,
    Narrowing,
    Plan,
    Qualifier,
    Relation,
    Terms,
)
from matchtir.tasks.synthetic.routes import draw_routes
from matchtir.tasks.synthetic.world import World

LETTERS = "abcdefgh"
_DESTINATION = Qualifier("destination", "place", "Name of the place at the other end.", "")

Chain = tuple[Hop, ...]


def draw_plan(world: World) -> Plan:
    """The chains, the closing and the answer of one task.

    No entity occurs twice, and the ends of the chains differ.
    """
    closing = draw_share(world.difficulty.closing_shares(world.scenario), world.rng)
    routes = draw_routes(closing, world)
    relations = dict.fromkeys(relation for route in routes for relation in route)
    terms = {relation: _draw_terms(relation, world) for relation in relations}
    chains: list[Chain] = []
    while len(chains) < len(routes):
        chain = _follow(routes[len(chains)], terms, world)
        if chain[-1].value not in {other[-1].value for other in chains}:
            chains.append(chain)
    return _close(tuple(chains), closing, world)


def _draw_terms(relation: Relation, world: World) -> Terms:
    return Terms(narrow(draw_qualifiers(world), world), _draw_other_unit(relation, world))


def _draw_other_unit(relation: Relation, world: World) -> bool:
    asked = world.rng.random() < world.difficulty.other_unit_share
    return asked and relation.unit is not None


def _follow(route: Sequence[Relation], terms: Mapping[Relation, Terms], world: World) -> Chain:
    """Entities and values along a route."""
    subject = world.names.draw(route[0].domain)
    hops: list[Hop] = []
    for relation in route:
        hops.append(_draw_hop(relation, subject, terms[relation], world))
        subject = hops[-1].value
    return tuple(hops)


def _draw_hop(relation: Relation, subject: str, terms: Terms, world: World) -> Hop:
    fact = world.draw_fact(relation)
    if isinstance(fact, str):
        return Hop(relation, subject, fact, fact, terms)
    number = relation.unit.convert(fact) if relation.unit and terms.in_other_unit else fact
    return Hop(relation, subject, world.number(number), fact, terms)


def _close(chains: tuple[Chain, ...], closing: str, world: World) -> Plan:
    """The plan with its answer, and with the call that gives it where the closing takes one."""
    ends = [chain[-1] for chain in chains]
    if closing == "list":
        return Plan(chains, closing, ", ".join(end.value for end in ends))
    if closing in ("compare", "rank", "yes_no"):
        return Plan(chains, closing, _verdict(closing, ends))
    if closing == "distance" and world.lexicon.distance is not None:
        relation = world.lexicon.distance
        narrowings = (Narrowing(_DESTINATION, ends[1].value),)
        terms = Terms(narrowings, _draw_other_unit(relation, world))
        hop = _draw_hop(relation, ends[0].value, terms, world)
        return Plan(chains, closing, hop.value, hop)
    numbers = tuple(end.number for end in ends)
    subtracts = closing == "difference"
    if closing == "calculator" and len(numbers) == 2:
        subtracts = world.rng.random() < 0.5
    if subtracts:
        numbers = tuple(sorted(numbers, reverse=True))
    result = numbers[0] - numbers[1] if subtracts else sum(numbers)
    value = world.number(result)
    if closing != "calculator":
        return Plan(chains, closing, value)
    operation = "subtract" if subtracts else "add"
    return Plan(chains, closing, value, Calculation(operation, numbers, result, value))


def _verdict(closing: str, ends: Sequence[Hop]) -> str:
    of_numbers = ends[0].relation.target == "number"

    def key(index: int) -> int | str:
        return ends[index].number if of_numbers else ends[index].value

    ascending = sorted(range(len(ends)), key=key)
    if closing == "rank":
        return ", ".join(LETTERS[index] for index in ascending)
    winner = ascending[-1] if of_numbers else ascending[0]  # the greatest number, the first date
    if closing == "compare":
        return LETTERS[winner]
    return "yes" if winner == 0 else "no"
