"""Requests to servers of models: pooled, made again where the network or the server fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

log = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({408, 409, 425, 429})  # and what is the server's own fault, from 500 on
_LONGEST_WAIT_S = 30.0
_IDLE_S = 2.0  # less than servers keep a connection open: none is used that is just being closed


class EndpointError(RuntimeError):
    """The server refused a request, or could not be reached; the message says what it said.

    `said` is its answer where it refused, else empty.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


@dataclass(slots=True)
class _Pool:
    session: aiohttp.ClientSession
    users: int = 0


class HttpClient:
    """Sends JSON and reads JSON, one request at a time or many at once.

    Args:
        url: paths are appended to it.
        timeout_s: of one request.
        retries: after failures of the network or an overloaded server, with growing pauses, or
            with those that the server asks for.
        api_key: sent as a bearer token; None: none is.
        requests_per_minute: requests are begun evenly at this pace, at most; None: at once.

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
    ) -> None:
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be positive, not {requests_per_minute}")
        self.url = url
        self.api_key = api_key
        self.timeout = aiohttp.ClientTimeout(total=timeout_s)
        self.retries = retries
        self.pause_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0  # of a request, in monotonic time
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self.counts: Counter[str] = Counter()

    async def request(self, method: str, path: str, body: Any = None, empty: bool = False) -> Any:
        """The answer, read from JSON; None where it is `empty` and may be.

        Raises:
            EndpointError: a refusal, or no answer in the end.
        """
        for attempt in range(self.retries + 1):
            await self._wait_for_start()
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
            log.warning("%s%s: %s: %s", self.url, path, status or "no answer", text[:200])
            if attempt < self.retries:
                self.counts["retries"] += 1
                pause = float(asked_for) if asked_for.isdecimal() else 2.0**attempt
                await asyncio.sleep(min(pause, _LONGEST_WAIT_S))
        raise EndpointError(f"{self.url}{path} failed {self.retries + 1} times; last: {text[:500]}")

    async def _wait_for_start(self) -> None:
        """Wait until the pace allows another request."""
        start = max(self._next_start, time.monotonic())
        self._next_start = start + self.pause_s
        await asyncio.sleep(start - time.monotonic())

    async def _once(self, method: str, path: str, body: Any) -> tuple[int, str, str]:
        """Status and text of the answer, and its Retry-After; status 0 where there is none."""
        try:
            async with (
                self._connections() as session,
                session.request(method, self.url + path, json=body) as response,
            ):
                wait = response.headers.get("Retry-After", "")
                return response.status, await response.text(), wait
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, f"{type(error).__name__} {error}", ""

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The connections of this event loop, which are kept while any request is under way."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S)
            self._pools[loop] = _Pool(
                aiohttp.ClientSession(connector=connector, timeout=self.timeout, headers=headers)
            )
        pool = self._pools[loop]
        pool.users += 1
        try:
            yield pool.session
        finally:
            pool.users -= 1
            if not pool.users:
                del self._pools[loop]
                await pool.session.close()
