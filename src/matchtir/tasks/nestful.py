"""NESTFUL (arXiv 2409.03797): nested sequences of calls to executable Python functions.

The files are JSON lines in a neutral form: question, tools, gold_trace (steps with resolved
arguments), gold_answer; the Python source of each tool is in a file beside it, named in the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.tasks.nestful_rows import read_sources, task_from_row
from matchtir.tasks.rows import (
    ON_BAD_ROW,
    SPLITS,
    convert_rows,
    existing_file,
    read_field,
    read_jsonl,
    split_validation,
)
from matchtir.types import Task
from matchtir.utils.options import check_option


class NestfulTasks:
    """NESTFUL's tasks as a test set, and tasks in the same form for training.

    Args:
        train_path, test_path: JSON-lines files; None: the split is not there.
        train_require, test_require: flags that a row's `meta` must hold to be used. Training asks
            for gold traces that were executed, by pure functions, to the gold answer; of the test
            only those rows are left out whose gold arguments are no JSON (bytes), which nobody can
            write as a call.
        validation_share: part of the training tasks set aside for validation.
        seed: chooses them.
        on_bad_row: "error" or "skip".

    Raises:
        FileNotFoundError: a path that is no file.
        ValueError: an option that is not allowed.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        train_require: Sequence[str] = ("executed", "answer_ok", "json_args", "gold_tools_pure"),
        test_require: Sequence[str] = ("json_args",),
        validation_share: float = 0.05,
        seed: int = 0,
        on_bad_row: str = "error",
    ) -> None:
        check_option("on_bad_row", on_bad_row, ON_BAD_ROW)
        split_validation((), validation_share, seed)  # checks the share
        self.paths = {"train": train_path, "test": test_path}
        for name, path in self.paths.items():
            if path is not None:
                existing_file(path, f"{name}_path")
        self.require = {"train": tuple(train_require), "test": tuple(test_require)}
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
        if split == "test":
            return self._load("test")
        training, validation = split_validation(
            self._load("train"), self.validation_share, self.seed
        )
        return training if split == "train" else validation

    def _load(self, name: str) -> tuple[Task, ...]:
        if name not in self._loaded:
            path = self.paths[name]
            if path is None:
                raise ValueError(f"NESTFUL's {name} tasks are not there: set {name}_path")
            sources: dict[str, Mapping[str, str]] = {}

            def convert(number: int, row: Mapping[str, Any]) -> Task | None:
                meta = read_field(row, "meta", dict)
                if not all(meta.get(flag) for flag in self.require[name]):
                    return None
                executors = read_field(row, "executors", dict)
                file = str(Path(path).parent / read_field(executors, "in", str))
                if file not in sources:
                    sources[file] = read_sources(file)
                return task_from_row(row, sources[file])

            rows = read_jsonl(Path(path))
            self._loaded[name] = convert_rows(rows, convert, path, self.on_bad_row)
        return self._loaded[name]
