"""Rows of other people's data files as tasks: reading them, checking them, splitting them."""

from __future__ import annotations

import ast
import json
import logging
import random
import warnings
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec
from matchtir.utils.options import check_option

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ON_BAD_ROW = ("error", "skip")


@runtime_checkable
class TaskSet(Protocol):
    """Tasks in splits; which splits are empty is the task set's own affair."""

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"."""
        ...


class RowError(ValueError):
    """A row that cannot become a task; the message names the field, then file and row too."""


@contextmanager
def within(place: str) -> Iterator[None]:
    """Names the place of a RowError that is raised inside."""
    try:
        yield
    except RowError as error:
        raise RowError(f"{place}: {error}") from None


class FileTasks(ABC):
    """Tasks in files of rows, the same options and loading for every benchmark.

    Args:
        paths: the files, by the name of their option without "_path": those of splits and others;
            None: the file is not there. A task set without training tasks has no validation.
        on_bad_row: "error" raises at the first bad row, "skip" logs each one and their count.
        validation_share: part of the training tasks set aside for validation (test tasks never
            are), where there is no file for it.
        seed: chooses them.

    Raises:
        FileNotFoundError: a path that is no file.
        ValueError: an option that is not allowed.
    """

    benchmark: ClassVar[str]  # its name, for messages

    def __init__(
        self,
        paths: Mapping[str, str | None],
        on_bad_row: str,
        validation_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_option("on_bad_row", on_bad_row, ON_BAD_ROW)
        split_validation((), validation_share, seed)  # checks the share
        self.paths = {
            name: path
            if path is None or self.is_remote(path)
            else str(existing_file(path, f"{name}_path"))
            for name, path in paths.items()
        }
        self.on_bad_row = on_bad_row
        self.validation_share = validation_share
        self.seed = seed
        self._loaded: dict[str, tuple[Task, ...]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; a file is read when first asked for.

        Raises:
            ValueError: an unknown split, or one that has no path.
            RowError: a malformed row (with on_bad_row=error): file, row and field.
        """
        check_option("split", split, SPLITS)
        if split == "test" or self.paths.get("validation") is not None:
            return self._load(split)
        if "train" not in self.paths:
            return ()
        training, validation = split_validation(
            self._load("train"), self.validation_share, self.seed
        )
        return training if split == "train" else validation

    def is_remote(self, path: str) -> bool:
        """Whether a path means something else than a file on this disk."""
        return False

    @abstractmethod
    def rows(self, path: str, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows of a split, from its path."""

    @abstractmethod
    def task(self, row: Mapping[str, Any], number: int, split: str) -> Task | None:
        """A row as a task; None: it is not wanted.

        Raises:
            RowError: what is wrong, and with which field.
        """

    def _load(self, split: str) -> tuple[Task, ...]:
        if split in self._loaded:
            return self._loaded[split]
        path = self.paths[split]
        if path is None:
            raise ValueError(f"{self.benchmark}'s {split} tasks are not there: set {split}_path")
        tasks: list[Task] = []
        bad = 0
        rows = list(self.rows(path, split))
        for number, row in enumerate(rows):
            try:
                with within(f"{path}, row {number}"):
                    task = self.task(row, number, split)
            except RowError as error:
                if self.on_bad_row == "error":
                    raise RowError(f"{error} (on_bad_row=skip leaves such rows out)") from None
                bad += 1
                log.warning("left out: %s", error)
            else:
                tasks += [] if task is None else [task]
        if bad:
            log.warning("%s: left out %d of %d rows", path, bad, len(rows))
        self._loaded[split] = tuple(tasks)
        return self._loaded[split]


def existing_file(path: str | Path, argument: str) -> Path:
    """The path, if it is a file.

    Raises:
        FileNotFoundError: the message says which file, which option names it, and how to set it.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    raise FileNotFoundError(
        f"no such file: {file.absolute()}. The task set's option {argument} names it: set the key "
        f"data.{argument}=FILE in training, benchmark.NAME.tasks.{argument}=FILE in evaluation; or "
        "set paths.data_dir=FOLDER, or the environment variable MATCHTIR_DATA, to the folder that "
        "holds the data of the benchmarks"
    )


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


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; blank lines are left out.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    rows = []
    # Split at "\n" alone: str.splitlines would also cut at separators inside JSON strings.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: broken JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object")
        rows.append(row)
    return rows


def read_field(row: Mapping[str, Any], field: str, kind: type, optional: bool = False) -> Any:
    """The value of a field, checked for its type; None for an optional one that is not there.

    Raises:
        RowError: the field is missing, null, or of another type, or the row is no object.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"expected an object, got {type(row).__name__}")
    value = row.get(field)
    if value is None:
        if optional:
            return None
        problem = "is null" if field in row else f"is missing (the row has {', '.join(row)})"
        raise RowError(f"{field}: {problem}")
    if not isinstance(value, kind):
        raise RowError(f"{field}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def read_json_field(row: Mapping[str, Any], field: str, kind: type, optional: bool = False) -> Any:
    """The decoded value of a field that holds JSON text, checked for its type.

    Raises:
        RowError: the field is missing, null, not JSON, or JSON of another type.
    """
    text = read_field(row, field, str, optional)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{field}: broken JSON: {error}") from error
    if not isinstance(value, kind):
        raise RowError(f"{field}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def read_tool(entry: Mapping[str, Any]) -> ToolSpec:
    """A tool by its schema, without its source."""
    name, description = read_field(entry, "name", str), read_field(entry, "description", str)
    return ToolSpec(name, description, read_field(entry, "parameters", dict))


def value_text(value: Any) -> str:
    """A value as the sandbox shows it to the policy: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def align_sub_answers(
    calls: Sequence[ToolCall], sub_answers: Sequence[SubAnswer]
) -> tuple[SubAnswer, ...]:
    """The sub-answers in the order of the calls where both name the same tools, else unchanged.

    The sub-answers of one tool keep their order among themselves, which the Solve metrics use.
    """
    if Counter(call.name for call in calls) != Counter(item.tool for item in sub_answers):
        return tuple(sub_answers)
    waiting: defaultdict[str, deque[SubAnswer]] = defaultdict(deque)
    for item in sub_answers:
        waiting[item.tool].append(item)
    return tuple(waiting[call.name].popleft() for call in calls)


def parameter_names(source: str, name: str) -> set[str] | None:
    """Names that a function takes as keywords; None where the source does not define it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of other people's escape sequences
            body = ast.parse(source).body
    except SyntaxError:
        return None
    for node in reversed(body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    return None
