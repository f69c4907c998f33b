"""Tools of a real MCP server process, over its standard streams or HTTP."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from matchtir.tasks.tool_sources import read_tools
from matchtir.tools.mcp import McpError, server_tools
from matchtir.types import McpServer, ResultStatus
from tests.custom.conftest import served
from tests.rollout.chat_fakes import listening
from tests.tools.sandbox_helpers import alive, in_session

pytest.importorskip("mcp", reason="the extra mcp is not installed")

COMMAND = (sys.executable, str(Path(__file__).with_name("mcp_server.py")))
OK, TIMEOUT = ResultStatus.OK, ResultStatus.TIMEOUT
CRASHED, EXCEPTION = ResultStatus.CRASHED, ResultStatus.EXCEPTION
INCREASE = ("increase", {})


@pytest.fixture(scope="module")
def tools():
    return server_tools(McpServer(COMMAND))


@pytest.fixture
def results(make_sandbox, tools):
    """The results of calls of one session."""
    pool = make_sandbox(timeout_s=5.0, max_output_chars=300)
    return lambda *calls, tools=tools, pool=pool: in_session(pool, tools, *calls)[0]


def test_a_servers_tools_are_listed_and_called_in_order_from_a_fresh_process(results, tools):
    assert [tool.name for tool in tools[:3]] == ["increase", "echo", "fail"]
    assert tools[0].description == "Adds to the counter and says where it stands."
    assert tools[1].parameters["required"] == ["text"]
    for _ in range(2):
        found = results(("increase", {"by": 2}), INCREASE, ("echo", {"text": "hé"}))
        assert [result.output for result in found] == ["2", "3", "hé"]


def test_a_shared_server_is_one_process_for_all_episodes(results):
    tools = server_tools(McpServer((*COMMAND, "--shared"), shared=True))
    assert {results(INCREASE, tools=tools)[0].output for _ in range(3)} == {"1", "2", "3"}


def test_what_goes_wrong_in_a_server_is_told(results):
    failed, long = results(("fail", {}), ("echo", {"text": "x" * 400}))
    assert failed.status is EXCEPTION
    assert failed.output == "Error: fail raised ValueError: nothing works"
    assert long.status is ResultStatus.TRUNCATED
    assert long.output.endswith("[cut here: 300 of 400 characters]")


@pytest.mark.parametrize(
    ("call", "status"), [(("sleep", {"seconds": 60}), TIMEOUT), (("leave", {}), CRASHED)]
)
def test_a_call_that_ends_its_server_ends_it_for_the_rest_of_the_episode(
    make_sandbox, results, call, status
):
    pool = make_sandbox(timeout_s=1.0)
    ended, later = results(call, INCREASE, pool=pool)
    assert ended.status is status
    assert later.status in (CRASHED, TIMEOUT)
    assert results(INCREASE, pool=pool)[0].output == "1"


def test_a_call_does_not_pay_for_those_before_it(make_sandbox, results):
    found = results(*[("sleep", {"seconds": 0.6})] * 2, pool=make_sandbox(timeout_s=1.0))
    assert [result.status for result in found] == [OK] * 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((*COMMAND, "--broken"), "--broken does not start: .*\nno licence key"),
        (("no-such-program",), "no-such-program does not start"),
    ],
)
def test_a_server_that_does_not_start_says_why(command, words):
    with pytest.raises(McpError, match=words):
        server_tools(McpServer(command))


def test_a_server_that_does_not_hear_of_its_end_is_killed(monkeypatch):
    ended = []
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *given: ended.append(given) or kill(*given))
    assert server_tools(McpServer((*COMMAND, "--deaf")))
    assert [number for _, number in ended] == [signal.SIGKILL]
    assert not alive(ended[0][0])


# -- over HTTP -------------------------------------------------------------------------------------


def test_servers_over_http_answer_and_fail_as_others_do(make_sandbox, results, monkeypatch):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    monkeypatch.setenv("SERVICE_KEY", "key")
    pool = make_sandbox(timeout_s=30.0, max_output_chars=300)
    with served(*COMMAND, "--port", "PORT", **quiet) as port:
        url = f"http://127.0.0.1:{port}/mcp"
        tools = read_tools({"url": url, "token": "SERVICE_KEY"})
        slow = read_tools({"url": url, "timeout_s": 1.0})
        assert [tool.name for tool in tools[:3]] == ["increase", "echo", "fail"]
        calls = [("echo", {"text": text}) for text in ("hé", "x" * 400)]
        calls += [("fail", {}), ("increase", {"by": "many"})]
        said, long, failed, wrong = results(*calls, tools=tools, pool=pool)
        assert said.output == "hé" and long.status is ResultStatus.TRUNCATED
        assert failed.status is wrong.status is EXCEPTION and "valid integer" in wrong.output
        late, later = results(("sleep", {"seconds": 3}), INCREASE, tools=slow, pool=pool)
        assert late.status is TIMEOUT and later.status in (CRASHED, TIMEOUT)
        (lost,) = results(("leave", {}), tools=tools, pool=pool)
        (gone,) = results(INCREASE, tools=tools, pool=pool)
        assert lost.status is CRASHED
        assert gone.status is ResultStatus.BROKEN_TOOL and url in gone.output
        with pytest.raises(McpError, match="does not start: .*connect"):
            server_tools(McpServer(url=url))


def test_a_server_over_http_gets_its_token(monkeypatch):
    heard = []

    async def refuse(request):
        heard.append(request.headers["Authorization"])
        return web.Response(status=401)

    monkeypatch.setenv("SERVICE_KEY", "key")
    with listening(mcp=refuse) as base, pytest.raises(McpError, match="does not start"):
        server_tools(McpServer(url=f"{base}/mcp", token="SERVICE_KEY"))
    assert set(heard) == {"Bearer key"}
