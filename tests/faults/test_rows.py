"""D. Rows: each bad one is named by file, row and reason, whatever it holds, in every loader."""

import contextlib
import copy
import json

import pyarrow
import pyarrow.parquet
import pytest

from matchtir.tasks.custom import CustomTasks
from matchtir.tasks.ftrl import FtrlTasks
from matchtir.tasks.nestful import NestfulTasks
from matchtir.tasks.rows import RowError
from matchtir.tasks.toolhop import ToolHopTasks
from matchtir.tools.sandbox import ProcessPoolSandbox
from tests.faults.helpers import fault
from tests.tasks import test_ftrl, test_nestful, test_toolhop

SOURCE = "def f(x):\n    return x\n"
TOOL = {"name": "f", "description": "", "parameters": {"type": "object"}, "source": SOURCE}
TOOL["parameters"]["properties"] = {"x": {}}


def own_row(**changes):
    calls = [{"name": "f", "arguments": {"x": 1}}]
    row = {"question": "?", "tools": [TOOL], "gold_calls": calls, "answer": 1, "split": "test"}
    return row | changes


def custom(folder, lines, **options):
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    return CustomTasks(str(path), shares={"test": 1}, **options)


def nestful(folder, lines, **options):
    test_nestful.write(folder)
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return NestfulTasks(test_path=str(folder / "rows.jsonl"), **options)


def toolhop(folder, lines, **options):
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return ToolHopTasks(str(folder / "rows.jsonl"), scenarios=["free"], **options)


def ftrl(folder, lines, **options):
    rows = [test_ftrl.in_columns(json.loads(line)) for line in lines]
    return FtrlTasks(test_path=test_ftrl.write(folder / "rows.parquet", *rows), **options)


def toolhop_with_traces(folder, lines, **options):
    rows = [json.loads(line) for line in lines]
    traces = [{"gold_trace": row.pop("gold_trace")} for row in rows]
    options["gold_traces_path"] = test_toolhop.write(folder / "gold.jsonl", *traces)
    return toolhop(folder, [json.dumps(row).encode() for row in rows], **options)


LOADERS = {custom: own_row(), nestful: test_nestful.make_row(), toolhop: test_toolhop.make_row()}
STATE = {"alternatives": [[{"name": "f", "arguments": {"x": 1}}]], "metadata": {"a": 1}}
TALK = {"question": None, "messages": [{"role": "user", "content": "?"}]}
ROWS = [
    (custom, own_row(id="a", **STATE)),
    (custom, own_row(**TALK)),
    (nestful, test_nestful.make_row()),
    (toolhop_with_traces, test_toolhop.make_row(gold_trace=test_toolhop.GOLD)),
    (ftrl, test_ftrl.ROW),
]
BAD_LINES = {
    b'{"question": ': "broken JSON",
    b'{"question": "\xff\xfe"}': "not UTF-8",
    b'["a", "list"]': "expected a JSON object, got list",
    b"[" * 100_000: "nested too deeply",
    b'{"question": "\\ud83d"}': "half of a surrogate pair",
}


@fault("D lines", "broken JSON, no UTF-8, a list, too deep", "named by file, row and reason")
@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
def test_bad_lines_are_quarantined_and_the_others_used(tmp_path, load):
    good = json.dumps(LOADERS[load]).encode()
    quarantine = tmp_path / "logs" / "bad_rows.jsonl"
    lines = [good, *BAD_LINES]
    tasks = load(tmp_path, lines, on_bad_row="skip", quarantine=str(quarantine)).tasks("test")
    assert len(tasks) == 1
    entries = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [entry["row"] for entry in entries] == [1, 2, 3, 4, 5]
    for entry, reason in zip(entries, BAD_LINES.values(), strict=True):
        assert entry["file"].endswith("rows.jsonl") and reason in entry["reason"]

    first = r"rows\.jsonl, row 1: .*broken JSON.*there are 5, .*bad_rows"
    with pytest.raises(RowError, match=first):
        load(tmp_path, lines, quarantine=str(quarantine)).tasks("test")
    load(tmp_path, [good], quarantine=str(quarantine)).tasks("test")
    assert quarantine.read_text() == ""  # the file is whole again


def places(value, before=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*before, key)
        if isinstance(item, dict | list):
            yield from places(item, (*before, key))


@fault("D kinds", "a value of another kind, anywhere in a row", "named by file, row and reason")
@pytest.mark.parametrize(("load", "row"), ROWS, ids=str.split("own dialogue nestful toolhop ftrl"))
def test_a_value_of_another_kind_anywhere_is_a_bad_row_or_no_mistake(tmp_path, load, row):
    for place in places(row):
        for value in (None, 3, "x", [], {}, [1], {"a": 1}, ["x"], True):
            changed = copy.deepcopy(row)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            with contextlib.suppress(pyarrow.ArrowException):  # no column holds such a value
                lines = [json.dumps(changed).encode(), json.dumps(row).encode()]
                assert load(tmp_path, lines, on_bad_row="skip").tasks("test")


@fault("D ids", "two rows of one id", "the second is a bad row")
def test_two_rows_of_one_id(tmp_path):
    for load, row in ((custom, own_row(id="a")), (nestful, test_nestful.make_row())):
        lines = [json.dumps(row).encode()] * 2
        assert len(load(tmp_path, lines, on_bad_row="skip").tasks("test")) == 1
        with pytest.raises(RowError, match="row 1: id: an earlier row has '.*' too"):
            load(tmp_path, lines).tasks("test")


@fault("D Parquet text", "no UTF-8", "named by file, row and reason")
def test_text_of_a_parquet_file_that_is_no_utf_8(tmp_path):
    good = test_ftrl.make_row(ground_truth=...)
    path = test_ftrl.write(tmp_path / "test.parquet", good, good)
    table = pyarrow.parquet.read_table(path)
    broken = pyarrow.array([b"ok", b"\xff\xfe"]).view(pyarrow.string())
    at = table.column_names.index("answer")
    pyarrow.parquet.write_table(table.set_column(at, "answer", broken), path)
    (task,) = FtrlTasks(test_path=path, on_bad_row="skip").tasks("test")
    assert task.answer == "ok"
    with pytest.raises(RowError, match=r"test\.parquet, row 1: not UTF-8"):
        FtrlTasks(test_path=path).tasks("test")


@fault("D gold", "a gold call that fails", "a bad row")
def test_a_gold_call_that_fails_is_quarantined_like_any_other_mistake(tmp_path):
    fails = own_row(gold_calls=[{"name": "f", "arguments": {"x": 1, "y": 2}}])
    fails["tools"] = [{**TOOL, "parameters": {"type": "object", "additionalProperties": True}}]
    quarantine = tmp_path / "bad_rows.jsonl"
    options = {"on_bad_row": "skip", "quarantine": str(quarantine)}
    lines = [json.dumps(row).encode() for row in (own_row(), fails)]
    tasks = custom(tmp_path, lines, sandbox=ProcessPoolSandbox(workers=1), **options)
    assert [task.task_id for task in tasks.tasks("test")] == ["rows/0"]
    assert "gold_calls[0]: f fails" in quarantine.read_text()
