"""vLLM as a server: a child of this process, or started somewhere else and shared by all."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from matchtir.policy.weights import full_weights, save_full_weights
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.http import HttpClient
from matchtir.rollout.vllm_engine import (
    ENVIRONMENT,
    cache_salt,
    check_settings,
    engine_settings,
    fitted,
    request_settings,
)
from matchtir.utils.processes import rank, wait_for_all

# The kernel ends the server with its parent, however that ends. vLLM's `vllm` command would do the
# same work, but its build for CPUs comes without it.
_LAUNCH = (
    "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "runpy.run_module('vllm.entrypoints.openai.api_server', run_name='__main__')"
)
_DEFAULTS = {
    **ENVIRONMENT,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer is on the same cores
}
_NEEDED = {"VLLM_SERVER_DEV_MODE": "1"}  # weights can be changed


def server_flags(settings: Mapping[str, Any]) -> list[str]:
    """The command line of engine arguments; true and false are flags without a value."""
    flags = ["--enable-scale-out", "--enable-prompt-tokens-details"]
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags


class VllmProcess:
    """Starts a server on a free port of this machine and waits until it answers.

    Args:
        settings: engine arguments.
        kv_cache_gib: size of the KV cache on a CPU.
        log_file: what the server prints.
        timeout_s: for the start.

    Raises:
        RuntimeError: it ended, or did not answer in time; the message has its last lines.
    """

    def __init__(
        self, settings: Mapping[str, Any], kv_cache_gib: int, log_file: Path, timeout_s: float
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log_file = log_file
        cache = {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
        command = [sys.executable, "-c", _LAUNCH, *server_flags(settings)]
        with log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_DEFAULTS, **os.environ, **_NEEDED, **cache},
            )
        try:
            self._wait(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"the vLLM server did not start:\n{self._last_lines()}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the vLLM server did not answer within {timeout_s:g} s:\n{self._last_lines()}"
                )
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _last_lines(self) -> str:
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """End the server and wait for it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
        timeout_s: for the start, and for each request, which is made again twice if it fails.

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
        self._timeout_s = timeout_s
        self._client = self._client_of(url) if url else None
        self._is_shared = url is not None
        self._given_folder = weights_folder
        self._folder: Path | None = None
        self._temporary: TemporaryDirectory[str] | None = None
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
        if self._client is None:
            raise RuntimeError("the engine has no weights yet: call sync first")
        sampling = fitted(session, context, sampling, self._max_model_len)
        body = {
            "token_ids": list(context),
            "sampling_params": request_settings(sampling, seed, self._stop),
            "cache_salt": cache_salt(self.version),
        }
        self._generating += 1
        try:
            answer = await self._client.request("POST", "/inference/v1/generate", body)
            return self._generation(answer, self._client.url)
        finally:
            self._generating -= 1

    def _generation(self, answer: Any, url: str) -> Generation:
        (choice,) = answer["choices"]
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {str(self.version)}:
            raise RuntimeError(
                f"{url} sampled with weights {sorted(versions)} instead of {self.version}"
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
            if self._client is None:
                self._client = self._start(policy)
            _reload(self._client, self._folder, version)
        if self._is_shared:
            wait_for_all()
        self.version = version

    def _client_of(self, url: str) -> HttpClient:
        # Seeds belong to turns: a request that is made again samples the same.
        return HttpClient(url.rstrip("/"), self._timeout_s, retries=2)

    def _handover_folder(self) -> Path:
        if self._given_folder:
            return Path(self._given_folder)
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._temporary = TemporaryDirectory(prefix="weights", dir=memory)
        return Path(self._temporary.name)

    def _start(self, policy: nn.Module) -> HttpClient:
        assert self._folder is not None
        self._process = VllmProcess(
            engine_settings(policy, self._folder, self._settings),
            self._kv_cache_gib,
            self._folder / "server.log",
            self._timeout_s,
        )
        return self._client_of(self._process.url)

    def close(self) -> None:
        """Stop the server that was started, and remove the weights."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()


def _reload(client: HttpClient, folder: Path, version: int) -> None:
    """Have the server read the weights in a folder, and forget what it read with older ones."""

    def post(path: str, body: Mapping[str, Any]) -> Any:
        return asyncio.run(client.request("POST", path, body, empty=True))

    post("/pause?mode=abort", {})
    reading = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    post("/collective_rpc", reading)
    if not post("/reset_prefix_cache", {})["success"]:
        raise RuntimeError(f"{client.url} did not drop the cache of older weights")
    post("/update_weight_version", {"new_version": str(version)})
    post("/resume", {})
