"""Requests to an OpenAI-compatible server, made again where the network or the server fails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from typing import Any

import aiohttp

log = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({408, 409, 425, 429})  # and what is the server's own fault, from 500 on
_LONGEST_WAIT_S = 30.0
# OpenAI's error code, and what vLLM and llama.cpp write in its place.
_BEYOND_CONTEXT = ("context_length", "context length", "context size")


class EndpointError(RuntimeError):
    """The server refused a request, or could not be reached; the message says what it said."""


class BeyondContextError(EndpointError):
    """A conversation has no place in the model's context."""


class ChatClient:
    """Sends one request at a time or many at once; a connection for each.

    Args:
        url: of the API, as http://localhost:8000/v1; without a path, /v1 is added.
        api_key_variable: environment variable with the key; no key is sent where it is not set.
        timeout_s: of one request.
        retries: after failures of the network or an overloaded server, with growing pauses, or
            with those that the server asks for.
        requests_per_minute: requests are begun evenly at this pace, at most; None: at once.

    `counts` holds how many requests were made, and made again.

    Raises:
        ValueError: a pace of 0 or less.
    """

    def __init__(
        self,
        url: str,
        api_key_variable: str,
        timeout_s: float,
        retries: int,
        requests_per_minute: float | None = None,
    ) -> None:
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be positive, not {requests_per_minute}")
        self.url = api_url(url)
        self.api_key = os.environ.get(api_key_variable)
        self.timeout = aiohttp.ClientTimeout(total=timeout_s)
        self.retries = retries
        self.pause_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0  # of a request, in monotonic time
        self.counts: Counter[str] = Counter()

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer, read from JSON.

        Raises:
            BeyondContextError: the conversation is too long.
            EndpointError: any other refusal, or no answer in the end.
        """
        for attempt in range(self.retries + 1):
            await self._wait_for_start()
            self.counts["requests"] += 1
            status, text, asked_for = await self._once(method, path, body)
            if status == 200:
                try:
                    return json.loads(text)
                except json.JSONDecodeError:
                    text = f"no JSON: {text}"
            elif 0 < status < 500 and status not in _TRY_AGAIN:
                beyond = any(phrase in text.lower() for phrase in _BEYOND_CONTEXT)
                kind = BeyondContextError if beyond else EndpointError
                raise kind(f"{method} {self.url}{path}: status {status}: {text[:1000]}")
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
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=self.timeout, headers=headers) as session,
                session.request(method, self.url + path, json=body) as response,
            ):
                wait = response.headers.get("Retry-After", "")
                return response.status, await response.text(), wait
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, f"{type(error).__name__} {error}", ""


def api_url(url: str) -> str:
    """The URL that the paths of the protocol are appended to."""
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"
