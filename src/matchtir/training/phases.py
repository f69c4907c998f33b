"""The phases of an iteration: what each takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds of each phase of one iteration, and on a GPU the most memory that PyTorch held."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(("sync", "rollout", "credit", "update"), 0.0)
        self.peaks: dict[str, float] = defaultdict(float)  # GiB
        self._gpu = device if device.type == "cuda" else None

    @contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """A part of a phase; parts add up."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        started = time.perf_counter()
        yield
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
            peak = torch.cuda.max_memory_allocated(self._gpu) / 2**30
            self.peaks[phase] = max(peak, self.peaks[phase])
        self.seconds[phase] += time.perf_counter() - started

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` and, on a GPU, `memory/<phase>`."""
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        return times | {f"memory/{phase}": peak for phase, peak in self.peaks.items()}
