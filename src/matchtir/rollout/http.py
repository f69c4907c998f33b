"""Requests to servers of models: pooled, made again where the network or the server fails."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import weakref
from collections import Counter
from functools import cache
from typing import Any

import aiohttp

from matchtir.utils.loop_thread import LoopThread
from matchtir.utils.options import UserError

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256  # of one client
_TRY_AGAIN = frozenset({408, 409, 425, 429})  # and what is the server's own fault, from 500 on
_LONGEST_WAIT_S = 30.0
_IDLE_S = 2.0  # less than servers keep a connection open: none is used that is just being closed


class EndpointError(UserError):
    """The server refused a request, or could not be reached; the message says what it said.

    `said` is its answer where it refused; None where there was none, or only trouble of its own.
    """

    def __init__(self, message: str, said: str | None = None) -> None:
        super().__init__(message)
        self.said = said


@cache
def _connections() -> LoopThread:
    """Where all clients have their connections, which one event loop of several cannot share."""
    return LoopThread("http-client")


class HttpClient:
    """Sends JSON and reads JSON, from any event loop, one request at a time or many at once.

    Args:
        url: paths are appended to it; `unix:` and the path of a socket for a server behind one.
        timeout_s: of one request, from when it has one of the places; the queue does not count.
        retries: after failures of the network or an overloaded server, with growing pauses, or
            with those that the server asks for.
        api_key: sent as a bearer token; None: none is.
        requests_per_minute: requests are begun evenly at this pace, at most; None: at once.
        at_once: places: requests under way at the same time, at most as many connections.

    `counts` holds how many requests were made, and made again.

    Raises:
        ValueError: a pace of 0 or less.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        retries: int,
        api_key: str | None = None,
        requests_per_minute: float | None = None,
        at_once: int = MOST_CONNECTIONS,
    ) -> None:
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be positive, not {requests_per_minute}")
        self.url = url
        self._base = "http://localhost" if url.startswith("unix:") else url
        self.api_key = api_key
        self.timeout_s = timeout_s
        self.retries = retries
        self.pause_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0  # of a request, in monotonic time
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(min(at_once, MOST_CONNECTIONS))
        self.counts: Counter[str] = Counter()

    async def request(self, method: str, path: str, body: Any = None, empty: bool = False) -> Any:
        """The answer, read from JSON; None where it is `empty` and may be.

        Raises:
            EndpointError: a refusal, or no answer in the end.
        """
        return await _connections().run(self._request(method, path, body, empty))

    def ask(self, method: str, path: str, body: Any = None, empty: bool = False) -> Any:
        """`request`, and wait for the answer, whether an event loop runs here or not."""
        return _connections().submit(self._request(method, path, body, empty)).result()

    async def _request(self, method: str, path: str, body: Any, empty: bool) -> Any:
        for attempt in range(self.retries + 1):
            start = max(self._next_start, time.monotonic())
            self._next_start = start + self.pause_s
            await asyncio.sleep(start - time.monotonic())
            self.counts["requests"] += 1
            status, text, asked_for = await self._once(method, path, body)
            if status == 200:
                if empty and not text:
                    return None
                try:
                    return json.loads(text)
                except json.JSONDecodeError:
                    text = f"no JSON: {text}"
            elif 0 < status < 500 and status not in _TRY_AGAIN:
                message = f"{method} {self.url}{path}: status {status}: {text[:1000]}"
                raise EndpointError(message, said=text)
            if attempt < self.retries:
                log.warning("%s%s: %s: %s", self.url, path, status or "no answer", text[:200])
                self.counts["retries"] += 1
                pause = float(asked_for) if asked_for.isdecimal() else 2.0**attempt
                await asyncio.sleep(min(pause, _LONGEST_WAIT_S))
        raise EndpointError(f"{self.url}{path} failed {self.retries + 1} times; last: {text[:500]}")

    async def _once(self, method: str, path: str, body: Any) -> tuple[int, str, str]:
        """Status, text and wished-for pause of the answer; status 0 where there is none."""
        try:
            async with (
                self._places,
                asyncio.timeout(self.timeout_s),
                self._opened().request(method, self._base + path, json=body) as response,
            ):
                wait = response.headers.get("Retry-After", "")
                return response.status, await response.text(), wait
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, f"{type(error).__name__} {error}", ""

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            options: dict[str, Any] = {"limit": MOST_CONNECTIONS, "keepalive_timeout": _IDLE_S}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(**options)
                if self._base == self.url
                else aiohttp.UnixConnector(self.url.removeprefix("unix:"), **options),
                timeout=aiohttp.ClientTimeout(),  # `timeout_s` begins with the connection
                headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            )
            weakref.finalize(self, _close, self._session)
        return self._session


def _close(session: aiohttp.ClientSession) -> None:
    """Give up the connections, at the end of the program at the latest."""
    closing = _connections().submit(session.close())
    if threading.current_thread() is not _connections().thread:
        closing.result(timeout=5)
