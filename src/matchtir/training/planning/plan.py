"""What a run will cost, reckoned from its config before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from matchtir.training.planning.memory import (
    GIB,
    EngineLayout,
    TrainerLayout,
    host_bytes,
    memory_parts,
)
from matchtir.training.planning.sizes import ModelSize, architecture, model_size

USABLE = 0.92  # of a device's memory; the rest goes to its context, libraries and fragments
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = 2  # of AdamW; Muon keeps one for the matrices, which is counted as two
NAMED_PARTS = 3  # in the error


class PlanError(ValueError):
    """A run that cannot fit; the message names the largest parts and what makes them smaller."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Of the device, and of the policy's habits; each None where nothing is assumed.

    Attributes:
        memory_gib: of one device.
        decode_tokens_per_s: tokens that one device samples per second, over all conversations.
        tflops: 1e12 floating-point operations per second and device that the update achieves.
        response_tokens: expected after the prompt, tool results included; None: the whole budget.
        models: transformers' config of models by hub id, for those that are not on disk.
    """

    memory_gib: float | None = None
    decode_tokens_per_s: float | None = None
    tflops: float | None = None
    response_tokens: int | None = None
    models: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Tokens and time of one iteration, and memory per device."""

    size: ModelSize
    devices: int
    trajectories: int
    prompt_tokens: int  # of one iteration, at most
    response_tokens: int  # of one iteration, expected
    response_tokens_at_most: int
    memory: Mapping[str, int]  # bytes per device
    host_memory: int  # bytes, over all devices
    conversations: int  # of full length that one device's KV cache has room for
    limit: int | None  # bytes of a device that can be used
    seconds: Mapping[str, float]  # by stage; empty where no throughput is stated
    iterations: int

    @property
    def total(self) -> int:
        """Bytes per device."""
        return sum(self.memory.values())

    def require_room(self) -> None:
        """Raise PlanError where a device has too little memory."""
        if self.memory["KV cache"] and self.conversations < 1:
            raise PlanError(
                f"the KV cache of {self.memory['KV cache'] / GIB:.1f} GiB has no room for one "
                "conversation of full length: see rollout.limits and "
                "rollout.engine.settings.gpu_memory_utilization"
            )
        if self.limit is None or self.total <= self.limit:
            return
        largest = sorted(self.memory.items(), key=lambda part: -part[1])[:NAMED_PARTS]
        named = ", ".join(f"{name} {number / GIB:.1f}" for name, number in largest)
        raise PlanError(
            f"this run needs {self.total / GIB:.1f} GiB per device, and {self.limit / GIB:.1f} can "
            f"be used. The largest parts in GiB: {named}. What makes them smaller: more devices "
            "with trainer=fsdp (weights, gradients, optimiser, reference), "
            "model.activation_checkpointing=true or a smaller module.micro_batch_tokens "
            "(activations), rollout.engine.max_sessions, rollout.limits or vLLM's "
            "gpu_memory_utilization (KV cache), model.lora (gradients, optimiser, reference), "
            "trainer.strategy.cpu_offload=true"
        )


def make_plan(config: DictConfig) -> Plan:
    """The plan of a composed training config.

    Raises:
        ValueError: a model whose size is not known, devices that are not a number.
    """
    given: Assumptions = instantiate(config.plan, _convert_="all")
    size = _size(config, given)
    trainer = _trainer_layout(config, size)
    engine = _engine_layout(config, trainer, given.memory_gib)
    limits = config.rollout.limits
    trajectories = config.tasks_per_iteration * config.group_size
    at_most = limits.max_response_tokens
    expected = min(given.response_tokens or at_most, at_most)
    devices = _devices(config)
    context = limits.max_prompt_tokens + expected
    limit = None if given.memory_gib is None else int(given.memory_gib * GIB * USABLE)
    return Plan(
        size=size,
        devices=devices,
        trajectories=trajectories,
        prompt_tokens=trajectories * limits.max_prompt_tokens,
        response_tokens=trajectories * expected,
        response_tokens_at_most=trajectories * at_most,
        memory=memory_parts(size, trainer, engine),
        host_memory=host_bytes(size, trainer),
        conversations=engine.cache(size) // (engine.token(size) * _longest(config)),
        limit=limit,
        seconds=_seconds(config, given, size, trainer, trajectories, context, expected, devices),
        iterations=config.iterations,
    )


def _size(config: DictConfig, given: Assumptions) -> ModelSize:
    if config.model.get("name_or_path"):
        return model_size(architecture(config.model.name_or_path, given.models or {}))
    # A policy that is made here is small, and its vocabulary is known once it is made.
    return model_size(instantiate(config.model).policy.model.config)


def _trainer_layout(config: DictConfig, size: ModelSize) -> TrainerLayout:
    target = str(OmegaConf.select(config, "trainer.strategy._target_"))
    sharded = target.endswith("ShardedStrategy")
    lora = config.model.get("lora")
    stored = DTYPE_BYTES.get(config.model.get("dtype", "float32"), 4)
    return TrainerLayout(
        weight_bytes=stored,
        compute_bytes=2 if "16" in str(config.trainer.precision) else stored,
        shards=_devices(config) if sharded else 1,
        trained_parameters=lora_parameters(size, lora.r) if lora else size.parameters,
        moments=MOMENTS,
        # The reference of an adapter is the model without it.
        has_reference=bool(config.loss.kl_coefficient) and not lora,
        activation_checkpointing=bool(config.model.get("activation_checkpointing")),
        cpu_offload=bool(OmegaConf.select(config, "trainer.strategy.cpu_offload")),
        micro_batch_tokens=max(config.module.micro_batch_tokens, _longest(config)),
        head_chunk=config.model.get("head_chunk", 2048),
    )


def _engine_layout(
    config: DictConfig, trainer: TrainerLayout, memory: float | None
) -> EngineLayout:
    engine = config.rollout.engine
    kind = engine._target_.rpartition(".")[2]
    if kind == "TransformersEngine":
        copies = bool(engine.get("own_weights")) or trainer.shards > 1
        tokens = engine.max_sessions * _longest(config)
        return EngineLayout(copies, trainer.weight_bytes, trainer.compute_bytes, tokens)
    if kind == "VllmEngine" and memory is not None:
        stored = DTYPE_BYTES.get(engine.settings.dtype, trainer.weight_bytes)
        reserved = int(engine.settings.gpu_memory_utilization * memory * GIB)
        return EngineLayout(True, stored, stored, 0, reserved)
    return EngineLayout(False, trainer.weight_bytes, trainer.weight_bytes, 0)


def _longest(config: DictConfig) -> int:
    """Tokens of the longest conversation that the limits allow."""
    return config.rollout.limits.max_prompt_tokens + config.rollout.limits.max_response_tokens


def _devices(config: DictConfig) -> int:
    devices = config.trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices}: a plan needs a number of devices")
    return devices * config.trainer.num_nodes


def lora_parameters(size: ModelSize, rank: int) -> int:
    """Parameters of adapters of this rank beside every linear layer of the decoder."""
    attention = 2 * (size.hidden + size.query_width) + 2 * (size.hidden + size.key_value_width)
    return size.layers * rank * (attention + 3 * (size.hidden + size.feed_forward))


def _seconds(
    config: DictConfig,
    given: Assumptions,
    size: ModelSize,
    trainer: TrainerLayout,
    trajectories: int,
    context: int,
    sampled: int,
    devices: int,
) -> dict[str, float]:
    """Expected seconds of an iteration's rollout and update, for the throughputs stated."""
    if given.decode_tokens_per_s is None or given.tflops is None:
        return {}
    forward = 2 * size.parameters + 2 * size.layers * size.query_width * context  # one token
    passes = 4 if trainer.activation_checkpointing else 3  # a backward pass costs two
    passes += int(config.mini_batches > 1) + int(bool(config.loss.kl_coefficient))
    update = trajectories * context * forward * passes
    return {
        "rollout": trajectories * sampled / (given.decode_tokens_per_s * devices),
        "update": update / (given.tflops * 1e12 * devices),
    }
