"""Where the groups of an iteration come from, and what becomes of those that teach nothing.

A group is sampled for its iteration, ahead of it, or over several of them (a partial rollout);
groups without any advantage may be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from matchtir.credit.advantages import RewardBatch
from matchtir.credit.rewards import Credit
from matchtir.rollout.episode import Attempt
from matchtir.rollout.runner import EpisodeRunner, PartialGroup, is_complete
from matchtir.types import ResultStatus, StopReason, Trajectory
from matchtir.utils.options import check_at_least
from matchtir.utils.processes import gathered, rank, world_size

log = logging.getLogger(__name__)

ZERO = 1e-6  # advantages below are the rounding of a zero
MOST_ROUNDS = 3  # of replacements in one iteration

Groups = list[list[Trajectory]]


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """The trajectories of an iteration and what each of their turns earned."""

    trajectories: list[Trajectory]  # N, group after group
    credits: list[Credit]
    rewards: RewardBatch
    advantages: Float[np.ndarray, "N T"]

    @property
    def zero_advantage(self) -> Bool[np.ndarray, " N"]:
        """Which trajectories have no advantage in any turn, as where all of a group fail alike."""
        return ~(np.abs(self.advantages) > ZERO).any(axis=1)


class GroupSource:
    """Groups that outlive their iteration, and the replacing of those without advantages.

    Args:
        replace: a group without any advantage gives way to one of another task, up to three times
            (DAPO's dynamic sampling).
        ahead: the next iteration's groups are sampled, in a thread, while the policy is updated.
        most_partial: so many groups are left under way at the end of an iteration; 0: none.
        most_carries: how often a group may be left; it is waited for then.

    Raises:
        ValueError: options out of range, or that do not go together.
    """

    def __init__(
        self,
        replace: bool = False,
        ahead: bool = False,
        most_partial: int = 0,
        most_carries: int = 1,
    ) -> None:
        check_at_least(0, carried_groups=most_partial)
        check_at_least(1, most_carries=most_carries)
        self.replace = replace
        self.ahead = ahead
        self.most_partial = most_partial
        self.most_carries = most_carries
        if replace and self.off_policy:
            raise ValueError("silent=replace does not go together with ahead or carried groups")
        self.partial: list[tuple[int, PartialGroup]] = []  # how often it was left, and the group
        self._future: Future[tuple[Groups, float]] | None = None

    @property
    def off_policy(self) -> bool:
        """Whether groups may come from older weights than those that learn from them."""
        return self.ahead or self.most_partial > 0

    # -- sampled ahead ---------------------------------------------------------------------------

    def start(self, sample: Callable[[], Groups]) -> None:
        """Begin to sample ahead; only one rollout is ever under way."""
        assert self._future is None

        def timed() -> tuple[Groups, float]:
            started = time.perf_counter()
            return sample(), time.perf_counter() - started

        executor = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._future = executor.submit(timed)
        executor.shutdown(wait=False)  # no more than this one

    def wait(self) -> tuple[Groups, float] | None:
        """The groups sampled ahead and the seconds that they took; None: none are on order.

        Raises what sampling raised.
        """
        return self._future.result() if self._future else None

    def take(self) -> tuple[Groups, float] | None:
        """`wait`, and the groups are no longer kept."""
        taken, self._future = self.wait(), None
        return taken

    # -- partial rollouts ------------------------------------------------------------------------

    def complete(self, episodes: EpisodeRunner, fresh: Sequence[Sequence[Attempt]]) -> Groups:
        """Go on with partial groups and `fresh` ones, until all but `most_partial` are whole."""
        under_way = [*self.partial, *((0, group) for group in fresh)]  # the oldest first
        urgent = sum(left >= self.most_carries for left, _ in under_way)
        enough = max(1, len(under_way) - self.most_partial)
        groups = asyncio.run(episodes.go_on([group for _, group in under_way], enough, urgent))
        self.partial = [
            (left + 1, group)
            for (left, _), group in zip(under_way, groups, strict=True)
            if not is_complete(group)
        ]
        return [
            [each for each in group if isinstance(each, Trajectory)]
            for group in groups
            if is_complete(group)
        ]

    # -- replaced where all advantages are zero --------------------------------------------------

    def replaced(
        self,
        groups: Groups,
        scored: ScoredRollout,
        sample: Callable[[int, int], Groups],
        score: Callable[[Groups], ScoredRollout],
    ) -> tuple[ScoredRollout, int]:
        """Groups with advantages as far as they can be had, scored, and how many are new.

        Args:
            groups, scored: as they were sampled.
            sample: as many groups of other tasks as are wanted, for a round of replacements.
            score: groups to their advantages.
        """
        replaced = 0
        for round_ in range(1, MOST_ROUNDS + 1 if self.replace else 1):
            zero, number = scored.zero_advantage, scored.rewards.group
            kept = [group for n, group in enumerate(groups) if not zero[number == n].all()]
            missing = len(groups) - len(kept)
            if not any(gathered(missing)):  # processes go round together
                break
            groups = [*kept, *sample(round_, missing)]
            replaced += missing
            scored = score(groups)
        return scored, replaced

    # -- groups under way outlive an interruption ------------------------------------------------

    def state_dict(self) -> list[dict[str, Any]]:
        """Groups sampled ahead and partial ones, of all processes; every process must call this."""
        return gathered({"ahead": self.wait(), "carried": self.partial})

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on with the groups of this process; with more or fewer processes, without any."""
        if len(states) != world_size():
            log.warning(
                "%d processes instead of %d: groups under way are sampled anew",
                world_size(),
                len(states),
            )
            return
        state = states[rank()]
        self.partial = state["carried"]
        if state["ahead"] is not None:
            self._future = Future()
            self._future.set_result(state["ahead"])


def rollout_metrics(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Means and shares over the trajectories of one rollout that took `seconds`.

    `train/turns`, `train/calls`: mean per trajectory. `train/stop/<reason>`: share of the
    trajectories. `train/tool/<status>`: share of the calls. `train/tokens_per_s`: sampled tokens
    per second. `time/tools`: seconds spent in tools, summed over calls that may overlap.
    Every reason and status is there, at 0 where nothing ended so.
    """
    results = [result for trajectory in trajectories for result in trajectory.results]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    stops = Counter(trajectory.stop_reason for trajectory in trajectories)
    statuses = Counter(result.status for result in results)
    count = max(len(trajectories), 1)
    sampled = sum(len(turn.token_ids) for turn in turns)
    return {
        "train/turns": len(turns) / count,
        "train/calls": len(results) / count,
        **{f"train/stop/{reason}": stops[reason] / count for reason in StopReason},
        **{
            f"train/tool/{status}": statuses[status] / max(len(results), 1)
            for status in ResultStatus
        },
        "train/tokens_per_s": sampled / seconds if seconds > 0 else 0.0,
        "time/tools": sum(result.seconds for result in results),
    }
