"""A part of another task set."""

from __future__ import annotations

from collections.abc import Sequence

from matchtir.tasks.task_set import TaskSet
from matchtir.types import Task


class EveryNth:
    """Every n-th training task of a task set; its other splits as they are.

    A warm start on the gold solutions of a part leaves tasks that reinforcement learning can learn
    something from: what was learned by heart is attempted alike every time.

    Args:
        tasks: the task set.
        n: 1 is every task.

    Raises:
        ValueError: n below 1.
    """

    def __init__(self, tasks: TaskSet, n: int) -> None:
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        self.whole = tasks
        self.n = n

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"."""
        tasks = self.whole.tasks(split)
        return tasks[:: self.n] if split == "train" else tasks
