"""A server on loopback whose answers are a test's own."""

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
