"""Rows as people write them: taken, or refused by file, row and field."""

import json

import pytest

from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.tasks.custom import CustomTasks
from matchtir.tasks.rows import RowError
from matchtir.tools.sandbox import ProcessPoolSandbox
from tests.evaluation.benchmark_helpers import play

ITEM = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
SOURCE = "def stock_of(item):\n    return {'ink': 4, 'rope': 11}.get(item, item)\n"
TOOL = {"name": "stock_of", "description": "Pieces of an item.", "parameters": ITEM}
CODE = {"type": "object", "properties": {"code": {"type": "integer"}}, "required": ["code"]}


def row(item="ink", answer=4, schema=ITEM, **fields):
    tool = {**TOOL, "parameters": schema, "source": SOURCE}
    calls = [{"name": "stock_of", "arguments": {"item": item}}]
    made = {"question": f"How many {item}?", "tools": [tool], "gold_calls": calls}
    return {**made, "answer": answer, "split": "test", **fields}


def read(tmp_path, *rows, **options):
    """The test tasks of rows, which may be lines of text as well."""
    path = tmp_path / "rows.jsonl"
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines))
    return CustomTasks(str(path), **options)


STRICT = {"type": "function", "function": {**TOOL, "strict": True}, "source": SOURCE}
NULLS = ("id", "messages", "alternatives", "scenario", "metadata", "initial_state", "gold_state")
FILLED = {  # with what the schemas of other rows have
    **{"type": "object", "enum": None, "required": ["item"]},
    "properties": {"item": {"type": "string", "enum": None, "default": None}, "code": None},
}


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(row(**dict.fromkeys(NULLS)), id="null is absent, as Arrow fills it"),
        pytest.param(row(schema=FILLED, initial_state={"Other": None}), id="also in what it holds"),
        pytest.param(row(schema={"type": "object", "anyOf": [ITEM, CODE]}), id="any schema"),
        pytest.param(row(tools=[STRICT]), id="strict, as OpenAI has it"),
        pytest.param(row(gold_calls=[], question="Say 4."), id="a task that needs no call"),
        pytest.param(row("the <think> tag"), id="thinking in an argument"),
        pytest.param(row("a <|im_end|> b"), id="an end of turn in an argument"),
        *[pytest.param(row(answer=answer), id=f"answer {answer}") for answer in ("C++", "+", "∞")],
    ],
)
def test_a_good_row_is_taken_and_its_gold_solution_scores_full_marks(tmp_path, sandbox, good):
    tasks = read(tmp_path, good, sandbox=ProcessPoolSandbox(workers=1))
    benchmark = TaskBenchmark("custom", tasks, {"success": "success"})
    (record,) = play(benchmark, "gold", sandbox, tmp_path).records
    schemas = [tool.parameters for task in tasks.tasks("test") for tool in task.tools]
    assert '"enum": null' not in json.dumps(schemas)
    expected = {"success": 1.0, "answered": 1.0, "solve_f1": float(bool(good["gold_calls"]))}
    assert {name: record["values"][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(schema={"properties": [{"name": "item"}]}), r"tools\[0\]: parameters: properties: "),
        (row(schema={**CODE, "required": True}), r"tools\[0\]: parameters: required: "),
        (row(answer=" "), "answer: is missing or empty"),
        (row("write <tool_call> first"), r"gold_calls\[0\]: arguments: as the text of a call"),
        (row("end it with </tool_call> please"), r"gold_calls\[0\]: arguments: as the text"),
        (row(answer="<think>4"), "answer: holds tags"),
        (row(answer="a</answer>b"), "answer: holds tags"),
        (row("half \ud83d"), r"line 1: 'question': holds half of a surrogate pair"),
        (row(float("inf")), r"gold_calls\[0\]: is not JSON"),
    ],
)
def test_a_bad_row_is_refused_by_file_row_and_field(tmp_path, bad, message):
    with pytest.raises(RowError, match=rf"rows\.jsonl, row 0: {message}"):
        read(tmp_path, bad, row()).tasks("test")
    (task,) = read(tmp_path, bad, row(), on_bad_row="skip").tasks("test")
    assert task.task_id == "rows/1"
