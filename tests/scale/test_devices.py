"""Which GPU, folder and weights the vLLM of each process gets, told by stand-ins for vLLM."""

import sys
import threading
from collections.abc import Callable
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


class Ranks:
    """Processes of a run, played by threads; each computes on a GPU of its own."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.own = count, threading.local()
        self.barrier, self.items = threading.Barrier(count), [None] * count
        for name in ("rank", "gathered", "wait_for_all"):
            monkeypatch.setattr(vllm_server, name, getattr(self, name))
        names = SimpleNamespace(gethostname=lambda: f"machine {self.rank() // GPUS}")
        monkeypatch.setattr(vllm_server, "socket", names)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.rank() % GPUS)

    def rank(self) -> int:
        return self.own.rank

    def wait_for_all(self) -> None:
        self.barrier.wait(60)

    def gathered(self, item):
        self.items[self.rank()] = item
        self.wait_for_all()
        items = list(self.items)
        self.wait_for_all()
        return items

    def run(self, work: Callable) -> list:
        results = [None] * self.count

        def one(rank: int) -> None:
            self.own.rank = rank
            results[rank] = work()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_engine_of_each_process_is_on_its_gpu(ranks: int, monkeypatch) -> None:
    fake, events = ModuleType("vllm"), []
    cache = SimpleNamespace(num_gpu_blocks=100, block_size=16)

    class Engine:
        vllm_config = SimpleNamespace(cache_config=cache)

        def __init__(self, settings: dict) -> None:
            self.settings = settings

        @classmethod
        def from_engine_args(cls, settings: dict) -> "Engine":
            torch.manual_seed(0)  # as vLLM does
            return cls(settings)

        def collective_rpc(self, method: str, kwargs: dict) -> None:
            events.append((method, len(list(kwargs["weights_iterator"]))))

        def reset_prefix_cache(self) -> None:
            events.append("reset")

        def sleep(self, level: int) -> None:
            events.append(("sleep", level))

        def wake_up(self, tags: list[str]) -> None:
            events.append(("wake", *tags))

    fake.EngineArgs, fake.LLMEngine, fake.SamplingParams = dict, Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", fake)
    policy = small(layers=1).policy

    def work() -> VllmEngine:
        engine = VllmEngine((9,), 256)
        engine.sync(policy, 1)
        return engine

    state = torch.get_rng_state()
    engines = Ranks(ranks, monkeypatch).run(work)
    assert ranks > 1 or torch.equal(state, torch.get_rng_state())  # threads share the state
    settings = [engine._vllm.settings for engine in engines]
    assert [each["device_ids"] for each in settings] == [[rank % GPUS] for rank in range(ranks)]
    assert all(each["enable_sleep_mode"] and "enforce_eager" not in each for each in settings)
    assert all(engine.cache_tokens == 1600 for engine in engines)

    events.clear()
    engines[0].sleep()
    engines[0].wake()
    engines[0].sync(policy, 2)
    names = len(policy.model.state_dict())
    assert events == [
        ("sleep", 2), ("wake", "weights"), ("reload_weights", names), "reset", ("wake", "kv_cache"),
    ]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_each_process_has_a_server_and_each_machine_one_file(ranks: int, monkeypatch) -> None:
    started, written, read = [], [], []

    class Process:
        def __init__(self, settings: dict, cache: int, folder: Path, timeout: float) -> None:
            self.url = f"unix:{folder}/socket"
            assert settings["model"] == str(folder) and (folder / WEIGHTS_FILE).is_file()
            started.append((everyone.rank(), settings["device_ids"], folder))

        def stop(self) -> None:
            pass

    def ask(client: HttpClient, method: str, path: str, body=None, empty=False) -> dict:
        if path == "/collective_rpc":
            read.append((everyone.rank(), Path(body["kwargs"]["weights_path"])))
        return {
            "success": True,
            "vllm_config": {"cache_config": {"num_gpu_blocks": 9, "block_size": 16}},
        }

    def save(policy, folder: Path) -> None:
        written.append(everyone.rank())
        (folder / WEIGHTS_FILE).write_bytes(b"weights")

    everyone = Ranks(ranks, monkeypatch)
    monkeypatch.setattr(vllm_server, "VllmProcess", Process)
    monkeypatch.setattr(vllm_server, "save_full_weights", save)
    monkeypatch.setattr(HttpClient, "ask", ask)
    policy = small(layers=1).policy

    def work() -> VllmServerEngine:
        engine = VllmServerEngine((9,), 256)
        engine.sync(policy, 1)
        engine.sync(policy, 2)
        return engine

    engines = everyone.run(work)
    started.sort()
    assert [ids for _, ids, _ in started] == [[rank % GPUS] for rank in range(ranks)]
    folders = [folder for *_, folder in started]
    assert len(set(folders)) == ranks
    first = list(range(0, ranks, GPUS))
    assert sorted(written) == sorted(2 * first)
    assert sorted(read) == sorted(2 * [(n, folders[n // GPUS * GPUS]) for n in range(ranks)])
    for engine in engines:
        engine.close()


def test_a_server_of_several_gpus_has_them_side_by_side(monkeypatch, tmp_path: Path) -> None:
    everyone = Ranks(2, monkeypatch)
    settings = {"max_model_len": 256, "tensor_parallel_size": 2}
    policy = small(layers=1).policy
    made = everyone.run(lambda: vllm_server.engine_settings(policy, tmp_path, settings))
    assert [each["device_ids"] for each in made] == [[0, 1], [2, 3]]
    flags = vllm_server.server_flags(made[1])
    assert flags[flags.index("--device-ids") + 1] == "2,3"
