"""FTRL's published tasks (arXiv 2508.08791): parquet files with tools as Python source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from matchtir.tasks.ftrl_rows import task_from_row
from matchtir.tasks.gold_traces import read_traces
from matchtir.tasks.rows import (
    ON_BAD_ROW,
    SPLITS,
    convert_rows,
    existing_file,
    split_validation,
)
from matchtir.types import Task
from matchtir.utils.options import check_option

COMPLEXITY = ((1, 3), (4, 7), (8, 11))  # gold calls
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+")


class FtrlTasks:
    """FTRL's training and test tasks.

    Each path is a parquet file in FTRL's schema, or a Hugging Face dataset id ("owner/name"), of
    which the split of the same name is loaded. A row has `messages`, `tools` and `codes`, further
    `ground_truth` (training: the gold calls) or `unsolved_set` (test: the gold outputs of each
    tool, which the Solve metrics count as sub-questions); a row may have both.

    Args:
        train_path, validation_path, test_path: where the splits are; None: the split is not there.
        gold_traces_path: JSON lines with gold calls for the rows of the test file, where known.
        validation_share: part of the training tasks set aside for validation (test tasks never
            are), where there is no `validation_path`.
        seed: chooses them.
        on_bad_row: "error" or "skip".

    Raises:
        FileNotFoundError: a path that is no file and no dataset id.
        ValueError: an option that is not allowed.
    """

    def __init__(
        self,
        train_path: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        gold_traces_path: str | None = None,
        validation_share: float = 0.05,
        seed: int = 0,
        on_bad_row: str = "error",
    ) -> None:
        check_option("on_bad_row", on_bad_row, ON_BAD_ROW)
        split_validation((), validation_share, seed)  # checks the share
        self.paths = {"train": train_path, "validation": validation_path, "test": test_path}
        for split, path in self.paths.items():
            if path is not None and not _is_dataset_id(path):
                existing_file(path, f"{split}_path")
        if gold_traces_path is not None:
            existing_file(gold_traces_path, "gold_traces_path")
        self.gold_traces_path = gold_traces_path
        self.validation_share = validation_share
        self.seed = seed
        self.on_bad_row = on_bad_row
        self._loaded: dict[str, tuple[Task, ...]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; a file is read when first asked for.

        Raises:
            ValueError: an unknown split, or one that has no path.
            RowError: a malformed row (with on_bad_row=error): file, row and field.
        """
        check_option("split", split, SPLITS)
        if split == "test" or self.paths["validation"] is not None:
            return self._load(split)
        training, validation = split_validation(
            self._load("train"), self.validation_share, self.seed
        )
        return training if split == "train" else validation

    def _load(self, split: str) -> tuple[Task, ...]:
        if split not in self._loaded:
            path = self.paths[split]
            if path is None:
                raise ValueError(f"FTRL's {split} tasks are not there: set {split}_path")
            traces = read_traces(self.gold_traces_path) if split == "test" else {}

            def convert(number: int, row: Mapping[str, Any]) -> Task:
                return task_from_row(row, number, split, traces.get(number, ()))

            rows = read_rows(path, split)
            self._loaded[split] = convert_rows(rows, convert, path, self.on_bad_row)
        return self._loaded[split]


def complexity(task: Task) -> str:
    """The group of the paper that a task is in, by its number of gold calls."""
    calls = len(task.sub_answers) or len(task.gold_calls)
    for low, high in COMPLEXITY:
        if low <= calls <= high:
            return f"{low}-{high} calls"
    return f"over {COMPLEXITY[-1][1]} calls" if calls else ""


def read_rows(path: str, split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a parquet file, or of one split of a dataset on the Hugging Face hub.

    Raises:
        ValueError: a file that is not parquet.
        OSError: a dataset that cannot be loaded.
    """
    if _is_dataset_id(path):
        import datasets  # a slow import, and only hub users need it

        try:
            return datasets.load_dataset(path, split=split)
        except Exception as error:
            raise OSError(
                f"{split}_path={path} is no local file, and loading split {split!r} of a Hugging "
                f"Face dataset of that name failed: {error}"
            ) from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _is_dataset_id(path: str) -> bool:
    """Whether a path means a dataset on the hub: "owner/name" that is nothing on this disk."""
    looks_like_file = path.endswith(".parquet") or Path(path).expanduser().exists()
    return not looks_like_file and _DATASET_ID.fullmatch(path) is not None
