"""Draws the plan of a task, from its relations to its answer, and words its question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matchtir.tasks.synthetic.world import Relation, Unit, World, spend

Route = tuple[Relation, ...]  # what a chain follows, before there are any entities

_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class Hop:
    """One gold call: `relation` of `subject` is `value`."""

    relation: Relation
    subject: str
    fact: str | int  # as the tool stores it
    unit: Unit | None  # where the question asks for the other one of its two

    @property
    def value(self) -> str:
        """The gold output."""
        return str(self.fact if self.unit is None else round(int(self.fact) * self.unit.factor))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gold call."""
        arguments = {self.relation.domain: self.subject}
        return arguments if self.unit is None else {**arguments, "unit": self.unit.other}


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
    units = {}
    for relation in dict.fromkeys(relation for route in routes for relation in route):
        spend(world.rng)
        units[relation] = relation.unit if world.rng.random() < 0.5 else None
    chains: list[Chain] = []
    while len(chains) < len(routes):
        subject = world.draw_name()
        hops: list[Hop] = []
        for relation in routes[len(chains)]:
            hops.append(Hop(relation, subject, world.draw_fact(relation), units[relation]))
            subject = hops[-1].value
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
        return [rng.randint(*difficulty.depth)]
    if world.scenario == "parallel_single":
        return [1] * rng.randint(*difficulty.width)
    return [rng.randint(*difficulty.chain_depth) for _ in range(rng.randint(*difficulty.chains))]


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
        unit = f" in {hop.unit.other}" if hop.unit else ""
        phrase = f"the {hop.relation.name}{unit} of {phrase}"
    return phrase
