"""What is kept of a sweep: `sweep.json` with its choices and, at its end, how each job ended.

A job is finished when its folder has `result.json`, failed when it has `failed.txt`, and otherwise
interrupted. A sweep is unfinished until each of its jobs is finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matchtir.utils.run_files import RESULT_FILE

SWEEP_FILE = "sweep.json"
FAILED_FILE = "failed.txt"


def sweep_choices(overrides: Sequence[str]) -> list[str]:
    """The overrides that two command lines of one sweep have in common, in order of their keys."""
    return sorted(text for text in overrides if not text.startswith("ckpt_path="))


def newest_unfinished(sweeps: Path, overrides: Sequence[str]) -> Path | None:
    """The newest folder of `sweeps` that holds an unfinished sweep of these overrides."""
    found = []
    for file in sweeps.glob(f"*/{SWEEP_FILE}"):
        record = read_record(file.parent)
        if not record["finished"] and record["choices"] == sweep_choices(overrides):
            found.append(file.parent)
    return max(found, default=None)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a sweep."""
    return json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Keep the record of a sweep."""
    text = json.dumps(record, indent=2) + "\n"
    (folder / SWEEP_FILE).write_text(text, encoding="utf-8")


def job_folders(folder: Path) -> list[Path]:
    """The folders of the jobs that were begun, in order."""
    jobs = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    return sorted(jobs, key=lambda path: int(path.name))


def job_state(job: Path) -> str:
    """`finished`, `failed` or `interrupted`."""
    if (job / RESULT_FILE).exists():
        return "finished"
    return "failed" if (job / FAILED_FILE).exists() else "interrupted"
