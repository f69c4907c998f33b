"""The traces of a run as pages to look at: every attempt, its credit, its group."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchtir.reports.page import write_page

MAX_BYTES = 5_000_000  # of a page
RESERVED = 100_000  # of them for style and script
SCRIPTS = ("base.js", "view_state.js", "view_list.js", "view_matrix.js", "view_turns.js")
NEEDED = ("task", "turns", "total", "stop_reason", "similarity", "plan")


@dataclass(frozen=True, slots=True)
class Part:
    """The records of one page, compressed."""

    data: bytes
    places: dict[str, tuple[int, int]]  # of each: its first and its last group on the page
    records: int


def write_viewer(run: Path, out: Path) -> list[Path]:
    """Write the pages that show the traces of `run`; more than one where 5 MB are not enough.

    Args:
        run: folder of a run of src/train.py or src/eval.py (`traces/*.jsonl`), or one such file.
        out: the first page; further ones get `_2`, `_3`, ... before the suffix.

    Raises:
        FileNotFoundError: there are no traces.
        ValueError: a line is not a trace; the message names file and line.
    """
    files = trace_files(run)
    parts = list(_parts(files))
    if not parts:
        raise FileNotFoundError(f"{run}: its trace files are empty")
    pages = [out if n == 1 else out.with_stem(f"{out.stem}_{n}") for n in range(1, len(parts) + 1)]
    listed = [
        {"file": page.name, "places": part.places, "records": part.records}
        for page, part in zip(pages, parts, strict=True)
    ]
    name = "/".join(run.resolve().parts[-3:])
    for number, (page, part) in enumerate(zip(pages, parts, strict=True)):
        meta = json.dumps({"run": name, "page": number, "pages": listed})
        write_page(
            page,
            f"Traces of {name}",
            ("base.css", "view.css"),
            (*SCRIPTS, "view_group.js", "view_main.js"),
            {"meta": gzip.compress(meta.encode(), mtime=0), "records": part.data},
        )
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


def _parts(files: list[Path]) -> Iterator[Part]:
    """Groups of attempts, as many as fit a page; one that is too large alone gets its own."""
    limit = (MAX_BYTES - RESERVED) * 3 // 4  # base64 makes four bytes of three
    part: _OpenPart | None = None
    for key, records in _groups(files):
        if part is None or not part.add(key, records, limit):
            if part is not None:
                yield part.close()
            part = _OpenPart()
            part.add(key, records, limit)
    if part is not None:
        yield part.close()


class _OpenPart:
    """A page in the making: one gzip stream of a JSON list."""

    def __init__(self) -> None:
        self._compress = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._chunks = [self._compress.compress(b"[")]
        self.size = 0
        self.places: dict[str, tuple[int, int]] = {}
        self.records = 0

    def add(self, key: tuple[str, int], records: list[str], limit: int) -> bool:
        """Add a group, unless the page has one already and would get larger than `limit` bytes."""
        text = ("," if self.records else "") + ",".join(records)
        compress = self._compress.copy()
        chunk = compress.compress(text.encode("utf-8")) + compress.flush(zlib.Z_SYNC_FLUSH)
        if self.records and self.size + len(chunk) > limit:
            return False
        self._compress = compress
        self._chunks.append(chunk)
        self.size += len(chunk)
        place, group = key
        self.places[place] = (self.places.get(place, key[1:])[0], group)
        self.records += len(records)
        return True

    def close(self) -> Part:
        self._chunks += [self._compress.compress(b"]"), self._compress.flush()]
        return Part(b"".join(self._chunks), self.places, self.records)


def _groups(files: list[Path]) -> Iterator[tuple[tuple[str, int], list[str]]]:
    """The records of each group, and its place and number; its attempts follow one another.

    The place is the iteration, and of an evaluation the name of the file: its benchmark.
    """
    key: tuple[str, int] | None = None
    lines: list[str] = []
    for file in files:
        place = file.stem.removeprefix("iteration_").lstrip("0")
        with file.open(encoding="utf-8") as text:
            for number, line in enumerate(text, start=1):
                record = _read(line, f"{file}, line {number}")
                found = (place, record["group"])
                if key is not None and found != key:
                    yield key, lines
                    lines = []
                key = found
                lines.append(f'{{"place": {json.dumps(place)}, {line.strip()[1:]}')
    if key is not None:
        yield key, lines


def _read(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    missing = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(f"{where}: not a trace, or of an older version: no {', '.join(missing)}")
    return record
