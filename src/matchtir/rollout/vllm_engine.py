"""vLLM in this process: the same on a GPU and, with vLLM's build for CPUs, without one.

Its settings and requests are also those of a server (`vllm_server`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from matchtir.policy.policy import Policy
from matchtir.policy.weights import full_weights
from matchtir.rollout.engine import Generation, SamplingParams

# Ids go in and out, and log-probabilities are those of the distribution that the tokens were drawn
# from: none of this is a choice.
FIXED_SETTINGS: Mapping[str, Any] = {
    "skip_tokenizer_init": True,
    "generation_config": "vllm",
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": True,
}

# For vLLM's environment, where the user's has nothing else.
ENVIRONMENT: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for engine arguments that are not free."""
    taken = sorted(settings.keys() & {*FIXED_SETTINGS, "model", "load_format"})
    if taken:
        raise ValueError(f"these settings of vLLM cannot be chosen: {', '.join(taken)}")


def engine_settings(policy: nn.Module, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """VLLM's engine arguments for a model like the policy's, whose configuration goes to `folder`.

    A setting that is None has vLLM's default, but for these. `dtype` is the policy's, since vLLM
    would make float16 of float32. Without a GPU `enforce_eager` is true, since compiling takes half
    a minute there and gains nothing; `block_size` is 32, since vLLM's 128 tokens there are more
    than many a prompt has, and only whole blocks are shared; and prompts are read in one piece,
    since vLLM 0.32 fails there at a seeded request whose prompt is read in several.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"expected a Policy, got {type(policy).__name__}")
    config = deepcopy(policy.model.config)
    if not config.architectures:  # of a model that was made here instead of loaded
        config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
    ours: dict[str, Any] = {"dtype": dtype}
    if not torch.cuda.is_available():
        whole = max(settings["max_model_len"], 8192)
        ours |= {"enforce_eager": True, "block_size": 32}
        ours |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"model": str(folder), **FIXED_SETTINGS, **ours, **given}


def cache_salt(version: int) -> str:
    """What keeps that which older weights have cached out of reach."""
    return f"weights {version}"


def fitted(
    session: str, context: Sequence[int], sampling: SamplingParams, max_model_len: int
) -> SamplingParams:
    """The sampling cut to what the model's length leaves.

    Raises:
        ValueError: nothing is left.
    """
    room = max_model_len - len(context)
    if room < 1 or sampling.max_new_tokens < 1 or not context:
        raise ValueError(
            f"session {session}: a context of {len(context)} tokens and {sampling.max_new_tokens} "
            f"new ones do not fit into max_model_len={max_model_len}"
        )
    return replace(sampling, max_new_tokens=min(room, sampling.max_new_tokens))


def request_settings(sampling: SamplingParams, seed: int, stop: Sequence[int]) -> dict[str, Any]:
    """VLLM's sampling parameters of one turn."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "stop_token_ids": list(stop),
        "ignore_eos": True,  # which of the model's tokens end a turn is the renderer's to say
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


class VllmEngine:
    """Samples with an engine of vLLM, which is built at the first `sync`.

    Turns of a conversation and the attempts of a group share their prefixes by vLLM's own cache.
    The weights go over in memory. Seeds belong to turns, so that a turn is the same alone and among
    others as far as the arithmetic of batches allows.

    Args:
        stop_token_ids: tokens that end a turn; part of the generation.
        max_model_len: tokens of a whole conversation, at most.
        settings: further engine arguments of vLLM: dtype, max_num_seqs, ...
        kv_cache_gib: size of the KV cache on a CPU; a GPU has gpu_memory_utilization.

    Raises:
        ValueError: settings that are not free, or a model on several GPUs.
    """

    own_weights = True

    def __init__(
        self,
        stop_token_ids: Sequence[int],
        max_model_len: int,
        settings: Mapping[str, Any] | None = None,
        kv_cache_gib: int = 1,
    ) -> None:
        self._settings = {"max_model_len": max_model_len, **(settings or {})}
        check_settings(self._settings)
        if self._settings.get("tensor_parallel_size", 1) != 1:
            raise ValueError("vLLM in this process has one GPU; several need rollout=vllm_server")
        self.version = -1
        self.prefill_count = 0  # tokens of context read, for measurements
        self._stop = tuple(stop_token_ids)
        self._max_model_len = max_model_len
        self._kv_cache_gib = kv_cache_gib
        self._vllm: Any = None
        self._make_params: Any = None
        self._serial = itertools.count()
        self._ids: dict[str, str] = {}  # request of each session that is generating
        self._futures: dict[str, asyncio.Future[Generation]] = {}  # by request
        self._driver: asyncio.Task[None] | None = None

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol.

        Raises:
            ValueError: the context is too long, or the session is already generating.
        """
        if self._vllm is None:
            raise RuntimeError("the engine has no weights yet: call sync first")
        if session in self._ids:
            raise ValueError(f"session {session} is already generating")
        sampling = fitted(session, context, sampling, self._max_model_len)
        request = str(next(self._serial))
        prompt = {"prompt_token_ids": list(context), "cache_salt": cache_salt(self.version)}
        params = self._make_params(**request_settings(sampling, seed, self._stop))
        self._vllm.add_request(request, prompt, params)
        self._ids[session] = request
        future = self._futures[request] = asyncio.get_running_loop().create_future()
        self._start_driver()
        try:
            return await future
        except asyncio.CancelledError:
            self._vllm.abort_request([request])
            raise
        finally:
            del self._ids[session], self._futures[request]

    def release(self, session: str) -> None:
        """Forget a session; a turn that is still being sampled is cancelled."""
        request = self._ids.get(session)
        if request is not None:
            self._futures[request].cancel()

    def sync(self, policy: nn.Module, version: int) -> None:
        """Take over the weights and drop every cache of older ones.

        Raises:
            ImportError: vLLM is not installed.
            RuntimeError: turns are being sampled.
            TypeError: not a `Policy`.
        """
        if self._ids:
            raise RuntimeError(f"{len(self._ids)} turns are being sampled while weights change")
        if self._vllm is None:
            self._vllm = self._start(policy)
        self._vllm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": full_weights(policy)}
        )
        self._vllm.reset_prefix_cache()
        self.version = version

    def close(self) -> None:
        """Give up the model and the KV cache."""
        if self._vllm is not None:
            self._vllm.engine_core.shutdown()
            self._vllm = None

    def _start(self, policy: nn.Module) -> Any:
        # Read by vLLM when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self._kv_cache_gib)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Seconds and gigabytes: only where it is wanted.
        from vllm import EngineArgs, LLMEngine
        from vllm import SamplingParams as VllmParams

        self._make_params = VllmParams
        with TemporaryDirectory() as folder:
            settings = engine_settings(policy, Path(folder), self._settings)
            # The weights come with the sync.
            return LLMEngine.from_engine_args(EngineArgs(**settings, load_format="dummy"))

    # -- the driver: one step after the other while there are requests ---------------------------

    def _start_driver(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        try:
            await asyncio.sleep(0)  # every episode that starts now is heard before the first step
            while self._vllm.has_unfinished_requests():
                for output in self._vllm.step():
                    if output.finished:
                        self._finish(output)
                await asyncio.sleep(0)
        except Exception as error:  # the episodes raise it
            for future in self._futures.values():
                if not future.done():
                    future.set_exception(error)

    def _finish(self, output: Any) -> None:
        future = self._futures.get(output.request_id)
        if future is None or future.done():
            return
        self.prefill_count += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        (choice,) = output.outputs
        token_ids = tuple(choice.token_ids)
        logprobs = tuple(
            entry[token].logprob for token, entry in zip(token_ids, choice.logprobs, strict=True)
        )
        future.set_result(Generation(token_ids, logprobs, choice.finish_reason == "stop"))
