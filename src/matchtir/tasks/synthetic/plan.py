"""Draws the plan of a task, from its relations to its answer, and words its question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matchtir.tasks.synthetic.difficulty import draw, draw_share
from matchtir.tasks.synthetic.world import (
    Calculation,
    Hop,
    Lexicon,
    Qualifier,
    Relation,
    Terms,
    World,
)

Route = tuple[Relation, ...]  # what a chain follows, before there are any entities
Chain = tuple[Hop, ...]

_LETTERS = "abcdefgh"
_DESTINATION = Qualifier("destination", "place", "", "Name of the place at the other end.")
_ATTEMPTS = 200
_OF_TWO = ("difference", "yes_no", "distance")
_OF_NUMBERS = ("sum", "difference", "calculator")


@dataclass(frozen=True, slots=True)
class Plan:
    """The chains of a task, side by side; hop k of every chain belongs to turn k.

    `closing` names how the ends of the chains become the answer; some closings take one call
    more, in the turn after the longest chain.
    """

    chains: tuple[Chain, ...]
    closing: str
    answer: str
    final_call: Hop | Calculation | None = None

    def gold_steps(self) -> list[tuple[int, Hop | Calculation]]:
        """(turn, step) of every gold call, turn by turn and from the first chain to the last."""
        longest = max(len(chain) for chain in self.chains)
        steps: list[tuple[int, Hop | Calculation]] = [
            (turn, chain[turn])
            for turn in range(longest)
            for chain in self.chains
            if turn < len(chain)
        ]
        if self.final_call is not None:
            steps.append((longest, self.final_call))
        return steps


def draw_plan(world: World) -> Plan:
    """The chains, the closing and the answer of one task.

    No entity occurs twice, and the ends of the chains differ.

    Raises:
        ValueError: the knobs ask for more relations than there are.
    """
    closing = draw_share(world.difficulty.closings.get(world.scenario, {"list": 1.0}), world.rng)
    routes = _draw_routes(closing, world)
    relations = dict.fromkeys(relation for route in routes for relation in route)
    terms = {
        relation: Terms(world.draw_values(world.draw_qualifiers()), _draw_unit(relation, world))
        for relation in relations
    }
    chains: list[Chain] = []
    while len(chains) < len(routes):
        chain = _follow(routes[len(chains)], terms, world)
        if chain[-1].value not in {other[-1].value for other in chains}:
            chains.append(chain)
    return _close(tuple(chains), closing, world)


def _draw_routes(closing: str, world: World) -> list[Route]:
    """One route per chain. No relation occurs in two of them, unless a tool is to be used twice."""
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
    if scenario == "single":
        return [1]
    if scenario == "multi_hop":
        depth = draw(difficulty.depth, rng)
        return [max(depth - 1, 1), 1] if closing == "distance" else [depth]
    count = draw(difficulty.width if scenario == "parallel_single" else difficulty.chains, rng)
    count = min(count, 2) if closing in _OF_TWO else count
    if scenario == "parallel_single":
        return [1] * count
    return [draw(difficulty.chain_depth, rng) for _ in range(count)]


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


def _draw_unit(relation: Relation, world: World) -> bool:
    """Whether the other unit is asked for."""
    asked = world.rng.random() < world.difficulty.other_unit_share
    return asked and relation.unit is not None


def _follow(route: Route, terms: Mapping[Relation, Terms], world: World) -> Chain:
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
    factor = relation.unit.factor if relation.unit and terms.in_other_unit else 1
    return Hop(relation, subject, world.number(round(fact * factor)), fact, terms)


def _close(chains: tuple[Chain, ...], closing: str, world: World) -> Plan:
    """The plan with its answer, and with the call that gives it where the closing takes one."""
    ends = [chain[-1] for chain in chains]
    if closing == "list":
        return Plan(chains, closing, ", ".join(end.value for end in ends))
    if closing in ("compare", "rank", "yes_no"):
        return Plan(chains, closing, _verdict(closing, ends))
    if closing == "distance" and world.lexicon.distance is not None:
        relation = world.lexicon.distance
        terms = Terms({_DESTINATION: ends[1].value}, _draw_unit(relation, world))
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
        return ", ".join(_LETTERS[index] for index in ascending)
    winner = ascending[-1] if of_numbers else ascending[0]  # the greatest number, the first date
    if closing == "compare":
        return _LETTERS[winner]
    return "yes" if winner == 0 else "no"


def word_question(plan: Plan, lexicon: Lexicon) -> str:
    """One sentence that says everything the gold calls need."""
    phrases = [_chain_phrase(chain, lexicon) for chain in plan.chains]
    if lexicon.pronoun:  # chains of one task share a relation only where a tool is used twice
        for index, (hop, *_) in enumerate(plan.chains[1:], 1):
            if hop.relation == plan.chains[0][0].relation:
                phrases[index] = f"{lexicon.pronoun} {hop.relation.link} {hop.subject}"
    listed = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    last, final = plan.chains[0][-1], plan.final_call
    if plan.closing == "list" and len(phrases) == 1:
        return f"{lexicon.questions.get(last.relation.target, 'What is')} {phrases[0]}?"
    if plan.closing == "list":
        return f"What are {listed}?"
    if isinstance(final, Hop):
        return f"What is the {_noun(final)} between {phrases[0]} and {phrases[1]}?"
    if plan.closing == "sum" or (final is not None and final.operation == "add"):
        return f"What is the sum of {listed}?"
    if plan.closing in _OF_NUMBERS:
        return f"What is the difference between {phrases[0]} and {phrases[1]}?"
    return _word_comparison(plan.closing, last.relation.target == "number", phrases)


def _noun(hop: Hop) -> str:
    """`height in feet`, `mayor as of April 5, 1923`: the qualifiers stand at the noun."""
    words = [hop.relation.noun, *(item.words(value) for item, value in hop.terms.values.items())]
    if hop.relation.unit is not None and hop.terms.in_other_unit:
        words.append(f"in {hop.relation.unit.other}")
    return " ".join(word for word in words if word)


def _chain_phrase(chain: Chain, lexicon: Lexicon) -> str:
    """`the port of the mentor of "amber falcon"`."""
    phrase = f"{lexicon.quote}{chain[0].subject}{lexicon.quote}"
    for hop in chain:
        phrase = f"the {_noun(hop)} {hop.relation.link} {phrase}"
    return phrase


def _word_comparison(closing: str, of_numbers: bool, phrases: Sequence[str]) -> str:
    if closing == "yes_no":
        return f"Is {phrases[0]} {'greater' if of_numbers else 'earlier'} than {phrases[1]}?"
    *others, last = [f"({_LETTERS[index]}) {phrase}" for index, phrase in enumerate(phrases)]
    if closing == "rank":
        order = "smallest to largest" if of_numbers else "earliest to latest"
        return f"Rank from {order}: {', '.join(others)}, and {last}."
    if len(phrases) == 2:
        degree = "greater" if of_numbers else "earlier"
    else:
        degree = "greatest" if of_numbers else "earliest"
    return f"Which is {degree}: {', '.join(others)}, or {last}?"
