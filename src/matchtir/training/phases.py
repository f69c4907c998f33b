"""The phases of an iteration: what each takes, and who has the device in it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from matchtir.rollout.engine import Engine
from matchtir.utils.options import check_option

OFFLOADS = ("none", "optimizer", "all")
NEXT_PHASE = {"update": "sync", "sync": "rollout", "rollout": "update"}


class Phases:
    """Seconds of each phase of one iteration, and on a GPU the most memory that was in use."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(("sync", "rollout", "credit", "update"), 0.0)
        self.peaks: dict[str, float] = defaultdict(float)  # GiB
        self._gpu = device if device.type == "cuda" else None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """A part of a phase; parts add up."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        started = time.perf_counter()
        yield
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
            # PyTorch counts what a sleeping engine has given back; the GPU knows better.
            free, total = torch.cuda.mem_get_info(self._gpu)
            others = total - free - torch.cuda.memory_reserved(self._gpu)
            peak = (torch.cuda.max_memory_allocated(self._gpu) + others) / 2**30
            self.peaks[phase] = max(peak, self.peaks[phase])
        self.seconds[phase] += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` and, on a GPU, `memory/<phase>`."""
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        return times | {f"memory/{phase}": peak for phase, peak in self.peaks.items()}


class Trainer(lightning.Trainer):
    """Lightning's, with a setting for offloading.

    Args:
        offload: what of the trainer leaves the device while the engine samples; see `Colocation`.
        settings: of `lightning.Trainer`.
    """

    def __init__(self, offload: str = "none", **settings: Any) -> None:
        check_option("trainer.offload", offload, OFFLOADS)
        super().__init__(**settings)
        self.offload = offload


class Colocation:
    """Trainer and engine take turns on one device: update -> sync -> rollout -> update.

    Before a sync the optimizer's state leaves the device and the engine wakes; before a rollout
    the weights leave it, which the sync still reads; before an update the engine goes to sleep, and
    everything comes back. With offload "none" nothing leaves.

    Args:
        engine: what sleeps and wakes.
        offload: "optimizer", or "all": the weights of the policies too.
        optimizer_state, weights: give the tensors that are to leave, at the time.

    Raises:
        ValueError: the engine would sample from weights that are not there.
    """

    def __init__(
        self,
        engine: Engine,
        offload: str,
        optimizer_state: Callable[[], Iterable[Tensor]],
        weights: Callable[[], Iterable[Tensor]],
    ) -> None:
        if offload == "all" and not engine.own_weights:
            raise ValueError("trainer.offload=all: the engine samples from the trainer's weights")
        self.engine = engine
        self.offload = offload
        self.phase = "update"
        self._optimizer_state = optimizer_state
        self._weights = weights
        self._shelf = HostOffload()

    def enter(self, phase: str) -> None:
        """Go on to the next phase.

        Raises:
            RuntimeError: another one is next.
        """
        if phase != NEXT_PHASE[self.phase]:
            raise RuntimeError(
                f"{self.phase} is followed by {NEXT_PHASE[self.phase]}, not by {phase}"
            )
        if phase == "sync":
            if self.offload != "none":
                self._shelf.offload(self._optimizer_state())
            # What PyTorch has freed and keeps for itself, such as activations, the engine needs.
            torch.cuda.empty_cache()
            self.engine.wake()
        elif phase == "rollout":
            if self.offload == "all":
                self._shelf.offload(self._weights())
        else:
            self.engine.sleep()
            self._shelf.reload()
        self.phase = phase


class HostOffload:
    """Keeps the bytes of tensors in host memory, pinned where there is a GPU, and frees theirs.

    Tensors stay the objects that they are, without storage: whoever reads them meanwhile fails.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}  # by storage; used again in the next iteration
        self._away: list[torch.UntypedStorage] = []

    def offload(self, tensors: Iterable[Tensor]) -> None:
        """Let these leave their device; tensors that share a storage leave together."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            storage = local.untyped_storage()
            if not storage.nbytes():  # empty, or away already
                continue
            key = storage._cdata
            if key not in self._copies or len(self._copies[key]) != storage.nbytes():
                gpu = torch.cuda.is_available()
                self._copies[key] = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=gpu)
            self._copies[key].copy_(_as_bytes(storage))
            storage.resize_(0)
            self._away.append(storage)

    def reload(self) -> None:
        """Bring everything back to where it was."""
        for storage in self._away:
            copy = self._copies[storage._cdata]
            storage.resize_(len(copy))
            _as_bytes(storage).copy_(copy, non_blocking=True)
        self._away.clear()


def _as_bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
