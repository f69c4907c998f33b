"""The traces of a run as a page: each attempt turn by turn, its credit, its group side by side.

python scripts/view.py logs/matchtir_soft/runs/<time>            # writes <run>/view.html
python scripts/view.py <run> --out somewhere.html
python scripts/view.py <run>/traces/iteration_000050.jsonl       # one iteration

The page opens from disk and loads nothing. Where 5 MB are not enough further pages are written,
each linked from the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.reports.viewer import write_viewer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run or an evaluation, or a trace file")
    parser.add_argument("--out", type=Path, help="default: view.html in the folder of the run")
    options = parser.parse_args()
    folder = options.run.parent if options.run.is_file() else options.run
    try:
        pages = write_viewer(options.run, options.out or folder / "view.html")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    for page in pages:
        print(f"{page}  {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
