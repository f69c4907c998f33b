"""What the tests of faults share: how a case is named, and what processes are left."""

import os
import sys

import pytest

from tests.tools.sandbox_helpers import processes, until

DEADLINE_S = 1.5
TOOL_PROCESSES = 3  # generations below us: a worker outside, the worker inside, and its children
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no Linux")


def need_isolation(sandbox):
    """Skips where the kernel refuses a part of isolation."""
    _, missing = sandbox.check()
    if missing:
        pytest.skip(f"this kernel refuses {', '.join(missing)}")


def fault(case: str, what: str, expected: str) -> pytest.MarkDecorator:
    """Names a test, or one of its parameters, as a case of the table in docs/reliability.md.

    Args:
        case: its part and name, as in "A fork bomb".
        what: what happens.
        expected: what must come of it.
    """
    return pytest.mark.fault(case, what, expected)


def descendants(pid: int | None = None, depth: int = 1) -> set[int]:
    """The living processes below one (this one), so many generations down, and theirs."""
    found = processes().items()
    parents = {child: parent for child, (parent, command) in found if command is not None}
    level, found = {os.getpid() if pid is None else pid}, set()
    for generation in range(1, len(parents) + 1):
        level = {child for child, parent in parents.items() if parent in level}
        found |= level if generation >= depth else set()
        if not level:
            break
    return found


def nothing_left() -> bool:
    """Whether, after a moment, no tool code runs below this process.

    A worker has a child that waits for the next episode: without threads, and without children.
    """

    def alone() -> bool:
        threads = [folder for pid in descendants() for folder in tasks_of(pid)]
        return len(threads) == len(descendants()) and not descendants(depth=TOOL_PROCESSES + 1)

    return until(alone)


def tasks_of(pid: int) -> list[str]:
    """The threads of a process."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []  # gone meanwhile
