"""Task sets in files of rows: the same options and loading for every benchmark."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from matchtir.tasks.rows import SPLITS, Row, RowFilter, TaskSet, jsonl_rows
from matchtir.types import Task
from matchtir.utils.options import check_option


class FileTasks(ABC):
    """Tasks in files of rows.

    Args:
        paths: the files, by the name of their option without "_path": those of splits and others;
            None: the file is not there. A task set without training tasks has no validation.
        validation_share: part of the training tasks set aside for validation (test tasks never
            are), where there is no file for it.
        seed: chooses them.
        on_bad_row, quarantine: as `RowFilter`.

    Raises:
        ValueError: an option that is not allowed.
    """

    benchmark: ClassVar[str]  # its name, for messages

    def __init__(
        self,
        paths: Mapping[str, str | None],
        validation_share: float = 0.05,
        seed: int = 0,
        on_bad_row: str = "stop",
        quarantine: str | None = None,
    ) -> None:
        self.row_filter = RowFilter(on_bad_row, quarantine)
        split_validation((), validation_share, seed)  # checks the share
        self.paths = paths
        self.validation_share = validation_share
        self.seed = seed
        self._loaded: dict[str, tuple[Task, ...]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; a file is read when first asked for.

        Raises:
            ValueError: an unknown split.
            FileNotFoundError: it has no path, or the path is no file.
            RowError: a malformed row (with on_bad_row=stop): file, row and field.
        """
        check_option("split", split, SPLITS)
        if split not in self._loaded:
            if split == "test" or self.paths.get("validation") is not None:
                self._loaded[split] = self._load(split)
            else:
                every = self._load("train") if "train" in self.paths else ()
                parts = split_validation(every, self.validation_share, self.seed)
                self._loaded |= zip(("train", "validation"), parts, strict=True)
        return self._loaded[split]

    def rows(self, path: str, split: str) -> Iterable[Row]:
        """The rows of a split, from its path: JSON lines."""
        return jsonl_rows(existing_file(path, f"{split}_path"))

    @abstractmethod
    def task(self, row: Mapping[str, Any], number: int, split: str) -> Task | None:
        """A row as a task; None: it is not wanted.

        Raises:
            RowError: what is wrong, and with which field.
        """

    def _load(self, split: str) -> tuple[Task, ...]:
        path = self.paths[split]
        if path is None:
            raise FileNotFoundError(
                f"{self.benchmark}'s {split} tasks are not there: set {split}_path"
            )
        path = str(Path(path).expanduser())
        rows = enumerate(self.rows(path, split))
        made = self.row_filter.filter(path, rows, lambda row, number: self.task(row, number, split))
        return tuple(task for _, task in made)


def existing_file(path: str | Path, argument: str) -> Path:
    """The path, if it is a file.

    Raises:
        FileNotFoundError: the message says which file, which option names it, and how to set it.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    raise FileNotFoundError(
        f"no such file: {file.absolute()} (data.{argument}=FILE in training, "
        f"benchmark.NAME.tasks.{argument}=FILE in evaluation, validation.tasks.{argument}=FILE in "
        "validation; the folder of the benchmarks' files is paths.data_dir=FOLDER or the "
        "environment variable MATCHTIR_DATA)"
    )


def splits_there(task_set: TaskSet) -> tuple[dict[str, Sequence[Task]], list[str]]:
    """The splits whose files are there, by name, and why others are not."""
    found: dict[str, Sequence[Task]] = {}
    missing: dict[str, str] = {}  # by reason: the splits
    for split in SPLITS:
        try:
            found[split] = task_set.tasks(split)
        except FileNotFoundError as error:
            missing[str(error)] = f"{missing.get(str(error), 'without')} {split}"
    there = {split: tasks for split, tasks in found.items() if tasks}
    return there, [f"{splits} tasks: {reason}" for reason, splits in missing.items()]


def split_validation(
    tasks: Sequence[Task], share: float, seed: int
) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(training tasks, validation tasks): a seeded share, both in their original order.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation_share={share} is not in [0, 1)")
    order = list(range(len(tasks)))
    random.Random(seed).shuffle(order)
    chosen = set(order[: round(share * len(tasks))])
    training = tuple(task for index, task in enumerate(tasks) if index not in chosen)
    return training, tuple(tasks[index] for index in sorted(chosen))
