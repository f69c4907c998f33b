"""A vLLM server that refuses, hangs, dies or does not hear, and trainers that die before it."""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from matchtir.rollout import http
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.http import EndpointError
from matchtir.rollout.vllm_server import MOST_RESTARTS, VllmProcess, VllmServerEngine
from tests.faults.helpers import fault
from tests.policy.tiny_policy import small
from tests.tools.sandbox_helpers import alive, until

FAKE = (sys.executable, str(Path(__file__).with_name("fake_vllm.py")))
SAMPLING = SamplingParams(max_new_tokens=5)


def gone(start):
    """A server and its engine core."""
    return not alive(start["pid"]) and not alive(start["core"])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Makes engines whose server is the stand-in; `faults` are those of its next requests."""
    log, faults = tmp_path / "log", tmp_path / "faults"
    monkeypatch.setenv("FAKE_VLLM_LOG", str(log))
    monkeypatch.setenv("FAKE_VLLM_FAULTS", str(faults))
    monkeypatch.setattr(VllmProcess, "program", FAKE)
    pause = asyncio.sleep

    async def no_pause(seconds):
        await pause(min(seconds, 0.01))

    monkeypatch.setattr("matchtir.rollout.http.asyncio.sleep", no_pause)
    made = []

    def engine(**options):
        made.append(VllmServerEngine((9,), 256, **options))
        made[-1].sync(small(layers=1).policy, version=1)
        return made[-1]

    yield SimpleNamespace(
        engine=engine,
        notes=lambda: [json.loads(line) for line in log.read_text().splitlines()],
        fail=lambda *lines: faults.write_text("\n".join(lines)),
    )
    for each in made:
        each.close()


def sample(engine, *seeds):
    async def turn(number, seed):
        return await engine.generate(f"s{number}", (1, 2, 3), SAMPLING, seed)

    async def main():
        return await asyncio.gather(*map(turn, range(len(seeds)), seeds))

    return asyncio.run(main())


def asked(server, part):
    return [note["body"] for note in server.notes() if part in note.get("path", "")]


@fault("F vLLM busy", "the server answers 503", "asked again with the same seed, counted")
def test_a_busy_server_is_asked_again_with_the_same_seed(server):
    engine = server.engine()
    server.fail("503", "503")
    assert sample(engine, 7) == [Generation((7, 9), (-0.5, -0.5), stopped=True)]
    bodies = asked(server, "generate")
    assert len(bodies) == 3 and bodies[0] == bodies[1] == bodies[2]
    sampling = bodies[0]["sampling_params"]
    assert bodies[0]["token_ids"] == [1, 2, 3] and bodies[0]["cache_salt"] == "weights 1"
    assert (sampling["seed"], sampling["max_tokens"], sampling["stop_token_ids"]) == (7, 5, [9])
    assert engine.restarts == 0 and engine._client.counts["retries"] == 2
    assert engine.prefill_count == 3
    assert engine.cache_tokens == 160


@fault("F vLLM lost in a turn", "the server dies or hangs", "replaced, counted; samples the same")
@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_server_lost_in_mid_turn_is_replaced_and_samples_the_same(server, fault):
    engine = server.engine()
    before = sample(engine, 1, 2, 3)
    engine._client.timeout_s = 5.0 if fault == "die" else 0.5
    server.fail(*[f"inference/v1/generate {fault}"] * (1 if fault == "die" else 9))
    assert sample(engine, 1, 2, 3) == before
    assert engine.restarts == 1
    starts = [note for note in server.notes() if "start" in note]
    assert len(starts) == 2 and until(lambda: gone(starts[0]))
    assert asked(server, "update_weight_version") == [{"new_version": "1"}] * 2


@fault("F vLLM lost in a sync", "the server dies", "replaced, and has the new weights")
def test_a_server_lost_in_a_weight_sync_is_replaced(server):
    engine = server.engine()
    server.fail("collective_rpc die")
    engine.sync(small(layers=1).policy, version=2)
    assert engine.restarts == 1 and engine.version == 2
    assert sample(engine, 4)[0].token_ids == (4, 9)
    assert asked(server, "update_weight_version")[-1] == {"new_version": "2"}


@fault("F vLLM lost again and again", "every server dies", "the run ends after a few")
def test_replacements_are_bounded(server):
    engine = server.engine()
    server.fail(*["inference/v1/generate die"] * 20)
    with pytest.raises(EndpointError, match="inference/v1/generate failed 3 times"):
        sample(engine, 1)
    assert engine.restarts == MOST_RESTARTS


@fault("F vLLM stale", "an answer of older weights", "raised at once")
def test_a_refusal_and_an_answer_of_other_weights_are_raised_at_once(server):
    engine = server.engine()
    server.fail("400", "stale")
    with pytest.raises(EndpointError, match="status 400: why"):
        sample(engine, 1)
    with pytest.raises(RuntimeError, match=r"weights \['older'\] instead of 1"):
        sample(engine, 1)
    assert engine.restarts == 0


@fault("F vLLM deaf", "the server ignores SIGTERM", "ended with its engine core")
def test_a_server_that_ignores_sigterm_is_ended_all_the_same(server):
    server.fail("deaf")
    engine = server.engine()
    (start,) = (note for note in server.notes() if "start" in note)
    assert alive(start["pid"]) and alive(start["core"])
    engine.close()
    assert until(lambda: gone(start))


def trainer(folder):
    """Starts a server in a thread, which ends."""
    http._connections.cache_clear()  # a fork has none of the threads
    thread = threading.Thread(target=lambda: VllmProcess({}, 1, folder, 60))
    thread.start()
    thread.join()
    (folder.parent / "started").touch()
    time.sleep(3600)


@fault("F vLLM trainer killed", "the trainer is killed", "the server and its engine core end, too")
def test_a_server_ends_with_a_trainer_that_is_killed_and_not_with_a_thread(server, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=trainer, args=(folder,), daemon=True)
    process.start()
    assert until((tmp_path / "started").exists)
    (start,) = server.notes()
    time.sleep(0.5)
    assert alive(start["pid"]) and alive(start["core"])  # the thread that started it has ended
    process.kill()
    process.join()
    assert until(lambda: gone(start) and not folder.exists())


@fault("F vLLM connections", "300 turns", "a handful of descriptors; a socket of this user alone")
def test_many_turns_need_few_descriptors_and_nobody_else_reaches_the_server(server):
    engine = server.engine()
    before = len(os.listdir("/proc/self/fd"))
    for seeds in (*[(seed,) for seed in range(20)], range(260), *[(seed,) for seed in range(20)]):
        sample(engine, *seeds)
    assert until(lambda: len(os.listdir("/proc/self/fd")) < before + 10)
    path = Path(engine._client.url.removeprefix("unix:"))
    assert path.is_socket() and path.parent.stat().st_mode & 0o077 == 0
