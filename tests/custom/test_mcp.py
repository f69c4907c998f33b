"""Tools of a real MCP server process, over its standard streams."""

import sys
from pathlib import Path

import pytest

from matchtir.tools.mcp import McpError, server_tools
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import McpServer, ResultStatus
from tests.tools.sandbox_helpers import in_session

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
