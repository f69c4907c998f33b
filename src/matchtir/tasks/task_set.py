"""What every task set offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from matchtir.types import Task


@runtime_checkable
class TaskSet(Protocol):
    """Tasks in splits; which splits are empty is the task set's own affair."""

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"."""
        ...
