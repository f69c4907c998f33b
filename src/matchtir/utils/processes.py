"""What the processes of one run tell each other; alone, a process tells itself."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0 on."""
    return distributed.get_rank() if _several() else 0


def is_first() -> bool:
    """Whether this is the process of rank 0, also before the processes know each other."""
    return getattr(rank_zero_only, "rank", 0) == 0


def local_rank() -> int:
    """The number of this process on its machine, as its launcher says."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _several() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over processes; every process must call this with the same shape."""
    if _several():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def all_reduce_max(number: int, device: torch.device) -> int:
    """The largest over processes."""
    if not _several():
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return int(value)


def all_gather(item: T) -> list[T]:
    """The items of all processes, in their order."""
    if not _several():
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


def wait_for_all() -> None:
    """Return once every process is here."""
    if _several():
        distributed.barrier()


def end_with_the_first() -> None:
    """Let a process that another one of the same run started end with it, however that ends.

    Where the first process fails while this one is busy, nobody else would end it (Linux).
    """
    if _has_a_first() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def ended_with_status() -> Iterator[None]:
    """Let a run that SIGTERM or Ctrl-C ends exit with 143 or 130.

    Lightning ends it with status 0, as if it were finished; what waits for the status (a scheduler,
    `make`) would go on with a policy that is not there. A process that another one started keeps
    the 0: the first one would be killed for it before it has closed anything.
    """
    try:
        yield
    except SIGTERMException as ended:
        if _has_a_first():
            raise SystemExit(0) from ended
        number = signal.Signals(int(ended.code or signal.SIGTERM))
        print(f"ended by {number.name}; ckpt_path=last goes on", file=sys.stderr)
        raise SystemExit(128 + number) from ended


def _has_a_first() -> bool:
    """Whether another process of this machine comes before this one."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
