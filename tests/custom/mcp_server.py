"""A small MCP server, on standard streams or a port: a counter, and calls that go wrong."""

import os
import signal
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


if "--port" in sys.argv:
    server.run("streamable-http", port=int(sys.argv[sys.argv.index("--port") + 1]))
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server.run("stdio")
time.sleep(60 * ("--deaf" in sys.argv))
