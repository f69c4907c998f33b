"""What a task set holds: sizes, tools, answers, tasks that are there twice, gold calls executed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import sparse

from matchtir.credit.outcome import contains_answer, missed, solving_calls
from matchtir.tasks.ftrl import question_text
from matchtir.tasks.splits import entities, normalised, solution_key
from matchtir.tools.sandbox import Sandbox, executed, replay_all, succeeded
from matchtir.types import Task

Splits = Mapping[str, Sequence[Task]]

_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}|(\d{1,2} )?(january|february|march|april|may|june|july|august|september"
    r"|october|november|december)( \d{1,2})?(,? \d{4})?"
)

SHINGLE = 3  # words
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
        measured = [(t.scenario, {n: measure(t) for n, measure in measures.items()}) for t in tasks]
        scenarios = sorted({scenario for scenario, _ in measured} - {""})
        for scenario in [*scenarios, ""] if tasks else ():
            chosen = [values for of, values in measured if scenario in ("", of)]
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


# -- twice, and in two splits ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tasks that are the same in some way."""

    kind: str  # "question", "solution" or "near"
    first: tuple[str, str]  # split and task id
    second: tuple[str, str]
    overlap: float  # of their questions, from 0 to 1

    @property
    def is_leak(self) -> bool:
        """Whether the two are in different splits."""
        return self.first[0] != self.second[0]


def find_pairs(splits: Mapping[str, Sequence[Task]], near: float = 0.8) -> list[Pair]:
    """Pairs of tasks with the same question, else nearly the same, else the same gold calls.

    Each task is paired with the first that it equals. Questions are compared without case and
    punctuation; nearly the same are those whose sets of three neighbouring words have at least
    this Jaccard overlap.
    """
    places = [(split, task) for split, tasks in splits.items() for task in tasks]
    names = [(split, task.task_id) for split, task in places]
    questions = [normalised(question_text(task)) for _, task in places]
    shingles = [_shingles(question) for question in questions]
    found = {
        "question": _equal(questions),
        "near": _near(shingles, near),
        "solution": _equal([solution_key(task) for _, task in places]),
    }
    pairs: dict[int, Pair] = {}
    for kind, first, second in ((kind, *pair) for kind, each in found.items() for pair in each):
        common = len(shingles[first] & shingles[second])
        overlap = common / max(1, len(shingles[first] | shingles[second]))
        pairs.setdefault(second, Pair(kind, names[first], names[second], overlap))
    return [*pairs.values()]


def shared_with_training(splits: Mapping[str, Sequence[Task]]) -> list[tuple[str, str, float, int]]:
    """(split, what, share of its tasks that have one that a training task has too, tasks with any).

    What: the tools of the gold calls, or the texts that are arguments and in the question.
    """
    kinds: dict[str, Callable[[Task], Iterable[Hashable]]] = {
        "a called tool": lambda task: {call.name for call in task.gold_calls},
        "an entity of the question": entities,
    }
    rows = []
    for what, keys in kinds.items():
        known = {key for task in splits.get("train", ()) for key in keys(task)}
        for split, tasks in splits.items():
            found = [set(keys(task)) for task in tasks] if split != "train" else []
            found = [items for items in found if items]
            if found:
                share = sum(bool(items & known) for items in found) / len(found)
                rows.append((split, what, share, len(found)))
    return rows


def _equal(texts: Sequence[str]) -> list[tuple[int, int]]:
    """(first, later) positions of equal texts; empty texts equal nothing."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        if text:
            positions[text].append(position)
    return [(found[0], later) for found in positions.values() for later in found[1:]]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    size = min(SHINGLE, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _near(shingles: Sequence[set[tuple[str, ...]]], least: float) -> list[tuple[int, int]]:
    """(first, later) positions of sets whose Jaccard overlap is at least so much."""
    columns: dict[tuple[str, ...], int] = {}
    indices = [columns.setdefault(item, len(columns)) for items in shingles for item in items]
    sizes = np.array([len(items) for items in shingles], dtype=np.int64)
    if not indices:
        return []
    matrix = sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.int32), indices, np.concatenate([[0], sizes.cumsum()])),
        shape=(len(shingles), len(columns)),
    )
    common = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    overlaps = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    chosen = np.flatnonzero(overlaps >= least)
    return sorted(zip(common.row[chosen].tolist(), common.col[chosen].tolist(), strict=True))


# -- gold calls executed ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GoldReplay:
    """What came of the gold calls of some tasks."""

    tasks: int  # with gold calls
    statuses: Counter[str]  # of their calls
    solved: tuple[int, int]  # gold outputs that came out, of all
    answered: tuple[int, int]  # answers that stand in an output, of all
    reached: tuple[int, int]  # gold states, of all
    problems: tuple[tuple[str, str], ...]  # task id, what is wrong


def replay_gold(tasks: Sequence[Task], sandbox: Sandbox, max_concurrent: int = 64) -> GoldReplay:
    """Execute the gold calls of each task that has any, in a session of its own."""
    chosen = [task for task in tasks if task.gold_calls]
    replays = replay_all([(task, task.gold_calls) for task in chosen], sandbox, max_concurrent)
    statuses: Counter[str] = Counter()
    solved, answered, reached, problems = [], [], [], []
    for task, replay in zip(chosen, replays, strict=True):
        outputs = [result.output for result in replay.results]
        statuses.update(str(result.status) for result in replay.results)
        ended_well = [succeeded(result) for result in replay.results]
        solves = solving_calls(task.gold_calls, outputs, task.sub_answers, ended_well)
        solved.append(sum(solves))
        calls = zip(task.gold_calls, replay.results, strict=True)
        wrong = [f"{call.name}: {result.output}" for call, result in calls if not executed(result)]
        if solved[-1] < len(task.sub_answers):
            wrong.append(f"only {solved[-1]} of {len(task.sub_answers)} gold outputs come out")
        if task.answer:
            answered.append(contains_answer("\n".join(outputs), task.answer))
        if task.gold_state is not None:
            missing = missed(task.gold_state, replay.state)
            reached.append(not missing)
            wrong += [missing] if missing else []
        if wrong:
            problems.append((task.task_id, wrong[0]))
    return GoldReplay(
        tasks=len(chosen),
        statuses=statuses,
        solved=(sum(solved), sum(len(task.sub_answers) for task in chosen)),
        answered=(sum(answered), len(answered)),
        reached=(sum(reached), len(reached)),
        problems=tuple(problems),
    )
