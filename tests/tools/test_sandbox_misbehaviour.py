"""Tools that fail, crash, hang or disturb; times are several times what is needed."""

import asyncio
import os
import signal
import time

import pytest

from matchtir.types import ResultStatus
from tests.tools.sandbox_helpers import alive, call_all, run, tool, until, worker_pids

MISBEHAVIOUR = {
    "raises": ("def f(): return {}['k']", ResultStatus.EXCEPTION, "KeyError: 'k'"),
    "exits": ("import sys\ndef f(): sys.exit(3)", ResultStatus.EXCEPTION, "SystemExit: 3"),
    "interrupts": ("def f(): raise KeyboardInterrupt", ResultStatus.EXCEPTION, "KeyboardInterrupt"),
    "recurses": ("def f(): return f()", ResultStatus.EXCEPTION, "RecursionError"),
    "reads input": ("def f(): return input()", ResultStatus.EXCEPTION, "EOFError"),
    "eats memory": ("def f(): return bytearray(1 << 40)", ResultStatus.EXCEPTION, "MemoryError"),
    "eats it slowly": (
        "def f():\n    a = []\n    while True: a.append(bytearray(1 << 24))",
        ResultStatus.EXCEPTION,
        "MemoryError",
    ),
    "ends its process": ("import os\ndef f(): os._exit(3)", ResultStatus.CRASHED, "exit code 3"),
    "kills itself": (
        "import os\ndef f(): os.kill(os.getpid(), 9)",
        ResultStatus.CRASHED,
        "crashed: Killed",
    ),
    "takes an unnamed signal": (
        "import os\ndef f(): os.kill(os.getpid(), 40)",
        ResultStatus.CRASHED,
        "f crashed: ",
    ),
    "segfaults": (
        "import ctypes\ndef f(): ctypes.string_at(0)",
        ResultStatus.CRASHED,
        "crashed: Segmentation fault",
    ),
    "overflows the C stack": (
        "import sys\ndef f():\n    sys.setrecursionlimit(10**9)\n"
        "    class A:\n        def __getattr__(self, n): return getattr(self, n)\n    A().x",
        ResultStatus.CRASHED,
        "crashed: Segmentation fault",
    ),
    "closes every file": (
        "import os\ndef f(): os.closerange(0, 1000)",
        ResultStatus.CRASHED,
        "f crashed",
    ),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_a_misbehaving_tool_loses_only_its_own_call(make_sandbox, kind):
    source, status, words = MISBEHAVIOUR[kind]
    sandbox = make_sandbox(workers=1, memory_mb=256)
    good = "def f(): return 'well'"
    assert run(sandbox, good).output == "well"
    result = run(sandbox, source)
    assert (result.status, words in result.output) == (status, True), result
    assert run(sandbox, good).output == "well"


@pytest.mark.parametrize(
    "body",
    [
        "print('spam' * 100_000)",
        "for _ in range(50_000): print('spam')",
        "os.write(1, b'spam' * 1000); os.write(2, b'spam')",
        "os.system('echo spam; echo spam >&2')",
        "sys.stdout.close()",
        "sys.stdout = sys.stderr = None",
        "sys.__stdout__.write('spam')",
        "os.close(0); os.close(1); os.close(2)",
        "logging.warning('spam')",
        "warnings.warn('spam')",
        "signal.alarm(0); signal.signal(signal.SIGALRM, signal.SIG_IGN)",
        "os.rmdir(os.getcwd())",
        "os.chdir('/')",
        "atexit.register(print, 'spam')",
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    ],
)
def test_side_effects_disturb_neither_this_result_nor_the_next(make_sandbox, body):
    sandbox = make_sandbox(workers=1)
    imports = "import atexit, logging, os, signal, sys, threading, time, warnings"
    source = f"{imports}\ndef f():\n    {body}\n    return 'done'"
    for _ in range(3):
        assert run(sandbox, source).output == "done"
        assert run(sandbox, "def f():\n    print('x')\n    return 1").output == "1"


def test_a_tool_that_writes_into_the_pipe_cannot_answer_for_the_next(make_sandbox):
    sandbox = make_sandbox(workers=1, max_argument_chars=200_000)
    source = """
        import os, struct
        def f(reply):
            for fd in range(3, 20):
                try: os.write(fd, struct.pack("!I", len(reply)) + reply.encode())
                except OSError: pass
            return "own"
    """
    forged = [
        "nonsense",
        "[" * 100_000,
        '{"id": 999, "status": "ok", "output": "forged", "last": false}',
        '{"id": 0, "status": "ok", "output": "forged", "last": false}',
        '{"id": {id}, "status": "oh", "output": "forged", "last": false}',
    ]
    for reply in forged:
        assert run(sandbox, source, reply=reply).status is ResultStatus.CRASHED
        assert run(sandbox, "def f(): return 1").output == "1"


def test_a_fork_made_by_a_tool_does_not_answer(make_sandbox):
    sandbox = make_sandbox(workers=1)
    source = "import os\ndef f():\n    os.fork()\n    return os.getpid()"
    for _ in range(5):
        pid = int(run(sandbox, source).output)
        assert pid in worker_pids(os.getpid())


def test_a_worker_that_speaks_or_dies_between_calls_is_replaced(make_sandbox):
    sandbox = make_sandbox(workers=1)
    source = """
        import os, time
        def f(late):
            if late and os.fork() == 0:
                time.sleep(0.3)
                for fd in range(3, 20):
                    try: os.write(fd, b"junk")
                    except OSError: pass
                os._exit(0)
            return os.getpid()
    """
    speaker = int(run(sandbox, source, late=True).output)
    time.sleep(1.0)
    successor = int(run(sandbox, source, late=False).output)
    assert successor != speaker
    os.kill(successor, signal.SIGKILL)
    assert until(lambda: not alive(successor))
    assert run(sandbox, source, late=False).status is ResultStatus.OK


def test_a_tool_that_removed_the_folder_does_not_stop_new_workers(make_sandbox):
    sandbox = make_sandbox(workers=1)
    assert run(sandbox, "import os\ndef f(): os.rmdir(os.getcwd())").status is ResultStatus.OK
    assert run(sandbox, "import os\ndef f(): os._exit(1)").status is ResultStatus.CRASHED
    assert run(sandbox, "def f(): return 1").output == "1"


ENDLESS = {
    "loop": "def f():\n    while True: pass",
    "regex": "import re\ndef f(): return re.match('(a+)+$', 'a' * 40 + 'b')",
    "C code": "def f(): return 7 ** 10 ** 9",
    "sleep": "import time\ndef f(): time.sleep(600)",
    "while loading": "while True: pass\ndef f(): pass",
    "catches everything": (
        "def f():\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    ),
    "ignores signals": (
        "import signal\ndef f():\n    for s in (14, 15, 2): signal.signal(s, signal.SIG_IGN)\n"
        "    while True: pass"
    ),
    "waits for a child": "import subprocess\ndef f(): subprocess.run(['sleep', '600'])",
    "closes the pipe": "import os\ndef f():\n    os.closerange(3, 99)\n    while True: pass",
    "output that never ends": (
        "class A:\n    def __str__(self):\n        while True: pass\ndef f(): return A()"
    ),
}


def test_every_endless_tool_is_stopped_at_its_deadline(make_sandbox):
    sandbox = make_sandbox(workers=len(ENDLESS), timeout_s=1.0)
    started = time.monotonic()
    calls = [(tool(source), {}) for source in ENDLESS.values()]
    results = dict(zip(ENDLESS, asyncio.run(call_all(sandbox, *calls)), strict=True))
    assert time.monotonic() - started < 15
    crashed = results.pop("closes the pipe")  # noticed at once
    assert crashed.status is ResultStatus.CRASHED
    for kind, result in results.items():
        assert result.status is ResultStatus.TIMEOUT, kind
        assert result.output == "Error: f did not return within 1 seconds and was stopped."
        assert 1.0 <= result.seconds < 5
    assert sandbox.counts == {ResultStatus.TIMEOUT: len(ENDLESS) - 1, ResultStatus.CRASHED: 1}


def test_waiting_for_a_worker_does_not_count(make_sandbox):
    sandbox = make_sandbox(workers=1, timeout_s=1.5)
    calls = [(tool("import time\ndef f(): time.sleep(0.4)"), {})] * 5  # 2 s in all
    results = asyncio.run(call_all(sandbox, *calls))
    assert {result.status for result in results} == {ResultStatus.OK}
    assert all(0.4 <= result.seconds < 1.5 for result in results)


def test_a_child_of_a_stopped_tool_dies_with_it(make_sandbox, tmp_path):
    sandbox = make_sandbox(timeout_s=1.0)
    note = tmp_path / "pid"
    source = f"""
        import subprocess
        def f():
            child = subprocess.Popen(["sleep", "600"])
            open({str(note)!r}, "w").write(str(child.pid))
            child.wait()
    """
    assert run(sandbox, source).status is ResultStatus.TIMEOUT
    assert until(lambda: not alive(int(note.read_text())))
