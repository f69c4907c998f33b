"""The synthetic task set: lazy sequences of generated tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any, overload

from matchtir.tasks.rows import SPLITS
from matchtir.tasks.synthetic.difficulty import (
    SCENARIOS,
    Difficulty,
    draw,
    for_scenario,
    resolve_difficulty,
)
from matchtir.tasks.synthetic.lexicon import lexicon_of
from matchtir.tasks.synthetic.plan import Plan, draw_plan, word_question
from matchtir.tasks.synthetic.tools import draw_calculator, draw_tool
from matchtir.tasks.synthetic.world import Hop, Names, Relation, World
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec
from matchtir.utils.options import check_option

_CACHED_TASKS = 1024


class SyntheticTasks:
    """A seeded world of multi-hop tool tasks.

    Args:
        difficulty: "laptop", "ftrl", or a record of knobs.
        sizes: tasks per split; a split that is not named is empty.
        seed: task i of a split depends on (seed, split, i) alone, whatever the sizes.
        shares: relative share of each scenario, of "single", "parallel_single", "multi_hop",
            "parallel_multi_hop". Default: equal shares.
        knobs: knobs of the difficulty to replace, such as `{"depth": [1, 2]}`.

    Raises:
        ValueError: an unknown difficulty, scenario, split or knob, or a value it does not take.
    """

    def __init__(
        self,
        difficulty: str | Difficulty = "laptop",
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        shares: Mapping[str, float] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> None:
        self.difficulty = resolve_difficulty(difficulty, knobs)
        self.seed = seed
        given = {"train": 4096, "validation": 128, "test": 256} if sizes is None else dict(sizes)
        check_sizes(given)
        self.sizes = dict.fromkeys(SPLITS, 0) | given
        self._thresholds = _cumulative_shares(shares)
        self._sequences = {
            split: SyntheticSequence(self, split, size) for split, size in self.sizes.items()
        }

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; generated when asked for."""
        check_option("split", split, SPLITS)
        return self._sequences[split]

    def scenario_of(self, index: int) -> str:
        """Scenario of task `index` of any split; every stretch of tasks has the given shares."""
        # Bits in reverse (van der Corput): evenly spread for every length, equal shares of four
        # scenarios exactly so in every block of four.
        position = int(f"{index:032b}"[::-1], 2) / 2**32
        for scenario, threshold in self._thresholds:
            if position < threshold:
                return scenario
        return self._thresholds[-1][0]


class SyntheticSequence(Sequence[Task]):
    """The tasks of one split; the last thousand stay in memory."""

    def __init__(self, source: SyntheticTasks, split: str, size: int) -> None:
        self._split, self._size = split, size

        @lru_cache(maxsize=_CACHED_TASKS)
        def generate(index: int) -> Task:
            scenario = source.scenario_of(index)
            return generate_task(source.difficulty, scenario, source.seed, split, index)

        self._generate = generate

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._size))]
        position = index + self._size if index < 0 else index
        if not 0 <= position < self._size:
            raise IndexError(f"task {index} of {self._size} in split {self._split!r}")
        return self._generate(position)


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise ValueError for a split that there is not, or a negative number of tasks."""
    for split, size in sizes.items():
        check_option("split", split, SPLITS)
        if size < 0:
            raise ValueError(f"sizes: {split}={size}: a size is not negative")


def _cumulative_shares(shares: Mapping[str, float] | None) -> list[tuple[str, float]]:
    """(scenario, upper end of its part of the unit interval), parts in the order given."""
    chosen = dict.fromkeys(SCENARIOS, 1.0) if shares is None else dict(shares)
    for scenario, share in chosen.items():
        check_option("shares", scenario, SCENARIOS)
        if share < 0:
            raise ValueError(f"shares: {scenario}={share}: a share is not negative")
    total = sum(chosen.values())
    if total <= 0:
        raise ValueError("shares: at least one scenario needs a positive share")
    thresholds, reached = [], 0.0
    for scenario, share in chosen.items():
        if share > 0:
            reached += share / total
            thresholds.append((scenario, reached))
    return thresholds


def generate_task(difficulty: Difficulty, scenario: str, seed: int, split: str, index: int) -> Task:
    """Task `index` of a split, a function of these alone. Its gold calls give its gold outputs.

    `sub_answers` are what an output must contain. `metadata["outputs"]` are the outputs in full,
    as the policy reads them.
    """
    rng = Random(f"{seed}/{split}/{index}")
    lexicon = lexicon_of(difficulty.vocabulary)
    world = World(scenario, difficulty, lexicon, Names(lexicon, split, rng), rng)
    plan = draw_plan(world)
    tools, outputs = _draw_tools(plan, world)
    turns, steps = zip(*plan.gold_steps(), strict=True)
    return Task(
        task_id=f"synthetic-{difficulty.name}-{split}-{index}",
        question=word_question(plan, lexicon),
        tools=tools,
        gold_calls=tuple(ToolCall(step.tool, step.arguments) for step in steps),
        answer=plan.answer,
        sub_answers=tuple(SubAnswer(step.tool, step.value) for step in steps),
        scenario=scenario,
        gold_turns=turns,
        metadata={"scenario": scenario, "closing": plan.closing, "seed": seed, "outputs": outputs},
    )


def _draw_tools(plan: Plan, world: World) -> tuple[tuple[ToolSpec, ...], tuple[str, ...]]:
    """All tools, shuffled, and the outputs of the gold calls in their order."""
    lookups = [step for _, step in plan.gold_steps() if isinstance(step, Hop)]
    by_relation: dict[Relation, list[Hop]] = {}
    for hop in lookups:
        by_relation.setdefault(hop.relation, []).append(hop)
    unused = [
        r for r in (*world.lexicon.relations, *world.lexicon.attributes) if r not in by_relation
    ]
    count = draw(for_scenario(world.difficulty.distractors, world.scenario), world.rng)
    by_relation |= {relation: [] for relation in world.rng.sample(unused, min(count, len(unused)))}
    tools = {}
    for relation, hops in by_relation.items():
        qualifiers = tuple(hops[0].terms.values) if hops else world.draw_qualifiers()
        tools[relation] = draw_tool(relation, qualifiers, hops, lookups, world)
    specs = [tool.spec() for tool in tools.values()]
    outputs = [tools[hop.relation].output(hop) for hop in lookups]
    if plan.final_call is not None and not isinstance(plan.final_call, Hop):
        spec, output = draw_calculator(plan.final_call, world)
        specs.append(spec)
        outputs.append(output)
    world.rng.shuffle(specs)
    return tuple(specs), tuple(outputs)
