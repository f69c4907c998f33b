"""vLLM as a server: a child of this process, or started somewhere else and shared by all."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from matchtir.policy.weights import WEIGHTS_FILE, full_weights, save_full_weights
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.http import MOST_CONNECTIONS, EndpointError, HttpClient
from matchtir.rollout.vllm_engine import ENVIRONMENT, VllmBase, engine_settings
from matchtir.utils import guarded
from matchtir.utils.processes import all_gather, rank, wait_for_all

log = logging.getLogger(__name__)

_DEFAULTS = {
    **ENVIRONMENT,
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer is on the same cores
}
RETRIES = 2  # of a request
MOST_RESTARTS = 3  # of a server, in a run


def server_flags(settings: Mapping[str, Any]) -> list[str]:
    """The command line of engine arguments; true and false are flags without a value."""
    flags = ["--enable-scale-out", "--enable-prompt-tokens-details"]
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            several = value if isinstance(value, list) else [value]
            flags += [f"--{name}", ",".join(map(str, several))]
    return flags


class VllmProcess:
    """Starts a server behind a UNIX socket and waits until it answers.

    The socket is in a folder that only this user may enter: the server's means to change weights
    are nobody else's. The server and all that it starts end with this process, however that ends.

    Args:
        settings: engine arguments.
        kv_cache_gib: size of the KV cache on a CPU.
        folder: gets the socket, and what the server prints in `server.log`; where this process is
            killed it is removed.
        timeout_s: for the start.

    Raises:
        RuntimeError: it ended, or did not answer in time; the message has its last lines.
    """

    # vLLM's `vllm` command would do the same work, but its build for CPUs comes without it.
    program = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")

    def __init__(
        self, settings: Mapping[str, Any], kv_cache_gib: int, folder: Path, timeout_s: float
    ) -> None:
        path = folder / f"socket{uuid.uuid4().hex[:8]}"  # not that of a server before it
        self.url = f"unix:{path}"
        self._log_file = folder / "server.log"
        guard = [sys.executable, guarded.__file__, str(os.getpid()), str(folder)]
        # In the mode of development weights can be changed.
        needed = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
        with self._log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [*guard, *self.program, *server_flags(settings), "--uds", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_DEFAULTS, **os.environ, **needed},
                start_new_session=True,
            )
        try:
            self._wait(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout_s: float) -> None:
        client = HttpClient(self.url, timeout_s=5, retries=0)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return client.ask("GET", "/health", empty=True)
            except EndpointError:
                ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                why = "start" if ended else f"answer within {timeout_s:g} s"
                last = self._log_file.read_text(errors="replace").splitlines()[-20:]
                raise RuntimeError("\n".join([f"the vLLM server did not {why}:", *last]))
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and all that it started, and wait for them."""
        self._process.terminate()
        self._process.wait()


class VllmServerEngine(VllmBase):
    """Samples with a vLLM server over HTTP, token ids in and out.

    Each process has a server of its own on its own GPU, or all share the one at `url`. The weights
    go over as one file per machine in a folder that both sides see, in memory (/dev/shm) by
    default. They carry a version, and an answer that other weights had a part in is an error.

    A server of its own that does not answer any more, or died, is replaced, in the middle of turns
    or of a sync, and what it was asked is asked again: seeds belong to turns, so that the new one
    samples the same. `restarts` counts it; more than `MOST_RESTARTS` end the run.

    Args:
        stop_token_ids, max_model_len, settings, kv_cache_gib, sleep_level: see `VllmBase`.
        url: of a server that runs already; it has been started with the settings that
            docs/rollouts.md names. None: one is started at the first `sync`.
        weights_folder: where weights are handed over; None: a new folder in memory.
        timeout_s: for the start, and for each request, which is made again twice if it fails.

    Raises:
        ValueError: settings that are not free, or that a server with a `url` would not hear of.
    """

    def __init__(
        self,
        stop_token_ids: Sequence[int],
        max_model_len: int,
        settings: Mapping[str, Any] | None = None,
        kv_cache_gib: int = 1,
        sleep_level: int | None = None,
        url: str | None = None,
        weights_folder: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        level = 0 if url and sleep_level is None else sleep_level
        super().__init__(stop_token_ids, max_model_len, settings, kv_cache_gib, level)
        if url and (settings or sleep_level):
            raise ValueError("the server at url has settings of its own: set none here")
        self.restarts = 0
        self._timeout_s = timeout_s
        self._client = HttpClient(url.rstrip("/"), timeout_s, RETRIES) if url else None
        self._is_shared = url is not None
        self._weights_folder = weights_folder
        self._folder = Path()  # where the weights are
        self._process_settings: dict[str, Any] = {}
        self._temporary: TemporaryDirectory[str] | None = None
        self._process: VllmProcess | None = None

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol.

        Raises:
            ValueError: the context is too long.
            RuntimeError: the server refuses, cannot be reached, or has other weights.
        """
        body = {
            "token_ids": list(context),
            "sampling_params": self._request(session, context, sampling, seed),
            "cache_salt": f"weights {self.version}",  # what older ones have cached is out of reach
        }
        self._in_flight += 1
        try:
            while True:
                client, process = self._client, self._process
                assert client is not None
                try:
                    answer = await client.request("POST", "/inference/v1/generate", body)
                    return self._generation(answer, client.url)
                except EndpointError as error:
                    if self._process is process:  # else another turn has replaced it
                        self._replace(error)
                        self._reload(self.version)
        finally:
            self._in_flight -= 1

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

    def close(self) -> None:
        """Stop the server that was started, and remove the weights."""
        self._state = "closed"
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()

    # -- the server itself -----------------------------------------------------------------------

    def _load(self, policy: nn.Module, version: int) -> None:
        writer = self._agree_on_folder()
        if writer:
            save_full_weights(policy, self._folder)
        else:
            for _ in full_weights(policy):  # sharded weights need every process
                pass
        wait_for_all()
        if self._client is None:
            own = self._own_folder()
            if own != self._folder:  # a server loads weights where its configuration lies
                (own / WEIGHTS_FILE).symlink_to(self._folder / WEIGHTS_FILE)
            self._process_settings = engine_settings(policy, own, self._settings, self.sleep_level)
            self._start()
        if writer or not self._is_shared:
            self._reload(version)
        wait_for_all()

    def _agree_on_folder(self) -> bool:
        """Where the weights go, and whether this process writes them: one does for a machine."""
        given = self._weights_folder
        machine = "" if given or self._is_shared else socket.gethostname()
        places = all_gather((machine, str(given or self._own_folder())))
        first = [where for where, _ in places].index(machine)
        self._folder = Path(places[first][1])
        return first == rank()

    def _own_folder(self) -> Path:
        """Of this process alone, in memory where there is such a place."""
        if self._temporary is None:
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            self._temporary = TemporaryDirectory(prefix="weights", dir=memory)
        return Path(self._temporary.name)

    def _start(self) -> None:
        self._process = VllmProcess(
            self._process_settings, self._kv_cache_gib, self._own_folder(), self._timeout_s
        )
        served = self._settings.get("max_num_seqs") or MOST_CONNECTIONS  # others would wait there
        url = self._process.url
        self._client = HttpClient(url, self._timeout_s, RETRIES, at_once=served)
        config = self._client.ask("GET", "/server_info?config_format=json")["vllm_config"]
        cache = config["cache_config"]
        self.cache_tokens = cache["num_gpu_blocks"] * cache["block_size"]

    def _replace(self, error: EndpointError) -> None:
        """Another server for one that does not answer; raises the error where there can be none."""
        if self._process is None or error.said is not None or self.restarts == MOST_RESTARTS:
            raise error
        self.restarts += 1
        log.warning("the vLLM server is started again (%d): %s", self.restarts, error)
        self._process.stop()
        self._start()

    def _reload(self, version: int) -> None:
        """Have the server read the weights, and forget what it read with older ones."""
        try:
            self._send_weights(version)
        except EndpointError as error:
            self._replace(error)
            self._reload(version)

    def _send_weights(self, version: int) -> None:
        self._post("/pause?mode=abort")
        reading = {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder)}}
        self._post("/collective_rpc", reading)
        if not self._post("/reset_prefix_cache")["success"]:
            raise RuntimeError("the server did not drop the cache of older weights")
        self._post("/update_weight_version", {"new_version": str(version)})
        self._post("/wake_up?tags=kv_cache" if self._state == "woken" else "/resume")

    def _send_sleep(self, level: int) -> None:
        self._post(f"/sleep?level={level}")

    def _send_wake(self) -> None:
        try:
            self._post("/wake_up?tags=weights")
        except EndpointError as error:
            self._replace(error)

    def _post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        assert self._client is not None
        return self._client.ask("POST", path, body or {}, empty=True)
