"""Part A: what a tool source may ask for, and MCP servers under the same rules."""

import socket
import sys
import textwrap
from pathlib import Path

import pytest

from matchtir.tasks.tool_sources import read_tools
from matchtir.tools import mcp
from matchtir.tools.worker_process import isolated_command
from matchtir.types import ResultStatus
from tests.faults.helpers import fault, linux, need_isolation
from tests.tools.sandbox_helpers import in_session

UNSET = "KEY_THAT_IS_NOT_SET"
SERVER = [sys.executable, str(Path(__file__).parents[1] / "custom" / "mcp_server.py")]
TOOLS = '''
    """Tools that need something."""

    import os
    import socket

    def connect(port: int) -> str:
        """Connects.

        Args:
            port: the port
        """
        socket.create_connection(("127.0.0.1", port), 5).close()
        return "connected"

    def variables() -> list:
        """Names of variables."""
        return sorted(os.environ)

    def neighbour() -> str:
        """A file beside this one."""
        return open(os.path.join(os.path.dirname(__file__), "table.txt")).read()
'''


@pytest.fixture
def module(tmp_path):
    """A file of tools, and one beside it."""
    (tmp_path / "table.txt").write_text("values")
    path = tmp_path / "needy.py"
    path.write_text(textwrap.dedent(TOOLS))
    return path


@linux
@fault("A granted", "network: true and a variable, asked for by the source", "that, and no more")
def test_a_source_gets_what_it_asks_for_and_no_more(sandbox, module, monkeypatch):
    need_isolation(sandbox)
    monkeypatch.setenv("KEY_OF_SERVICE", "key")
    monkeypatch.setenv("KEY_OF_ANOTHER", "key")
    granted = {"module": str(module), "network": True, "environment": ["KEY_OF_SERVICE"]}
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = ("connect", {"port": server.getsockname()[1]}), ("variables", {}), ("neighbour", {})
        without, _ = in_session(sandbox, read_tools(str(module)), *calls)
        connected, variables, neighbour = in_session(sandbox, read_tools(granted), *calls)[0]
    assert without[0].status is ResultStatus.EXCEPTION
    assert "KEY" not in without[1].output
    assert connected.output == "connected"
    assert "KEY_OF_SERVICE" in variables.output and "ANOTHER" not in variables.output
    assert without[2].output == neighbour.output == "values"


def test_a_variable_that_is_not_set_is_named(sandbox, module):
    tools = read_tools({"module": str(module), "environment": [UNSET]})
    with pytest.raises(ValueError, match=f"{UNSET}, which is not set"):
        in_session(sandbox, tools, ("variables", {}))


@linux
@fault("A MCP server", "an MCP server reads /etc/passwd", "denied, unless it is trusted")
def test_servers_are_under_the_same_rules_unless_trusted(make_sandbox, monkeypatch):
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    pool = make_sandbox(workers=1)
    need_isolation(pool)
    monkeypatch.setenv("KEY_OF_SERVICE", "a secret")
    commands = []  # which anybody may read
    monkeypatch.setattr(
        mcp,
        "isolated_command",
        lambda *name, **arguments: (
            commands.extend(made := isolated_command(*name, **arguments)) or made
        ),
    )
    source, found = {"command": SERVER, "environment": ["KEY_OF_SERVICE"]}, {}
    for trusted in (False, True):
        tools = read_tools({**source, "trusted": trusted})
        found[trusted], _ = in_session(pool, tools, ("passwd", {}), ("variables", {}))
        assert "KEY_OF_SERVICE" in found[trusted][1].output
    assert found[False][0].status is ResultStatus.EXCEPTION
    assert found[True][0].output == Path("/etc/passwd").read_text()
    assert commands and "a secret" not in " ".join(commands)
    for source in (
        {"command": SERVER, "environment": [UNSET]},
        {"url": "http://x", "token": UNSET},
    ):
        with pytest.raises(mcp.McpError, match=f"{UNSET}, which is not set"):
            read_tools(source)


@fault("F MCP replies", "a server answers malformed, with -32000, or structured alone", "typed")
def test_any_answer_of_a_server_is_a_result_of_its_call(make_sandbox):
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    calls = [(name, {}) for name in ("malformed", "refused", "structured")]
    tools = read_tools({"command": SERVER})
    (malformed, refused, structured), _ = in_session(make_sandbox(workers=1), tools, *calls)
    assert malformed.status is ResultStatus.EXCEPTION
    assert refused.output == "Error: refused raised quota exceeded"
    assert structured.output == '{"price": 3}'
