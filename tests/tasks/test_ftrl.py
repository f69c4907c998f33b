"""FTRL's files become tasks; every kind of malformed row is named with file, row and field."""

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from matchtir.tasks.ftrl import FtrlTasks
from matchtir.tasks.rows import RowError

SOURCE = "def finder(city, year=None):\n    return f'{city} was founded in 1902'\n"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": n, "description": n, "parameters": PARAMETERS}}
    for n in ("finder", "counter")
]
GOLD = [
    {"name": "finder", "parameters": {"city": "Ulm"}},
    {"name": "counter", "parameters": {}},
    {"name": "finder", "parameters": {"city": "Bonn"}},
]
ROW = {
    "messages": [{"role": "user", "content": "Find it.\nQuestion: When was Ulm founded?"}],
    "tools": TOOLS,
    "codes": {"finder": SOURCE, "counter": SOURCE.replace("finder", "counter")},
    "unsolved_set": {"finder": ["1902", "1903"], "counter": ["7"]},
    "ground_truth": GOLD,
    "solve_rate": 0.5,
    "data_source": "self/multi_hop",
    "split": "train",
    "answer": "1902",
}


def in_columns(row):
    """A row as the files have it: some columns are JSON texts."""
    texts = "tools", "codes", "unsolved_set", "ground_truth"
    return row | {key: json.dumps(row[key]) for key in texts}


def make_row(**changes):
    """A good row; a change to None makes a null, to ... takes the column away."""
    row = in_columns(ROW) | changes
    return {key: value for key, value in row.items() if value is not ...}


def write(path, *rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pyarrow.table({key: [row.get(key) for row in rows] for key in columns})
    pyarrow.parquet.write_table(table, path)
    return str(path)


def training(folder, *rows, **options):
    path = write(folder / "a.parquet", *rows)
    return FtrlTasks(path, **{"validation_share": 0, **options}).tasks("train")


def test_training_row(tmp_path):
    (task,) = training(tmp_path, make_row())
    assert (task.task_id, task.scenario, task.answer) == ("ftrl/train/0", "multi_hop", "1902")
    assert task.question == "Find it.\nQuestion: When was Ulm founded?"
    assert [tool.name for tool in task.tools] == ["finder", "counter"]
    assert (task.tools[0].source, task.tools[0].schema()) == (SOURCE, TOOLS[0])
    assert [{"name": c.name, "parameters": c.arguments} for c in task.gold_calls] == GOLD
    # in the order of the calls, and of `unsolved_set` within a tool
    outputs = [(answer.tool, answer.output) for answer in task.sub_answers]
    assert outputs == [("finder", "1902"), ("counter", "7"), ("finder", "1903")]


def test_sub_answers_keep_their_order_where_they_do_not_fit_the_calls(tmp_path):
    (task,) = training(tmp_path, make_row(ground_truth=json.dumps(GOLD[1:2])))
    assert [answer.output for answer in task.sub_answers] == ["1902", "1903", "7"]


def test_test_rows_need_no_ground_truth_and_training_rows_no_unsolved_set(tmp_path):
    (task,) = training(tmp_path, make_row(unsolved_set=...))
    assert task.sub_answers == () and len(task.gold_calls) == 3
    path = write(tmp_path / "test.parquet", make_row(ground_truth=...))
    (task,) = FtrlTasks(test_path=path).tasks("test")
    assert task.gold_calls == () and len(task.sub_answers) == 3


def read_with_traces(folder, text):
    """Two test rows without gold calls of their own, and a file with traces."""
    traces = folder / "gold.jsonl"
    traces.write_text(text)
    path = write(folder / "test.parquet", *[make_row(ground_truth=...)] * 2)
    return FtrlTasks(test_path=path, gold_traces_path=str(traces)).tasks("test")


def test_gold_traces_give_test_rows_calls_in_the_order_of_their_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    steps = [
        {"name": "finder", "arguments": {"city": "Ulm"}, "turn": 2},
        {"name": "counter", "arguments": {}, "turn": 1},
        {"name": "finder", "arguments": None, "turn": 3},
    ]
    text = json.dumps({"row": 1, "gold_trace": steps}) + "\n\n"
    first, second = read_with_traces(tmp_path, text)
    assert first.gold_calls == ()
    assert [call.name for call in second.gold_calls] == ["counter", "finder"]
    assert second.gold_turns == (0, 1)
    paths = {"test_path": "~/test.parquet", "gold_traces_path": "~/gold.jsonl"}
    assert FtrlTasks(**paths).tasks("test") == (first, second)


def test_validation_is_a_seeded_share_of_the_training_tasks(tmp_path):
    path = write(tmp_path / "a.parquet", *[make_row(answer=str(i)) for i in range(20)])

    def split(seed):
        tasks = FtrlTasks(train_path=path, validation_share=0.25, seed=seed)
        return tuple([task.answer for task in tasks.tasks(s)] for s in ("train", "validation"))

    training, validation = split(seed=1)
    assert len(validation) == 5
    assert sorted(training + validation, key=int) == [str(i) for i in range(20)]
    assert split(seed=1) == (training, validation)
    assert split(seed=2) != (training, validation)


def test_a_validation_file_leaves_all_training_tasks(tmp_path):
    other = write(tmp_path / "b.parquet", make_row(answer="other"))
    assert len(training(tmp_path, *[make_row()] * 9, validation_path=other)) == 9
    tasks = FtrlTasks(None, validation_path=other)
    assert [task.answer for task in tasks.tasks("validation")] == ["other"]


NO_SOURCE = json.dumps({"finder": SOURCE})
TWICE = json.dumps([TOOLS[0], TOOLS[0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": ...}, r"codes: is missing"),
        ({"tools": "[{"}, r"tools: broken JSON"),
        ({"tools": TWICE}, r"tools\[1\]: two tools are called 'finder'"),
        ({"codes": NO_SOURCE}, r"tools\[1\]: codes has no source for the tool 'counter'"),
        ({"ground_truth": '[{"name": "finder"}]'}, r"ground_truth\[0\]: parameters: is missing"),
        ({"ground_truth": '[{"name": "x", "parameters": {}}]'}, r"'x' is none of the row's tools"),
        ({"unsolved_set": '{"x": ["1"]}'}, r"unsolved_set: the tool 'x' is not offered"),
        ({"unsolved_set": '{"finder": [1]}'}, r"unsolved_set: finder: expected a list of strings"),
        ({"messages": []}, r"messages: expected one user message"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, changes, message):
    with pytest.raises(RowError, match=rf"a\.parquet, row 0: .*{message}"):
        training(tmp_path, make_row(**changes))


def test_skipping_keeps_the_good_rows_and_their_numbers(tmp_path, caplog):
    rows = (make_row(), make_row(codes="{"), make_row(answer="last"))
    tasks = training(tmp_path, *rows, on_bad_row="skip")
    assert [task.task_id for task in tasks] == ["ftrl/train/0", "ftrl/train/2"]
    assert "row 1: codes: broken JSON" in caplog.text and "left out 1 of 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ([{"name": "finder", "arguments": {}}], r"t\.parquet, row 0: gold_trace.*turn: is m"),
        ([{"name": "finder", "arguments": {}, "turn": 0}], "turn: expected a number from 1, got 0"),
        ([{"name": "x", "arguments": {}, "turn": 1}], "gold_trace.*'x' is none of the row's tools"),
        (None, r"gold\.jsonl, row 0: gold_trace: is null"),
    ],
)
def test_a_malformed_gold_trace_is_named(tmp_path, trace, message):
    with pytest.raises(RowError, match=message):
        read_with_traces(tmp_path, json.dumps({"row": 0, "gold_trace": trace}))


def test_a_missing_file_is_named_when_its_split_is_asked_for(tmp_path):
    tasks = FtrlTasks(write(tmp_path / "a.parquet", make_row()), test_path="nowhere.parquet")
    assert tasks.tasks("train")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet.*test_path.*MATCHTIR_DATA"):
        tasks.tasks("test")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "text.parquet"
    path.write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: not a readable parquet file"):
        FtrlTasks(train_path=str(path)).tasks("train")


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"on_bad_row": "ignore"}, "", "on_bad_row='ignore' is not one of stop, skip"),
        ({"validation_share": 1.0}, "", "validation_share=1"),
        ({}, "dev", "split='dev' is not one of"),
        ({}, "test", "set test_path"),
    ],
)
def test_options_are_checked_at_once(options, split, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tasks = FtrlTasks(**options)
        assert split  # what no split is needed for is refused before
        tasks.tasks(split)


def test_a_dataset_id_is_loaded_from_the_hub_or_named(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, split):
        if (name, split) != ("somebody/tools", "train"):
            raise ConnectionError("no network")
        return [make_row()]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    paths = dict.fromkeys(("train_path", "test_path"), "somebody/tools")
    tasks = FtrlTasks(**paths, validation_share=0)
    assert len(tasks.tasks("train")) == 1
    with pytest.raises(OSError, match=r"test_path=somebody/tools is no local file.*no network"):
        tasks.tasks("test")


@pytest.mark.skipif("MATCHTIR_DATA" not in os.environ, reason="MATCHTIR_DATA is not set")
def test_the_published_files_load_whole():
    folder = Path(os.environ["MATCHTIR_DATA"]) / "ftrl"
    names = {"train_path": "train_derived.parquet", "test_path": "test.parquet"}
    names["gold_traces_path"] = "test_gold_derived.jsonl"
    tasks = FtrlTasks(**{key: str(folder / name) for key, name in names.items()})
    training, validation, test = (tasks.tasks(s) for s in ("train", "validation", "test"))
    assert (len(training) + len(validation), len(test)) == (125, 140)
    scenarios = {"single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop"}
    assert {task.scenario for task in test} == scenarios
    for task in (*training, *validation):
        assert [call.name for call in task.gold_calls] == [item.tool for item in task.sub_answers]
