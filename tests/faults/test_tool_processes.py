"""Parts A and G: ends of processes, forged results, traces of earlier calls, calls that hang."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from matchtir.tools.worker_process import IsolationError, WorkerProcess
from matchtir.types import ResultStatus, ToolCall
from tests.faults.helpers import (
    DEADLINE_S,
    TOOL_PROCESSES,
    descendants,
    fault,
    linux,
    need_isolation,
)
from tests.tools.sandbox_helpers import alive, call_all, in_session, run, tool, until

ROOT = Path(__file__).parents[2]
OK, CRASHED, TIMEOUT = ResultStatus.OK, ResultStatus.CRASHED, ResultStatus.TIMEOUT
BROKEN = ResultStatus.BROKEN_TOOL
ONE = "def f(): return 1"

ENDLESS = {
    "loop": "def f():\n    while True: pass",
    "regex": "import re\ndef f(): return re.match('(a+)+$', 'a' * 40 + 'b')",
    "big integer": "def f(): return 7 ** 10 ** 9",
    "sleep": "import time\ndef f(): time.sleep(600)",
    "catches everything": (
        "def f():\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass"
    ),
    "ignores signals": (
        "import signal\ndef f():\n    for s in (14, 15, 2): signal.signal(s, signal.SIG_IGN)\n"
        "    while True: pass"
    ),
    "waits for a child": "import os\ndef f():\n    if os.fork(): os.wait()\n    while True: pass",
    "endless text": (
        "class A:\n    def __str__(self):\n        while True: pass\ndef f(): return A()"
    ),
}


@fault("A endless", "loops, regex, big integers, sleep, ignored signals, endless text", "TIMEOUT")
def test_every_endless_tool_is_stopped_at_its_deadline(make_sandbox):
    pool = make_sandbox(workers=len(ENDLESS), timeout_s=DEADLINE_S)
    calls = [(tool(source), {}) for source in ENDLESS.values()]
    for kind, result in zip(ENDLESS, asyncio.run(call_all(pool, *calls)), strict=True):
        assert result.status is TIMEOUT, kind
        assert result.output == "Error: f did not return within 1.5 seconds and was stopped."
        assert DEADLINE_S <= result.seconds < DEADLINE_S + 1
    assert pool.counts == {TIMEOUT: len(ENDLESS)}
    assert run(pool, ONE).output == "1"


@fault("A closes the channel", "closes every descriptor, and goes on", "CRASHED")
def test_a_tool_that_closes_its_channel_is_ended(sandbox):
    source = "import os\ndef f(goes_on):\n    os.closerange(0, 99)\n    while goes_on: pass"
    for goes_on in (True, False):
        assert run(sandbox, source, goes_on=goes_on).status is CRASHED
        assert run(sandbox, ONE).output == "1"


FORGE = """
    import os, struct, sys
    def f(status, text, finish):
        frame = struct.pack("!BI", status, len(text)) + text.encode()
        for fd in range(3, 20):
            try: os.write(fd, frame)
            except OSError: pass
        if finish: os._exit(0)
        return "own"
"""


@fault("A forged frame", "writes a result into the channel", "its own result at most")
@pytest.mark.parametrize("finish", [False, True])
def test_a_forged_result_reaches_no_other_call(sandbox, finish):
    tools = [tool(FORGE), tool("def g(): return 'true'", "g")]
    forged = {"text": "forged", "finish": finish}
    for status in (0, 6, 9, 255):
        calls = [("f", {**forged, "status": status}), ("g", {})] * 3
        (result, *_), _ = in_session(sandbox, tools, *calls)
        assert result.status is CRASHED or not status
        assert run(sandbox, "def f(): return 'true'").output == "true"

    async def one_after_another():
        session = await sandbox.open(tools)
        await session.call(ToolCall("f", {**forged, "status": 0}))
        await asyncio.sleep(0.1)
        result = await session.call(ToolCall("g", {}))
        await session.close()
        return result.output

    assert asyncio.run(one_after_another()) == "true"


PATCHES = {
    "math.sqrt": ("import math\ndef f(): math.sqrt = lambda x: 7", "import math", "math.sqrt(4)"),
    "json.loads": ("import json\ndef f(): json.loads = lambda t: {}", "import json",
                   "json.loads('[2.0]')[0]"),
    "random.seed": ("import random\ndef f(): random.seed(0); return random.random()",
                    "import random", "2.0 if random.random() != 0.8444218515250481 else 0"),
    "our handler": ("import sys\ndef f():\n for m in list(sys.modules.values()):\n"
                    "  if hasattr(m, 'as_text'): m.as_text = lambda v, form: 'forged'", "", "2.0"),
    "a file": ("def f(): open('left', 'w').close()", "import os",
               "2.0 if not os.listdir('.') else 0"),
    "the folder": ("import os\ndef f(): os.chdir('/')", "import os",
                   "2.0 if os.getcwd() != '/' else 0"),
}  # fmt: skip


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(p, marks=fault(f"A patched {p}", f"changes {p}", "the next episode sees none"))
        for p in PATCHES
    ],
)
def test_the_next_episode_meets_nothing_of_the_last(sandbox, patch):
    harm, imports, expression = PATCHES[patch]
    assert run(sandbox, harm).status is OK
    assert run(sandbox, f"{imports}\ndef f(): return {expression}").output == "2.0"


@fault("A fork per call", "fork=call: patches json.loads for a later call", "not even that sees it")
def test_with_a_fork_for_each_call_not_even_the_next_call_does(make_sandbox):
    pool = make_sandbox(workers=1, fork="call")
    tools = [tool(PATCHES["math.sqrt"][0]), tool("import math\ndef g(): return math.sqrt(4)", "g")]
    (_, result), _ = in_session(pool, tools, ("f", {}), ("g", {}))
    assert result.output == "2.0"


@fault("A import that sleeps", "a source that never loads", "BROKEN_TOOL, later ones at once")
def test_a_source_that_does_not_load_is_waited_for_once(make_sandbox, caplog):
    pool = make_sandbox(workers=1, timeout_s=0.5)
    first, second = (run(pool, "import time\ntime.sleep(600)\ndef f(): pass") for _ in range(2))
    assert (first.status, second.status) == (BROKEN, BROKEN)
    assert "did not load within 0.5 seconds" in first.output
    assert first.seconds >= 0.5 and second.seconds == 0
    assert "the tool f hangs" in caplog.text
    assert run(pool, ONE).output == "1"


KILLED = [
    pytest.param(depth, id=name, marks=fault(f"A killed: {name}", f"somebody kills {name}",
                 "repeated and counted, not told to the policy"))
    for depth, name in enumerate(("the worker", "its first process", "the tool's process"), 1)
]  # fmt: skip
COUNTS = """
import time
class C:
    n = 0
    def f(self, s):
        self.n += 1
        time.sleep(s)
        print(s)
        return self.n
"""


@linux
@pytest.mark.parametrize("depth", KILLED)
@pytest.mark.parametrize("stateful", [False, True])
def test_a_process_killed_from_outside_is_replaced(make_sandbox, depth, stateful):
    before = descendants()
    pool = make_sandbox(workers=1)
    need_isolation(pool)
    made = tool("import time\ndef f(s): time.sleep(s); return 2")
    made = replace(tool(COUNTS), owner="C", stdout=True) if stateful else made

    async def disturbed():
        session = await pool.open([made])
        await session.call(ToolCall("f", {"s": 0}))
        level = sorted(descendants(depth=depth) - descendants(depth=depth + 1) - before)
        call = asyncio.ensure_future(session.call(ToolCall("f", {"s": 0.5})))
        await asyncio.sleep(0.2)
        os.kill(level[-1], signal.SIGKILL)
        result = await call
        await session.close()
        return result

    result = asyncio.run(disturbed())
    told = '{"result": 2, "stdout": "0.5\\n"}' if stateful else "2"  # and nothing of the repetition
    assert (result.status, result.output) == (OK, told)
    assert pool.kills == 1
    assert pool.counts == {OK: 2}


@linux
@fault("A killed again and again", "somebody kills it at every attempt", "CRASHED after a few")
def test_a_call_whose_process_is_always_killed_is_given_up(make_sandbox):
    pool = make_sandbox(workers=1)
    need_isolation(pool)
    stop = threading.Event()

    def kill_all():
        while not stop.wait(0.01):
            for pid in descendants(depth=TOOL_PROCESSES):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        result = run(pool, "import time\ndef f(): time.sleep(60)")
    finally:
        stop.set()
        killer.join()
    assert (result.status, pool.kills) == (CRASHED, 3)
    assert run(pool, ONE).output == "1"


@fault("G head of line", "8 calls hang in 4 workers", "a good call does not wait for them")
def test_hanging_calls_do_not_hold_up_others(make_sandbox):
    pool = make_sandbox(workers=4, timeout_s=60.0)

    async def good_behind_bad():
        bad = await pool.open([tool("import time\ndef f(): time.sleep(600)")])
        hanging = [asyncio.ensure_future(bad.call(ToolCall("f", {}))) for _ in range(8)]
        await asyncio.sleep(0)
        good = await pool.open([tool(ONE)])
        result = await asyncio.wait_for(good.call(ToolCall("f", {})), 30)
        pool.shutdown()
        await asyncio.gather(*hanging)
        return result

    assert asyncio.run(good_behind_bad()).output == "1"


@fault("G bound", "100 calls hang", "processes up to a bound")
def test_workers_grow_to_a_bound_and_shrink_again(make_sandbox, monkeypatch):
    monkeypatch.setattr("matchtir.tools.pool._IDLE_S", 0.2)
    before = descendants()
    pool = make_sandbox(workers=1, max_workers=3, timeout_s=1.0, max_timeouts=1_000)
    sleeping = [(tool("import time\ndef f(): time.sleep(600)"), {})] * 5
    results = asyncio.run(call_all(pool, *sleeping))
    assert {result.status for result in results} == {TIMEOUT}
    assert len(descendants() - before) <= 3 * TOOL_PROCESSES
    assert run(pool, ONE).output == "1"
    assert until(lambda: len(descendants() - before) <= TOOL_PROCESSES)


@fault("G a tool that hangs", "a tool times out k times in a row", "named, and answered at once")
def test_a_tool_that_always_hangs_is_named_and_not_waited_for(make_sandbox, caplog):
    pool = make_sandbox(workers=1, timeout_s=0.3, max_timeouts=3)
    results = [run(pool, "def f():\n    while True: pass") for _ in range(5)]
    assert [result.status for result in results] == [TIMEOUT] * 3 + [BROKEN] * 2
    assert "did not return in the last 3 calls" in results[-1].output
    assert results[-1].seconds == 0
    assert caplog.text.count("the tool f hangs") == 1
    assert run(pool, ONE).output == "1"
    method = replace(tool("class C:\n    def f(self):\n        while True: pass"), owner="C")
    twice = [in_session(pool, [method], ("f", {}), ("f", {}))[0] for _ in range(4)]
    assert [one.status for one, _ in twice] == [TIMEOUT] * 3 + [BROKEN]
    assert {other.status for _, other in twice[:3]} == {CRASHED}  # its object is lost: no call


@fault("G recovers", "a tool times out now and then", "called as ever")
def test_a_call_that_returns_forgives_those_that_hung(make_sandbox):
    pool = make_sandbox(workers=1, timeout_s=0.5, max_timeouts=2)
    source = "import time\ndef f(s): time.sleep(s)"
    statuses = [run(pool, source, s=s).status for s in (9, 0, 9, 0)]
    assert statuses == [TIMEOUT, OK] * 2
    assert not pool.breaker._next_trial  # nothing is kept of the sources that return


@pytest.fixture
def lacks_seccomp(monkeypatch):
    async def hello(self):
        return {"in_force": "user namespaces", "missing": {"seccomp": "made up for this test"}}

    monkeypatch.setattr(WorkerProcess, "_hello", hello)


@fault("A required isolation", "isolation=require where a part is missing", "refuses to start")
def test_required_isolation_that_is_missing_refuses_to_start(make_sandbox, lacks_seccomp):
    with pytest.raises(IsolationError, match=r"seccomp \(made up"):
        make_sandbox(isolation="require")


@fault("A missing isolation", "isolation=best where a part is missing", "said in red")
def test_missing_isolation_is_said_in_red(make_sandbox, lacks_seccomp, caplog):
    make_sandbox(isolation="best").check()
    assert caplog.messages[-1].startswith("\033[31msandbox: missing are: seccomp (made up")


@fault("A no isolation", "isolation=none", "deadlines, limits and ends of processes still hold")
def test_without_isolation_what_a_tool_leaves_still_ends(make_sandbox):
    before = descendants()
    pool = make_sandbox(workers=1, isolation="none", timeout_s=DEADLINE_S)
    source = """
        import os, time
        def f(hang):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: time.sleep(600)
                os._exit(0)
            while hang: pass
            return "left"
    """
    assert run(pool, source, hang=False).output == "left"
    assert run(pool, source, hang=True).status is TIMEOUT
    assert until(lambda: len(descendants() - before) <= 2)
    assert run(pool, "import os\ndef f(): os.kill(os.getpid(), 9)").output == (
        "Error: f crashed: Killed."
    )


PARENT = """
import asyncio, os, signal, sys
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import ToolCall, ToolSpec

BODY = [
    "import os", "def f(busy):", "    if os.fork() == 0:", "        os.setsid()",
    "        while True: pass", "    while busy: pass",
]
sandbox = ProcessPoolSandbox(workers=2, timeout_s=3.0)

async def main():
    session = await sandbox.open([ToolSpec("f", "", {}, chr(10).join(BODY))])
    busy = asyncio.ensure_future(session.call(ToolCall("f", {"busy": True})))
    await asyncio.sleep(0.3)
    await session.call(ToolCall("f", {"busy": False}))
    print("ready", flush=True)
    sys.stdin.readline()
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "raises":
        raise RuntimeError
    await busy

asyncio.run(main())
"""


@linux
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(end, marks=fault(f"A trainer {end}", f"the trainer {end}", "no process left"))
        for end in ("killed", "raises", "returns")
    ],
)
def test_nothing_outlives_the_trainer(end):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    trainer = subprocess.Popen(
        [sys.executable, "-c", PARENT, end], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert trainer.stdout.readline() == "ready\n"
    pids = descendants(trainer.pid)
    assert len(pids) >= 2 * TOOL_PROCESSES
    trainer.communicate("go\n")
    assert trainer.returncode == {"killed": -signal.SIGKILL, "raises": 1, "returns": 0}[end]
    assert until(lambda: not any(alive(pid) for pid in pids))
