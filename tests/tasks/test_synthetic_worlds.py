"""Inside a synthetic task: tools that run, schemas that fit, gold traces that score 1."""

import ast
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.credit.outcome import answer_f1
from matchtir.credit.similarity import Similarity
from matchtir.evaluation.metrics import solve_metrics
from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.gold import gold_turn_texts
from matchtir.tasks.rows import value_text
from matchtir.tasks.synthetic import SCENARIOS, SyntheticTasks, laptop_words
from matchtir.tasks.synthetic.difficulty import DIFFICULTIES, resolve_difficulty
from matchtir.tasks.synthetic.tasks import generate_task
from matchtir.tools.formats import extract_answer, parse_calls
from matchtir.tools.sandbox import ProcessPoolSandbox, replay_all
from matchtir.types import ResultStatus

TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
TYPES |= {"array": list, "object": dict}


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


def some_tasks(count, difficulty="laptop", **options):
    return list(SyntheticTasks(difficulty, {"train": count}, seed=11, **options).tasks("train"))


@pytest.fixture(scope="module", params=DIFFICULTIES)
def tasks(request):
    return some_tasks(100 if request.param == "laptop" else 40, request.param)


def check_gold_trace(task):
    outputs = [run(tool_of(call, task), call.arguments) for call in task.gold_calls]
    assert tuple(outputs) == task.metadata["outputs"]
    metrics = solve_metrics(task.gold_calls, outputs, task.sub_answers)
    assert (metrics.precision, metrics.rate, metrics.f1) == (1, 1, 1)
    return outputs


@given(
    seed=st.integers(0, 10**9),
    index=st.integers(0, 10**6),
    difficulty=st.sampled_from(list(DIFFICULTIES)),
    scenario=st.sampled_from(SCENARIOS),
    split=st.sampled_from(["train", "validation", "test"]),
)
@settings(max_examples=120, deadline=None)
def test_every_gold_trace_reproduces_its_outputs(seed, index, difficulty, scenario, split):
    task = generate_task(resolve_difficulty(difficulty), scenario, seed, split, index)
    outputs = check_gold_trace(task)
    assert [item.tool for item in task.sub_answers] == [call.name for call in task.gold_calls]
    if difficulty == "laptop":
        assert outputs == [item.output for item in task.sub_answers]


def test_gold_traces_score_one_in_text_and_sandbox():
    attempts = []
    for task in some_tasks(8) + some_tasks(8, "ftrl"):
        *turns, final = gold_turn_texts(task)
        calls = [call for text in turns for call in parse_calls(text, {t.name for t in task.tools})]
        assert Similarity()(calls, task.gold_calls).diagonal().tolist() == [1.0] * len(calls)
        assert answer_f1(extract_answer(final), task.answer) == 1
        attempts.append((task, calls))
    sandbox = ProcessPoolSandbox(workers=2)
    try:
        replays = replay_all(attempts, sandbox)
    finally:
        sandbox.shutdown()
    for (task, _), replay in zip(attempts, replays, strict=True):
        assert {result.status for result in replay.results} == {ResultStatus.OK}
        assert tuple(result.output for result in replay.results) == task.metadata["outputs"]


def test_turns_follow_the_dependencies(tasks):
    for task in tasks:
        assert list(task.gold_turns) == sorted(task.gold_turns)
        assert set(task.gold_turns) == set(range(max(task.gold_turns) + 1))
        for call, turn in zip(task.gold_calls, task.gold_turns, strict=True):
            subject = next(iter(call.arguments.values()))
            if call.name == "arithmetic_calculator":
                continue
            earlier = {
                answer.output
                for answer, other in zip(task.sub_answers, task.gold_turns, strict=True)
                if other == turn - 1
            }
            assert subject in (task.question if turn == 0 else earlier)


def test_all_a_gold_call_needs_is_said(tasks):
    """Values are in the question (dates in words), in an enum, in an earlier output, or True."""
    months = "January February March April May June July August September October November December"
    for task in tasks:
        said = task.question
        for number, month in enumerate(months.split(), 1):
            said = re.sub(
                rf"{month} (\d+), (\d+)",
                lambda found, n=number: f"{found[2]}-{n:02d}-{int(found[1]):02d}",
                said,
            )
        for call, answer in zip(task.gold_calls, task.sub_answers, strict=True):
            for value in call.arguments.values():
                if isinstance(value, list):
                    assert all(str(item) in said.replace(",", "") for item in value)
                elif value is not True and call.arguments.get("operation") != value:
                    assert str(value) in said or str(value).replace("_", " ") in said
            said += f" {answer.output}"


def test_a_list_of_answers_is_in_question_order():
    for task in some_tasks(100):
        starts = re.findall(r'"([a-z ]+)"', task.question)
        chains = []
        for subject in starts:
            for call, answer in zip(task.gold_calls, task.sub_answers, strict=True):
                if next(iter(call.arguments.values())) == subject:
                    subject = answer.output  # the next call of this chain comes later
            chains.append(subject)
        assert task.answer == ", ".join(chains)


def as_number(text):
    return int(text.replace(",", ""))


def expected(closing, task):
    """The answer, from the outputs of calls side by side."""
    ends = [item.output for item in task.sub_answers if item.tool != "arithmetic_calculator"]
    of_dates = re.fullmatch(r"\d{4}-\d\d-\d\d", ends[0])
    values = ends if of_dates else [as_number(end) for end in ends]
    letters = "abc"[: len(ends)]
    ascending = sorted(letters, key=dict(zip(letters, values, strict=True)).get)
    if closing == "rank":
        return ", ".join(ascending)
    if closing == "compare":
        return ascending[0 if of_dates else -1]
    if closing == "yes_no":
        return "yes" if (values[0] < values[1]) == bool(of_dates) else "no"
    if closing == "difference" or "difference" in task.question:
        return f"{abs(values[0] - values[1]):,}"
    return f"{sum(values):,}"


@pytest.mark.parametrize(
    "closing", ["sum", "difference", "calculator", "compare", "rank", "yes_no"]
)
@pytest.mark.parametrize("repeats", [0.0, 1.0])
def test_closings(closing, repeats):
    knobs = {"closings": {"parallel_single": {closing: 1}}, "width": (2, 3)}
    knobs["repeat_tool_share"] = repeats
    tasks = some_tasks(25, "ftrl", shares={"parallel_single": 1}, knobs=knobs)
    for task in tasks:
        assert task.metadata["closing"] == closing
        assert task.answer == expected(closing, task), task.question
        used_calculator = task.gold_calls[-1].name == "arithmetic_calculator"
        assert used_calculator == (closing == "calculator")
        check_gold_trace(task)
    assert len({task.answer for task in tasks}) > 1


def test_a_distance_lies_between_the_ends_of_two_chains():
    knobs = {"closings": {"multi_hop": {"distance": 1}}}
    for task in some_tasks(10, "ftrl", shares={"multi_hop": 1}, knobs=knobs):
        *_, last = task.gold_calls
        outputs = [answer.output for answer in task.sub_answers]
        assert task.gold_turns.count(0) == 2
        assert last.arguments["city_name"] in outputs and last.arguments["destination"] in outputs
        assert "between" in task.question and task.answer == outputs[-1]
        check_gold_trace(task)


def test_entities_occur_once_and_relations_of_a_chain_are_distinct():
    for task in some_tasks(100, shares={"multi_hop": 1}, knobs={"depth": (2, 6)}):
        values = [answer.output for answer in task.sub_answers]
        assert len(set(values)) == len(values)
        assert len({call.name for call in task.gold_calls}) == len(task.gold_calls)
        assert next(iter(task.gold_calls[0].arguments.values())) not in values


def test_a_tool_can_be_used_twice_in_parallel():
    knobs = {"repeat_tool_share": 1.0, "width": (2, 2)}
    for difficulty in DIFFICULTIES:
        for task in some_tasks(10, difficulty, shares={"parallel_single": 1}, knobs=knobs):
            names = [call.name for call in task.gold_calls if call.name != "arithmetic_calculator"]
            assert len(names) == 2 and len(set(names)) == 1
            assert len({tool.name for tool in task.tools}) == len(task.tools)


def test_schemas_fit_their_sources(tasks):
    for task in tasks:
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


def test_values_fit_their_schemas(tasks):
    for task in tasks:
        schemas = {tool.name: tool.parameters for tool in task.tools}
        for tool in task.tools:
            assert re.fullmatch("[a-z][a-z_]*", tool.name)
            json.dumps(tool.schema(), allow_nan=False)
            for item in tool.parameters["properties"].values():
                values = [item["default"]] if "default" in item else []
                assert all(isinstance(value, TYPES[item["type"]]) for value in values)
                if "enum" in item:
                    assert len(item["enum"]) == len(set(item["enum"])) >= 2
                    assert all(value in item["enum"] for value in values)
        for call in task.gold_calls:
            assert set(schemas[call.name]["required"]) <= set(call.arguments)
            for name, value in call.arguments.items():
                item = schemas[call.name]["properties"][name]
                assert isinstance(value, TYPES[item["type"]])
                assert "enum" not in item or value in item["enum"]


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"error_styles": {"object": 1}}, r'\{"error": "[a-z]+ not found"\}'),
        ({"error_styles": {"text": 1}}, r"Error: [a-z]+ not found"),
        ({"unknown_entity": {"wrong": 1}}, r"\d+|[a-z]+ [a-z]+"),
        ({"unknown_entity": {"soft": 1}}, r"(?i).*\b(no|not found|unknown)\b.*"),
    ],
)
def test_unknown_entities_at_laptop(knobs, pattern):
    knobs = {"unknown_entity": {"refuse": 1}} | knobs
    for task in some_tasks(12, knobs=knobs):
        for tool in task.tools:
            assert re.fullmatch(pattern, run_stranger(tool))


def test_a_wrong_value_for_an_unknown_entity_is_not_the_gold_one():
    knobs = {"unknown_entity": {"wrong": 1}, "attribute_share": 0}
    for task in some_tasks(40, knobs=knobs):
        gold = {answer.output for answer in task.sub_answers}
        assert not gold & {run_stranger(tool) for tool in task.tools}


def test_an_unknown_unit_is_an_error_and_the_other_unit_converts():
    knobs = {"attribute_share": 1.0, "other_unit_share": 1.0}
    seen = 0
    for task in some_tasks(80, shares={"single": 1}, knobs=knobs):
        (call,) = task.gold_calls
        if "unit" not in call.arguments:
            continue
        seen += 1
        assert f"in {call.arguments['unit']} of" in task.question
        tool = tool_of(call, task)
        assert "unit not found" in run(tool, call.arguments | {"unit": "parsecs"})
        entity = {key: value for key, value in call.arguments.items() if key != "unit"}
        assert int(run(tool, entity)) < int(task.answer)
    assert seen > 10


def test_bad_arguments_at_ftrl_are_answered_in_words():
    knobs = {"error_styles": {"object": 1}, "unknown_entity": {"refuse": 1}}
    wrong_dates = wrong_choices = 0
    for task in some_tasks(40, "ftrl", shares={"single": 1}, knobs=knobs):
        (call,) = task.gold_calls
        tool = tool_of(call, task)
        entity = next(iter(call.arguments))
        assert "must be a text" in run(tool, call.arguments | {entity: 7})
        for name, value in call.arguments.items():
            item = tool.parameters["properties"][name]
            if re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
                assert "YYYY-MM-DD" in run(tool, call.arguments | {name: "May 4"})
                wrong_dates += 1
            if "enum" in item:
                assert "must be one of" in run(tool, call.arguments | {name: "none of these"})
                wrong_choices += 1
                others = [choice for choice in item["enum"] if choice != value]
                changed = [run(tool, call.arguments | {name: other}) for other in others]
                assert task.metadata["outputs"][0] not in changed  # the qualifier matters
    assert wrong_dates and wrong_choices


def test_a_tool_may_raise():
    knobs = {"error_styles": {"raise": 1}, "unknown_entity": {"refuse": 1}}
    (task,) = some_tasks(1, knobs=knobs)
    with pytest.raises(ValueError, match="not found"):
        run_stranger(task.tools[0])


def test_some_sources_import_and_use_helpers():
    sources = [tool.source for task in some_tasks(40) for tool in task.tools]
    helped = [source for source in sources if source.startswith("import re")]
    assert 0.1 < len(helped) / len(sources) < 0.6
    assert all("def tidy(" in source for source in helped)
    assert max(map(len, sources)) < 900  # they are compiled in every episode


def test_laptop_prompts_take_100_to_200_tokens():
    renderer = Renderer(build_tokenizer(laptop_words()), "", thinking=False)
    lengths = [len(renderer.prompt_ids(task)) for task in some_tasks(200)]
    assert 90 < sum(lengths) / len(lengths) < 150
    assert max(lengths) <= 200
