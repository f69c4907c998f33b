"""The traces of a run as pages to look at: every attempt, its credit, its group."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from matchtir.reports.page import write_page

MAX_BYTES = 5_000_000  # of a page
RESERVED = 100_000  # of them for style and script
SCRIPTS = (
    *("base.js", "view_state.js", "view_list.js", "view_matrix.js", "view_turns.js"),
    *("view_group.js", "view_main.js"),
)
NEEDED = (
    *("task", "question", "group", "attempt", "turns", "total", "stop_reason"),
    *("outcome", "outcome_reward", "gold_calls", "similarity", "plan"),
)
NOT_IN_ADDRESS = re.compile(r"[^\w.-]+", re.ASCII)  # as it is written; places are part of links

Group = tuple[str, int, list[str]]  # place and number, and its records


def write_viewer(run: Path, out: Path) -> list[Path]:
    """Write the pages that show the traces of `run`; more than one where 5 MB are not enough.

    Args:
        run: folder of a run of src/train.py or src/eval.py (`traces/*.jsonl`), or one such file.
        out: the first page; further ones get `_2`, `_3`, ... before the suffix.

    Raises:
        FileNotFoundError: there are no traces.
        ValueError: a line is not a trace; the message names file and line.
    """
    parts = list(_parts(trace_files(run)))
    if not parts:
        raise FileNotFoundError(f"{run}: its trace files are empty")
    pages = [out if n == 1 else out.with_stem(f"{out.stem}_{n}") for n in range(1, len(parts) + 1)]
    name = "/".join(run.resolve().parts[-3:])
    records = [[record for *_, lines in groups for record in lines] for groups in parts]
    listed = [
        {"file": page.name, "places": _places(groups), "records": len(found)}
        for page, groups, found in zip(pages, parts, records, strict=True)
    ]
    for number, (page, found) in enumerate(zip(pages, records, strict=True)):
        meta = json.dumps({"run": name, "page": number, "pages": listed})
        data = {"meta": meta, "records": f"[{','.join(found)}]"}
        write_page(page, f"Traces of {name}", ("base.css", "view.css"), SCRIPTS, data)
    return pages


def trace_files(run: Path) -> list[Path]:
    """The trace files of a run, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return [run]
    files = sorted(run.glob("traces/*.jsonl"))
    if not files:
        raise FileNotFoundError(
            f"{run}: no traces (no traces/*.jsonl, as a training run or an evaluation has)"
        )
    return files


def _parts(files: list[Path]) -> Iterator[list[Group]]:
    """Groups of attempts, as many as fit a page; one that is too large alone gets its own."""
    limit = (MAX_BYTES - RESERVED) * 3 // 4  # base64 makes four bytes of three
    page: list[Group] = []
    size = 0
    for group in (group for file in files for group in _groups(file)):
        more = len(gzip.compress(",".join(group[2]).encode("utf-8")))
        if page and size + more > limit:
            yield page
            page, size = [], 0
        page.append(group)
        size += more
    if page:
        yield page


def _places(groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
    """The places on a page, each with its first and its last group there."""
    places: dict[str, tuple[int, int]] = {}
    for place, number, _ in groups:
        places[place] = (places.get(place, (number, number))[0], number)
    return places


def _groups(file: Path) -> Iterator[Group]:
    """The groups of a file and their attempts, in order; an evaluation writes them as they end.

    Their place is the iteration, and of an evaluation the name of the file: its benchmark.
    """
    place = NOT_IN_ADDRESS.sub("_", file.stem.removeprefix("iteration_").lstrip("0"))
    with file.open(encoding="utf-8") as lines:
        whole = (line for line in lines if line.endswith("\n"))  # the last one may be cut short
        read = [_read(line, f"{file}, line {n}") for n, line in enumerate(whole, start=1)]
    read.sort(key=itemgetter("group", "attempt"))
    for number, found in groupby(read, key=itemgetter("group")):
        yield place, number, [json.dumps({"place": place} | record) for record in found]


def _read(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=lambda _: None)  # a browser reads no NaN
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    missing = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(f"{where}: not a trace, or of an older version: no {', '.join(missing)}")
    return record
