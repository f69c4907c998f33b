"""What a call in the sandbox costs beside a fork, a new Python, and one in bubblewrap.

python scripts/bench_sandbox.py [repetitions]

All are measured in turns, so that other work on the machine disturbs all alike; medians. The fork
is that of a process like a worker, with the child ended and waited for: what a call that has a
process of its own cannot do without. Such a call (fork=call) is answered before its process has
ended, and the next process is made before it is needed. So it is measured twice: alone, for
call_over_fork, and in a row, with all that is left to do between two calls, for
call_in_a_row_over_fork. bwrap_over_call compares with fork=episode; without bubblewrap its numbers
are null. The last line is RESULT {json}.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.tools.sandbox import ProcessPoolSandbox, ProcessPoolSession
from matchtir.tools.worker_process import isolated_command
from matchtir.types import ToolCall, ToolSpec

TOOL = ToolSpec("add", "", {}, "def add(a, b):\n    return a + b")
CALL = ToolCall("add", {"a": 1, "b": 2})
FORKS = """
import os, sys, time
for line in sys.stdin:
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    print(time.perf_counter() - started, flush=True)
"""
BWRAP = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")


class Forks:
    """A process with a worker's modules that forks when asked, and says how long it took."""

    def __init__(self) -> None:
        preload = (
            "from matchtir.tools import worker\nfor m in worker.COMMON.split(): __import__(m)\n"
        )
        source = isolated_command("")[-2]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", preload + FORKS], text=True,
            env={"PYTHONPATH": source}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self) -> float:
        """Of one fork, its end and the wait for it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


async def calls(session: ProcessPoolSession, number: int) -> list[float]:
    """Seconds of each of some calls, one after another."""
    times = []
    for _ in range(number):
        started = time.perf_counter()
        result = await session.call(CALL)
        times.append(time.perf_counter() - started)
        assert result.output == "3", result
    return times


def program(*command: str) -> float:
    """Seconds of a program from start to end."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env={"LANG": "C.UTF-8"}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


async def measure(repetitions: int) -> dict[str, list[float]]:
    """Seconds by what was done, measured in turns."""
    sandboxes = {fork: ProcessPoolSandbox(workers=1, fork=fork) for fork in ("episode", "call")}
    plain = ProcessPoolSandbox(workers=1, isolation="none", fork="none")
    sessions = {fork: await sandbox.open([TOOL]) for fork, sandbox in sandboxes.items()}
    sessions["none"] = await plain.open([TOOL])
    forks = Forks()
    times: dict[str, list[float]] = defaultdict(list)
    python = (sys.executable, "-I", "-S", "-c", "print(1 + 2)")
    programs: dict[str, Callable[[], float]] = {"python": lambda: program(*python)}
    if shutil.which("bwrap"):
        programs["bwrap"] = lambda: program(*BWRAP, *python)
    for repetition in range(-5, repetitions):
        if not repetition:  # those before started processes
            times.clear()
        for fork, session in sessions.items():
            times[f"call, fork={fork}"] += await calls(session, 1 if fork == "call" else 5)
            if fork == "call":
                times["  in a row"] += await calls(session, 1)
        times["fork"].append(forks.seconds())
        if repetition % 5 == 0:  # they take long
            for name, run in programs.items():
                times[name].append(run())
    forks.process.kill()
    for sandbox in (*sandboxes.values(), plain):
        sandbox.shutdown()
    return times


def main(repetitions: int = 200) -> None:
    """Measure and print."""
    middle = {
        name: statistics.median(seconds) * 1e6
        for name, seconds in asyncio.run(measure(repetitions)).items()
    }
    for name, microseconds in middle.items():
        print(f"{name:24}{microseconds:10,.0f} us")
    bwrap = middle.get("bwrap")
    result = {
        "call_p50_us": round(middle["call, fork=episode"]),
        "call_over_fork": round(middle["call, fork=call"] / middle["fork"], 2),
        "call_in_a_row_over_fork": round(middle["  in a row"] / middle["fork"], 2),
        "bwrap_over_call": bwrap and round(bwrap / middle["call, fork=episode"], 1),
        "bwrap_over_call_with_fork": bwrap and round(bwrap / middle["call, fork=call"], 1),
        "cores": os.cpu_count(),
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
