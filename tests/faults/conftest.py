"""Cases of faults: each test marked with `fault` is one; `--fault-table FILE` writes their table.

python -m pytest tests/faults --fault-table docs/reliability.md

Cases that are not run keep their rows.
"""

from pathlib import Path

import pytest

from matchtir.tools.sandbox import ProcessPoolSandbox
from tests.faults.helpers import DEADLINE_S

BEGIN, END = "<!-- cases -->\n", "<!-- end of cases -->\n"
HEAD = "| case | what happens | what must come of it | today |\n|---|---|---|---|\n"
outcomes: dict[tuple[str, str, str], str] = {}


def pytest_addoption(parser):
    parser.addoption("--fault-table", help="a Markdown file, in which to write the table of cases")


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(case, what, expected): a case of the table of faults")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is not None:
        known = outcomes.setdefault(marker.args, "holds")
        if report.failed:
            outcomes[marker.args] = "**fails**"
        elif report.skipped and known == "holds":
            outcomes[marker.args] = f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
    return report


def pytest_sessionfinish(session):
    target = session.config.getoption("--fault-table", None)
    if target is None:
        return
    path = Path(target)
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    former = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    known = {tuple(cells[:3]): cells[3] for cells in former} | outcomes
    rows = [f"| {' | '.join((*case, outcome))} |\n" for case, outcome in sorted(known.items())]
    path.write_text("".join([before, BEGIN, HEAD, *rows, END, after]), encoding="utf-8")


@pytest.fixture(scope="session")
def sandbox():
    """One worker, in which the next call has to come out right."""
    pool = ProcessPoolSandbox(workers=1, timeout_s=DEADLINE_S, memory_mb=256, max_timeouts=1_000)
    yield pool
    pool.shutdown()
