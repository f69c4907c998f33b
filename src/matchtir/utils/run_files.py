"""The files that a run leaves in its folder, and how some of them are read: no framework needed."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
CHECKPOINT_FILE = Path("checkpoints", "last.ckpt")


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys; lists and empty mappings stay whole."""
    if isinstance(node, dict) and node:
        return {
            name: leaf
            for key, value in node.items()
            for name, leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: node}


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns, and rows without their blank cells; a last line cut short by a kill is left out.

    Raises:
        ValueError: the file is not such a table.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    columns = list(reader.fieldnames or [])
    if columns[:1] != ["step"]:
        raise ValueError(f"{path}: the first column must be `step`, found {columns[:1]}")
    return columns, [{name: cell for name, cell in row.items() if cell} for row in reader]


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a `metrics.csv`: for each metric its steps and its values, blanks left out."""
    columns, rows = read_rows(Path(path))
    curves: dict[str, tuple[list[int], list[float]]] = {
        name: ([], []) for name in columns if name != "step"
    }
    for row in rows:
        for name, (steps, values) in curves.items():
            if name in row:
                steps.append(int(row["step"]))
                values.append(float(row[name]))
    return curves
