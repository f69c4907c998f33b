"""What only a GPU can show, in ten minutes: devices, syncs, sleep, attention, memory, speed.

    python scripts/prove_gpu.py [--only sync_bfloat16 iteration] [--folder logs/prove_gpu]
    python scripts/prove_gpu.py --dry     # the same calls on a CPU, with a tiny model

Nothing is downloaded: the model has the architecture of Qwen3-0.6B and random weights. Each check
prints what it measured and what was wanted; one that this machine cannot make is skipped by name.
The last line is `RESULT {json}`; the exit status is 1 where a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, Qwen3Config

from matchtir.policy.loading import LoadedPolicy, save_pretrained
from matchtir.policy.policy import Policy
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.policy.weights import add_adapters
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.vllm_engine import VllmEngine
from matchtir.training.plan import USABLE, Plan
from matchtir.utils.run_folder import CONFIG_FILE, METRICS_FILE, read_rows, register_resolvers

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
MODEL = "Qwen/Qwen3-0.6B"
CONTEXTS, TURN = 8, 64  # conversations that a sync is judged by, and tokens sampled in each
# 1e12 dense operations per second in 16 bits, by the vendors' data sheets.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165, "B200": 2250}


class SkippedError(Exception):
    """Why a check cannot be made here."""


def need(package: str) -> None:
    """Raise SkippedError where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise SkippedError(f"{package} is not installed")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the checks run, and how large they are."""

    device: torch.device
    folder: Path
    dry: bool

    @property
    def config(self) -> Qwen3Config:
        """The architecture: Qwen3-0.6B, or a few thousand weights."""
        if self.dry:
            return Qwen3Config(
                hidden_size=32,
                num_hidden_layers=2,
                intermediate_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                vocab_size=len(tiny_tokenizer()),
                tie_word_embeddings=True,
            )
        known: Any = OmegaConf.load(ROOT / "configs" / "train.yaml")
        return Qwen3Config(**known.plan.models[MODEL])

    def policy(self, dtype: torch.dtype, packing: bool = False) -> Policy:
        """Random weights, the same at every call."""
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
        return Policy(model, packing=packing).eval()

    def held(self) -> float:
        """GiB of the GPU that are in use, by whomever; 0 without one."""
        if self.device.type != "cuda":
            return 0.0
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free) / GIB


Finding = tuple[dict[str, float], bool]  # what was measured, and whether it is as wanted
CHECKS: dict[str, tuple[str, Callable[[Machine], Finding]]] = {}


def check(wanted: str) -> Callable[[Callable[[Machine], Finding]], Callable[[Machine], Finding]]:
    """Add a function to the checks, under its own name."""

    def add(function: Callable[[Machine], Finding]) -> Callable[[Machine], Finding]:
        CHECKS[function.__name__] = wanted, function
        return function

    return add


# -- the sampler and the trainer -------------------------------------------------------------------


@contextmanager
def sampler(sleep_level: int = 0) -> Iterator[VllmEngine]:
    """An engine of vLLM beside the policy."""
    need("vllm")
    settings = {"gpu_memory_utilization": 0.3}
    engine = VllmEngine((), 1024, settings, sleep_level=sleep_level)
    try:
        yield engine
    finally:
        engine.close()


def sample(engine: VllmEngine, vocabulary: int) -> list[tuple[list[int], Generation]]:
    """Contexts of random ids, and what was sampled after each; the same seeds at every call."""
    draw = torch.Generator().manual_seed(1)
    contexts = torch.randint(10, vocabulary, (CONTEXTS, 100), generator=draw).tolist()
    params = SamplingParams(max_new_tokens=TURN)

    async def turns() -> list[Generation]:
        return await asyncio.gather(
            *(engine.generate(f"{n}", ids, params, seed=n) for n, ids in enumerate(contexts))
        )

    sampled = asyncio.run(turns())
    for number in range(CONTEXTS):
        engine.release(f"{number}")
    return list(zip(contexts, sampled, strict=True))


@torch.no_grad()
def difference(policy: Policy, turns: list[tuple[list[int], Generation]]) -> float:
    """Mean absolute difference of log-probabilities: the sampler's, and the trainer's."""
    device = next(policy.parameters()).device
    ids = torch.tensor([[*context, *turn.token_ids] for context, turn in turns], device=device)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    scored[:, len(turns[0][0]) :] = True
    found = policy(ids, scored).logprobs[scored].cpu()
    expected = torch.tensor([value for _, turn in turns for value in turn.logprobs])
    return float((found - expected).abs().mean())


@torch.no_grad()
def perturb(policy: Policy) -> None:
    """Weights that are clearly others."""
    torch.manual_seed(2)
    for parameter in policy.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)


def sync_difference(machine: Machine, dtype: torch.dtype) -> dict[str, float]:
    """Differences after the first sync, and after one of other weights."""
    policy = machine.policy(dtype)
    with sampler() as engine:
        engine.sync(policy, 0)
        first = difference(policy, sample(engine, machine.config.vocab_size))
        perturb(policy)
        engine.sync(policy, 1)
        return {
            "first": first,
            "after_a_step": difference(policy, sample(engine, machine.config.vocab_size)),
        }


@check("mean |difference| of log-probabilities below 1e-4")
def sync_float32(machine: Machine) -> Finding:
    """The sampler computes what the trainer computes, also after weights have changed."""
    found = sync_difference(machine, torch.float32)
    return found, max(found.values()) < 1e-4


@check("mean |difference| of log-probabilities below 2e-2")
def sync_bfloat16(machine: Machine) -> Finding:
    """The same in 16 bits, where kernels round in another order."""
    found = sync_difference(machine, torch.bfloat16)
    return found, max(found.values()) < 2e-2


@check("mean |difference| below 1e-4, and adapters move the sampler by more than ten times that")
def sync_lora(machine: Machine) -> Finding:
    """Adapters reach the sampler."""
    need("peft")
    policy = machine.policy(torch.float32)
    plain = machine.policy(torch.float32)
    add_adapters(policy.model, {"r": 8, "alpha": 16})
    policy.to(machine.device)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
    with sampler() as engine:
        engine.sync(policy, 0)
        turns = sample(engine, machine.config.vocab_size)
    found = {"adapted": difference(policy, turns), "plain": difference(plain, turns)}
    return found, found["adapted"] < 1e-4 and found["plain"] > 1e-3


@check("the trainer's device stays current, and the sampler takes no memory of another")
def placement(machine: Machine) -> Finding:
    """The engine is built on the device of its process: the last one of this machine."""
    if machine.device.type != "cuda":
        raise SkippedError("no GPU")
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    torch.cuda.set_device(last)
    here = Machine(last, machine.folder, machine.dry)
    free = [torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())]
    policy = here.policy(torch.bfloat16)
    with sampler() as engine:
        engine.sync(policy, 0)
        taken = [free[n] - torch.cuda.mem_get_info(n)[0] for n in range(len(free))]
        current = torch.cuda.current_device()
    others = max([number / GIB for number in taken[:-1]], default=0.0)
    found = {"own_gib": taken[-1] / GIB, "most_of_another_gib": others, "devices": len(free)}
    return found, current == last.index and others < 0.5 and found["own_gib"] > 1


@check("asleep the sampler holds a tenth, and it wakes to the same tokens")
def sleep(machine: Machine) -> Finding:
    """Sleep frees the cache and the weights; the weights come again with the sync."""
    policy = machine.policy(torch.bfloat16)
    before = machine.held()
    with sampler(sleep_level=2) as engine:
        engine.sync(policy, 0)
        awake = machine.held() - before
        turns = sample(engine, machine.config.vocab_size)
        engine.sleep()
        asleep = machine.held() - before
        started = time.perf_counter()
        engine.wake()
        engine.sync(policy, 0)
        seconds = time.perf_counter() - started
        same = turns == sample(engine, machine.config.vocab_size)
    found = {"awake_gib": awake, "asleep_gib": asleep, "wake_and_sync_s": seconds}
    return found | {"same_tokens": float(same)}, same and asleep <= 0.1 * awake


# -- the update ------------------------------------------------------------------------------------


def packed_against_padded(
    machine: Machine, dtype: torch.dtype, prompt: int, longest: int, rounds: int
) -> dict[str, float]:
    """Largest difference of log-probabilities and gradients, and seconds of both ways in turns."""
    group = 8
    draw = torch.Generator().manual_seed(0)
    lengths = prompt + torch.randint(longest // 8, longest + 1, (group,), generator=draw)
    ids = torch.randint(10, machine.config.vocab_size, (group, prompt + longest), generator=draw)
    ids[:, :prompt] = ids[0, :prompt]
    places = torch.arange(prompt + longest)
    real = places < lengths[:, None]
    batch = [each.to(machine.device) for each in (ids, real & (places >= prompt), real)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    scores: dict[bool, torch.Tensor] = {}
    gradients: dict[bool, torch.Tensor] = {}
    for packing in (False, True) * (rounds + 1):  # the first round warms up
        policy = machine.policy(dtype, packing)
        started = time.perf_counter()
        logprobs = policy(batch[0], batch[1], 1.0, batch[2]).logprobs
        (logprobs.sum() / group).backward()
        scores[packing] = logprobs.detach().float().cpu()
        embeddings: Any = policy.model.get_input_embeddings()
        gradients[packing] = embeddings.weight.grad.float().cpu()
        seconds[packing].append(time.perf_counter() - started)
    scale = float(gradients[False].abs().max())
    return {
        "logprob_difference": float((scores[True] - scores[False]).abs().max()),
        "gradient_difference": float((gradients[True] - gradients[False]).abs().max()) / scale,
        "padded_s": median(seconds[False][1:]),
        "packed_s": median(seconds[True][1:]),
        "padded_over_packed": median(seconds[False][1:]) / median(seconds[True][1:]),
    }


@check("differences below 1e-3 in 32 bits")
def packing_float32(machine: Machine) -> Finding:
    """A group in one row, its prompt once: the same numbers as padded."""
    found = packed_against_padded(machine, torch.float32, 50, 100, rounds=1)
    return found, max(found["logprob_difference"], found["gradient_difference"]) < 1e-3


@check("not slower than padded in 16 bits; differences below 0.1")
def packing_bfloat16(machine: Machine) -> Finding:
    """The size of a group at scale: a prompt of 2,000 tokens and attempts of up to 2,000."""
    prompt, longest = (50, 100) if machine.dry else (2000, 2000)
    found = packed_against_padded(machine, torch.bfloat16, prompt, longest, rounds=3)
    close = max(found["logprob_difference"], found["gradient_difference"]) < 0.1
    return found, close and (machine.dry or found["padded_over_packed"] >= 1)


# -- the whole -------------------------------------------------------------------------------------


def overrides(machine: Machine, run: Path) -> list[str]:
    """Of two iterations with vLLM: the method on one GPU, synthetic tasks, random weights."""
    model = machine.folder / "model"
    save_pretrained(LoadedPolicy(machine.policy(torch.float32), tiny_tokenizer()), model)
    shutil.rmtree(run, ignore_errors=True)  # of an earlier proof
    common = [
        "experiment=smoke", "rollout=vllm", "rollout.engine.sleep_level=2",
        "model=huggingface", f"model.name_or_path={model}",
        "iterations=2", f"paths.run_dir={run}", "logger=csv",
    ]  # fmt: skip
    if machine.dry:
        return [*common, "model.dtype=float32"]
    return [
        *common, "trainer=gpu", "model.dtype=float32", "model.packing=true", "optimizer=adamw",
        "model.activation_checkpointing=true", "tasks_per_iteration=16", "group_size=16",
        "rollout.limits.max_turns=4", "rollout.limits.max_turn_tokens=1024",
        "rollout.limits.max_response_tokens=4096", "module.micro_batch_tokens=16384",
        f"plan.memory_gib={torch.cuda.mem_get_info(machine.device)[1] / GIB:.1f}",
    ]  # fmt: skip


@check("two iterations end well; each phase fits into its plan and what that leaves to libraries")
def iteration(machine: Machine) -> Finding:
    """Tokens per second of rollout and update, the update's share of the peak, memory by phase."""
    need("vllm")
    run = machine.folder / "run"
    command = [sys.executable, str(ROOT / "src" / "train.py"), *overrides(machine, run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    rows = [row for row in read_rows(run / METRICS_FILE)[1] if "time/update" in row]
    last = {name: float(value) for name, value in rows[-1].items()}  # the warm one
    found = {name: last[name] for name in last if name.startswith(("time/", "memory/"))}
    found["rollout_tokens_per_s"] = last["train/tokens_per_s"]
    sampled = last["train/tokens_per_s"] * last["time/rollout"]
    found["update_tokens_per_s"] = sampled / last["time/update"]
    peak = next((p for name, p in PEAK_TFLOPS.items() if name in device_name(machine)), None)
    if peak:
        weights = sum(each.numel() for each in machine.policy(torch.bfloat16).parameters())
        # Forward, backward and the forward pass of checkpointing: 2 + 4 + 2 for each weight.
        found["update_mfu"] = 8 * weights * found["update_tokens_per_s"] / (peak * 1e12)
    register_resolvers()
    plan = Plan(OmegaConf.load(run / CONFIG_FILE))  # type: ignore[arg-type]
    planned = plan.totals
    libraries = (1 - USABLE) * (plan.given.memory_gib or 0)
    held = {phase: last[f"memory/{phase}"] for phase in planned if f"memory/{phase}" in last}
    found |= {f"planned/{phase}": planned[phase] / GIB for phase in held}
    return found, len(rows) == 2 and all(held[p] <= planned[p] / GIB + libraries for p in held)


def device_name(machine: Machine) -> str:
    """Of the GPU, or of the processor."""
    if machine.device.type == "cuda":
        return torch.cuda.get_device_name(machine.device)
    return platform.processor() or platform.machine()


def run_check(name: str, machine: Machine) -> dict[str, Any]:
    """What was measured in one check, and whether it is what was wanted."""
    wanted, function = CHECKS[name]
    row: dict[str, Any] = {"check": name, "outcome": "failed", "wanted": wanted}
    row |= {"measured": {}, "why": ""}
    machine.held()  # gives up what PyTorch keeps of the check before: another process may need it
    try:
        row["measured"], good = function(machine)
        row["outcome"] = "ok" if good else "failed"
    except SkippedError as reason:
        row |= {"outcome": "skipped", "why": str(reason)}
    except Exception as error:  # a check that fails does not hide the others
        row["why"] = f"{type(error).__name__}: {error}"
    return row


def main() -> None:
    """All checks, or some by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, with a tiny model")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--folder", type=Path, default=ROOT / "logs" / "prove_gpu")
    options = parser.parse_args()
    if not (options.dry or torch.cuda.is_available()):
        parser.error("there is no GPU: --dry makes the same calls on a CPU")
    machine = Machine(torch.device("cpu" if options.dry else "cuda"), options.folder, options.dry)
    print(f"{device_name(machine)}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    rows = {}
    for name in options.only:
        started = time.perf_counter()
        rows[name] = row = run_check(name, machine)
        numbers = ", ".join(f"{key} {value:.3g}" for key, value in row["measured"].items())
        wanted = f"(wanted: {row['wanted']}; {time.perf_counter() - started:.0f} s)"
        print(f"{row['outcome']:8}{name}: {numbers or row['why']} {wanted}", flush=True)
    print("RESULT", json.dumps(rows))
    sys.exit(any(row["outcome"] == "failed" for row in rows.values()))


if __name__ == "__main__":
    main()
