"""Which tasks go together: a part that stands for the whole, splits that keep apart."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from scipy.cluster.hierarchy import DisjointSet

from matchtir.tasks.rows import SPLITS
from matchtir.types import Task
from matchtir.utils.options import UserError, check_option

Item = TypeVar("Item")

_SPACE = re.compile(r"\W+")


def evenly_spaced(
    items: Sequence[Item], count: int | None, kind: Callable[[Item], Any] | None = None
) -> list[Item]:
    """So many of the items in their order, spread evenly; None, or more than there are: all.

    Args:
        kind: of an item; each kind gets its share, to within one item, whatever the order.
    """
    if count is None or count >= len(items):
        return list(items)
    order = list(range(len(items)))
    if kind is not None:  # kinds that take turns would be missed at equal distances
        kinds = [kind(item) for item in items]
        order.sort(key=kinds.__getitem__)
    return [items[at] for at in sorted(order[i * len(order) // count] for i in range(count))]


def normalised(text: str) -> str:
    """A text without case, punctuation and repeated spaces."""
    return _SPACE.sub(" ", text.casefold()).strip()


def solution_key(task: Task) -> str:
    """The same for tasks with the same gold calls, in any order; "" where there are none."""
    calls = [json.dumps([c.name, c.arguments], sort_keys=True) for c in task.gold_calls]
    return "\n".join(sorted(calls))


def entities(task: Task) -> set[str]:
    """The texts among the arguments of the gold calls that stand in the question."""
    question = normalised(task.question)
    values = {
        normalised(value)
        for call in task.gold_calls
        for value in call.arguments.values()
        if isinstance(value, str)
    }
    return {value for value in values if value and value in question}


_KEYS: dict[str, Callable[[Task], Iterable[Hashable]]] = {
    "content": lambda task: (
        ("question", normalised(task.question)),
        ("solution", solution_key(task) or task.task_id),
    ),
    "tools": lambda task: {call.name for call in task.gold_calls},
    "entities": entities,
}
SPLIT_BY = tuple(_KEYS)


def shared_groups(tasks: Sequence[Task], by: str) -> list[list[int]]:
    """Positions of the tasks in groups, so that tasks of two groups share nothing.

    Args:
        by: what may be shared: "content" (the same question or the same gold calls), "tools" (a
            tool of the gold calls), "entities" (a text that is an argument and in the question).
    """
    check_option("split_by", by, SPLIT_BY)
    groups = DisjointSet(range(len(tasks)))
    first: dict[Hashable, int] = {}  # position of the first task with a key
    for position, task in enumerate(tasks):
        for key in _KEYS[by](task):
            groups.merge(first.setdefault(key, position), position)
    return [sorted(group) for group in groups.subsets()]


def split_tasks(
    tasks: Sequence[Task], by: str, shares: Mapping[str, float], seed: int
) -> list[str]:
    """The split of each task: whole groups, the largest first, to the split that lacks most.

    Args:
        shares: relative size of each split.
        seed: of the order of groups of one size.

    Raises:
        UserError: an unknown split or way to split, no share, or too few groups for the splits.
    """
    for split, share in shares.items():
        check_option("split", split, SPLITS)
        if share < 0:
            raise UserError(f"shares: {split}={share}: a share is not negative")
    wanted = {split: share for split, share in shares.items() if share > 0}
    if not wanted:
        raise UserError(f"shares: no split has any in {dict(shares)}")
    groups = shared_groups(tasks, by)
    if len(groups) < len(wanted):
        raise UserError(
            f"{len(tasks)} tasks fall into {len(groups)} groups that share no {by}, too few for "
            f"the splits {', '.join(wanted)}: it takes more tasks, another way to split "
            "(split_by), or a split in every row"
        )
    random.Random(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)
    total = sum(wanted.values())
    missing = {split: share / total * len(tasks) for split, share in wanted.items()}
    splits = [""] * len(tasks)
    for number, group in enumerate(groups):
        left = len(groups) - number
        empty = [split for split in wanted if split not in splits]
        choices = empty if left <= len(empty) else wanted  # none may stay empty
        split = max(choices, key=missing.__getitem__)
        missing[split] -= len(group)
        for position in group:
            splits[position] = split
    return splits
