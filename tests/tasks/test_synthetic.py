"""The synthetic task sets: the same tasks for ever, tools that run, gold traces that score 1."""

import hashlib
import inspect
import json
import re
from collections import Counter
from itertools import repeat
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from matchtir.evaluation.metrics import solve_metrics
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.rows import value_text
from matchtir.tasks.synthetic import CopyTasks, SyntheticTasks, laptop_words
from matchtir.tasks.synthetic.tasks import generate_task, scenario_of
from matchtir.tasks.synthetic.world import ADJECTIVES, NOUNS, TOOLSETS, Difficulty, World, split_of
from matchtir.types import SubAnswer, Task, ToolCall


def some_tasks(count=80, split="train", seed=3, scenario=None, **options):
    tasks = SyntheticTasks(sizes={split: 4 * count}, seed=seed, **options).tasks(split)
    return [task for task in tasks if scenario in (None, task.scenario)][:count]


def entries(question):
    return re.findall(r'"([^"]+)"', question)


def subject_of(call):
    return next(iter(call.arguments.values()))


def run(tool, arguments):
    """The output as a policy would read it."""
    names = {}
    exec(tool.source, names)
    return value_text(names[tool.name](**arguments))


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


@pytest.mark.parametrize(
    ("scenario", "digest"),
    [
        ("single", "6b6a27280e4a8e16"),
        ("parallel_single", "15e6aa61553b4db2"),
        ("multi_hop", "565021e44fdfcd61"),
        ("parallel_multi_hop", "845000f099aa8d6e"),
    ],
)
def test_tasks_are_those_that_policies_were_trained_on(scenario, digest):
    worlds = (World(scenario, "train", Difficulty(), Random(f"0/train/{i}")) for i in range(200))
    ids = (f"synthetic-laptop-train-{index}" for index in range(200))
    assert digest_of(map(generate_task, ids, worlds, repeat(0))) == digest


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
    assert len(tasks) == 5 and tasks[-1] == tasks[4] and tasks[1:3] == [tasks[1], tasks[2]]
    assert tasks[2] is tasks[2]  # generated once
    for index in (5, -6):
        with pytest.raises(IndexError):
            tasks[index]
    assert len(SyntheticTasks(sizes={"train": 5}).tasks("test")) == 0


def test_splits_share_words_but_no_entity():
    """Neither in what is said nor in what tools know."""
    known = {f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS}
    words = {}
    for split in ("train", "validation", "test"):
        found = set()
        for task in some_tasks(100, split):
            sources = "".join(tool.source for tool in task.tools)
            texts = (task.question, sources, task.answer, *map(subject_of, task.gold_calls))
            found |= known.intersection(re.findall(r"(?=\b([a-z]+ [a-z]+)\b)", "\n".join(texts)))
        assert {split_of(name) for name in found} == {split}
        words[split] = {word for name in found for word in name.split()}
    assert words["test"] <= words["train"]


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
        ({"knobs": OmegaConf.create({"width": [0, 2]})}, r"width=\[0, 2\]"),
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
    names = [call.name for call in task.gold_calls]
    assert task.sub_answers == tuple(map(SubAnswer, names, outputs))
    metrics = solve_metrics(task.gold_calls, outputs, task.sub_answers)
    assert (metrics.precision, metrics.rate, metrics.f1) == (1, 1, 1)


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
            alike = [tool for tool in task.tools if tool.description == gold.description]
            (other,) = (tool for tool in alike if tool is not gold)
            assert "not found" in run(other, call.arguments)
            assert "not found" not in run(gold, call.arguments)


def test_scenarios_can_be_chosen_and_are_evenly_spread():
    chosen = SyntheticTasks(sizes={"test": 6}, scenarios=["multi_hop", "parallel_single"])
    found = [task.scenario for task in chosen.tasks("test")]
    assert found == ["multi_hop", "parallel_single"] * 3
    every = ["single", "multi_hop", "parallel_single", "parallel_multi_hop"]
    assert [scenario_of(index) for index in range(8)] == every * 2


def test_each_call_goes_on_from_the_question_or_from_the_turn_before():
    for task in some_tasks(100):
        turns = {}
        steps = list(zip(task.gold_calls, task.sub_answers, task.gold_turns, strict=True))
        for call, answer, turn in steps:
            assert subject_of(call) in turns.get(turn - 1, task.question)
            turns.setdefault(turn, []).append(answer.output)
        assert list(task.gold_turns) == sorted(task.gold_turns)
        assert list(turns) == list(range(len(turns)))
        chains = []  # the answer has their ends, in the order of the question
        for subject in entries(task.question):
            for call, answer, _ in steps:
                if subject_of(call) == subject:
                    subject = answer.output  # the next call of this chain comes later
            chains.append(subject)
        assert task.answer == ", ".join(chains)


def test_entities_occur_once_and_a_tool_only_in_parallel_twice():
    for task in some_tasks(100, scenario="multi_hop", knobs={"depth": (2, 6)}):
        values = [subject_of(task.gold_calls[0]), *(each.output for each in task.sub_answers)]
        assert len(set(values)) == len(values)
        assert len({call.name for call in task.gold_calls}) == len(task.gold_calls)
    tasks = some_tasks(40, scenario="parallel_single")
    called = [len(task.gold_calls) - len({call.name for call in task.gold_calls}) for task in tasks]
    assert set(called) == {0, 1}


def test_schemas_fit_their_sources():
    for tool in (tool for task in some_tasks() for tool in task.tools):
        names = {}
        exec(tool.source, names)
        taken = inspect.signature(names[tool.name]).parameters.values()
        assert {p.name for p in taken} == set(tool.parameters["properties"])
        assert {p.name for p in taken if p.default is p.empty} == {*tool.parameters["required"]}
        for name, schema in tool.parameters["properties"].items():
            default = inspect.signature(names[tool.name]).parameters[name].default
            assert schema.get("default", inspect.Parameter.empty) == default
        assert inspect.getdoc(names[tool.name]) == tool.description


def test_tools_refuse_an_unknown_entity_or_say_a_wrong_value():
    error = r'\{"error": "[a-z]+ not found"\}|Error: [a-z]+ not found'
    said = Counter()
    for task in some_tasks(60):
        gold = {answer.output for answer in task.sub_answers}
        for tool in task.tools:
            output = run(tool, {next(iter(tool.parameters["properties"])): "no such entity"})
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


def test_lists_to_copy_have_names_of_the_training_split_and_numbers():
    tasks = CopyTasks(50).tasks("train")
    names = []
    for number, task in enumerate(tasks):
        listed = entries(task.question)
        assert task.question == "Find " + ", ".join(f'"{entry}"' for entry in listed) + "."
        assert task.answer == ", ".join(listed)
        assert (task.task_id, task.tools, task.gold_calls) == (f"copy-{number}", (), ())
        names.append([entry for entry in listed if not entry.isdigit()])
        assert len(set(names[-1])) == len(names[-1])
    lengths = [len(entries(task.question)) for task in tasks]
    assert len(tasks) == 50 and {*lengths} == {3, 4, 5, 6, 7, 8}
    assert {split_of(name) for each in names for name in each} == {"train"}
    assert 0.2 < 1 - sum(map(len, names)) / sum(lengths) < 0.4
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


def test_half_of_the_lists_have_the_phrases_of_a_task_set_without_quotation_marks():
    arguments = {"landmark": "Big Ben", "n": 3, "note": "far too long a text to be a phrase"}
    answers = (SubAnswer("f", "London"), SubAnswer("f", '{"a": 1}'))
    task = Task("t", "q", (), (ToolCall("f", arguments),), "x", sub_answers=answers)
    task_set = SimpleNamespace(tasks={"train": [task]}.__getitem__)
    tasks = CopyTasks(200, phrases_of=task_set).tasks("train")
    own = [task for task in tasks if '"' not in task.question]
    assert 60 < len(own) < 140
    for task in own:
        listed = task.answer.split(", ")
        assert task.question == f"Find {' and '.join(listed)}."
        assert {entry for entry in listed if not entry.isdigit()} <= {"Big Ben", "London"}
