"""Gold solutions: read from derived traces, written as the turns of a policy."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matchtir.tasks.rows import (
    Row,
    RowError,
    RowFilter,
    error_at,
    jsonl_rows,
    read_calls,
    read_field,
)
from matchtir.tools.formats import HERMES, CallFormat
from matchtir.types import Task, ToolCall

log = logging.getLogger(__name__)

WORD = "[A-Za-z_]+"
DONE = "done"  # the answer where the task is to reach a state, and nothing is to be said

Trace = Sequence[Mapping[str, Any]]


def with_traces(rows: Iterable[Row], path: str | None, row_filter: RowFilter) -> Iterator[Row]:
    """The rows, each with its `gold_trace` from a file of derived ones; () where it has none.

    Benchmarks that publish no gold calls get theirs from JSON lines with the `row` of a trace, else
    its line counts, and its steps: `name`, `arguments` (null: nobody found any), `turn` (from 1).

    Only gold solutions and what is held against them need the file: without it the tasks have no
    gold calls, which is logged.

    Raises:
        RowError: a line without a trace (with on_bad_row=stop): file, row and field.
    """

    def read(line: Mapping[str, Any], number: int) -> tuple[int, Trace]:
        place = read_field(line, "row", int, optional=True)
        return number if place is None else place, read_field(line, "gold_trace", list)

    traces: dict[int, Trace] = {}
    if path and (file := Path(path).expanduser()).exists():
        traces = dict(
            pair for _, pair in row_filter.filter(path, enumerate(jsonl_rows(file)), read)
        )
    elif path:
        log.info("no gold calls: there is no %s, which is not published", path)
    for number, row in enumerate(rows):
        found = {"gold_trace": traces.get(number, ())}
        yield row if isinstance(row, RowError) else {**row, **found}


def read_trace(
    gold_trace: Trace, tool_names: Collection[str]
) -> tuple[tuple[ToolCall, ...], tuple[int, ...]]:
    """The calls of a gold trace and the turn of each, counted from 0, in the order of turns."""
    known = []
    for step in gold_trace:
        with error_at("gold_trace"):
            if read_field(step, "arguments", object, optional=True) is None:
                continue
            if read_field(step, "turn", int) < 1:
                raise RowError(f"turn: expected a number from 1, got {step['turn']}")
        known.append(step)
    known.sort(key=lambda step: step["turn"])
    turns = tuple(step["turn"] - 1 for step in known)
    return read_calls("gold_trace", known, tool_names), turns


def gold_calls_by_turn(task: Task, calls: CallFormat = HERMES) -> list[list[int]]:
    """Indices of the gold calls of each turn; one call a turn where the source does not say.

    So it is in a format that has room for one only.
    """
    count = len(task.gold_calls)
    turns = task.gold_turns or tuple(range(count))
    if len(turns) != count:
        raise ValueError(f"task {task.task_id}: {len(turns)} gold turns for {count} gold calls")
    order = sorted(range(count), key=turns.__getitem__)
    if not calls.several:
        return [[index] for index in order]
    return [list(group) for _, group in groupby(order, key=turns.__getitem__)]


def gold_turn_texts(task: Task, calls: CallFormat = HERMES) -> tuple[str, ...]:
    """The assistant messages of the gold solution: its turns of calls, then the answer.

    Where the task has a scripted user the answer stands in for every message that the user hears:
    in turns that `gold_turns` leaves free, and at the end.

    Raises:
        ValueError: `gold_turns` has another length than `gold_calls`.
    """
    said, unheard, reached = answer_text(gold_answer(task)), len(task.user), 0
    turns: list[str] = []
    for group in gold_calls_by_turn(task, calls):
        number = task.gold_turns[group[0]] if task.gold_turns else 0
        talk = min(unheard, max(number - reached, 0))  # where the gold calls wait for the user
        turns += [said] * talk + [calls.write([task.gold_calls[index] for index in group])]
        unheard, reached = unheard - talk, number + 1
    return (*turns, *[said] * (unheard + 1))


def gold_answer(task: Task) -> str:
    """What the gold solution says in the end."""
    return task.answer if task.answer or task.gold_state is None else DONE


def answer_text(answer: str) -> str:
    """The last turn of a written solution."""
    return f"<answer>{answer}</answer>"


def gold_outputs(task: Task) -> tuple[str, ...]:
    """What the policy reads after each gold call, as far as the task knows.

    Raises:
        ValueError: it does not know the output of each of them.
    """
    called = [call.name for call in task.gold_calls]
    if [sub_answer.tool for sub_answer in task.sub_answers] != called:
        raise ValueError(f"task {task.task_id}: sub_answers are not the outputs of its gold calls")
    return tuple(answer.output for answer in task.sub_answers)


def task_words(tasks: Iterable[Task]) -> tuple[str, ...]:
    """The words of everything that is read or written in the gold solutions of tasks, each once."""
    words: dict[str, None] = {}
    for task in tasks:
        texts = [
            *(message.content for message in task.history),
            task.question,
            *(json.dumps(tool.schema(), ensure_ascii=False) for tool in task.tools),
            *gold_turn_texts(task),
            *(sub_answer.output for sub_answer in task.sub_answers),
        ]
        words |= dict.fromkeys(word for text in texts for word in re.findall(WORD, text))
    return tuple(words)
