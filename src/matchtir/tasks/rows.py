"""Reading rows of other people's data files into tasks: clear errors, optional skipping, splits."""

from __future__ import annotations

import ast
import json
import logging
import random
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.types import SubAnswer, Task, ToolCall
from matchtir.utils.options import check_option

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ON_BAD_ROW = ("error", "skip")


class RowError(ValueError):
    """A row that cannot become a task; the message names the field, then file and row too."""


def read_field(row: Mapping[str, Any], field: str, kind: type, optional: bool = False) -> Any:
    """The value of a field, checked for its type; None for an optional one that is not there.

    Raises:
        RowError: the field is missing, null, or of another type.
    """
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


def convert_rows(
    rows: Iterable[Mapping[str, Any]],
    convert: Callable[[int, Mapping[str, Any]], Task | None],
    source: str,
    on_bad_row: str,
) -> tuple[Task, ...]:
    """`convert(number, row)` of every row; None: the row is not wanted.

    Args:
        source: what the rows came from, for messages.
        on_bad_row: "error" raises at the first bad row, "skip" logs each one and their count.

    Raises:
        RowError: a bad row (with "error"); the message names source, row and field.
    """
    check_option("on_bad_row", on_bad_row, ON_BAD_ROW)
    tasks: list[Task] = []
    total = bad = 0
    for number, row in enumerate(rows):
        total += 1
        try:
            task = convert(number, row)
        except RowError as error:
            message = f"{source}, row {number}: {error}"
            if on_bad_row == "error":
                raise RowError(f"{message} (on_bad_row=skip leaves such rows out)") from None
            bad += 1
            log.warning("left out: %s", message)
        else:
            if task is not None:
                tasks.append(task)
    if bad:
        log.warning("%s: left out %d of %d rows", source, bad, total)
    return tuple(tasks)


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
