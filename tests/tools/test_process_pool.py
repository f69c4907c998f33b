"""Many calls, many event loops, and the end of it all; times are several times what is needed."""

import asyncio
import gc
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import ResultStatus, ToolCall
from tests.tools.sandbox_helpers import LONG, call_all, run, tool, worker_pids

ENDLESS = "import re\ndef f(): return re.match('(a+)+$', 'a' * 40 + 'b')"


def test_calls_are_served_in_order_and_may_wait_longer_than_their_deadline(make_sandbox):
    source = "import time\ndef f(): time.sleep(0.2); return time.monotonic()"
    calls = [(tool(source), {})] * 6  # 1.2 s in all
    results = asyncio.run(call_all(make_sandbox(workers=1, timeout_s=0.9), *calls))
    times = [float(result.output) for result in results]  # a result of each
    assert times == sorted(times)
    assert all(0.2 <= result.seconds < 0.9 for result in results)


def test_one_sandbox_serves_successive_event_loops_and_threads(make_sandbox):
    sandbox = make_sandbox(workers=2)
    source = tool("def f(x): return x")
    session = asyncio.run(sandbox.open([source]))
    for x in range(5):
        assert asyncio.run(session.call(ToolCall("f", {"x": x}))).output == str(x)

    def other(_):
        results = asyncio.run(call_all(sandbox, *[(source, {"x": 9})] * 20))
        return {result.output for result in results}

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(other, range(4))) == [{"9"}] * 4
    assert sandbox.counts[ResultStatus.OK] == 85


def test_a_call_goes_on_while_the_event_loop_is_busy(make_sandbox):
    sandbox = make_sandbox(timeout_s=1.0)
    source = tool("def f(): return 1")

    async def busy():
        call = asyncio.ensure_future(call_all(sandbox, (source, {})))
        await asyncio.sleep(0.5)
        call_2 = asyncio.ensure_future(call_all(sandbox, (source, {})))
        await asyncio.sleep(0)
        time.sleep(1.5)  # a long step of the model, longer than the deadline
        return [*await call, *await call_2]

    assert {result.output for result in asyncio.run(busy())} == {"1"}


def test_an_episode_that_ends_leaves_a_worker_to_the_one_that_has_it_by_now(make_sandbox):
    sandbox, source = make_sandbox(workers=1), tool("def f(): return 1")

    async def close_one_while_the_other_calls():
        first, second = await sandbox.open([source]), await sandbox.open([source])
        await first.call(ToolCall("f", {}))
        sandbox._thread.loop.call_soon_threadsafe(time.sleep, 0.3)  # so that both begin at once
        await asyncio.gather(first.close(), second.call(ToolCall("f", {})))
        return [process.key[0] for process in sandbox.calling.pool._free]

    assert asyncio.run(close_one_while_the_other_calls()) == [2]  # whose end is to find it


def test_a_cancelled_call_frees_its_worker_at_once(make_sandbox):
    sandbox = make_sandbox(workers=1)
    endless = (tool(ENDLESS), {})

    async def impatient():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call_all(sandbox, endless, endless, endless), 0.5)

    before = worker_pids(os.getpid())
    started = time.monotonic()
    for _ in range(2):
        asyncio.run(impatient())
        assert run(sandbox, "def f(): return 1").output == "1"
    assert time.monotonic() - started < LONG / 2
    assert len(worker_pids(os.getpid()) - before) == 1
    assert sandbox.counts == {ResultStatus.OK: 2}


def test_shutdown_stops_calls_leaves_no_process_and_may_be_repeated(make_sandbox):
    before = worker_pids(os.getpid())
    sandbox = make_sandbox(workers=3)

    async def interrupted():
        calls = asyncio.ensure_future(call_all(sandbox, *[(tool(ENDLESS), {})] * 3))
        await asyncio.sleep(0.3)
        assert len(worker_pids(os.getpid()) - before) == 3
        sandbox.shutdown()
        return await calls

    started = time.monotonic()
    assert {result.status for result in asyncio.run(interrupted())} == {ResultStatus.CRASHED}
    assert time.monotonic() - started < LONG / 2
    sandbox.shutdown()
    assert worker_pids(os.getpid()) == before
    with pytest.raises(RuntimeError, match="shutdown"):
        run(sandbox, "def f(): return 1")


def test_a_process_starts_when_needed_stays_and_ends_with_a_forgotten_sandbox():
    before = worker_pids(os.getpid())
    sandbox = ProcessPoolSandbox(workers=4)
    for _ in range(5):
        assert run(sandbox, "def f(): return 1").output == "1"
    assert len(worker_pids(os.getpid()) - before) == 1  # one at a time needs one worker
    del sandbox
    gc.collect()
    assert worker_pids(os.getpid()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be positive, not 0"),
        ({"timeout_s": -1.0}, "timeout_s must be positive"),
        ({"timeout_s": float("nan")}, "timeout_s must be positive"),
        ({"max_output_chars": 0}, "max_output_chars must be positive"),
        ({"max_argument_chars": 0}, "max_argument_chars must be positive"),
        ({"memory_mb": -1}, "memory_mb must be 0"),
        ({"isolation": "some"}, "isolation='some' is not one of require, best, none"),
        ({"fork": "turn"}, "fork='turn' is not one of call, episode, none"),
        ({"output": "yaml"}, "output='yaml' is not one of json, python"),
    ],
)
def test_invalid_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        ProcessPoolSandbox(**options)


def test_a_worker_that_does_not_start_is_an_error(make_sandbox, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"does not start: /bin/false, .* exit code 1"):
        run(make_sandbox(), "def f(): return 1")


def test_the_memory_limit_is_an_option(make_sandbox):
    source = "import mmap\ndef f(): return len(mmap.mmap(-1, 1 << 29))"
    assert run(make_sandbox(memory_mb=0), source).output == str(1 << 29)
    assert run(make_sandbox(memory_mb=256), source).status is ResultStatus.EXCEPTION
