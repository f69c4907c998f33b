"""Trainer and engine take turns: the order of events, and what leaves the device."""

from itertools import groupby

import pytest
import torch

from matchtir.training.phases import Colocation, HostOffload, Phases
from tests.training.training_parts import fit, policy_gradient, tasks


class Sleeper:
    """Says which of the trainer's tensors were there whenever it was asked for something."""

    own_weights = True

    def __init__(self, **tensors):
        self.tensors = tensors
        self.events = []

    def _tell(self, event):
        here = [name for name, each in self.tensors.items() if each.untyped_storage().nbytes()]
        self.events.append((event, " ".join(here)))

    def __getattr__(self, event):
        return lambda *_, **__: self._tell(event)


@pytest.mark.parametrize(
    ("offload", "at_wake", "at_sleep"),
    [
        ("none", "weights moments", "weights moments"),
        ("optimizer", "weights", "weights"),
        ("all", "weights", ""),
    ],
)
def test_what_is_on_the_device_in_each_phase(monkeypatch, offload, at_wake, at_sleep):
    tensors = {"weights": torch.randn(3, 4), "moments": torch.randn(5)}
    before = {name: each.clone() for name, each in tensors.items()}
    engine = Sleeper(**tensors)
    device = Colocation(engine, offload, lambda: [tensors["moments"]], lambda: [tensors["weights"]])
    monkeypatch.setattr(torch.cuda, "empty_cache", engine.empty_cache)
    for _ in range(2):
        for phase in ("sync", "rollout", "update"):
            device.enter(phase)
        assert all(torch.equal(before[name], each) for name, each in tensors.items())
    events = [("empty_cache", at_wake), ("wake", at_wake), ("sleep", at_sleep)]
    assert engine.events == events * 2


@pytest.mark.parametrize(
    "phases",
    [["rollout"], ["update"], ["sync", "update"], ["sync", "sync"], ["sync", "rollout"] * 2],
)
def test_another_order_is_an_error(phases):
    engine = Sleeper()
    device = Colocation(engine, "none", list, list)
    with pytest.raises(RuntimeError, match="is followed by"):
        for phase in phases:
            device.enter(phase)


def test_an_iteration_and_a_validation_wake_sync_sample_sleep(tmp_path):
    module, events = policy_gradient(), []

    def telling(event, plain):
        return lambda *given, **named: events.append(event) or plain(*given, **named)

    for event in ("wake", "sync", "generate", "sleep"):
        setattr(module.engine, event, telling(event, getattr(module.engine, event)))
    fit(module, tmp_path, tasks(2), validate=True)
    assert [event for event, _ in groupby(events)] == ["wake", "sync", "generate", "sleep"] * 2


def test_tensors_that_share_memory_leave_together_and_copies_are_used_again():
    offloaded, tensor = HostOffload(), torch.randn(4, 6)
    view, before = tensor.t(), tensor.clone()
    for _ in range(2):
        offloaded.offload([tensor, view, torch.zeros(0)])
        assert tensor.untyped_storage().nbytes() == 0
        offloaded.reload()
        assert torch.equal(tensor, before) and torch.equal(view, before.t())
    assert len(offloaded._copies) == 1


def test_memory_of_a_phase_is_without_what_an_engine_asleep_has_given_back(monkeypatch):
    """Of 80 GiB: 50 asleep, which PyTorch still counts, 6 at most of the trainer, 2 of CUDA's."""
    gib = 2**30
    numbers = {
        "mem_get_info": (80 * gib - 10 * gib, 80 * gib),  # the trainer's 6 + 2 kept + 2
        "memory_reserved": 58 * gib,
        "max_memory_allocated": 56 * gib,
    }
    for name in ("reset_peak_memory_stats", "synchronize", *numbers):
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: numbers.get(name))
    phases = Phases(torch.device("cuda"))
    with phases.timed("update"):
        pass
    assert phases.peaks == {"update": 8}
