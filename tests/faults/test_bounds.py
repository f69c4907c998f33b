"""Parts E and F: what runs short or jumps about: descriptors, processes, the clock, a network."""

import asyncio
import itertools
import logging
import os
import resource
import time

import pytest
import wandb
from aiohttp import web

from matchtir.rollout.http import HttpClient
from matchtir.types import ResultStatus, ToolCall, ToolSpec
from matchtir.utils.loggers import WandbLogger
from matchtir.utils.run_folder import checkpoint_to_load, is_whole, keep_checksums
from tests.faults.helpers import fault, linux
from tests.rollout.chat_fakes import listening
from tests.tools.sandbox_helpers import run, until, worker_pids
from tests.training.training_parts import fit, logged, policy_gradient

COUNTER = "class C:\n    n = 0\n    def f(self):\n        self.n += 1\n        return self.n\n"
STATEFUL = ToolSpec("f", "", {}, COUNTER, owner="C")
PLAIN = ToolSpec("g", "", {}, "def g(): return 'g'")


async def sessions(sandbox, number, tools, seen=lambda: None):
    """What calls of concurrent sessions return."""

    async def one():
        session = await sandbox.open(tools)
        outputs = []
        for name in (tool.name for tool in (*tools, *tools)):
            outputs.append((await session.call(ToolCall(name, {}))).output)
            seen()
        await session.close()
        return outputs

    return await asyncio.gather(*[one() for _ in range(number)])


@linux
@fault("F descriptors", "60 stateful sessions, 30 descriptors left", "sessions wait for each other")
def test_many_sessions_with_few_descriptors_wait_for_each_other(make_sandbox):
    sandbox = make_sandbox(workers=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [int(name) for name in os.listdir("/proc/self/fd")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(held) + 30, hard))
    try:
        found = asyncio.run(sessions(sandbox, 60, [STATEFUL]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == [["1", "2"]] * 60


@linux
@fault("F sessions", "more stateful sessions than max_sessions", "they wait; idle processes go")
def test_sessions_are_bounded_and_their_processes_end(make_sandbox, monkeypatch):
    monkeypatch.setattr("matchtir.tools.pool._IDLE_S", 0.2)
    before, most = worker_pids(os.getpid()), []

    def see():
        most.append(len(worker_pids(os.getpid()) - before))

    sandbox = make_sandbox(workers=1, max_workers=1, max_sessions=3)
    outputs = asyncio.run(sessions(sandbox, 8, [STATEFUL, PLAIN], see))
    assert outputs == [["1", "g", "2", "g"]] * 8
    assert max(most) <= 3 + 1  # of sessions, and of functions
    assert until(lambda: len(worker_pids(os.getpid()) - before) <= 1)


@fault("F clock", "the wall clock jumps about", "deadlines and pauses keep to the monotonic one")
def test_a_clock_that_jumps_changes_no_deadline(make_sandbox, monkeypatch):
    async def answer(request):
        return web.json_response({"well": True})

    jumps = itertools.cycle([1e9, -1e9, 0.0])
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    sleeping = "import time\ndef f(s): time.sleep(s)"
    assert run(make_sandbox(timeout_s=60.0), sleeping, s=0.3).status is ResultStatus.OK
    assert run(make_sandbox(timeout_s=0.5), sleeping, s=600).status is ResultStatus.TIMEOUT
    with listening(ask=answer) as url:
        client = HttpClient(url, timeout_s=60.0, retries=0, requests_per_minute=600)
        assert [client.ask("POST", "/ask", {}) for _ in range(3)] == [{"well": True}] * 3


@fault("F W&B", "W&B cannot be reached", "the run goes on, offline or without, and says so")
def test_a_run_goes_on_without_wandb(tmp_path, monkeypatch, caplog):
    def init(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with caplog.at_level(logging.WARNING):
        fit(policy_gradient(), tmp_path, iterations=3, loggers=[WandbLogger(str(tmp_path), "p")])
    assert len(logged(tmp_path, "train/loss")) == 3
    assert caplog.text.count("The run goes on.") == 2  # online, then offline


def shards(folder):
    """A checkpoint as two processes leave it."""
    folder.mkdir(parents=True)
    for name in ("__0_0.distcp", "__0_1.distcp", "__1_0.distcp", ".metadata", "meta.pt"):
        (folder / name).write_bytes(os.urandom(5000))
    for rank in (0, 1):
        keep_checksums(folder, rank)
    return folder


@fault("E shards", "a bit of one shard flipped, a shard removed", "named, the one before is taken")
@pytest.mark.parametrize("name", ["__0_1.distcp", "__1_0.distcp", ".metadata", "meta.pt"])
def test_every_file_of_a_folder_of_shards_has_its_checksum(tmp_path, caplog, name):
    last = shards(tmp_path / "checkpoints" / "last.ckpt")
    previous = shards(tmp_path / "checkpoints" / "previous.ckpt")
    assert checkpoint_to_load("last", tmp_path) == last
    whole = (last / name).read_bytes()
    for damaged in (whole[:2500] + bytes([whole[2500] ^ 1]) + whole[2501:], whole[:-1], None):
        (last / name).unlink() if damaged is None else (last / name).write_bytes(damaged)
        assert checkpoint_to_load("last", tmp_path) == previous
    assert caplog.text.count("last.ckpt IS DAMAGED") == 3
    (last / name).write_bytes(whole)
    (last / "checksums_1.json").unlink()  # one process did not get so far
    assert not is_whole(last)
