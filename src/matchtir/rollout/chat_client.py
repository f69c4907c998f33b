"""Requests to an OpenAI-compatible server, made again where the network or the server fails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from typing import Any

import aiohttp

log = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
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
        retries: after failures of the network or an overloaded server, with growing pauses.

    `counts` holds how many requests were made, and made again.
    """

    def __init__(self, url: str, api_key_variable: str, timeout_s: float, retries: int) -> None:
        self.url = api_url(url)
        self.api_key = os.environ.get(api_key_variable)
        self.timeout = aiohttp.ClientTimeout(total=timeout_s)
        self.retries = retries
        self.counts: Counter[str] = Counter()

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer, read from JSON.

        Raises:
            BeyondContextError: the conversation is too long.
            EndpointError: any other refusal, or no answer in the end.
        """
        for attempt in range(self.retries + 1):
            self.counts["requests"] += 1
            status, text = await self._once(method, path, body)
            if status == 200:
                return json.loads(text)
            if status and status not in _TRY_AGAIN:
                beyond = any(phrase in text.lower() for phrase in _BEYOND_CONTEXT)
                kind = BeyondContextError if beyond else EndpointError
                raise kind(f"{method} {self.url}{path}: status {status}: {text[:1000]}")
            log.warning("%s%s: %s: %s", self.url, path, status or "no answer", text[:200])
            if attempt < self.retries:
                self.counts["retries"] += 1
                await asyncio.sleep(min(2.0**attempt, _LONGEST_WAIT_S))
        raise EndpointError(f"{self.url}{path} failed {self.retries + 1} times; last: {text[:500]}")

    async def _once(self, method: str, path: str, body: Any) -> tuple[int, str]:
        """Status and text of the answer; status 0 where there is none."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=self.timeout, headers=headers) as session,
                session.request(method, self.url + path, json=body) as response,
            ):
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, f"{type(error).__name__} {error}"


def api_url(url: str) -> str:
    """The URL that the paths of the protocol are appended to."""
    url = url.rstrip("/")
    return url if "/" in url.partition("://")[2] else f"{url}/v1"
