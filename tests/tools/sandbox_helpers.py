"""What the tests of the sandbox share: run tools, look at processes."""

import asyncio
import textwrap
import time
from pathlib import Path

from matchtir.tools.sandbox import replay_calls
from matchtir.types import Task, ToolCall, ToolResult, ToolSpec

LONG = 60.0  # a deadline that a test which is not about deadlines never meets


def tool(source: str, name: str = "f") -> ToolSpec:
    return ToolSpec(name, "", {}, textwrap.dedent(source))


async def call_all(sandbox, *calls: tuple[ToolSpec, dict]) -> list[ToolResult]:
    """The results of concurrent calls, each in a session of its own."""
    sessions = [await sandbox.open([spec]) for spec, _ in calls]
    return await asyncio.gather(
        *(
            session.call(ToolCall(spec.name, arguments))
            for session, (spec, arguments) in zip(sessions, calls, strict=True)
        )
    )


def in_session(sandbox, tools, *calls, state=None):
    """Results of calls, (name, arguments), made at once in one session, and its state then."""
    task = Task("t", "", tuple(tools), (), "", initial_state=state or {})
    replay = asyncio.run(replay_calls(task, [ToolCall(*call) for call in calls], sandbox))
    return replay.results, replay.state


def run(sandbox, source: str, /, **arguments) -> ToolResult:
    (result,), _ = in_session(sandbox, [tool(source)], ("f", arguments))
    return result


def worker_pids(parent: int) -> set[int]:
    """The workers of a process, dead but unreaped ones included."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # gone meanwhile
            if int(fields[1]) == parent and (b"tools import worker" in command or fields[0] == "Z"):
                found.add(int(folder.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
