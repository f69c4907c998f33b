"""A small MCP server on standard streams: a counter with state, and calls that go wrong."""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer

if "--broken" in sys.argv:
    sys.exit("no licence key")

server = MCPServer("counter")
count = 0


@server.tool()
def increase(by: int = 1) -> str:
    """Adds to the counter and says where it stands."""
    global count
    count += by
    return str(count)


@server.tool()
def echo(text: str) -> str:
    """Says a text again."""
    return text


@server.tool()
def fail() -> str:
    """Always raises."""
    raise ValueError("nothing works")


@server.tool()
def sleep(seconds: float) -> str:
    """Takes its time."""
    time.sleep(seconds)
    return "awake"


@server.tool()
def leave() -> str:
    """Ends the server."""
    os._exit(3)


server.run("stdio")
