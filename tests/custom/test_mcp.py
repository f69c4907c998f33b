"""Tools of a real MCP server process, over its standard streams."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from matchtir.tasks.tool_sources import read_tools
from matchtir.tools.mcp import McpError, server_tools
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import McpServer, ResultStatus
from tests.rollout.chat_fakes import listening
from tests.tools.sandbox_helpers import alive, in_session, until

pytest.importorskip("mcp", reason="the extra mcp is not installed")

COMMAND = (sys.executable, str(Path(__file__).with_name("mcp_server.py")))


@pytest.fixture(scope="module")
def sandbox():
    pool = ProcessPoolSandbox(workers=2, timeout_s=5.0, max_output_chars=300)
    yield pool
    pool.shutdown()


def tools_of(sandbox, *arguments, shared=False):
    server = McpServer((*COMMAND, *arguments), shared=shared)
    return server_tools(server)


@pytest.fixture(scope="module")
def tools(sandbox):
    return tools_of(sandbox)


def results_of(*session):
    return in_session(*session)[0]


def test_a_servers_tools_are_listed_and_called_in_order_from_a_fresh_process(sandbox, tools):
    assert [tool.name for tool in tools] == ["increase", "echo", "fail", "sleep", "leave"]
    assert tools[0].description == "Adds to the counter and says where it stands."
    assert tools[1].parameters["required"] == ["text"]
    for _ in range(2):
        results = results_of(
            sandbox, tools, ("increase", {"by": 2}), ("increase", {}), ("echo", {"text": "hé"})
        )
        assert [result.output for result in results] == ["2", "3", "hé"]


def test_a_shared_server_is_one_process_for_all_episodes(sandbox):
    tools = tools_of(sandbox, "--shared", shared=True)
    seen = {results_of(sandbox, tools, ("increase", {}))[0].output for _ in range(3)}
    assert seen == {"1", "2", "3"}


def test_what_goes_wrong_in_a_server_is_told(sandbox, tools):
    wrong, failed, long = results_of(
        sandbox,
        tools,
        ("increase", {"by": "many"}),
        ("fail", {}),
        ("echo", {"text": "x" * 400}),
    )
    assert wrong.status is ResultStatus.EXCEPTION
    assert "valid integer" in wrong.output
    assert failed.status is ResultStatus.EXCEPTION
    assert long.status is ResultStatus.TRUNCATED
    assert long.output.endswith("[cut here: 300 of 400 characters]")


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (("sleep", {"seconds": 60}), ResultStatus.TIMEOUT),
        (("leave", {}), ResultStatus.CRASHED),
    ],
)
def test_a_call_that_ends_its_server_ends_it_for_the_rest_of_the_episode(
    make_sandbox, tools, call, status
):
    pool = make_sandbox(timeout_s=1.0)
    ended, later = results_of(pool, tools, call, ("increase", {}))
    assert ended.status is status
    assert later.status in (ResultStatus.CRASHED, ResultStatus.TIMEOUT)
    assert results_of(pool, tools, ("increase", {}))[0].output == "1"


def test_a_call_does_not_pay_for_those_before_it(make_sandbox, tools):
    calls = [("sleep", {"seconds": 1.2})] * 2
    results = results_of(make_sandbox(timeout_s=2.0), tools, *calls)
    assert [result.status for result in results] == [ResultStatus.OK] * 2


def test_a_server_that_does_not_start_says_why(sandbox):
    with pytest.raises(McpError, match="--broken does not start: .*\nno licence key"):
        tools_of(sandbox, "--broken")


def test_a_program_that_is_not_there_is_named(sandbox):
    with pytest.raises(McpError, match="no-such-program does not start"):
        server_tools(McpServer(("no-such-program",)))


def test_a_server_that_does_not_hear_of_its_end_is_killed(monkeypatch):
    ended = []
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *given: ended.append(given) or kill(*given))
    assert server_tools(McpServer((*COMMAND, "--deaf")))
    assert [number for _, number in ended] == [signal.SIGKILL]
    assert not alive(ended[0][0])


@pytest.fixture
def url():
    """Of a server over HTTP, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def listens():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    assert until(listens, 60)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_servers_over_http_answer_and_fail_as_others_do(make_sandbox, url, monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", "key")
    tools = read_tools({"url": url, "token": "SERVICE_KEY"})
    assert [tool.name for tool in tools] == ["increase", "echo", "fail", "sleep", "leave"]
    pool = make_sandbox(timeout_s=30.0, max_output_chars=300)
    said, long, failed, wrong = results_of(
        pool,
        tools,
        ("echo", {"text": "hé"}),
        ("echo", {"text": "x" * 400}),
        ("fail", {}),
        ("increase", {"by": "many"}),
    )
    assert said.output == "hé" and long.status is ResultStatus.TRUNCATED
    assert failed.status is wrong.status is ResultStatus.EXCEPTION
    slow = read_tools({"url": url, "timeout_s": 1.0})
    late, later = results_of(pool, slow, ("sleep", {"seconds": 60}), ("increase", {}))
    assert late.status is ResultStatus.TIMEOUT
    assert later.status in (ResultStatus.CRASHED, ResultStatus.TIMEOUT)


def test_a_server_over_http_gets_its_token(monkeypatch):
    heard = []

    async def refuse(request):
        heard.append(request.headers["Authorization"])
        return web.Response(status=401)

    monkeypatch.setenv("SERVICE_KEY", "key")
    with listening(mcp=refuse) as base, pytest.raises(McpError, match="does not start"):
        server_tools(McpServer(url=f"{base}/mcp", token="SERVICE_KEY"))
    assert set(heard) == {"Bearer key"}


def test_a_server_over_http_that_is_lost_or_never_there_is_named(make_sandbox, url):
    tools = read_tools({"url": url})
    pool = make_sandbox(timeout_s=20.0)
    (lost,) = results_of(pool, tools, ("leave", {}))
    assert lost.status is ResultStatus.CRASHED
    (gone,) = results_of(pool, tools, ("increase", {}))
    assert gone.status is ResultStatus.BROKEN_TOOL and url in gone.output
    with pytest.raises(McpError, match="does not start: .*connect"):
        server_tools(McpServer(url=url))
