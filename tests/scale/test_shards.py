"""Two processes shard a policy that only the first of them has loaded."""

import os

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing import spawn
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from matchtir.policy.loading import LoadedPolicy, load_pretrained, save_pretrained
from matchtir.policy.policy import Policy
from matchtir.policy.weights import full_tensor
from matchtir.training.parallel import ShardedStrategy, frozen_copy, sum_gradients
from matchtir.training.phases import HostOffload
from tests.policy.tiny_policy import ARCHITECTURE, small
from tests.scale.test_adapters import IDS, scores


def sharding(processes):
    strategy = ShardedStrategy(processes)
    strategy.parallel_devices = [torch.device("cpu")] * processes
    strategy.cluster_environment = LightningEnvironment()
    mesh = init_device_mesh("cpu", (processes, 1), mesh_dim_names=("data_parallel", "tensor"))
    strategy._device_mesh = mesh
    return strategy


def process(rank, folders):
    """What both processes do; a failed assertion in one fails the test."""
    os.environ |= {"LOCAL_RANK": str(rank)}
    rank_zero_only.rank = rank
    meeting = f"file://{folders[0]}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for folder in folders:
        loaded_once(rank, folder, tied=folder.name == "tied")
        adapted(rank, folder)


def loaded_once(rank, folder, tied):
    expected = load_pretrained(str(folder)).policy
    policy = load_pretrained(str(folder), load_once=True).policy
    assert all(each.is_meta == (rank > 0) for each in policy.parameters())
    reference = frozen_copy(policy, weights=False)
    assert all(each.is_meta for each in reference.parameters())
    sharding(2).shard([policy, reference])
    for each in (policy, reference):
        assert torch.allclose(scores(each), scores(expected), atol=1e-5)
        head = each.model.get_output_embeddings().weight
        assert isinstance(head, DTensor)
        assert (head is each.model.get_input_embeddings().weight) == tied
    shards = [each.to_local() for each in policy.parameters()]
    whole = sum(each.numel() for each in expected.parameters())
    assert sum(each.numel() for each in shards) < 0.6 * whole
    assert not any(each.requires_grad for each in reference.parameters())
    with torch.no_grad():
        for each in policy.parameters():
            each.mul_(2.0)
    own, other = next(policy.parameters()), next(reference.parameters())
    assert torch.equal(full_tensor(own), 2 * full_tensor(other))
    then, offloaded = scores(policy), HostOffload()
    offloaded.offload(policy.parameters())
    assert all(each.untyped_storage().nbytes() == 0 for each in shards)
    offloaded.reload()
    assert torch.equal(scores(policy), then)


def adapted(rank, folder):
    """Adapters in 32 bits beside shards in 16: whole in both processes, trained and merged."""
    settings = {"dtype": "bfloat16", "lora": {"r": 4}}
    alone = load_pretrained(str(folder), **settings)
    policy = load_pretrained(str(folder), load_once=True, **settings).policy
    sharding(2).shard([policy])
    trained = [each for each in policy.parameters() if each.requires_grad]
    assert trained and not any(isinstance(each, DTensor) for each in trained)
    others = [each for each in policy.parameters() if not each.requires_grad]
    assert all(isinstance(each, DTensor) for each in others)
    own = [each for each in alone.policy.parameters() if each.requires_grad]
    for each, one in zip(trained, own, strict=True):
        one.data.copy_(each)
        distributed.broadcast(one.data, src=0)
        assert torch.equal(each, one)  # as the first process drew it
    for model, rows in (policy, slice(rank, rank + 1)), (alone.policy, slice(0, 2)):
        ids = IDS[rows]
        (-model(ids, torch.ones_like(ids, dtype=torch.bool)).logprobs.sum()).backward()
    sum_gradients(policy.parameters())
    for each, one in zip(trained, own, strict=True):
        torch.testing.assert_close(each.grad, one.grad, atol=0.1, rtol=0.05)
        with torch.no_grad():
            each.add_(each.grad, alpha=-1e-3)
    saved = folder / "adapted"
    save_pretrained(LoadedPolicy(policy, alone.tokenizer), saved)
    distributed.barrier()
    again = load_pretrained(str(saved)).policy
    torch.testing.assert_close(scores(again), scores(policy), atol=0.05, rtol=0.05)
    assert not torch.allclose(scores(again), scores(alone.policy), atol=0.05)


@pytest.mark.slow
def test_all_weights_come_from_the_first_process(tmp_path):
    tokenizer = small().tokenizer
    folders = [tmp_path / "tied", tmp_path / "untied"]
    for folder in folders:
        tied = folder.name == "tied"
        kind = Qwen3Config if tied else Qwen2Config  # which has biases
        sizes = {**ARCHITECTURE, "vocab_size": len(tokenizer)}
        model = AutoModelForCausalLM.from_config(kind(**sizes, tie_word_embeddings=tied))
        save_pretrained(LoadedPolicy(Policy(model), tokenizer), folder)
    spawn(process, (folders,), nprocs=2)
