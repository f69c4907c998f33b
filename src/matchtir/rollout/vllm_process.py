"""A vLLM server as a child of this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matchtir.rollout.vllm_request import ENVIRONMENT

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
        command = [sys.executable, "-c", _LAUNCH, *server_flags(settings)]
        with log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **_DEFAULTS,
                    **os.environ,
                    **_NEEDED,
                    "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
                },
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
