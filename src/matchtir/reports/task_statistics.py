"""What a task set holds: sizes by split and scenario, tools, answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matchtir.types import Task

Splits = Mapping[str, Sequence[Task]]

_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}|(\d{1,2} )?(january|february|march|april|may|june|july|august|september"
    r"|october|november|december)( \d{1,2})?(,? \d{4})?"
)

MEASURES: Mapping[str, Callable[[Task], float]] = {
    "hops": lambda task: float(len(set(task.gold_turns)) or len(task.gold_calls)),
    "gold calls": lambda task: float(len(task.gold_calls)),
    "tools offered": lambda task: float(len(task.tools)),
    "arguments per call": lambda task: (
        fmean(len(call.arguments) for call in task.gold_calls) if task.gold_calls else 0.0
    ),
    "question words": lambda task: float(len(task.question.split())),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One group of tasks: how many, and their values by measure."""

    split: str
    scenario: str  # "" for all scenarios of the split
    tasks: int
    values: Mapping[str, Sequence[float]]

    def mean(self, measure: str) -> float:
        """The mean of a measure over the tasks."""
        return fmean(self.values[measure])


def profiles(splits: Splits, prompt_tokens: Callable[[Task], int]) -> list[Profile]:
    """A profile of every scenario of every split, then of the split; empty splits are left out.

    Args:
        prompt_tokens: length of a task's prompt.
    """
    measures = {**MEASURES, "prompt tokens": lambda task: float(prompt_tokens(task))}
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
            columns = {name: [values[name] for values in chosen] for name in measures}
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
