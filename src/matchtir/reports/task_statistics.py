"""What a task set holds: sizes by split and scenario, tools, answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matchtir.tasks.ftrl import question_text
from matchtir.types import Task

Splits = Mapping[str, Sequence[Task]]

_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}|(\d{1,2} )?(january|february|march|april|may|june|july|august|september"
    r"|october|november|december)( \d{1,2})?(,? \d{4})?"
)

# None where a task has nothing to measure: many published test sets come without gold calls.
MEASURES: Mapping[str, Callable[[Task], float | None]] = {
    "hops": lambda task: len(set(task.gold_turns)) or len(task.gold_calls) or None,
    "gold calls": lambda task: len(task.gold_calls) or None,
    "gold outputs": lambda task: len(task.sub_answers) or None,
    "tools offered": lambda task: len(task.tools),
    "arguments per call": lambda task: (
        fmean(len(call.arguments) for call in task.gold_calls) if task.gold_calls else None
    ),
    "question words": lambda task: len(question_text(task).split()),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One group of tasks: how many, and their values by measure."""

    split: str
    scenario: str  # "" for all scenarios of the split
    tasks: int
    values: Mapping[str, Sequence[float]]  # of the tasks that have something to measure

    def mean(self, measure: str) -> float | None:
        """The mean of a measure over the tasks that have it; None where no task does."""
        return fmean(self.values[measure]) if self.values[measure] else None


def profiles(splits: Splits, prompt_tokens: Callable[[Task], int]) -> list[Profile]:
    """A profile of every scenario of every split, then of the split; empty splits are left out.

    Args:
        prompt_tokens: length of a task's prompt.
    """
    measures = {**MEASURES, "prompt tokens": prompt_tokens}
    found = []
    for split, tasks in splits.items():
        measured = [{name: measure(task) for name, measure in measures.items()} for task in tasks]
        scenarios = sorted({task.scenario for task in tasks} - {""})
        for scenario in [*scenarios, ""] if tasks else ():
            chosen = [
                values
                for task, values in zip(tasks, measured, strict=True)
                if scenario in ("", task.scenario)
            ]
            columns = {
                name: [float(value) for values in chosen if (value := values[name]) is not None]
                for name in measures
            }
            found.append(Profile(split, scenario, len(chosen), columns))
    return found


def answer_type(answer: str) -> str:
    """What kind of text an answer is."""
    text = answer.strip().casefold().rstrip(".")
    if not text:
        return "none"
    if text in ("yes", "no", "true", "false"):
        return "yes or no"
    if _NUMBER.fullmatch(text):
        return "number"
    if _DATE.fullmatch(text):
        return "date"
    if ", " in text or text.startswith("["):
        return "list"
    return "name" if len(text.split()) <= 4 else "text"


def answer_types(tasks: Sequence[Task]) -> Counter[str]:
    """How many answers are of each kind."""
    return Counter(answer_type(task.answer) for task in tasks)


def tool_use(tasks: Sequence[Task]) -> list[tuple[str, int, int]]:
    """(tool, tasks that offer it, gold calls of it), the most called first."""
    offered = Counter(tool.name for task in tasks for tool in task.tools)
    called = Counter(call.name for task in tasks for call in task.gold_calls)
    names = sorted(offered, key=lambda name: (-called[name], -offered[name], name))
    return [(name, offered[name], called[name]) for name in names]
