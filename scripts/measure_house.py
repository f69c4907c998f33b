"""How much there is to read: lines and files per folder, longest function and file, import cycles.

python scripts/measure_house.py

Counts what stands in the folders src, tests, scripts (Python) and configs. A cycle is a set of
folders of src/matchtir that import each other.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "matchtir"


def files(folder: str, ending: str = ".py") -> list[Path]:
    """The files of a folder of the project."""
    return sorted((ROOT / folder).rglob(f"*{ending}"))


def lines(path: Path) -> int:
    """All lines, docstrings and comments included."""
    return len(path.read_text(encoding="utf-8").splitlines())


def nodes(path: Path) -> Iterator[ast.AST]:
    """Everything that a file says."""
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def functions(folder: str) -> Iterator[tuple[int, str]]:
    """Length and name of each function of a folder."""
    for path in files(folder):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                yield length, f"{path.relative_to(ROOT)}:{node.name}"


def part(path: Path) -> str:
    """The folder of the package that a file stands in; the file itself where it is in none."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def cycles() -> list[list[str]]:
    """Sets of parts of the package that import each other."""
    imports = {
        (part(path), str(node.module).split(".")[1])
        for path in files("src/matchtir")
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("matchtir.")
    }
    names = sorted({name for pair in imports for name in pair})
    matrix = np.array([[(name, other) in imports for other in names] for name in names])
    count, labels = connected_components(matrix, directed=True, connection="strong")
    groups = [np.array(names)[labels == label].tolist() for label in range(count)]
    return [group for group in groups if len(group) > 1]


def main() -> None:
    """The command line."""
    table: dict[str, list[int]] = defaultdict(list)
    for path in files("src/matchtir"):
        table[f"src/matchtir/{part(path)}"].append(lines(path))
    for folder in ("src", "tests", "scripts"):
        table[folder] = [lines(path) for path in files(folder)]
    for folder, lengths in table.items():
        print(f"{folder:28}{sum(lengths):8,} lines{len(lengths):6} files")
    result = {
        "src_lines": sum(table["src"]),
        "src_files": len(table["src"]),
        "test_lines": sum(table["tests"]),
        "test_functions": sum(":test_" in name for _, name in functions("tests")),
        "config_files": len(files("configs", ".yaml")),
        "longest_file": max((lines(path), str(path.relative_to(ROOT))) for path in files("src")),
        "longest_function": max(functions("src")),
        "cycles": cycles(),
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
