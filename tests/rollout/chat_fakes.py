"""A server on loopback whose answers are a test's own."""

import asyncio
import threading
from contextlib import contextmanager

from aiohttp import web


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

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
