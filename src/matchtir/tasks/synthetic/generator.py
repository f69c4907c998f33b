"""Makes one task: a pure function of difficulty, scenario, seed, split and index."""

from __future__ import annotations

import random

from matchtir.tasks.synthetic.calculator import NAME as CALCULATOR
from matchtir.tasks.synthetic.calculator import build_calculator, calculator_arguments
from matchtir.tasks.synthetic.difficulty import Difficulty, draw, for_scenario
from matchtir.tasks.synthetic.ftrl_lexicon import FTRL
from matchtir.tasks.synthetic.lexicon import LAPTOP
from matchtir.tasks.synthetic.lookup import LookupTool, draw_tool
from matchtir.tasks.synthetic.parameters import json_schema
from matchtir.tasks.synthetic.plan import draw_plan
from matchtir.tasks.synthetic.qualifiers import draw_qualifiers
from matchtir.tasks.synthetic.questions import word_question
from matchtir.tasks.synthetic.records import Calculation, Hop, Plan, Relation
from matchtir.tasks.synthetic.source import write_lookup
from matchtir.tasks.synthetic.world import Names, World
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec

LEXICONS = {"laptop": LAPTOP, "ftrl": FTRL}


def generate_task(difficulty: Difficulty, scenario: str, seed: int, split: str, index: int) -> Task:
    """Task `index` of a split. Executed, its gold calls give its gold outputs.

    `sub_answers` are what an output must contain. `metadata["outputs"]` are the outputs in full,
    as the policy reads them.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    lexicon = LEXICONS[difficulty.vocabulary]
    world = World(scenario, difficulty, lexicon, Names(lexicon, split, rng), rng)
    plan = draw_plan(world)
    tools, outputs = _build_tools(plan, world)
    steps = [step for _, step in plan.gold_steps()]
    calls = tuple(_call(step) for step in steps)
    return Task(
        task_id=f"synthetic-{difficulty.name}-{split}-{index}",
        question=word_question(plan, lexicon),
        tools=tools,
        gold_calls=calls,
        answer=plan.answer,
        sub_answers=tuple(
            SubAnswer(call.name, step.value) for call, step in zip(calls, steps, strict=True)
        ),
        scenario=scenario,
        gold_turns=tuple(turn for turn, _ in plan.gold_steps()),
        metadata={"scenario": scenario, "closing": plan.closing, "seed": seed, "outputs": outputs},
    )


def _call(step: Hop | Calculation) -> ToolCall:
    if isinstance(step, Calculation):
        return ToolCall(CALCULATOR, calculator_arguments(step))
    return ToolCall(step.relation.tool, step.arguments)


def _build_tools(plan: Plan, world: World) -> tuple[tuple[ToolSpec, ...], tuple[str, ...]]:
    """All tools, shuffled, and the outputs of the gold calls in their order."""
    lookups = plan.lookups
    by_relation: dict[Relation, list[Hop]] = {}
    for hop in lookups:
        by_relation.setdefault(hop.relation, []).append(hop)
    for relation in _draw_distractors(by_relation, world):
        by_relation[relation] = []
    tools: dict[Relation, LookupTool] = {}
    for relation, hops in by_relation.items():
        if hops:
            qualifiers = tuple(item.qualifier for item in hops[0].terms.narrowings)
        else:
            qualifiers = draw_qualifiers(world)
        tools[relation] = draw_tool(relation, qualifiers, hops, lookups, world)
    specs = [_spec(tool, world) for tool in tools.values()]
    outputs = [tools[hop.relation].output(hop) for hop in lookups]
    if isinstance(plan.final_call, Calculation):
        spec, output = build_calculator(plan.final_call, world)
        specs.append(spec)
        outputs.append(output)
    world.rng.shuffle(specs)
    return tuple(specs), tuple(outputs)


def _draw_distractors(used: dict[Relation, list[Hop]], world: World) -> list[Relation]:
    lexicon = world.lexicon
    unused = [item for item in (*lexicon.relations, *lexicon.attributes) if item not in used]
    count = draw(for_scenario(world.difficulty.distractors, world.scenario), world.rng)
    return world.rng.sample(unused, min(count, len(unused)))


def _spec(tool: LookupTool, world: World) -> ToolSpec:
    source = write_lookup(tool, world.difficulty.verbose)
    return ToolSpec(tool.relation.tool, tool.description, json_schema(tool.parameters), source)
