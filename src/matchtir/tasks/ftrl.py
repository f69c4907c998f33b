"""FTRL's published tasks (arXiv 2508.08791): parquet files with tools as Python source."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from matchtir.tasks.files import FileTasks, existing_file
from matchtir.tasks.gold import read_trace, with_traces
from matchtir.tasks.rows import (
    Row,
    RowError,
    align_sub_answers,
    error_at,
    read_calls,
    read_field,
    read_json_field,
    read_tool,
    tools_by_name,
)
from matchtir.types import SubAnswer, Task, ToolSpec

COMPLEXITY = ((1, 3), (4, 7), (8, 11))  # gold calls
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+")


class FtrlTasks(FileTasks):
    """FTRL's training and test tasks.

    Each path is a parquet file in FTRL's schema, or a Hugging Face dataset id ("owner/name"), of
    which the split of the same name is loaded. A row has `messages`, `tools` and `codes`, further
    `ground_truth` (training: the gold calls) or `unsolved_set` (test: the gold outputs of each
    tool, which the Solve metrics count as sub-questions); a row may have both.

    Args:
        train_path, validation_path, test_path: where the splits are; None: the split is not there.
        gold_traces_path: JSON lines with gold calls for the rows of the test file, where known.
        settings: validation_share, seed, on_bad_row, quarantine, as `FileTasks`.
    """

    benchmark = "FTRL"

    def __init__(
        self,
        train_path: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        gold_traces_path: str | None = None,
        **settings: Any,
    ) -> None:
        paths = {"train": train_path, "validation": validation_path, "test": test_path}
        paths["gold_traces"] = gold_traces_path
        super().__init__(paths, **settings)

    def rows(self, path: str, split: str) -> Iterable[Row]:
        """The rows of a parquet file, or of a dataset on the hub; those of the test with traces."""
        looks_like_file = path.endswith(".parquet") or Path(path).exists()
        if looks_like_file or not _DATASET_ID.fullmatch(path):
            rows: Iterable[Row] = _parquet_rows(existing_file(path, f"{split}_path"))
        else:
            rows = _hub_rows(path, split)
        return (
            rows
            if split != "test"
            else with_traces(rows, self.paths["gold_traces"], self.row_filter)
        )

    def task(self, row: Mapping[str, Any], number: int, split: str) -> Task:
        """A row as a task; a step of a gold trace whose arguments nobody found is no call."""
        sources = read_json_field(row, "codes", dict)
        entries = read_json_field(row, "tools", list)

        def read(entry: Mapping[str, Any]) -> ToolSpec:
            tool = read_tool(read_field(entry, "function", dict))
            source = sources.get(tool.name)
            if not isinstance(source, str) or not source.strip():
                raise RowError(f"codes has no source for the tool {tool.name!r}")
            return replace(tool, source=source)

        tools = tools_by_name(entries, read)
        ground_truth = read_json_field(row, "ground_truth", list, optional=split == "test")
        unsolved = read_json_field(row, "unsolved_set", dict, optional=split != "test")
        gold_trace = row.get("gold_trace", ())
        if gold_trace:
            calls, turns = read_trace(gold_trace, tools)
        else:
            calls, turns = read_calls("ground_truth", ground_truth or (), tools, "parameters"), ()
        return Task(
            task_id=f"ftrl/{split}/{number}",
            question=_read_question(row),
            tools=tuple(tools.values()),
            gold_calls=calls,
            answer=read_field(row, "answer", str),
            sub_answers=align_sub_answers(calls, _read_sub_answers(unsolved or {}, tools)),
            scenario=read_field(row, "data_source", str).rpartition("/")[2],
            gold_turns=turns,
            metadata={
                "row": number,
                "gold_unknown": not gold_trace and ground_truth is None,
                "solve_rate": row.get("solve_rate"),
            },
        )


def _hub_rows(name: str, split: str) -> Iterable[Row]:
    import datasets  # a slow import, and only hub users need it

    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:
        raise OSError(
            f"{split}_path={name} is no local file, and loading split {split!r} of a "
            f"Hugging Face dataset of that name failed: {error}"
        ) from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: not a readable parquet file: {error}") from error
    for number in range(table.num_rows):
        try:
            yield table.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield RowError(f"not UTF-8: {error}")


def complexity(task: Task) -> str:
    """The group of the paper that a task is in, by its number of gold calls."""
    calls = len(task.sub_answers) or len(task.gold_calls)
    for low, high in COMPLEXITY:
        if low <= calls <= high:
            return f"{low}-{high} calls"
    return f"over {COMPLEXITY[-1][1]} calls" if calls else ""


def question_text(task: Task) -> str:
    """The question without the instructions that FTRL's rows put before it."""
    return task.question.rpartition("Question: ")[2]


def _read_question(row: Mapping[str, Any]) -> str:
    """The text of the one user message: FTRL's instructions and the question."""
    messages = read_field(row, "messages", list)
    roles = [item.get("role") if isinstance(item, Mapping) else None for item in messages]
    if roles != ["user"]:
        raise RowError(f"messages: expected one user message, got the roles {roles}")
    with error_at("messages"):
        return read_field(messages[0], "content", str)


def _read_sub_answers(unsolved: Mapping[str, Any], tool_names: Collection[str]) -> list[SubAnswer]:
    sub_answers = []
    for tool, outputs in unsolved.items():
        if tool not in tool_names:
            raise RowError(f"unsolved_set: the tool {tool!r} is not offered")
        if not isinstance(outputs, list) or not all(isinstance(item, str) for item in outputs):
            raise RowError(f"unsolved_set: {tool}: expected a list of strings, got {outputs!r}")
        sub_answers += [SubAnswer(tool, output) for output in outputs]
    return sub_answers
