"""Environments of others played as tasks: the protocol here, and OpenEnv's own server."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from matchtir.credit.outcome import succeeds
from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.tasks.openenv import OpenEnvTasks
from matchtir.tools.openenv import OpenEnvSandbox
from matchtir.tools.sandbox import replay_calls
from matchtir.types import ToolCall
from matchtir.utils.loop_thread import LoopThread
from tests.credit import builders
from tests.custom.conftest import served
from tests.evaluation.benchmark_helpers import play

# OpenEnv needs an older mcp, so that it may live in another environment than this one.
PYTHON = os.environ.get("OPENENV_PYTHON", sys.executable)
OPEN = []  # sessions of the server of ours
GOLD = [ToolCall("step", {"metres": metres}) for metres in (1, 1, 1)]


async def path_session(request):
    """The environment `path` of openenv_server.py, as far as the protocol goes."""
    stream = web.WebSocketResponse()
    await stream.prepare(request)
    at = 0
    OPEN.append("")
    async for message in stream:
        asked = json.loads(message.data)
        if asked["type"] == "close" or asked["data"] == {"metres": 7}:  # which breaks it
            break
        at = 0 if asked["type"] == "reset" else at + asked["data"].get("metres", 0)
        answer = {"observation": {"at": at, "metadata": {}}, "reward": -0.1, "done": at == 3}
        answer |= {"reward": 1.0} if answer["done"] else {}
        said = {"type": "observation", "data": answer}
        if asked["type"] == "step" and set(asked["data"]) != {"metres"}:
            said = {"type": "error", "data": {"message": "metres: missing"}}
        if asked["data"] == {"metres": 9}:
            await asyncio.sleep(60)
        await stream.send_json(said)
    OPEN.pop()
    await stream.close()
    return stream


async def schema(request):
    properties = {"metres": {"type": "integer"}, "metadata": {"type": "object"}}
    action = {"type": "object", "description": "Walk so far.", "properties": properties}
    return web.json_response({"action": action})


@pytest.fixture(scope="module")
def protocol():
    """The URL of a server of ours that speaks the protocol."""
    application = web.Application()
    application.add_routes([web.get("/ws", path_session), web.get("/schema", schema)])
    runner, thread = web.AppRunner(application, shutdown_timeout=0.1), LoopThread("environment")

    async def start():
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    thread.submit(start()).result()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread.stop(runner.cleanup)


@pytest.fixture
def serve():
    """Serves an environment of openenv_server.py by OpenEnv's own package, if it is there."""
    if subprocess.run([PYTHON, "-c", "import openenv.core"], capture_output=True).returncode:
        pytest.skip("the extra openenv is not installed here, nor named by OPENENV_PYTHON")
    with ExitStack() as running:

        def start(name):
            command = PYTHON, "-m", "uvicorn", f"openenv_server:{name}", "--port", "PORT"
            port = running.enter_context(served(*command, cwd=Path(__file__).parent))
            return f"http://127.0.0.1:{port}"

        yield start


def with_gold(folder, url, calls=GOLD, **options):
    gold = [{"name": call.name, "arguments": call.arguments} for call in calls]
    file = folder / "gold.jsonl"
    file.write_text(json.dumps({"id": "openenv/test/0", "gold_calls": gold}))
    sandbox = OpenEnvSandbox(url, solved=0.75)
    return OpenEnvTasks(sandbox, {"test": 2}, gold=str(file), **options)


def played(task, calls, sandbox):
    """The status of each call, its output, and the state in the end."""
    replay = asyncio.run(replay_calls(task, calls, sandbox))
    outputs = [result.output for result in replay.results]
    return [str(result.status) for result in replay.results], outputs, replay.state


def earned(reward):
    return {"<environment>": {"reward": reward, "solved": reward == 1.0}}


def check_path(url, folder):
    """One environment of actions, whoever serves it."""
    tasks = with_gold(folder, url, instructions="Walk.")
    first, second = tasks.tasks("test")
    assert first.question == 'Walk.\n\n{"at": 0}'
    (tool,) = first.tools
    assert (tool.name, tool.description) == ("step", "Walk so far.")
    assert list(tool.parameters["properties"]) == ["metres"]
    assert [answer.output for answer in first.sub_answers] == [f'{{"at": {n}}}' for n in (1, 2, 3)]
    assert second.metadata["gold_unknown"] and not second.gold_calls

    wrong = ToolCall("step", {"feet": 1})
    statuses, _, state = played(second, [ToolCall("step", {"metres": 3}), GOLD[0]], tasks.sandbox)
    assert (statuses, state) == (["ok", "rejected"], earned(1.0))  # it is over
    statuses, outputs, state = played(second, [wrong, ToolCall("fly", {})], tasks.sandbox)
    assert (statuses, state) == (["bad_arguments", "rejected"], earned(0.0))
    assert "metres" in outputs[0]


def test_an_environment_of_actions(protocol, tmp_path):
    check_path(protocol, tmp_path)
    assert not OPEN  # a session that is over takes no place


def test_the_same_environment_by_openenv(serve, tmp_path):
    check_path(serve("path"), tmp_path)


def test_an_environment_of_named_tools_by_openenv(serve):
    sandbox = OpenEnvSandbox(serve("sums"))
    (task,) = OpenEnvTasks(sandbox, {"test": 1}, question="metadata.question").tasks("test")
    seed = task.initial_state["<environment>"]["seed"]
    assert task.question == f"What is {seed} + 5?"
    assert [tool.name for tool in task.tools] == ["add", "submit"]
    calls = [("add", {"a": seed, "b": 5}), ("add", {"a": "x", "b": 1})]
    calls += [("submit", {"answer": seed + 5}), ("add", {"a": 1, "b": 1})]
    statuses, outputs, state = played(task, [ToolCall(*call) for call in calls], sandbox)
    assert statuses == ["ok", "exception", "ok", "rejected"]
    assert (outputs[0], state) == (str(seed + 5), earned(1.0))


def test_the_gold_solution_is_a_success_and_earns_what_the_environment_gives(protocol, tmp_path):
    tasks = with_gold(tmp_path, protocol)
    benchmark = TaskBenchmark("path", tasks, {}, max_tasks=1)
    (record,) = play(benchmark, "gold", tasks.sandbox, tmp_path).records
    assert record["values"]["success"] == record["values"]["solve_f1"] == 1.0
    assert record["values"]["reward"] == pytest.approx(4.0)  # matched calls, and the success

    state = {"<environment>": {"reward": 0.8, "solved": True}}
    attempt = builders.attempt(tasks.tasks("test")[0], builders.turn(text="done"))
    attempt = replace(attempt, final_state=state)
    paid = {"rewards": "outcome", "outcome": "environment"}
    assert builders.score(attempt, **paid).total == 0.8
    assert not succeeds(attempt)  # it does not say that it is done
    with pytest.raises(ValueError, match="outcome=environment: task has no environment"):
        builders.score(builders.attempt(builders.task(), builders.turn(text="done")), **paid)


def test_what_cannot_be_played_is_said(protocol, tmp_path):
    lost = OpenEnvTasks(OpenEnvSandbox("http://127.0.0.1:1"), {"test": 1})
    with pytest.raises(ValueError, match="no OpenEnv server answers"):
        lost.tasks("test")
    with pytest.raises(ValueError, match=r"no answer to a reset within 0\.5 seconds"):
        slow = OpenEnvSandbox(protocol, timeout_s=0.5)
        asyncio.run(slow.open((), {"<environment>": {"metres": 9}}))
    with pytest.raises(ValueError, match="need sandbox=openenv"):
        OpenEnvTasks(object(), {"test": 1})
    with pytest.raises(ValueError, match=r"question=metadata\.text: the observation is"):
        with_gold(tmp_path, protocol, question="metadata.text").tasks("test")
    with pytest.raises(ValueError, match=r"gold_calls\[3\]: step fails: Error: .* is over"):
        with_gold(tmp_path, protocol, [*GOLD, GOLD[0]]).tasks("test")


@pytest.mark.parametrize(("metres", "status"), [(9, "timeout"), (7, "crashed")])
def test_a_step_that_takes_too_long_or_loses_the_session_ends_the_episode(protocol, metres, status):
    sandbox = OpenEnvSandbox(protocol)
    (task,) = OpenEnvTasks(sandbox, {"test": 1}).tasks("test")
    sandbox.timeout_s = 0.5
    statuses, *_ = played(task, [ToolCall("step", {"metres": metres}), GOLD[0]], sandbox)
    assert statuses == [status, "rejected"]
