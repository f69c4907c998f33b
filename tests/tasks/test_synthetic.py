"""The synthetic task sets: the same tasks for ever, tools that run, gold traces that score 1."""

import ast
import hashlib
import json
import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from matchtir.evaluation.metrics import solve_metrics
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.gold import gold_turn_texts
from matchtir.tasks.rows import value_text
from matchtir.tasks.synthetic import SCENARIOS, CopyTasks, SyntheticTasks, laptop_words
from matchtir.tasks.synthetic.tasks import generate_task, scenario_of
from matchtir.tasks.synthetic.world import (
    ADJECTIVES,
    NOUNS,
    TOOLSETS,
    Difficulty,
    World,
    split_of,
)
from matchtir.tools.formats import parse_calls
from matchtir.tools.sandbox import ProcessPoolSandbox, replay_all
from matchtir.types import ResultStatus, SubAnswer, Task, ToolCall

QUOTED = re.compile(r'"([a-z]+ [a-z]+)"')


def some_tasks(count=80, split="train", seed=3, scenario=None, **options):
    tasks = SyntheticTasks(sizes={split: 4 * count}, seed=seed, **options).tasks(split)
    return [task for task in tasks if scenario in (None, task.scenario)][:count]


def subject_of(call):
    return next(iter(call.arguments.values()))


def run(tool, arguments):
    """The output as a policy would read it."""
    names = {}
    exec(tool.source, names)
    return value_text(names[tool.name](**arguments))


def run_stranger(tool):
    """The output for an entity that there is not."""
    return run(tool, {next(iter(tool.parameters["properties"])): "no such entity"})


def tool_of(call, task):
    return next(tool for tool in task.tools if tool.name == call.name)


def digest_of(tasks):
    """A hash of everything that tasks say."""
    digest = hashlib.sha256()
    for task in tasks:
        tools = [[tool.schema(), tool.source] for tool in task.tools]
        calls = [[call.name, call.arguments] for call in task.gold_calls]
        outputs = [[item.tool, item.output] for item in task.sub_answers]
        said = [task.task_id, task.scenario, task.question, task.answer, tools, calls]
        said += [task.gold_turns, outputs, task.metadata]
        digest.update(json.dumps(said).encode())
    return digest.hexdigest()[:16]


DIGESTS = ("6b6a27280e4a8e16", "15e6aa61553b4db2", "565021e44fdfcd61", "845000f099aa8d6e")


@pytest.mark.parametrize(("scenario", "digest"), list(zip(SCENARIOS, DIGESTS, strict=True)))
def test_tasks_are_those_that_policies_were_trained_on(scenario, digest):
    tasks = []
    for index in range(200):
        world = World(scenario, "train", Difficulty(), Random(f"0/train/{index}"))
        tasks.append(generate_task(f"synthetic-laptop-train-{index}", world, seed=0))
    assert digest_of(tasks) == digest


def test_tasks_of_a_warm_start_are_those_that_policies_were_trained_on():
    knobs = {"width": [2, 2], "depth": [2, 2], "chain_depth": [1, 2]}
    short = SyntheticTasks("laptop", {"train": 200}, seed=1, knobs=knobs)
    assert digest_of(short.tasks("train")) == "8de9ae2d56963e89"
    assert digest_of(CopyTasks(200)) == "910a2aaf41c8a9bd"
    own = CopyTasks(200, phrases_of=SyntheticTasks(sizes={"train": 50}))
    assert digest_of(own) == "3596d0538a3dcf7c"


def test_a_task_is_a_function_of_seed_split_and_index():
    few = SyntheticTasks(sizes={"train": 4, "test": 2}, seed=5)
    many = SyntheticTasks(sizes={"train": 12}, seed=5)
    assert few.tasks("train")[3] == many.tasks("train")[3]  # in any order
    assert list(few.tasks("train")) == list(many.tasks("train"))[:4]
    pairs = zip(few.tasks("train"), some_tasks(4, seed=6), strict=True)
    assert all(one.question != other.question for one, other in pairs)
    assert few.tasks("train")[0].question != few.tasks("test")[0].question


def test_the_sequence_behaves_like_one():
    tasks = SyntheticTasks(sizes={"train": 5}).tasks("train")
    assert len(tasks) == 5
    assert tasks[-1] == tasks[4]
    assert [task.task_id for task in tasks[1:3]] == [tasks[1].task_id, tasks[2].task_id]
    assert tasks[2] is tasks[2]  # generated once
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            tasks[index]
    assert len(SyntheticTasks(sizes={"train": 5}).tasks("test")) == 0


def test_splits_share_words_but_no_entity():
    entities, words = {}, {}
    for split in ("train", "validation", "test"):
        texts = [
            task.question + json.dumps([call.arguments for call in task.gold_calls]) + task.answer
            for task in some_tasks(200, split)
        ]
        entities[split] = {name for text in texts for name in QUOTED.findall(text)}
        words[split] = {word for name in entities[split] for word in name.split()}
        assert all(split_of(name) == split for name in entities[split])
    assert not entities["train"] & entities["test"]
    assert not entities["train"] & entities["validation"]
    assert not entities["validation"] & entities["test"]
    assert words["test"] <= words["train"]


def test_tool_facts_keep_to_the_split():
    known = {f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS}
    pattern = re.compile(r"'([a-z]+ [a-z]+)'")
    for task in some_tasks(60, "test"):
        for tool in task.tools:
            names = known.intersection(pattern.findall(tool.source))
            assert names and {split_of(name) for name in names} == {"test"}


def test_every_four_tasks_in_a_row_have_each_scenario_once():
    for start in range(0, 40, 4):
        assert {scenario_of(index) for index in range(start, start + 4)} == set(SCENARIOS)


def test_knobs_restrict_hops_and_width():
    knobs = {"depth": [1, 2], "width": (2, 2), "chain_depth": (1, 2), "distractors": (0, 0)}
    tasks = some_tasks(120, knobs=knobs)
    depths = {"single": {1}, "parallel_single": {1}}
    for task in tasks:
        assert len(set(task.gold_turns)) in depths.get(task.scenario, {1, 2})
        assert {call.name for call in task.gold_calls} == {tool.name for tool in task.tools}
        assert max(Counter(task.gold_turns).values()) == (2 if "parallel" in task.scenario else 1)
    assert {len(task.gold_calls) for task in tasks if task.scenario == "multi_hop"} == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": "desktop"}, "difficulty='desktop' is not one of laptop"),
        ({"sizes": {"dev": 3}}, "split='dev' is not one of train, validation, test"),
        ({"sizes": {"train": -3}}, "size=-3"),
        ({"toolset": "hammers"}, "toolset='hammers' is not one of plain, renamed"),
        ({"scenarios": ["double"]}, "scenario='double' is not one of single"),
        ({"knobs": {"hops": 3}}, "knobs='hops' is not one of"),
        ({"knobs": {"depth": (3, 2)}}, r"depth=\(3, 2\)"),
        ({"knobs": {"depth": 3}}, "depth=3"),
        ({"knobs": OmegaConf.create({"width": [0, 2]})}, r"width=\(0, 2\)"),
    ],
)
def test_refused_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticTasks(**options)


def test_more_hops_than_relations_are_refused():
    with pytest.raises(ValueError, match="no chain of 40 relations"):
        some_tasks(1, scenario="multi_hop", knobs={"depth": (40, 40)})


def test_laptop_words_cover_every_text_of_a_task():
    words = laptop_words()
    assert len(words) == len(set(words)) < 400
    for task in some_tasks(300):
        texts = [task.question, task.answer, *(answer.output for answer in task.sub_answers)]
        texts += [json.dumps(tool.schema()["function"]["parameters"]) for tool in task.tools]
        texts += [f"{tool.name} {tool.description}" for tool in task.tools]
        texts += [json.dumps(call.arguments) for call in task.gold_calls]
        frames = {"type", "object", "properties", "string", "required", "enum", "default"}
        found = {word for text in texts for word in re.findall(r"\w+", text)}
        assert found - frames <= set(words)


@given(
    seed=st.integers(0, 10**9),
    index=st.integers(0, 10**6),
    split=st.sampled_from(["train", "validation", "test"]),
)
@settings(max_examples=100, deadline=None)
def test_every_gold_trace_reproduces_its_outputs(seed, index, split):
    task = SyntheticTasks(sizes={split: index + 1}, seed=seed).tasks(split)[index]
    outputs = tuple(run(tool_of(call, task), call.arguments) for call in task.gold_calls)
    assert outputs == task.metadata["outputs"]
    assert task.sub_answers == tuple(
        SubAnswer(call.name, output) for call, output in zip(task.gold_calls, outputs, strict=True)
    )
    metrics = solve_metrics(task.gold_calls, outputs, task.sub_answers)
    assert (metrics.precision, metrics.rate, metrics.f1) == (1, 1, 1)


def test_gold_traces_replay_from_their_text_in_the_sandbox():
    attempts = []
    for task in some_tasks(8):
        *turns, final = gold_turn_texts(task)
        calls = [call for text in turns for call in parse_calls(text, {t.name for t in task.tools})]
        gold = [(call.name, call.arguments) for call in task.gold_calls]
        assert [(call.name, call.arguments) for call in calls] == gold and task.answer in final
        attempts.append((task, calls))
    sandbox = ProcessPoolSandbox(workers=2)
    try:
        replays = replay_all(attempts, sandbox)
    finally:
        sandbox.shutdown()
    for (task, _), replay in zip(attempts, replays, strict=True):
        assert {result.status for result in replay.results} == {ResultStatus.OK}
        assert tuple(result.output for result in replay.results) == task.metadata["outputs"]


@pytest.mark.parametrize("toolset", sorted(TOOLSETS))
def test_gold_solves_every_toolset_in_words_that_the_policy_can_write(toolset):
    words = set(laptop_words())
    for task in some_tasks(40, "test", toolset=toolset):
        outputs = [run(tool_of(call, task), call.arguments) for call in task.gold_calls]
        assert task.metadata["outputs"] == tuple(said.removesuffix(".") for said in outputs)
        assert solve_metrics(task.gold_calls, outputs, task.sub_answers).f1 == 1
        assert len({tool.name for tool in task.tools}) == len(task.tools)
        assert {tool.name for tool in task.tools} <= words


def test_toolsets_differ_in_what_they_are_named_after():
    first = {name: some_tasks(40, "test", toolset=name) for name in TOOLSETS}
    for task in first["renamed"]:
        for tool in task.tools:
            assert f"find_{tool.description.split()[0]}" != tool.name
    relations = {(r.name, r.domain): r.target for r in TOOLSETS["plain"].relations}
    for moved in TOOLSETS["moved"].relations:
        assert relations[moved.name, moved.domain] != moved.target
    plain, ended = first["plain"], first["punctuated"]
    assert [task.question for task in plain] == [task.question for task in ended]
    outputs = [run(tool_of(c, task), c.arguments) for task in ended for c in task.gold_calls]
    assert all(output.endswith(".") for output in outputs)


def test_of_twins_one_knows_and_the_other_refuses():
    for task in some_tasks(40, "test", toolset="twins"):
        for call in task.gold_calls:
            gold = tool_of(call, task)
            (other,) = (
                tool
                for tool in task.tools
                if tool.description == gold.description and tool is not gold
            )
            assert "not found" in run(other, call.arguments)
            assert "not found" not in run(gold, call.arguments)


def test_scenarios_can_be_chosen_and_are_evenly_spread():
    chosen = SyntheticTasks(sizes={"test": 6}, scenarios=["multi_hop", "parallel_single"])
    found = [task.scenario for task in chosen.tasks("test")]
    assert found == ["multi_hop", "parallel_single"] * 3
    assert [scenario_of(index) for index in range(4)] == [
        *("single", "multi_hop", "parallel_single", "parallel_multi_hop")
    ]


def test_turns_follow_the_dependencies():
    for task in some_tasks():
        assert list(task.gold_turns) == sorted(task.gold_turns)
        assert set(task.gold_turns) == set(range(max(task.gold_turns) + 1))
        for call, turn in zip(task.gold_calls, task.gold_turns, strict=True):
            earlier = {
                answer.output
                for answer, other in zip(task.sub_answers, task.gold_turns, strict=True)
                if other == turn - 1
            }
            assert subject_of(call) in (task.question if turn == 0 else earlier)


def test_a_list_of_answers_is_in_question_order():
    for task in some_tasks(100):
        starts = re.findall(r'"([a-z ]+)"', task.question)
        chains = []
        for subject in starts:
            for call, answer in zip(task.gold_calls, task.sub_answers, strict=True):
                if subject_of(call) == subject:
                    subject = answer.output  # the next call of this chain comes later
            chains.append(subject)
        assert task.answer == ", ".join(chains)


def test_entities_occur_once_and_relations_of_a_chain_are_distinct():
    for task in some_tasks(100, scenario="multi_hop", knobs={"depth": (2, 6)}):
        values = [answer.output for answer in task.sub_answers]
        assert len(set(values)) == len(values)
        assert len({call.name for call in task.gold_calls}) == len(task.gold_calls)
        assert subject_of(task.gold_calls[0]) not in values


def test_a_tool_can_be_used_twice_in_parallel():
    tasks = some_tasks(40, scenario="parallel_single")
    called = [len(task.gold_calls) - len({call.name for call in task.gold_calls}) for task in tasks]
    assert set(called) == {0, 1}
    assert all(len({tool.name for tool in task.tools}) == len(task.tools) for task in tasks)


def test_schemas_fit_their_sources():
    for task in some_tasks():
        for tool in task.tools:
            schema = tool.parameters
            (function,) = (
                node
                for node in ast.parse(tool.source).body
                if isinstance(node, ast.FunctionDef) and node.name == tool.name
            )
            names = [argument.arg for argument in function.args.args]
            assert sorted(names) == sorted(schema["properties"])
            optional = names[len(names) - len(function.args.defaults) :]
            assert set(schema["required"]) == set(names) - set(optional)
            assert ast.get_docstring(function).startswith(tool.description[:20])
            defaults = map(ast.literal_eval, function.args.defaults)
            for name, default in zip(optional, defaults, strict=True):
                assert schema["properties"][name].get("default") == default


def test_tools_refuse_an_unknown_entity_or_say_a_wrong_value():
    error = r'\{"error": "[a-z]+ not found"\}|Error: [a-z]+ not found'
    said = Counter()
    for task in some_tasks(60):
        gold = {answer.output for answer in task.sub_answers}
        for output in map(run_stranger, task.tools):
            said["refused" if re.fullmatch(error, output) else "wrong"] += 1
            assert re.fullmatch(rf"{error}|\d+|[a-z]+ [a-z]+", output)
            assert output.isdigit() or output not in gold
    assert 0.05 < said["wrong"] / said.total() < 0.15


def test_an_unknown_unit_is_an_error_and_the_other_unit_converts():
    tasks = [t for t in some_tasks(200, scenario="single") if "unit" in t.gold_calls[0].arguments]
    assert len(tasks) > 5
    for task in tasks:
        (call,) = task.gold_calls
        assert f"in {call.arguments['unit']} of" in task.question
        tool = tool_of(call, task)
        assert "unit not found" in run(tool, call.arguments | {"unit": "parsecs"})
        entity = {key: value for key, value in call.arguments.items() if key != "unit"}
        assert int(run(tool, entity)) < int(task.answer)


def entries(question):
    return re.findall(r'"([^"]+)"', question)


def test_the_answer_repeats_the_list():
    tasks = CopyTasks(50).tasks("train")
    assert len(tasks) == 50
    for number, task in enumerate(tasks):
        listed = entries(task.question)
        assert task.question == "Find " + ", ".join(f'"{entry}"' for entry in listed) + "."
        assert task.answer == ", ".join(listed)
        assert (task.task_id, task.tools, task.gold_calls) == (f"copy-{number}", (), ())
    assert {len(entries(task.question)) for task in tasks} == {3, 4, 5, 6, 7, 8}


def test_the_names_of_a_list_differ_and_belong_to_the_training_split():
    listed = [entries(task.question) for task in CopyTasks(40)]
    names = [[entry for entry in each if not entry.isdigit()] for each in listed]
    assert all(len(set(each)) == len(each) for each in names)
    assert {split_of(name) for each in names for name in each} == {"train"}
    assert 0.2 < 1 - sum(map(len, names)) / sum(map(len, listed)) < 0.4
    assert len(CopyTasks(5).tasks("validation")) == 0


def test_a_gold_solution_is_one_turn_of_known_words():
    renderer = Renderer(tiny_tokenizer(), system_prompt="")
    for task in CopyTasks(5):
        (turn,) = gold_trajectory(task, renderer).turns
        assert turn.text == f"<answer>{task.answer}</answer>"
        # tags, two tokens per name, one per number, a comma between any two, and the end of turn
        listed = entries(task.question)
        words = sum(len(entry.split()) for entry in listed)
        assert len(turn.token_ids) == 2 + words + len(listed) - 1 + 1


class Phrases:
    """A task set of one task."""

    def tasks(self, split):
        arguments = {"landmark": "Big Ben", "n": 3, "note": "far too long a text to be a phrase"}
        calls = (ToolCall("f", arguments),)
        answers = (SubAnswer("f", "London"), SubAnswer("f", '{"a": 1}'))
        return [Task("t", "q", (), calls, "x", sub_answers=answers)] if split == "train" else []


def test_half_of_the_lists_have_the_phrases_of_a_task_set_without_quotation_marks():
    tasks = CopyTasks(200, phrases_of=Phrases()).tasks("train")
    own = [task for task in tasks if '"' not in task.question]
    assert 60 < len(own) < 140
    for task in own:
        listed = task.answer.split(", ")
        assert task.question == f"Find {' and '.join(listed)}."
        assert {entry for entry in listed if not entry.isdigit()} <= {"Big Ben", "London"}
