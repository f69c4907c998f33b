"""What a run will cost: sizes and memory against what torch counts, and refusals in time."""

import json
from copy import deepcopy
from functools import lru_cache
from io import StringIO

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from matchtir.policy.size import activation_bytes, architecture, model_size
from matchtir.policy.tiny.model import load_tiny
from matchtir.training import plan as planned
from matchtir.training.plan import GIB, Plan, skipped_tasks
from tests.test_configs import composed


@lru_cache
def counted(config):
    return model_size(AutoConfig.for_model(**json.loads(config)))


@pytest.fixture(autouse=True)
def sizes_are_counted_once(monkeypatch):
    """A model of 36 layers is made for its size in a second, and most tests ask for it."""
    monkeypatch.setattr(planned, "model_size", lambda config: counted(config.to_json_string(False)))


@lru_cache
def chosen(*groups):
    return composed("train", "experiment=matchtir_soft", *groups)


def plan(*overrides):
    keys = [each for each in overrides if "." in each.partition("=")[0]]
    config = deepcopy(chosen(*(each for each in overrides if each not in keys)))
    config.merge_with_dotlist(keys)
    return Plan(config)


def qwen3(**sizes):
    given = {"hidden_size": 256, "num_key_value_heads": 4, "intermediate_size": 768}
    given |= {"num_hidden_layers": 4, "vocab_size": 100, "num_attention_heads": 8, "head_dim": 64}
    return Qwen3Config(**{**given, **sizes})


def test_sizes_are_those_of_the_model_cards_or_of_a_folder(tmp_path):
    table = chosen("scale=paper_8b").plan.models
    for name, billions in {"0.6B": 0.596, "1.7B": 1.721, "4B": 4.022, "8B": 8.191}.items():
        size = model_size(architecture(f"Qwen/Qwen3-{name}", table))
        assert size.parameters / 1e9 == pytest.approx(billions, abs=5e-4)
    (tmp_path / "config.json").write_text(json.dumps(qwen3().to_dict()))
    assert model_size(architecture(str(tmp_path), {})).layers == 4
    with pytest.raises(ValueError, match=r"the size of a/model is not known"):
        plan("scale=paper_8b", "model.name_or_path=a/model")


def saved_bytes(config, tokens, autocast, checkpointing):
    """What autograd keeps of a forward pass, parameters and their 16-bit copies left out."""
    model = AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
    weights = {p.shape for p in model.parameters()} | {p.shape[::-1] for p in model.parameters()}
    total = 0

    def pack(value):
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


def of_a_layer(estimate_or_measure, **sizes):
    """The difference between two layers and one: what is not of a layer falls out."""
    two, one = (qwen3(num_hidden_layers=n, **sizes) for n in (2, 1))
    return estimate_or_measure(two) - estimate_or_measure(one)


@pytest.mark.parametrize(("compute_bytes", "checkpointing"), [(4, False), (2, False), (4, True)])
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 512}, {"intermediate_size": 1536}])
def test_activations_are_those_that_autograd_keeps(compute_bytes, checkpointing, sizes):
    def estimated(config):
        return activation_bytes(model_size(config), 500, compute_bytes, checkpointing)

    measured = of_a_layer(lambda c: saved_bytes(c, 500, compute_bytes == 2, checkpointing), **sizes)
    rounding = 0 if checkpointing else 0.02  # of the inputs of layers nothing is estimated
    assert of_a_layer(estimated, **sizes) == pytest.approx(measured, rel=rounding)


@pytest.mark.parametrize("scale", ["paper_4b", "paper_8b", "single_gpu"])
def test_the_scales_fit(scale):
    found = plan(f"scale={scale}")
    assert found.require_room() == []
    assert found.seconds["rollout"] > 0 and found.conversations > 1


def test_the_papers_iteration():
    found = plan("scale=paper_8b")
    assert found.devices == 8 and found.tokens["trajectories"] == 256 * 16
    parameters = found.size.parameters
    shard = parameters // 2  # 4 bytes over 8 devices
    states = {"weights": shard, "reference": shard, "optimizer": 2 * shard, "gradients": shard}
    assert found.states == states
    assert found.copy == 2 * parameters
    # One attempt of 6,000 tokens and a prompt of 4,000: four of 16 share one in 30,000 tokens.
    assert found.tokens["prompts computed in the update"] == found.tokens["prompts"] // 4
    assert found.host["loading"] == 4 * parameters  # by one process alone
    assert found.host["saving"] == 12 * parameters  # by all, a shard each


CROWDED = "rollout.engine.settings.gpu_memory_utilization=0.8"
HOLDERS = {"weights", "reference", "optimizer", "engine's weights", "KV cache"}


@pytest.mark.parametrize(
    ("sleep", "offload", "rollout", "update"),
    [
        (0, "none", HOLDERS, HOLDERS),
        (2, "none", HOLDERS, HOLDERS - {"engine's weights", "KV cache"}),
        (2, "optimizer", HOLDERS - {"optimizer"}, {"weights", "reference", "optimizer"}),
        (2, "all", {"engine's weights", "KV cache"}, {"weights", "reference", "optimizer"}),
    ],
)
def test_who_holds_the_device_when(sleep, offload, rollout, update):
    options = f"rollout.engine.sleep_level={sleep}", f"trainer.offload={offload}"
    found = plan("scale=paper_8b", *options)
    for phase, holders in ("rollout", rollout), ("update", update):
        assert {name for name in HOLDERS if found.memory[name].get(phase)} == holders
    moved = {"none": 0, "optimizer": 8, "all": 16}[offload]
    assert found.host["off the devices"] == moved * found.size.parameters // 8 * 8


def test_adapters_are_counted_and_kept_in_32_bits_beside_16():
    policy = load_tiny(hidden_size=64, lora={"r": 4}).policy
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert model_size(policy.model.config).lora_parameters(4) == trained
    found = plan("scale=single_gpu")
    adapters = 4 * found.size.lora_parameters(32)
    assert found.stored == 2 and found.states["weights"] == 2 * found.size.parameters + adapters
    assert found.states["gradients"] == adapters and found.states["reference"] == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["trainer=gpu"], "weights 30.5"),
        (["rollout.engine.sleep_level=0", CROWDED], "update: .*KV cache"),
        (["rollout.engine.settings.gpu_memory_utilization=0.2"], "no room for one conversation"),
    ],
)
def test_what_cannot_fit_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        plan("scale=paper_8b", "module.micro_batch_tokens=30000", *changes).require_room()


@pytest.mark.parametrize(
    "change", ["model.activation_checkpointing=false", "module.micro_batch_tokens=200000"]
)
def test_an_estimate_only_warns(change):
    warning, advice = plan("scale=paper_8b", change).require_room()
    assert warning.startswith("update: ") and "activations" in warning
    assert "HSDP" in advice and "tensor_parallel_size=2" in advice


def test_offloading_for_good_leaves_the_device():
    there = plan("scale=paper_8b", "trainer.strategy.cpu_offload=true", "trainer.offload=none")
    assert not any(there.memory[name] for name in there.states)
    assert there.host["off the devices"] == 8 * sum(there.states.values())


def test_without_a_stated_memory_nothing_is_refused():
    found = plan("model=tiny", "model.hidden_size=256", "rollout.engine.max_sessions=1000000")
    assert found.require_room() == [] and found.seconds == {}
    assert found.totals["rollout"] > 100 * GIB


def test_a_dry_run_is_a_time_line_and_needs_neither_data_nor_model(tmp_path):
    config = deepcopy(chosen("scale=paper_8b"))
    config.paths.data_dir = str(tmp_path)
    assert skipped_tasks(config).startswith("tasks skipped: unknown, no such file")
    console = Console(record=True, width=120, file=StringIO())
    Plan(config).show(console)
    said = console.export_text()
    for words in ("sync", "rollout", "scoring", "update", "together", "hours", "KV cache: "):
        assert words in said
