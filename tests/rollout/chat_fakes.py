"""Servers on loopback whose answers are a test's own."""

from contextlib import contextmanager

from aiohttp import web

from matchtir.utils.loop_thread import LoopThread


async def models(request):
    return web.json_response({"data": [{"id": "some-model"}]})


@contextmanager
def listening(complete=None, **posts):
    """The URL of a server whose requests are answered by coroutine functions.

    `complete` answers those of the chat-completions protocol, `posts` those to other paths.
    """

    async def start():
        app = web.Application()
        app.router.add_get("/v1/models", models)
        for path, answer in ({"v1/chat/completions": complete} if complete else posts).items():
            app.router.add_post(f"/{path}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    thread = LoopThread("server")
    runner = thread.submit(start()).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        thread.stop(runner.cleanup)


@contextmanager
def answering(*answers):
    """The URL of a server that gives these answers in turn, and the requests that it got."""
    waiting, requests = list(answers), []

    async def complete(request):
        requests.append({**await request.json(), "headers": dict(request.headers)})
        status, body = waiting.pop(0)
        return web.json_response(body, status=status)

    with listening(complete) as url:
        yield url, requests


def says(content, *calls, reason=None, **more):
    message = {"role": "assistant", "content": content, **more}
    if calls:
        functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
        message["tool_calls"] = [
            {"id": f"id{index}", "type": "function", "function": function}
            for index, function in enumerate(functions)
        ]
    reason = reason or ("tool_calls" if calls else "stop")
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
