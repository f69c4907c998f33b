"""Groups that outlive their iteration: sampled ahead of it, or carried over to the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from matchtir.rollout.attempt import Attempt
from matchtir.rollout.runner import EpisodeRunner, PartialGroup, is_whole
from matchtir.types import Trajectory
from matchtir.utils.processes import rank, world_size

log = logging.getLogger(__name__)

Groups = list[list[Trajectory]]


class Ahead:
    """The groups of the next iteration, sampled in a thread while the policy is updated."""

    def __init__(self) -> None:
        self._future: Future[tuple[Groups, float]] | None = None

    def start(self, sample: Callable[[], Groups]) -> None:
        """Begin to sample; only one rollout is ever under way."""
        assert self._future is None

        def timed() -> tuple[Groups, float]:
            started = time.perf_counter()
            return sample(), time.perf_counter() - started

        executor = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._future = executor.submit(timed)
        executor.shutdown(wait=False)  # no more than this one

    def wait(self) -> tuple[Groups, float] | None:
        """The groups and the seconds that they took, once they are there; None: none are on order.

        Raises what sampling raised.
        """
        return self._future.result() if self._future else None

    def take(self) -> tuple[Groups, float] | None:
        """`wait`, and the groups are no longer kept."""
        taken, self._future = self.wait(), None
        return taken

    def put(self, groups: tuple[Groups, float] | None) -> None:
        """Take over what an interrupted run had sampled ahead."""
        if groups is not None:
            self._future = Future()
            self._future.set_result(groups)


class Carried:
    """Groups that an iteration did not wait for; the next ones go on with them.

    Args:
        most: so many groups are left under way at the end of an iteration; 0: none.
        most_often: how often a group may be left; it is waited for then.
    """

    def __init__(self, most: int, most_often: int) -> None:
        if most < 0 or most_often < 1:
            raise ValueError("carried groups must be 0 or more, how often they may be 1 or more")
        self.most = most
        self.most_often = most_often
        self.groups: list[tuple[int, PartialGroup]] = []  # how often it was left, and the group

    def complete(self, episodes: EpisodeRunner, fresh: Sequence[Sequence[Attempt]]) -> Groups:
        """Go on with what was left and with `fresh` groups, until all but `most` are whole."""
        under_way = [*self.groups, *((0, group) for group in fresh)]  # the oldest first
        urgent = sum(left >= self.most_often for left, _ in under_way)
        enough = max(1, len(under_way) - self.most)
        groups = asyncio.run(episodes.go_on([group for _, group in under_way], enough, urgent))
        ages = [left for left, _ in under_way]
        self.groups = [
            (left + 1, group)
            for left, group in zip(ages, groups, strict=True)
            if not is_whole(group)
        ]
        return [
            [each for each in group if isinstance(each, Trajectory)]
            for group in groups
            if is_whole(group)
        ]


def own_state(states: Sequence[Any]) -> Any:
    """This process' part of the states of all; None where a run goes on with more or fewer."""
    if len(states) != world_size():
        log.warning(
            "%d processes instead of %d: groups under way are sampled anew",
            world_size(),
            len(states),
        )
        return None
    return states[rank()]
