"""What a run takes: memory, tokens and time, computed from its config before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from matchtir.policy.size import activation_bytes, architecture, model_size
from matchtir.rollout.runner import conversations_at_once
from matchtir.training.data import check_prompts
from matchtir.training.turnsight import TurnSight
from matchtir.utils.options import UserError

log = logging.getLogger(__name__)

GIB = 2**30
USABLE = 0.92  # of a device's memory; the rest goes to its context, libraries and fragments
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = 2  # of AdamW; Muon keeps one for the matrices, which is counted as two
HEAD_COPIES = 5  # arrays [head chunk, vocabulary] in 32 bits alive at the peak: bench_memory.py
PHASES = ("sync", "rollout", "scoring", "update")  # scoring: old and reference log-probabilities
LEARNING = PHASES[2:]
# By what leaves the device: the phases in which weights and optimizer are there.
HELD = {
    "none": (PHASES, PHASES),
    "optimizer": (PHASES, LEARNING),
    "all": (("sync", *LEARNING), LEARNING),
    "always": ((), ()),
}
SMALLER = (
    "Smaller: weights, gradients, optimizer, reference by more devices with trainer=fsdp, the last "
    "three by model.lora; activations by model.activation_checkpointing=true or "
    "module.micro_batch_tokens; the cache by rollout.limits, gpu_memory_utilization, max_sessions. "
    "Off the device: rollout.engine.sleep_level=2 in updates, trainer.offload=optimizer|all in "
    "rollouts, trainer.strategy.cpu_offload=true always. A model that one device cannot sample "
    "from: rollout=vllm_server rollout.engine.settings.tensor_parallel_size=2, on devices of its "
    "own. On several machines trainer=fsdp shards over all; replicas of shards (HSDP) are not "
    "offered."
)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Of device, data and policy; None where nothing is assumed."""

    memory_gib: float | None = None  # of one device
    decode_tokens_per_s: float | None = None  # sampled by one device, over all conversations
    tflops: float | None = None  # 1e12 operations per second and device that the update achieves
    prompt_tokens: int | None = None  # expected mean; None: the limit
    response_tokens: int | None = None  # the same, tool results included
    skipped_share: float = 0.01  # a run whose limits skip more of its training tasks is refused
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # `architecture`


class Plan:
    """What one iteration of a composed training config takes.

    Attributes:
        memory: bytes of one device, by part and the phases that hold it.
        host: bytes of one machine's memory, by what they are for.
        tokens: of one iteration, as expected.
        seconds: of the phases, where throughputs are stated.

    Raises:
        UserError: a model whose size is not known, devices that are not a number.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.given: Assumptions = instantiate(config.plan, _convert_="all")
        model, limits, devices = config.model, config.rollout.limits, config.trainer.devices
        if not isinstance(devices, int) or devices < 1:
            raise UserError(f"trainer.devices={devices}: a plan needs a number of devices")
        if model.get("name_or_path"):
            self.size = model_size(architecture(model.name_or_path, self.given.models))
        else:  # a policy that is made here is small, and its vocabulary is known once it is made
            self.size = model_size(instantiate(model).policy.model.config)
        self.devices = devices * config.trainer.num_nodes
        strategy = config.trainer.strategy if OmegaConf.is_dict(config.trainer.strategy) else {}
        self.shards = self.devices if "ShardedStrategy" in strategy.get("_target_", "") else 1
        self.packing = bool(model.get("packing"))
        self.checkpointing = bool(model.get("activation_checkpointing"))
        self.stored = DTYPE_BYTES.get(model.get("dtype", "float32"), 4)
        self.computed = 2 if "16" in str(config.trainer.precision) else self.stored
        self.longest = limits.max_prompt_tokens + limits.max_response_tokens
        self.micro_batch = max(config.module.micro_batch_tokens, self.longest)
        self.prompt = min(self.given.prompt_tokens or self.longest, limits.max_prompt_tokens)
        self.response = min(self.given.response_tokens or self.longest, limits.max_response_tokens)
        self.sleep = config.rollout.engine.get("sleep_level", 0)
        if self.sleep is None:  # the engine's own choice
            self.sleep = 0 if config.trainer.accelerator == "cpu" else 2
        self.offload = "always" if strategy.get("cpu_offload") else config.trainer.offload
        # Passes of the reference over an iteration: of hindsight it reads about one per lookahead.
        hindsight = config.module.get("hindsight")
        depths = hindsight.get("depths", TurnSight.depths) if hindsight else ()
        self.scorings = bool(config.loss.kl_coefficient) + len(depths)
        self.states = self._states()
        self.copy, self.cache, self.cache_token = self._engine()
        self.memory = self._memory()
        self.host = self._host(devices, bool(strategy.get("save_distributed_checkpoint")))
        self.tokens = self._tokens()
        self.seconds = self._seconds()

    def _states(self) -> dict[str, int]:
        """Bytes of one device's part: counted, not estimated."""
        lora, weights = self.config.model.get("lora"), self.size.parameters * self.stored
        weights //= self.shards
        # Adapters are whole everywhere, in 32 bits; their reference is the model without them.
        adapters = self.size.lora_parameters(lora.r) * 4 if lora else 0
        trained = adapters or weights
        return {
            "weights": weights + adapters,
            "reference": 0 if lora or not self.scorings else weights,
            "optimizer": trained * MOMENTS,
            "gradients": trained,
        }

    def _engine(self) -> tuple[int, int, int]:
        """Bytes of the engine's own weights, of its KV cache, and of one token in the cache.

        vLLM takes what it has reserved whatever it needs: the cache is below 0 where that is too
        little. A server holds nothing here.
        """
        engine, size, memory = self.config.rollout.engine, self.size, self.given.memory_gib
        kind = engine._target_.rpartition(".")[2]
        numbers = 2 * size.layers * size.key_value  # of one token
        if kind == "TransformersEngine":
            copies = bool(engine.own_weights) or self.shards > 1
            cache = numbers * self.computed * engine.max_sessions * self.longest
            return size.parameters * self.stored * copies, cache, numbers * self.computed
        if kind != "VllmEngine" or memory is None:
            return 0, 0, numbers * self.computed
        stored = DTYPE_BYTES.get(engine.settings.dtype, self.stored)
        copy = size.parameters * stored
        reserved = int(engine.settings.gpu_memory_utilization * memory * GIB)
        return copy, reserved - copy, numbers * stored

    def _memory(self) -> dict[str, dict[str, int]]:
        size, tokens, chunk = self.size, self.micro_batch, self.config.model.get("head_chunk", 2048)
        awake = PHASES[:2] if self.sleep else PHASES
        of_weights, of_optimizer = HELD[self.offload]
        # Two layers are whole at a time, one of them ahead of its use; the outer part stays whole.
        outer = size.parameters - size.layers * size.layer_parameters
        gathered = (2 * size.layer_parameters + outer) * self.computed
        # Keys and values of each sequence beside those of its prompt, and the gradients of both.
        keys = tokens + tokens // self.response * self.prompt if self.packing else 0
        kept = activation_bytes(size, tokens, self.computed, self.checkpointing, self.shards > 1)
        rows: list[tuple[str, int, tuple[str, ...]]] = [
            ("weights", self.states["weights"], of_weights),
            ("reference", self.states["reference"], of_weights),
            ("optimizer", self.states["optimizer"], of_optimizer),
            ("gradients", self.states["gradients"], ("update",) if of_optimizer else ()),
            ("gathered layers", gathered if self.shards > 1 else 0, ("sync", *LEARNING)),
            ("activations", kept, ("update",)),
            ("attention", 4 * keys * size.key_value * self.computed, LEARNING),
            ("logits", HEAD_COPIES * chunk * size.vocabulary * 4, LEARNING),
            ("engine's weights", self.copy, awake),
            ("KV cache", self.cache, awake),
        ]
        return {name: dict.fromkeys(phases, number) for name, number, phases in rows}

    def _host(self, per_machine: int, shards_saved: bool) -> dict[str, int]:
        states = self.states
        saved = states["weights"] + states["optimizer"]
        moved = {"none": 0, "optimizer": states["optimizer"], "all": saved + states["reference"]}
        moved["always"] = sum(states.values())
        asleep = self.copy if self.sleep == 1 else 0
        loaders = 1 if self.config.model.get("load_once") else per_machine
        return {
            "loading": self.size.parameters * self.stored * loaders,
            "off the devices": (moved[self.offload] + asleep) * per_machine,
            "saving": saved * (per_machine if shards_saved else self.shards),
        }

    def _tokens(self) -> dict[str, int]:
        tasks, size = self.config.tasks_per_iteration, self.config.group_size
        # With packing the attempts of one micro-batch share their prompt.
        together = max(1, (self.micro_batch - self.prompt) // self.response)
        prompts = -(-size // together) if self.packing else size
        return {
            "trajectories": tasks * size,
            "responses": tasks * size * self.response,
            "prompts": tasks * size * self.prompt,
            "prompts computed in the update": tasks * prompts * self.prompt,
        }

    def _seconds(self) -> dict[str, float]:
        given, size, tokens = self.given, self.size, self.tokens
        if given.decode_tokens_per_s is None or given.tflops is None:
            return {}
        computed = tokens["responses"] + tokens["prompts computed in the update"]
        attention = 2 * size.layers * size.query * (self.prompt + self.response)
        forward = computed * (2 * size.parameters + attention) / (given.tflops * 1e12)
        scorings = (self.config.mini_batches > 1) + self.scorings
        passes = 4 if self.checkpointing else 3  # backward: two
        return {
            "rollout": tokens["responses"] / given.decode_tokens_per_s / self.devices,
            "scoring": forward * scorings / self.devices,
            "update": forward * passes / self.devices,
        }

    # -- what it comes to ------------------------------------------------------------------------

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of one device in each phase."""
        return {p: sum(part.get(p, 0) for part in self.memory.values()) for p in PHASES}

    @property
    def conversations(self) -> int:
        """Of full length that the KV cache of one device has room for."""
        return self.cache // (self.cache_token * self.longest)

    def require_room(self) -> list[str]:
        """What estimates warn of, and what helps.

        Raises:
            UserError: what is counted alone is more than a device has.
        """
        memory = self.given.memory_gib
        if memory is None:
            return []
        if self.cache and self.conversations < 1:
            raise UserError(
                f"the KV cache of {self.cache / GIB:.1f} GiB has no room for one conversation of "
                "full length: see rollout.limits and gpu_memory_utilization"
            )
        warnings = []
        counted = {*self.states, "engine's weights", "KV cache"}
        for phase, total in self.totals.items():
            parts = {k: v[phase] for k, v in self.memory.items() if phase in v}
            named = ", ".join(f"{k} {n / GIB:.1f}" for k, n in parts.items() if n)
            text = f"{phase}: {total / GIB:.1f} GiB of {memory:.1f} on a device ({named})"
            if sum(n for k, n in parts.items() if k in counted) > memory * GIB:
                raise UserError(f"{text}\n{SMALLER}")
            if total > memory * GIB * USABLE:
                warnings.append(f"{text}; by estimates, {memory * USABLE:.1f} can be used")
        return [*warnings, SMALLER] if warnings else []

    def show(self, console: Console) -> None:
        """Print the iteration as a time line: which part is on a device in which phase."""
        size, cached = self.size, self.cache // self.cache_token
        table = Table("GiB on one device", *PHASES)
        for name, held in self.memory.items():
            if any(held.values()):
                table.add_row(name, *(f"{held.get(p, 0) / GIB:.1f}" for p in PHASES))
        table.add_section()
        table.add_row("together", *(f"{n / GIB:.1f}" for n in self.totals.values()))
        table.add_row("hours", *(f"{self.seconds.get(p, 0) / 3600:.2f}" for p in PHASES))
        console.print(
            f"{size.parameters / 1e9:.2f} billion parameters on {self.devices} device(s), "
            f"sleep_level={self.sleep}, offload={self.offload}",
            table,
            "tokens of an iteration: " + ", ".join(f"{k} {n:,}" for k, n in self.tokens.items()),
            "host, GiB: " + ", ".join(f"{k} {n / GIB:.1f}" for k, n in self.host.items()),
            f"KV cache: {cached:,} tokens: {self.conversations} conversations of full length, "
            f"{conversations_at_once(cached, self.prompt + self.response / 2)} as expected",
            f"{self.config.iterations} iterations: "
            f"{sum(self.seconds.values()) * self.config.iterations / 3600:.1f} hours",
            sep="\n",
        )


def skipped_tasks(config: DictConfig) -> str:
    """How many tasks the limits skip, in words, where tasks and tokenizer are on disk."""
    try:
        stages = instantiate(config.datamodule).stages
        if config.model.get("name_or_path"):
            tokenizer = AutoTokenizer.from_pretrained(
                config.model.name_or_path, local_files_only=True
            )
        else:
            tokenizer = instantiate(config.model).tokenizer
    except (OSError, InstantiationException) as error:  # what is not there: Hugging Face's, Hydra's
        missing = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(missing, OSError):
            raise
        return f"tasks skipped: unknown, {str(missing).split('. ')[0]}"
    limit = config.rollout.limits.max_prompt_tokens
    said = check_prompts(stages, instantiate(config.renderer)(tokenizer=tokenizer), limit, 1.0)
    return said or "tasks skipped: none"


def check_plan(config: DictConfig, show: bool) -> None:
    """Print the plan of a training config and its warnings; raises UserError where it can't be."""
    if show or config.plan.memory_gib is not None:
        plan = Plan(config)
        if show:
            plan.show(Console())
            Console().print(skipped_tasks(config))
        for warning in plan.require_room():
            log.warning(warning)
