"""Draws the plan of a task, from its relations to its answer, and words its question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tasks.synthetic.world import Relation, World, draw, spend

Route = tuple[Relation, ...]  # what a chain follows, before there are any entities

_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class Hop:
    """One gold call: `relation` of `subject` is `value`."""

    relation: Relation
    subject: str
    fact: str | int  # as the tool stores it
    in_other_unit: bool  # which of its two units the question asks for

    @property
    def value(self) -> str:
        """The gold output."""
        if self.relation.unit is not None and self.in_other_unit:
            return str(round(int(self.fact) * self.relation.unit.factor))
        return str(self.fact)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gold call."""
        arguments: dict[str, Any] = {self.relation.domain: self.subject}
        if self.relation.unit is not None and self.in_other_unit:
            arguments["unit"] = self.relation.unit.other
        return arguments


Chain = tuple[Hop, ...]  # each hop starts where the one before ends
Plan = tuple[Chain, ...]  # side by side; hop k of every chain belongs to turn k


def gold_steps(plan: Plan) -> list[tuple[int, Hop]]:
    """(turn, hop) of every gold call, turn by turn and from the first chain to the last."""
    return [
        (turn, chain[turn])
        for turn in range(max(map(len, plan)))
        for chain in plan
        if turn < len(chain)
    ]


def draw_plan(world: World) -> Plan:
    """The chains of one task. No entity occurs twice, and the ends of the chains differ.

    Raises:
        ValueError: the knobs ask for more relations than there are.
    """
    world.rng.random()  # as `spend`
    routes = _draw_routes(world)
    in_other_unit = {}
    for relation in dict.fromkeys(relation for route in routes for relation in route):
        spend(world.rng)
        in_other_unit[relation] = world.rng.random() < 0.5
    chains: list[Chain] = []
    while len(chains) < len(routes):
        subject = world.draw_name()
        hops: list[Hop] = []
        for relation in routes[len(chains)]:
            hop = Hop(relation, subject, world.draw_fact(relation), in_other_unit[relation])
            hops.append(hop)
            subject = hop.value
        if subject not in {other[-1].value for other in chains}:
            chains.append(tuple(hops))
    return tuple(chains)


def _draw_routes(world: World) -> list[Route]:
    """One route per chain. No relation occurs in two of them, unless a tool is to be used twice."""
    depths = _chain_depths(world)
    repeats_tool = world.rng.random() < 0.2 and world.scenario == "parallel_single"
    used: set[Relation] = set()
    routes: list[Route] = []
    for depth in depths:
        if repeats_tool and len(routes) == 1:
            routes.append(routes[0])
            continue
        for _ in range(_ATTEMPTS):  # a walk can arrive at a kind whose relations are used up
            ends_in_number = world.rng.random() < 0.35
            last = world.toolset.attributes if ends_in_number else world.toolset.relations
            route = _walk(depth, last, used, world)
            if route is not None:
                break
        else:
            raise ValueError(
                f"no chain of {depth} relations found beside {len(used)} used ones; lower the "
                "knobs width, depth, chains or chain_depth"
            )
        used.update(route)
        routes.append(route)
    return routes


def _chain_depths(world: World) -> list[int]:
    difficulty, rng = world.difficulty, world.rng
    if world.scenario == "single":
        return [1]
    if world.scenario == "multi_hop":
        return [draw(difficulty.depth, rng)]
    if world.scenario == "parallel_single":
        return [1] * draw(difficulty.width, rng)
    return [draw(difficulty.chain_depth, rng) for _ in range(draw(difficulty.chains, rng))]


def _walk(depth: int, last: Sequence[Relation], used: set[Relation], world: World) -> Route | None:
    """`depth` unused relations, each starting from the kind that the one before leads to."""
    route: list[Relation] = []
    for position in range(depth):
        choices = [
            relation
            for relation in (last if position == depth - 1 else world.toolset.relations)
            if relation not in used
            and relation not in route
            and (not route or relation.domain == route[-1].target)
        ]
        if not choices:
            return None
        route.append(world.rng.choice(choices))
    return tuple(route)


def word_question(plan: Plan) -> str:
    """One sentence that says everything the gold calls need."""
    *others, last = map(_chain_phrase, plan)
    if not others:
        return f"What is {last}?"
    return f"What are {', '.join(others)} and {last}?"


def _chain_phrase(chain: Chain) -> str:
    """`the port of the mentor of "amber falcon"`, `the height in feet of "amber falcon"`."""
    phrase = f'"{chain[0].subject}"'
    for hop in chain:
        unit = hop.arguments.get("unit")
        phrase = f"the {hop.relation.name}{f' in {unit}' if unit else ''} of {phrase}"
    return phrase
