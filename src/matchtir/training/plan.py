"""What a run takes: tokens, memory and time, computed from its config before anything is loaded.

Activations are what autograd keeps of one decoder layer of the Qwen3 and Llama families with fused
attention. The coefficients were measured (tests/scale/test_plan.py repeats the measurement): bytes
per token for each unit of hidden (H), query (Q), key-value (K) and feed-forward (F) width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

GIB = 2**30
USABLE = 0.92  # of a device's memory; the rest goes to its context, libraries and fragments
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = 2  # of AdamW; Muon keeps one for the matrices, which is counted as two
SINGLE_LAYER = {4: (24, 16, 16, 16), 2: (26, 10, 10, 8)}  # by bytes of a computed number
HEAD_COPIES = 5  # arrays [head chunk, vocabulary] in 32 bits alive at the peak: bench_memory.py
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
class ModelSize:
    """Numbers of parameters, and the widths that memory and time depend on."""

    parameters: int
    layer_parameters: int  # of one decoder layer
    layers: int
    hidden: int
    query_width: int  # heads times head dimension
    key_value_width: int  # the same of the key-value heads
    feed_forward: int
    vocabulary: int

    @property
    def outer_parameters(self) -> int:
        """Everything outside the decoder layers: embeddings, output layer, last norm."""
        return self.parameters - self.layers * self.layer_parameters

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank beside every linear layer of the decoder."""
        attention = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.key_value_width)
        return self.layers * rank * (attention + 3 * (self.hidden + self.feed_forward))


def architecture(name_or_path: str, table: Mapping[str, Mapping[str, Any]]) -> PreTrainedConfig:
    """The config of a model: that in its folder, else that of the table under its name.

    Raises:
        ValueError: there is neither; nothing is looked up in a network.
    """
    if Path(name_or_path, "config.json").is_file():
        return AutoConfig.from_pretrained(name_or_path)
    if name_or_path not in table:
        raise ValueError(
            f"the size of {name_or_path} is not known: it is no folder with a config.json, and "
            f"plan.models has only {', '.join(table)}"
        )
    return AutoConfig.for_model(**table[name_or_path])


def model_size(config: PreTrainedConfig) -> ModelSize:
    """The size of the causal language model that transformers builds from `config`.

    It is built on the meta device, where tensors have shapes and no memory.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = model.base_model.layers
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSize(
        parameters=sum(each.numel() for each in model.parameters()),  # tied ones once
        layer_parameters=sum(each.numel() for each in layers[0].parameters()),
        layers=len(layers),
        hidden=text.hidden_size,
        query_width=text.num_attention_heads * head_dim,
        key_value_width=text.num_key_value_heads * head_dim,
        feed_forward=text.intermediate_size,
        vocabulary=text.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Tokens and time of one iteration, and memory per device."""

    size: ModelSize
    devices: int
    tokens: Mapping[str, int]  # of one iteration
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

    def table(self) -> Group:
        """Tokens, memory and time, and the model that they are of."""
        size = self.size
        head = (
            f"{size.parameters / 1e9:.2f} billion parameters ({size.layers} layers, hidden "
            f"{size.hidden}, vocabulary {size.vocabulary:,}) on {self.devices} device(s)"
        )
        tokens = {name: f"{number:,}" for name, number in self.tokens.items()}
        parts = {name: f"{number / GIB:.2f}" for name, number in self.memory.items()}
        fit = {"together": f"{self.total / GIB:.2f}"}
        if self.limit is not None:
            fit["can be used"] = f"{self.limit / GIB:.2f}"
        room = {"conversations of full length in the KV cache": str(self.conversations)}
        if self.host_memory:
            room["host memory of all devices, GiB"] = f"{self.host_memory / GIB:.2f}"
        times = {f"{name} of one iteration": f"{s / 3600:.2f}" for name, s in self.seconds.items()}
        whole = sum(self.seconds.values()) * self.iterations / 3600
        times[f"{self.iterations} iterations"] = f"{whole:.1f}"
        if not self.seconds:
            times = {"no throughputs are stated": "-"}
        return Group(
            head,
            _table("One iteration", "tokens", tokens),
            _table("Memory of one device", "GiB", parts, fit, room),
            _table("Expected time, by the throughputs in plan", "hours", times),
        )


def _table(title: str, unit: str, *sections: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column(unit, justify="right")
    for section in sections:
        table.add_section()
        for row in section.items():
            table.add_row(*row)
    return table


def check_plan(config: DictConfig, show: bool) -> None:
    """Print the plan of a training config; raises PlanError where the run cannot fit."""
    if show or config.plan.memory_gib is not None:
        plan = make_plan(config)
        if show:
            Console().print(plan.table())
        plan.require_room()


def make_plan(config: DictConfig) -> Plan:
    """The plan of a composed training config.

    Raises:
        ValueError: a model whose size is not known, devices that are not a number.
    """
    given: Assumptions = instantiate(config.plan, _convert_="all")
    if config.model.get("name_or_path"):
        size = model_size(architecture(config.model.name_or_path, given.models or {}))
    else:  # a policy that is made here is small, and its vocabulary is known once it is made
        size = model_size(instantiate(config.model).policy.model.config)
    limits = config.rollout.limits
    trajectories = config.tasks_per_iteration * config.group_size
    at_most = limits.max_response_tokens
    expected = min(given.response_tokens or at_most, at_most)
    longest = limits.max_prompt_tokens + at_most
    training, host = _training_memory(config, size, longest)
    copy, cache, token = _engine_memory(config, size, longest, given.memory_gib)
    return Plan(
        size=size,
        devices=_devices(config),
        tokens={
            "trajectories": trajectories,
            "prompts, at most": trajectories * limits.max_prompt_tokens,
            "responses, expected": trajectories * expected,
            "responses, at most": trajectories * at_most,
        },
        memory=training | {"engine's weights": copy, "KV cache": cache},
        host_memory=host,
        conversations=cache // (token * longest),
        limit=None if given.memory_gib is None else int(given.memory_gib * GIB * USABLE),
        seconds=_seconds(config, given, size, trajectories, expected),
        iterations=config.iterations,
    )


def _training_memory(
    config: DictConfig, size: ModelSize, longest: int
) -> tuple[dict[str, int], int]:
    """Bytes per device of each part, and what offloading moves to host memory, over all devices."""
    stored, computed = _number_bytes(config)
    shards, lora = _shards(config), config.model.get("lora")
    weights = size.parameters * stored
    trained = size.lora_parameters(lora.r) * stored if lora else weights
    # The reference of an adapter is the model without it.
    has_reference = bool(config.loss.kl_coefficient) and not lora
    states = {
        "weights": weights,
        "gradients": trained,
        "optimiser": trained * MOMENTS,
        "reference policy": weights if has_reference else 0,
    }
    offloaded = bool(OmegaConf.select(config, "trainer.strategy.cpu_offload"))
    held = {name: 0 if offloaded else number // shards for name, number in states.items()}
    # Two layers are whole at a time, one of them ahead of its use; the outer part stays whole.
    gathered = (2 * size.layer_parameters + size.outer_parameters) * computed
    computing = {
        "gathered layers": gathered if shards > 1 else 0,
        "activations": activation_bytes(
            size,
            tokens=max(config.module.micro_batch_tokens, longest),
            number_bytes=computed,
            checkpointing=bool(config.model.get("activation_checkpointing")),
            sharded=shards > 1,
        ),
        "logits": HEAD_COPIES * config.model.get("head_chunk", 2048) * size.vocabulary * 4,
    }
    return held | computing, sum(states.values()) if offloaded else 0


def activation_bytes(
    size: ModelSize, tokens: int, number_bytes: int, checkpointing: bool, sharded: bool = False
) -> int:
    """What the backward pass of one micro-batch needs of its decoder layers."""
    h, q, k, f = SINGLE_LAYER[number_bytes]
    layer = h * size.hidden + q * size.query_width + k * size.key_value_width
    layer += f * size.feed_forward
    if checkpointing:
        # The input of each layer: in 32 bits under autocast, while shards are gathered as 16.
        number = number_bytes if sharded else 4
        return tokens * (size.layers * number * size.hidden + layer)
    return tokens * size.layers * layer


def _engine_memory(
    config: DictConfig, size: ModelSize, longest: int, memory_gib: float | None
) -> tuple[int, int, int]:
    """Bytes of the sampler's own weights and of its KV cache, and of one token in the cache.

    vLLM takes what it has reserved whatever it needs: the cache is below 0 where that is too
    little. A server elsewhere holds nothing here.
    """
    engine = config.rollout.engine
    kind = engine._target_.rpartition(".")[2]
    stored, computed = _number_bytes(config)
    numbers = 2 * size.layers * size.key_value_width  # of one token
    if kind == "TransformersEngine":
        copies = bool(engine.get("own_weights")) or _shards(config) > 1
        token = numbers * computed
        return size.parameters * stored * copies, token * engine.max_sessions * longest, token
    if kind == "VllmEngine" and memory_gib is not None:
        stored = DTYPE_BYTES.get(engine.settings.dtype, stored)
        weights = size.parameters * stored
        reserved = int(engine.settings.gpu_memory_utilization * memory_gib * GIB)
        return weights, reserved - weights, numbers * stored
    return 0, 0, numbers * stored


def _number_bytes(config: DictConfig) -> tuple[int, int]:
    """Bytes of a stored parameter, and of a number in a forward pass."""
    stored = DTYPE_BYTES.get(config.model.get("dtype", "float32"), 4)
    return stored, 2 if "16" in str(config.trainer.precision) else stored


def _shards(config: DictConfig) -> int:
    """Devices that share weights, gradients and optimizer; 1: each has all of them."""
    target = str(OmegaConf.select(config, "trainer.strategy._target_"))
    return _devices(config) if target.endswith("ShardedStrategy") else 1


def _devices(config: DictConfig) -> int:
    devices = config.trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices}: a plan needs a number of devices")
    return devices * config.trainer.num_nodes


def _seconds(
    config: DictConfig, given: Assumptions, size: ModelSize, trajectories: int, sampled: int
) -> dict[str, float]:
    """Expected seconds of an iteration's rollout and update, for the throughputs stated."""
    if given.decode_tokens_per_s is None or given.tflops is None:
        return {}
    devices, context = _devices(config), config.rollout.limits.max_prompt_tokens + sampled
    forward = 2 * size.parameters + 2 * size.layers * size.query_width * context  # one token
    passes = 4 if config.model.get("activation_checkpointing") else 3  # a backward pass costs two
    passes += int(config.mini_batches > 1) + int(bool(config.loss.kl_coefficient))
    update = trajectories * context * forward * passes
    return {
        "rollout": trajectories * sampled / (given.decode_tokens_per_s * devices),
        "update": update / (given.tflops * 1e12 * devices),
    }
