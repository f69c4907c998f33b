"""vLLM as a server: started here, or somewhere else and shared by all processes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from torch import nn

from matchtir.policy.weights import full_weights, save_full_weights
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.vllm_process import VllmProcess
from matchtir.rollout.vllm_request import (
    cache_salt,
    check_settings,
    engine_settings,
    fitted,
    request_settings,
)
from matchtir.utils.processes import rank, wait_for_all


class VllmServerEngine:
    """Samples with a vLLM server over HTTP, token ids in and out.

    The weights go over as one file in a folder that both sides see: in memory (/dev/shm) where the
    server runs here. They carry a version, and an answer that other weights had a part in is an
    error. One process of a distributed run updates a shared server; the others wait.

    Args:
        stop_token_ids: tokens that end a turn; part of the generation.
        max_model_len: tokens of a whole conversation, at most.
        settings: further engine arguments of the server that is started.
        kv_cache_gib: size of its KV cache on a CPU.
        url: of a server that runs already; it has been started with the settings that
            docs/rollouts.md names. None: one is started at the first `sync`.
        weights_folder: where weights are handed over; None: a new folder in memory.
        timeout_s: for the start, and for each request.

    Raises:
        ValueError: settings that are not free, or that a server with a `url` would not hear of.
    """

    own_weights = True

    def __init__(
        self,
        stop_token_ids: Sequence[int],
        max_model_len: int,
        settings: Mapping[str, Any] | None = None,
        kv_cache_gib: int = 1,
        url: str | None = None,
        weights_folder: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._settings = {"max_model_len": max_model_len, **(settings or {})}
        check_settings(self._settings)
        if url and settings:
            raise ValueError("the server at url has settings of its own: set none here")
        self.version = -1
        self.prefill_count = 0  # tokens of context read, for measurements
        self._stop = tuple(stop_token_ids)
        self._max_model_len = max_model_len
        self._kv_cache_gib = kv_cache_gib
        self._url = url.rstrip("/") if url else None
        self._is_shared = url is not None
        self._given_folder = weights_folder
        self._folder: Path | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self._timeout_s = timeout_s
        self._process: VllmProcess | None = None
        self._generating = 0

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol.

        Raises:
            ValueError: the context is too long.
            RuntimeError: the server refuses, cannot be reached, or has other weights.
        """
        if self._url is None:
            raise RuntimeError("the engine has no weights yet: call sync first")
        sampling = fitted(session, context, sampling, self._max_model_len)
        body = {
            "token_ids": list(context),
            "sampling_params": request_settings(sampling, seed, self._stop),
            "cache_salt": cache_salt(self.version),
        }
        self._generating += 1
        try:
            return self._generation(await self._ask(body))
        finally:
            self._generating -= 1

    async def _ask(self, body: Mapping[str, Any]) -> Any:
        url = f"{self._url}/inference/v1/generate"
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.post(url, json=body) as response,
            ):
                text = await response.text()
                if response.status != 200:
                    raise RuntimeError(f"{url}: status {response.status}: {text[:1000]}")
                return json.loads(text)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeError(f"{url}: {type(error).__name__} {error}") from error

    def _generation(self, answer: Any) -> Generation:
        (choice,) = answer["choices"]
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {str(self.version)}:
            raise RuntimeError(
                f"{self._url} sampled with weights {sorted(versions)} instead of {self.version}"
            )
        usage = answer["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.prefill_count += usage["prompt_tokens"] - cached
        logprobs = tuple(token["logprob"] for token in choice["logprobs"]["content"])
        return Generation(tuple(choice["token_ids"]), logprobs, choice["finish_reason"] == "stop")

    def release(self, session: str) -> None:
        """Nothing is kept for a session: the server ends a request whose connection ends."""

    def sync(self, policy: nn.Module, version: int) -> None:
        """Take over the weights and drop every cache of older ones.

        Raises:
            RuntimeError: turns are being sampled, or the server refuses.
            TypeError: not a `Policy`.
        """
        if self._generating:
            raise RuntimeError(f"{self._generating} turns are being sampled while weights change")
        if self._folder is None:
            self._folder = self._handover_folder()
        if self._is_shared and rank() > 0:
            for _ in full_weights(policy):  # sharded weights need every process
                pass
        else:
            save_full_weights(policy, self._folder)
            if self._url is None:
                self._start(policy)
            self._update(version)
        if self._is_shared:
            wait_for_all()
        self.version = version

    def _handover_folder(self) -> Path:
        if self._given_folder:
            return Path(self._given_folder)
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._temporary = TemporaryDirectory(prefix="weights", dir=memory)
        return Path(self._temporary.name)

    def _start(self, policy: nn.Module) -> None:
        assert self._folder is not None
        self._process = VllmProcess(
            engine_settings(policy, self._folder, self._settings),
            self._kv_cache_gib,
            self._folder / "server.log",
            self._timeout_s,
        )
        self._url = self._process.url

    def _update(self, version: int) -> None:
        weights = {"weights_path": str(self._folder)}
        self._post("/pause?mode=abort")
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": weights})
        if not self._post("/reset_prefix_cache")["success"]:
            raise RuntimeError(f"{self._url} did not drop the cache of older weights")
        self._post("/update_weight_version", {"new_version": str(version)})
        self._post("/resume")

    def _post(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self._url}{path}",
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{self._url}{path}: {error}: {error.read()[:1000]!r}") from error
        except OSError as error:
            raise RuntimeError(f"{self._url}{path}: {error}") from error
        return json.loads(text) if text else None

    def close(self) -> None:
        """Stop the server that was started, and remove the weights."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()
