"""An event loop that no other one waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, where servers and connections outlive other loops.

    The thread starts with the first coroutine.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._starting = threading.Lock()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there."""
        with self._starting:
            if self.thread.ident is None:
                self.thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and wait for it in this loop."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """End the loop, after a last coroutine; nothing can be submitted afterwards.

        Waits for the end, except in the thread itself, where a finalizer may come to run.
        """
        if self.thread.ident is None:
            self.loop.close()
            return
        inside = threading.current_thread() is self.thread
        if last is not None:
            ended = self.submit(last())
            if inside:
                ended.add_done_callback(lambda _: self.loop.stop())
                return
            ended.result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        if not inside:
            self.thread.join()
            self.loop.close()
