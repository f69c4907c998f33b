"""The attempts of an evaluation on file: one JSON line each, there as soon as it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.reports.trace import write_traces
from matchtir.tasks.rows import read_jsonl

Record = Mapping[str, Any]  # a trace with "task", "groups" and "values"; see `attempt_record`


class AttemptLog:
    """The finished attempts at the tasks of one benchmark, by task id.

    An interrupted evaluation finds here what it has done already. A last line that was cut short is
    dropped: its attempt is made again.

    Raises:
        ValueError: a line that is no attempt; the message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            drop_unfinished_line(path)
            self.done = {record["task"]: record for record in read_jsonl(path)}

    def add(self, record: Record) -> None:
        """Keep a finished attempt."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.done[record["task"]] = record

    def finish(self, task_ids: Sequence[str]) -> list[Record]:
        """The attempts at these tasks, in their order, which the file takes too."""
        records = [self.done[task_id] for task_id in task_ids]
        write_traces(self.path, [dict(record) for record in records])
        return records


def drop_unfinished_line(path: Path) -> None:
    """Cut a file of lines behind its last whole one."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
