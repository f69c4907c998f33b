"""Draws the routes of a task: which relations its chains follow, before there are any entities."""

from __future__ import annotations

from collections.abc import Sequence

from matchtir.tasks.synthetic.difficulty import draw
from matchtir.tasks.synthetic.records import Relation
from matchtir.tasks.synthetic.world import World

Route = tuple[Relation, ...]

_ATTEMPTS = 200
_OF_TWO = ("difference", "yes_no", "distance")
_OF_NUMBERS = ("sum", "difference", "calculator")


def draw_routes(closing: str, world: World) -> list[Route]:
    """One route per chain. No relation occurs in two of them, unless a tool is to be used twice.

    Raises:
        ValueError: the knobs ask for more relations than there are.
    """
    lexicon, rng, difficulty = world.lexicon, world.rng, world.difficulty
    depths = _chain_depths(closing, world)
    repeats_tool = rng.random() < difficulty.repeat_tool_share
    repeats_tool &= world.scenario == "parallel_single"
    shared_end = _shared_end(closing, world)
    used: set[Relation] = set()
    routes: list[Route] = []
    for depth in depths:
        if repeats_tool and len(routes) == 1:
            routes.append(routes[0])
            continue
        for _ in range(_ATTEMPTS):  # a walk can arrive at a kind whose relations are used up
            ends_in_attribute = rng.random() < difficulty.attribute_share
            last = shared_end or (lexicon.attributes if ends_in_attribute else lexicon.relations)
            route = _walk(depth, last, used, world)
            if route is not None:
                break
        else:
            raise ValueError(
                f"difficulty {difficulty.name!r}: no chain of {depth} relations found beside "
                f"{len(used)} used ones; lower width, depth, chains or chain_depth"
            )
        used.update(route)
        routes.append(route)
    return routes


def _chain_depths(closing: str, world: World) -> list[int]:
    scenario, difficulty, rng = world.scenario, world.difficulty, world.rng
    if scenario == "parallel_single":
        count = draw(difficulty.width, rng)
        return [1] * (min(count, 2) if closing in _OF_TWO else count)
    if scenario == "multi_hop":
        depth = draw(difficulty.depth, rng)
        return [max(depth - 1, 1), 1] if closing == "distance" else [depth]
    if scenario == "parallel_multi_hop":
        count = draw(difficulty.chains, rng)
        count = min(count, 2) if closing in _OF_TWO else count
        return [draw(difficulty.chain_depth, rng) for _ in range(count)]
    return [1]


def _shared_end(closing: str, world: World) -> tuple[Relation, ...]:
    """The relations that may end a chain, where the closing needs ends of one sort."""
    lexicon = world.lexicon
    if closing == "list":
        return ()
    if closing == "distance":
        return tuple(r for r in lexicon.relations if r.target == "city")
    target = "number" if closing in _OF_NUMBERS or world.rng.random() < 0.6 else "date"
    ends = tuple(relation for relation in lexicon.attributes if relation.target == target)
    return ends or tuple(r for r in lexicon.attributes if r.target == "number")


def _walk(depth: int, last: Sequence[Relation], used: set[Relation], world: World) -> Route | None:
    """`depth` unused relations, each starting from the kind that the one before leads to."""
    route: list[Relation] = []
    for position in range(depth):
        choices = [
            relation
            for relation in (last if position == depth - 1 else world.lexicon.relations)
            if relation not in used
            and relation not in route
            and (not route or relation.domain == route[-1].target)
        ]
        if not choices:
            return None
        route.append(world.rng.choice(choices))
    return tuple(route)
