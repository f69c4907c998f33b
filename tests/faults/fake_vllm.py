"""Stands in for a vLLM server: the same paths on the same socket, and faults as a file says.

Each request takes the next line of the file FAKE_VLLM_FAULTS, if there is one, and does what it
says: `ok`, a status, `hang`, `die`, or `stale` (other weights); a line may begin with the path that
it is for. `deaf` at the start: SIGTERM is ignored. What is asked goes to FAKE_VLLM_LOG, as JSON.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from aiohttp import web

LOG = Path(os.environ["FAKE_VLLM_LOG"])
FAULTS = Path(os.environ["FAKE_VLLM_FAULTS"])
version = "start"


def note(**what) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


def next_fault(path: str) -> str:
    lines = FAULTS.read_text().splitlines() if FAULTS.exists() else []
    for index, line in enumerate(lines):
        where, _, what = line.rpartition(" ")
        if not where or where == path:
            FAULTS.write_text("\n".join(lines[:index] + lines[index + 1 :]))
            return what
    return "ok"


async def answer(request: web.Request) -> web.Response:
    global version
    path = request.path.strip("/")
    if path == "health":
        return web.Response()
    if path == "server_info":
        cache = {"num_gpu_blocks": 10, "block_size": 16}
        return web.json_response({"vllm_config": {"cache_config": cache}})
    body = await request.json()
    note(path=request.path_qs, body=body)
    match next_fault(path):
        case "die":
            os._exit(1)
        case "hang":
            await asyncio.sleep(3600)
        case "stale":
            version = "older"
        case status if status.isdecimal():
            return web.Response(status=int(status), text="why")
    if path == "update_weight_version":
        version = body["new_version"]
    if path != "inference/v1/generate":
        return web.json_response({"success": True})
    seed = body["sampling_params"]["seed"]
    choice = {
        "token_ids": [seed % 100, 9],
        "logprobs": {"content": [{"logprob": -0.5}] * 2},
        "finish_reason": "stop",
        "weight_versions": [{"version": version}],
    }
    usage = {"prompt_tokens": len(body["token_ids"])}
    return web.json_response({"choices": [choice], "usage": usage})


def main() -> None:
    if "deaf" in (FAULTS.read_text() if FAULTS.exists() else ""):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    note(start=sys.argv[1:], core=core.pid)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, path=sys.argv[sys.argv.index("--uds") + 1], handle_signals=False)


if __name__ == "__main__":
    main()
