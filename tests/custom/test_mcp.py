"""Tools of a real MCP server process, over its standard streams."""

import asyncio
import sys
from pathlib import Path

import pytest

from matchtir.tools.mcp import McpError
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import McpServer, ResultStatus, ToolCall

pytest.importorskip("mcp", reason="the extra mcp is not installed")

COMMAND = (sys.executable, str(Path(__file__).with_name("mcp_server.py")))


@pytest.fixture(scope="module")
def sandbox():
    pool = ProcessPoolSandbox(workers=2, timeout_s=5.0, max_output_chars=300)
    yield pool
    pool.shutdown()


def tools_of(sandbox, *arguments, shared=False):
    server = McpServer((*COMMAND, *arguments), shared)
    return sandbox.mcp.tools(server)


def in_session(sandbox, tools, *calls):
    """Results of calls made at once, in a session of their own."""

    async def run():
        session = await sandbox.open(tools)
        try:
            return await asyncio.gather(
                *[session.call(ToolCall(name, arguments)) for name, arguments in calls]
            )
        finally:
            await session.close()

    return asyncio.run(run())


def test_a_servers_tools_are_listed_and_called_in_order_from_a_fresh_process(sandbox):
    tools = tools_of(sandbox)
    assert [tool.name for tool in tools] == ["increase", "echo", "fail", "sleep", "leave"]
    assert tools[0].description == "Adds to the counter and says where it stands."
    assert tools[1].parameters["required"] == ["text"]
    for _ in range(2):
        results = in_session(
            sandbox, tools, ("increase", {"by": 2}), ("increase", {}), ("echo", {"text": "hé"})
        )
        assert [result.output for result in results] == ["2", "3", "hé"]


def test_a_shared_server_is_one_process_for_all_episodes(sandbox):
    tools = tools_of(sandbox, "--shared", shared=True)
    seen = {in_session(sandbox, tools, ("increase", {}))[0].output for _ in range(3)}
    assert seen == {"1", "2", "3"}


def test_what_goes_wrong_in_a_server_is_told(sandbox):
    wrong, failed, long = in_session(
        sandbox,
        tools_of(sandbox),
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
def test_a_call_that_ends_its_server_ends_it_for_the_rest_of_the_episode(call, status):
    pool = ProcessPoolSandbox(workers=2, timeout_s=1.0)
    try:
        tools = tools_of(pool)
        ended, later = in_session(pool, tools, call, ("increase", {}))
        assert ended.status is status
        assert later.status in (ResultStatus.CRASHED, ResultStatus.TIMEOUT)
        assert in_session(pool, tools, ("increase", {}))[0].output == "1"
    finally:
        pool.shutdown()


def test_a_call_does_not_pay_for_those_before_it():
    pool = ProcessPoolSandbox(workers=2, timeout_s=2.0)
    try:
        tools = tools_of(pool)
        calls = [("sleep", {"seconds": 1.2})] * 2
        assert [r.status for r in in_session(pool, tools, *calls)] == [ResultStatus.OK] * 2
    finally:
        pool.shutdown()


def test_a_server_that_does_not_start_says_why(sandbox):
    with pytest.raises(McpError, match="--broken does not start: .*\nno licence key"):
        tools_of(sandbox, "--broken")


def test_a_program_that_is_not_there_is_named(sandbox):
    with pytest.raises(McpError, match="no-such-program does not start"):
        sandbox.mcp.tools(McpServer(("no-such-program",)))
