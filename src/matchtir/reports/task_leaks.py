"""Tasks that are there twice, and what held-out tasks share with training tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from matchtir.tasks.ftrl import question_text
from matchtir.tasks.splits import entities, normalised, solution_key
from matchtir.types import Task

SHINGLE = 3  # words


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
    solutions = [solution_key(task) for _, task in places]
    paired: set[int] = set()
    pairs = []

    def add(kind: str, first: int, second: int, overlap: float) -> None:
        if second not in paired:
            paired.add(second)
            pairs.append(Pair(kind, names[first], names[second], overlap))

    for first, second in _equal(questions):
        add("question", first, second, 1.0)
    for first, second, overlap in _near(questions, near):
        add("near", first, second, overlap)
    for first, second in _equal(solutions):
        add("solution", first, second, _overlap(questions[first], questions[second]))
    return pairs


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


def _overlap(left: str, right: str) -> float:
    first, second = _shingles(left), _shingles(right)
    union = len(first | second)
    return len(first & second) / union if union else 0.0


def _near(texts: Sequence[str], least: float) -> list[tuple[int, int, float]]:
    """(first, later, Jaccard overlap) of every pair of texts that overlap at least so much."""
    shingles = [_shingles(text) for text in texts]
    columns: dict[tuple[str, ...], int] = {}
    indices = [columns.setdefault(item, len(columns)) for items in shingles for item in items]
    sizes = np.array([len(items) for items in shingles], dtype=np.int64)
    if not indices:
        return []
    matrix = sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.int32), indices, np.concatenate([[0], sizes.cumsum()])),
        shape=(len(texts), len(columns)),
    )
    common = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    overlaps = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    chosen = np.flatnonzero(overlaps >= least)
    found = zip(common.row[chosen], common.col[chosen], overlaps[chosen], strict=True)
    return sorted((int(first), int(second), float(share)) for first, second, share in found)
