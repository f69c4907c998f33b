"""The synthetic task sets: lazy sequences of generated tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from random import Random
from typing import Any, overload

from matchtir.tasks.rows import SPLITS, TaskSet
from matchtir.tasks.synthetic.plan import Hop, draw_plan, gold_steps, word_question
from matchtir.tasks.synthetic.tools import draw_tool
from matchtir.tasks.synthetic.world import (
    KINDS,
    KNOBS,
    SCENARIOS,
    TOOLSETS,
    Difficulty,
    Relation,
    World,
    spend,
)
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec
from matchtir.utils.options import check_option

_CACHED_TASKS = 1024
_PHRASE = re.compile(r"[^\W\d][\w'-]*( [\w'-]+){0,3}")


class GeneratedTasks(Sequence[Task]):
    """So many tasks, each made by its number when asked for; the last thousand stay in memory."""

    def __init__(self, size: int, generate: Callable[[int], Task]) -> None:
        if size < 0:
            raise ValueError(f"size={size}: a size is not negative")
        self._size = size
        self._generate = lru_cache(maxsize=_CACHED_TASKS)(generate)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        chosen = range(self._size)[index]
        return self._generate(chosen) if isinstance(chosen, int) else [*map(self._generate, chosen)]


class SyntheticTasks:
    """A seeded world of multi-hop tool tasks.

    Args:
        difficulty: its name: "laptop".
        sizes: tasks per split; a split that is not named is empty.
        seed: task i of a split depends on (seed, split, i) alone, whatever the sizes.
        knobs: knobs of the difficulty to replace, such as `{"depth": [1, 2]}`.
        toolset: one of `TOOLSETS`; "plain" is that of the policies' training.
        scenarios: which of the `SCENARIOS` there are.

    Raises:
        ValueError: an unknown difficulty, toolset, scenario, split or knob, or a value it does not
            take.
    """

    def __init__(
        self,
        difficulty: str = "laptop",
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        knobs: Mapping[str, Any] | None = None,
        toolset: str = "plain",
        scenarios: Sequence[str] = SCENARIOS,
    ) -> None:
        sizes = {"train": 4096, "validation": 128, "test": 256} if sizes is None else sizes
        check_option("difficulty", difficulty, ("laptop",))
        check_option("toolset", toolset, tuple(TOOLSETS))
        for scenario in scenarios:
            check_option("scenario", scenario, SCENARIOS)
        for split in sizes:
            check_option("split", split, SPLITS)
        for knob in knobs or ():
            check_option("knobs", knob, KNOBS)
        self.name = difficulty
        self.difficulty = Difficulty(**(knobs or {}))
        self.toolset = TOOLSETS[toolset]
        self.scenarios = tuple(scenarios)
        self.seed = seed
        self._sequences = {
            split: GeneratedTasks(sizes.get(split, 0), partial(self._generate, split))
            for split in SPLITS
        }

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; generated when asked for."""
        check_option("split", split, SPLITS)
        return self._sequences[split]

    def _generate(self, split: str, index: int) -> Task:
        rng = Random(f"{self.seed}/{split}/{index}")
        scenario = scenario_of(index, self.scenarios)
        world = World(scenario, split, self.difficulty, rng, self.toolset)
        return generate_task(f"synthetic-{self.name}-{split}-{index}", world, self.seed)


def scenario_of(index: int, among: Sequence[str] = SCENARIOS) -> str:
    """Scenario of task `index` of any split: each of them once in every block of so many."""
    evenly_spread = [each for each in (*SCENARIOS[::2], *SCENARIOS[1::2]) if each in among]
    return evenly_spread[index % len(evenly_spread)]


def generate_task(task_id: str, world: World, seed: int) -> Task:
    """A task, a function of its world alone. Its gold calls give its gold outputs."""
    plan = draw_plan(world)
    turns, hops = zip(*gold_steps(plan), strict=True)
    tools = _draw_tools(hops, world)
    outputs = tuple(hop.value for hop in hops)
    about = {"scenario": world.scenario, "closing": "list", "seed": seed, "outputs": outputs}
    return Task(
        task_id=task_id,
        question=word_question(plan),
        tools=tools,
        gold_calls=tuple(ToolCall(hop.relation.tool, hop.arguments) for hop in hops),
        answer=", ".join(chain[-1].value for chain in plan),
        sub_answers=tuple(SubAnswer(hop.relation.tool, hop.value) for hop in hops),
        scenario=world.scenario,
        gold_turns=turns,
        metadata=about,
    )


def _draw_tools(hops: Sequence[Hop], world: World) -> tuple[ToolSpec, ...]:
    """The tools of the gold calls and some distractors, shuffled."""
    by_relation: dict[Relation, list[Hop]] = {}
    for hop in hops:
        by_relation.setdefault(hop.relation, []).append(hop)
    toolset = world.toolset
    every = (*toolset.relations, *toolset.attributes)
    unused = [relation for relation in every if relation not in by_relation]
    count = min(world.rng.randint(*world.difficulty.distractors), len(unused))
    by_relation |= {relation: [] for relation in world.rng.sample(unused, count)}
    if toolset.twins:
        names = {relation.name for relation in by_relation}
        by_relation |= {r: by_relation.get(r, []) for r in every if r.name in names}
    specs = []
    for relation, own in by_relation.items():
        if not own:
            spend(world.rng)
        specs.append(draw_tool(relation, own, hops, world))
    world.rng.shuffle(specs)
    return tuple(specs)


class CopyTasks(GeneratedTasks):
    """Questions without tools whose answer repeats the names and numbers in them, in order.

    Copying is the one hard part of calling tools for a very small model. A list has several times
    as much to copy as a gold trace, so that the skill appears within seconds.

    Args:
        size: number of tasks; there is only a training split.
        phrases_of: a task set: half of the lists have short texts out of the gold solutions of its
            training tasks in place of invented names, and are written without quotation marks.
        seed: task i depends on (seed, i) alone.

    Raises:
        ValueError: a negative size.
    """

    def __init__(
        self,
        size: int,
        phrases_of: TaskSet | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.phrases = _phrases(phrases_of.tasks("train")) if phrases_of else ()
        super().__init__(size, self._task)

    def tasks(self, split: str) -> Sequence[Task]:
        """The training tasks; every other split is empty.

        Raises:
            ValueError: an unknown split.
        """
        check_option("split", split, SPLITS)
        return self if split == "train" else ()

    def _task(self, index: int) -> Task:
        rng = Random(f"copy/{self.seed}/{index}")
        world = World("copy", "train", Difficulty(), rng)
        own = bool(self.phrases) and rng.random() < 0.5
        listed = [self._entry(world, own) for _ in range(rng.randint(3, 8))]
        quoted = ", ".join(f'"{entry}"' for entry in listed)
        return Task(
            task_id=f"copy-{index}",
            question=f"Find {' and '.join(listed) if own else quoted}.",
            tools=(),
            gold_calls=(),
            answer=", ".join(listed),
            scenario="copy",
        )

    def _entry(self, world: World, own: bool) -> str:
        rng = world.rng
        if rng.random() < 0.3:
            return str(rng.randint(10, 99))
        if own:
            return rng.choice(self.phrases)
        rng.choice(KINDS)  # as `spend`
        return world.draw_name()


def _phrases(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The texts of a few words among the arguments and outputs of gold calls, each once."""
    texts = []
    for task in tasks:
        texts += [text for call in task.gold_calls for text in call.arguments.values()]
    texts += [sub_answer.output for task in tasks for sub_answer in task.sub_answers]
    found = (text for text in texts if isinstance(text, str) and _PHRASE.fullmatch(text))
    return tuple(dict.fromkeys(found))
