"""Which GPU, folder and weights the vLLM of each process gets, told by stand-ins for vLLM."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from matchtir.policy.weights import WEIGHTS_FILE
from matchtir.rollout import vllm_server
from matchtir.rollout.http import HttpClient
from matchtir.rollout.vllm_engine import VllmEngine
from matchtir.rollout.vllm_server import VllmServerEngine
from tests.policy.tiny_policy import small

GPUS = 4  # of a machine
POLICY = small(layers=1).policy


class Ranks:
    """Processes of a run, played by threads; each computes on a GPU of its own."""

    def __init__(self, count, monkeypatch):
        self.count, self.own = count, threading.local()
        self.barrier, self.items = threading.Barrier(count), [None] * count
        for name in ("rank", "all_gather", "wait_for_all"):
            monkeypatch.setattr(vllm_server, name, getattr(self, name))
        names = SimpleNamespace(gethostname=lambda: f"machine {self.rank() // GPUS}")
        monkeypatch.setattr(vllm_server, "socket", names)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.rank() % GPUS)

    def rank(self):
        return self.own.rank

    def wait_for_all(self):
        self.barrier.wait(60)

    def all_gather(self, item):
        self.items[self.rank()] = item
        self.wait_for_all()
        items = list(self.items)
        self.wait_for_all()
        return items

    def run(self, work):
        def one(rank):
            self.own.rank = rank
            return work()

        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(one, range(self.count)))


def synced(kind, *versions):
    engine = kind((9,), 256)
    for version in versions:
        engine.sync(POLICY, version)
    return engine


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_engine_of_each_process_is_on_its_gpu(ranks, monkeypatch):
    fake, events = ModuleType("vllm"), []
    cache = SimpleNamespace(num_gpu_blocks=100, block_size=16)

    class Engine:
        vllm_config = SimpleNamespace(cache_config=cache)

        def __init__(self, settings):
            self.settings = settings

        @classmethod
        def from_engine_args(cls, settings):
            torch.manual_seed(0)  # as vLLM does
            return cls(settings)

        def collective_rpc(self, method, kwargs):
            events.append((method, len(list(kwargs["weights_iterator"]))))

        def __getattr__(self, name):
            return lambda **given: events.append((name, *given.values()))

    fake.EngineArgs, fake.LLMEngine, fake.SamplingParams = dict, Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", fake)
    state = torch.get_rng_state()
    engines = Ranks(ranks, monkeypatch).run(lambda: synced(VllmEngine, 1))
    assert ranks > 1 or torch.equal(state, torch.get_rng_state())  # threads share the state
    settings = [engine._vllm.settings for engine in engines]
    assert [each["device_ids"] for each in settings] == [[rank % GPUS] for rank in range(ranks)]
    assert all(each["enable_sleep_mode"] and "enforce_eager" not in each for each in settings)
    assert all(engine.cache_tokens == 1600 for engine in engines)

    events.clear()
    engines[0].sleep()
    engines[0].wake()
    engines[0].sync(POLICY, 2)
    assert events == [
        *(("sleep", 2), ("wake_up", ["weights"])),
        *(("reload_weights", len(POLICY.model.state_dict())), ("reset_prefix_cache",)),
        ("wake_up", ["kv_cache"]),
    ]


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_each_process_has_a_server_and_each_machine_one_file(ranks, monkeypatch):
    started, written, read = [], [], []

    class Process:
        def __init__(self, settings, cache, folder, timeout):
            self.url = f"unix:{folder}/socket"
            assert settings["model"] == str(folder) and (folder / WEIGHTS_FILE).is_file()
            started.append((everyone.rank(), settings["device_ids"], folder))

        def stop(self):
            pass

    def ask(client, method, path, body=None, empty=False):
        if path == "/collective_rpc":
            read.append((everyone.rank(), Path(body["kwargs"]["weights_path"])))
        cache = {"num_gpu_blocks": 9, "block_size": 16}
        return {"success": True, "vllm_config": {"cache_config": cache}}

    def save(policy, folder):
        written.append(everyone.rank())
        (folder / WEIGHTS_FILE).write_bytes(b"weights")

    everyone = Ranks(ranks, monkeypatch)
    monkeypatch.setattr(vllm_server, "VllmProcess", Process)
    monkeypatch.setattr(vllm_server, "save_full_weights", save)
    monkeypatch.setattr(HttpClient, "ask", ask)
    engines = everyone.run(lambda: synced(VllmServerEngine, 1, 2))
    started.sort()
    assert [ids for _, ids, _ in started] == [[rank % GPUS] for rank in range(ranks)]
    folders = [folder for *_, folder in started]
    assert len(set(folders)) == ranks
    first = list(range(0, ranks, GPUS))
    assert sorted(written) == sorted(2 * first)
    assert sorted(read) == sorted(2 * [(n, folders[n // GPUS * GPUS]) for n in range(ranks)])
    for engine in engines:
        engine.close()


def test_a_server_of_several_gpus_has_them_side_by_side(monkeypatch, tmp_path):
    everyone = Ranks(2, monkeypatch)
    settings = {"max_model_len": 256, "tensor_parallel_size": 2}
    made = everyone.run(lambda: vllm_server.engine_settings(POLICY, tmp_path, settings))
    assert [each["device_ids"] for each in made] == [[0, 1], [2, 3]]
    flags = vllm_server.server_flags(made[1])
    assert flags[flags.index("--device-ids") + 1] == "2,3"
