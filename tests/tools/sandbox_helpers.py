"""What the tests of the sandbox share: run tools, look at processes."""

import asyncio
import textwrap
import time
from contextlib import suppress
from pathlib import Path

from matchtir.tools.sandbox import replay_calls
from matchtir.types import Task, ToolCall, ToolResult, ToolSpec

WORKER = b"tools import worker"  # in the command of a worker
LONG = 60.0  # a deadline that a test which is not about deadlines never meets


def tool(source: str, name: str = "f") -> ToolSpec:
    return ToolSpec(name, "", {}, textwrap.dedent(source))


async def call_all(sandbox, *calls: tuple[ToolSpec, dict]) -> list[ToolResult]:
    """The results of concurrent calls, each in a session of its own."""
    sessions = [await sandbox.open([spec]) for spec, _ in calls]
    made = [ToolCall(spec.name, arguments) for spec, arguments in calls]
    return await asyncio.gather(*(s.call(c) for s, c in zip(sessions, made, strict=True)))


def in_session(sandbox, tools, *calls, state=None):
    """Results of calls, (name, arguments), made at once in one session, and its state then."""
    task = Task("t", "", tuple(tools), (), "", initial_state=state or {})
    replay = asyncio.run(replay_calls(task, [ToolCall(*call) for call in calls], sandbox))
    return replay.results, replay.state


def run(sandbox, source: str, /, **arguments) -> ToolResult:
    (result,), _ = in_session(sandbox, [tool(source)], ("f", arguments))
    return result


def processes() -> dict[int, tuple[int, bytes | None]]:
    """Parent and command of every process; those that are dead but unreaped have no command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            command = None if state == "Z" else (folder / "cmdline").read_bytes()
            found[int(folder.name)] = int(parent), command
    return found


def worker_pids(parent: int) -> set[int]:
    """The workers of a process, dead but unreaped ones included."""
    children = {pid: command for pid, (above, command) in processes().items() if above == parent}
    return {pid for pid, command in children.items() if command is None or WORKER in command}


def alive(pid: int) -> bool:
    return processes().get(pid, (0, None))[1] is not None


def until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
