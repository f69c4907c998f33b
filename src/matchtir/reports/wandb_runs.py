"""Runs as W&B has them: from its service, or from the folders of offline runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matchtir.reports.run_data import RunData, method_settings
from matchtir.reports.summary import Scores

STEP = "iteration"
BEFORE, AFTER = "test/scores_before", "test/scores_after"
# A .wandb file is a log of records in LevelDB's format: blocks of 32 KiB, each record in one or
# more pieces with a header of checksum, length and kind, after a file header of 7 bytes.
FILE_HEADER, BLOCK, PIECE = b":W&B", 32 * 1024, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def offline_runs(paths: Sequence[Path]) -> list[RunData]:
    """The offline runs below `paths`, in order of their folders.

    Raises:
        FileNotFoundError: a path has no offline run.
        ValueError: a file is not W&B's.
    """
    runs = []
    for path in paths:
        files = sorted(path.rglob("*run-*/run-*.wandb"))
        if not files:
            raise FileNotFoundError(f"{path}: no run of W&B (*run-*/run-*.wandb) is there")
        runs += [run for file in files if (run := _offline_run(file))]
    return runs


def online_runs(api: Any, project: str, filters: Mapping[str, Any] | None = None) -> list[RunData]:
    """The runs of a project that W&B's service has.

    Args:
        api: a `wandb.Api`.
        project: `entity/project`, or `project` of the default entity.
        filters: as `wandb.Api.runs` takes them.
    """
    return [_online_run(run) for run in api.runs(project, filters=dict(filters or {}))]


def _online_run(run: Any) -> RunData:
    def table(path: str) -> Any:
        with TemporaryDirectory() as folder:
            run.file(path).download(root=folder, replace=True)
            return json.loads((Path(folder) / path).read_text(encoding="utf-8"))

    config = {key: value for key, value in run.config.items() if key != "_wandb"}
    rows = list(run.scan_history())
    return _run_data(run.name, run.group or run.name, config, rows, table)


def _offline_run(file: Path) -> RunData | None:
    """The run of a file; None where it holds no config, as after a start that failed."""
    from wandb.proto import wandb_internal_pb2

    make_record: Any = vars(wandb_internal_pb2)["Record"]  # generated, unknown to type checkers

    name = group = file.parent.name
    config: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for content in _records(file):
        record = make_record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name or name
            group = record.run.run_group or group
        elif kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            rows.append(_history_row(record.history.item))

    def table(path: str) -> Any:
        return json.loads((file.parent / "files" / path).read_text(encoding="utf-8"))

    return _run_data(name, group, config, rows, table) if config else None


def _history_row(items: Iterable[Any]) -> dict[str, Any]:
    """The values that were logged together; those of a table come one by one."""
    row: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        value = json.loads(item.value_json)
        if len(keys) == 1:
            row[keys[0]] = value
        else:
            row.setdefault(keys[0], {})[keys[1]] = value
    return row


def _records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file; one that is cut short, as by a kill, is the last."""
    data = file.read_bytes()
    if not data.startswith(FILE_HEADER):
        raise ValueError(f"{file}: not a file of W&B")
    position, pieces = 7, b""
    while position + PIECE.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:
            position += left
            continue
        _, length, kind = PIECE.unpack_from(data, position)
        position += PIECE.size
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or position + length > len(data):
            return
        content = data[position : position + length]
        pieces = content if kind in (WHOLE, FIRST) else pieces + content
        position += length
        if kind in (WHOLE, LAST):
            yield pieces


def _run_data(
    name: str, group: str, config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], table: Any
) -> RunData:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    paths: dict[str, str] = {}
    seconds = 0.0
    for row in rows:
        seconds = max(seconds, row.get("_runtime") or 0.0)
        for key in (BEFORE, AFTER):
            if row.get(key):
                paths[key] = row[key]["path"]
        if row.get(STEP) is None:
            continue
        for metric, value in row.items():
            if "/" in metric and isinstance(value, int | float):
                steps, values = curves.setdefault(metric, ([], []))
                steps.append(int(row[STEP]))
                values.append(float(value))
    finished = {BEFORE, AFTER} <= paths.keys()
    return RunData(
        name=name,
        group=group,
        seed=int(config["seed"]),
        settings=method_settings(config),
        curves=curves,
        before=_scores(table(paths[BEFORE])) if finished else None,
        after=_scores(table(paths[AFTER])) if finished else None,
        seconds=seconds if finished else None,
    )


def _scores(table: Mapping[str, Any]) -> Scores:
    task, *measures = table["columns"]
    assert task == "task"
    return {row[0]: dict(zip(measures, row[1:], strict=True)) for row in table["data"]}
