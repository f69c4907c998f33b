"""What a run will cost: sizes and memory against what torch counts, and refusals in time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, Qwen3Config

from matchtir.policy.tiny.model import load_tiny
from matchtir.training.plan import (
    GIB,
    ModelSize,
    Plan,
    PlanError,
    activation_bytes,
    architecture,
    make_plan,
    model_size,
)
from tests.test_configs import composed

SMALL = {"num_hidden_layers": 4, "vocab_size": 100, "num_attention_heads": 8, "head_dim": 64}


def plan(*overrides: str) -> Plan:
    config: DictConfig = composed("train", "experiment=matchtir_soft", *overrides)
    return make_plan(config)


def qwen3(**sizes: int) -> Qwen3Config:
    given = {"hidden_size": 256, "num_key_value_heads": 4, "intermediate_size": 768, **SMALL}
    return Qwen3Config(**{**given, **sizes})


@pytest.mark.parametrize(
    ("name", "billions"),
    [("0.6B", 0.596), ("1.7B", 1.721), ("4B", 4.022), ("8B", 8.191)],
)
def test_sizes_of_the_table_are_those_of_the_model_cards(name: str, billions: float) -> None:
    table = composed("train").plan.models
    size = model_size(architecture(f"Qwen/Qwen3-{name}", table))
    assert size.parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_the_size_of_a_model_on_disk_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(qwen3().to_dict()))
    assert model_size(architecture(str(tmp_path), {})).layers == 4


def test_a_model_that_is_nowhere_is_named() -> None:
    with pytest.raises(ValueError, match=r"the size of a/model is not known"):
        plan("scale=paper_8b", "model.name_or_path=a/model")


def saved_bytes(config: Qwen3Config, tokens: int, autocast: bool, checkpointing: bool) -> int:
    """What autograd keeps of a forward pass, parameters and their 16-bit copies left out."""
    model = AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept: dict[int, torch.Tensor] = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
    weights = {p.shape for p in model.parameters()} | {p.shape[::-1] for p in model.parameters()}
    total = 0

    def pack(value: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = value.untyped_storage()
        if storage.data_ptr() not in kept and value.shape not in weights:
            kept[storage.data_ptr()] = value
            total += storage.nbytes()
        return value

    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.base_model(input_ids=ids, use_cache=False)
    return total


def of_four_layers(estimate_or_measure: Callable[[Qwen3Config], int], **sizes: int) -> int:
    """The difference between eight layers and four: what is not of a layer falls out."""
    eight, four = (qwen3(num_hidden_layers=n, **sizes) for n in (8, 4))
    return estimate_or_measure(eight) - estimate_or_measure(four)


@pytest.mark.parametrize("compute_bytes", [4, 2])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 512}, {"intermediate_size": 1536}])
def test_activations_are_those_that_autograd_keeps(
    compute_bytes: int, sizes: dict[str, int]
) -> None:
    def measured(config: Qwen3Config) -> int:
        return saved_bytes(config, 500, compute_bytes == 2, checkpointing=False)

    def estimate(config: Qwen3Config) -> int:
        return activation_bytes(model_size(config), 500, compute_bytes, checkpointing=False)

    assert of_four_layers(estimate, **sizes) == pytest.approx(
        of_four_layers(measured, **sizes), rel=0.02
    )


def test_checkpointed_activations_are_the_inputs_of_layers() -> None:
    measured = of_four_layers(lambda config: saved_bytes(config, 500, False, checkpointing=True))
    estimate = of_four_layers(lambda c: activation_bytes(model_size(c), 500, 4, checkpointing=True))
    assert estimate == measured


def test_adapters_have_so_many_parameters() -> None:
    policy = load_tiny(hidden_size=64, lora={"r": 4}).policy
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert model_size(policy.model.config).lora_parameters(4) == trained


@pytest.mark.parametrize("scale", ["paper_4b", "paper_8b", "single_gpu"])
def test_the_scales_fit(scale: str) -> None:
    found = plan(f"scale={scale}")
    found.require_room()
    assert found.limit and found.total < found.limit and found.seconds["rollout"] > 0


def test_the_papers_iteration() -> None:
    found = plan("scale=paper_8b")
    assert found.devices == 8 and found.tokens["trajectories"] == 256 * 16
    assert found.tokens["prompts, at most"] == 256 * 16 * 7_000
    assert found.tokens["responses, at most"] == 256 * 16 * 23_000
    parameters = found.size.parameters
    assert found.memory["weights"] == found.memory["gradients"] == parameters * 4 // 8
    assert found.memory["optimiser"] == parameters
    assert found.memory["engine's weights"] == 2 * parameters


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("trainer=gpu", "optimiser 61.0"),
        ("model.activation_checkpointing=false", "activations"),
        ("module.micro_batch_tokens=100000", "What makes them smaller"),
        ("rollout.engine.settings.gpu_memory_utilization=0.2", "no room for one conversation"),
    ],
)
def test_what_cannot_fit_is_refused(change: str, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        plan("scale=paper_8b", change).require_room()


def test_offloading_leaves_the_device() -> None:
    here, there = (
        plan("scale=paper_8b"),
        plan("scale=paper_8b", "trainer.strategy.cpu_offload=true"),
    )
    moved = sum(here.memory[k] for k in ("weights", "gradients", "optimiser", "reference policy"))
    assert here.total - there.total == moved
    assert there.host_memory == 8 * moved


def test_without_a_stated_memory_nothing_is_refused() -> None:
    found = plan("model=tiny", "model.hidden_size=256", "rollout.engine.max_sessions=1000000")
    found.require_room()
    assert found.total > 100 * GIB and found.seconds == {}


def test_sizes_add_up() -> None:
    size: ModelSize = model_size(qwen3())
    assert size.layers * size.layer_parameters + size.outer_parameters == size.parameters
