"""Gold solutions as text: what each turn of them says, and the words that they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import groupby

from matchtir.tools.formats import HERMES, CallFormat
from matchtir.types import Task

WORD = "[A-Za-z_]+"
DONE = "done"  # the answer where the task is to reach a state, and nothing is to be said


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

    Raises:
        ValueError: `gold_turns` has another length than `gold_calls`.
    """
    turns = [
        calls.write([task.gold_calls[index] for index in turn])
        for turn in gold_calls_by_turn(task, calls)
    ]
    return (*turns, answer_text(gold_answer(task)))


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
    # The outputs in full, where the task knows more than what an output must contain.
    return tuple(task.metadata.get("outputs") or [answer.output for answer in task.sub_answers])


def task_words(tasks: Iterable[Task]) -> tuple[str, ...]:
    """The words of everything that is read or written in the gold solutions of tasks, each once."""
    texts = (text for task in tasks for text in _texts(task))
    return tuple(dict.fromkeys(word for text in texts for word in re.findall(WORD, text)))


def _texts(task: Task) -> Iterable[str]:
    yield from (message.content for message in task.history)
    yield task.question
    yield from (json.dumps(tool.schema(), ensure_ascii=False) for tool in task.tools)
    yield from gold_turn_texts(task)
    yield from (sub_answer.output for sub_answer in task.sub_answers)
