"""A small MCP server: a counter, and calls that go wrong.

On standard streams it speaks the protocol by itself, on a port (`--port`) by the SDK, which takes
seconds to import.
"""

import json
import os
import signal
import sys
import time

if "--broken" in sys.argv:
    sys.exit("no licence key")
count = 0


def increase(by: int = 1) -> str:
    """Adds to the counter and says where it stands."""
    global count
    count += by
    return str(count)


def echo(text: str) -> str:
    """Says a text again."""
    return text


def fail() -> str:
    """Always raises."""
    raise ValueError("nothing works")


def sleep(seconds: float) -> str:
    """Takes its time."""
    time.sleep(seconds)
    return "awake"


def leave() -> str:
    """Ends the server."""
    os._exit(3)


def passwd() -> str:
    """Reads what is nobody's business."""
    return open("/etc/passwd").read()


def variables() -> str:
    """Names the variables of its environment."""
    return " ".join(sorted(os.environ))


TOOLS = {each.__name__: each for each in (increase, echo, fail, sleep, leave, passwd, variables)}
ODD = {  # answers of other servers
    "structured": {"result": {"content": [], "structuredContent": {"price": 3}}},
    "refused": {"error": {"code": -32000, "message": "quota exceeded"}},
    "malformed": {"result": {"content": 7}},
}


def schema(name):
    """The schema of a tool's arguments."""
    kinds = {int: "integer", str: "string", float: "number"}
    hints = getattr(TOOLS.get(name), "__annotations__", {})
    properties = {key: {"type": kinds[kind]} for key, kind in hints.items() if key != "return"}
    required = [key for key in properties if key != "by"]
    return {"type": "object", "properties": properties, "required": required}


def called(name, arguments):
    """The answer to a call."""
    try:
        text, failed = TOOLS[name](**arguments), False
    except Exception as error:
        text, failed = f"{type(error).__name__}: {error}", True
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def answer(method, params):
    """The answer to a request."""
    if method == "initialize":
        about = {"serverInfo": {"name": "counter", "version": "1"}, "capabilities": {"tools": {}}}
        return {"result": {"protocolVersion": params["protocolVersion"], **about}}
    if method == "tools/list":
        docs = {name: tool.__doc__ for name, tool in TOOLS.items()} | dict.fromkeys(ODD, "Odd.")
        tools = [{"name": n, "description": d, "inputSchema": schema(n)} for n, d in docs.items()]
        return {"result": {"tools": tools}}
    if method == "tools/call":
        name = params["name"]
        return ODD.get(name) or {"result": called(name, params.get("arguments") or {})}
    return {"error": {"code": -32601, "message": "no such method"}}


if "--port" in sys.argv:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("counter")
    for tool in TOOLS.values():
        server.tool()(tool)
    server.run("streamable-http", port=int(sys.argv[sys.argv.index("--port") + 1]))
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        said = answer(request["method"], request.get("params", {}))
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **said}), flush=True)
time.sleep(60 * ("--deaf" in sys.argv))
