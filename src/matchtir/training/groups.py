"""Where the groups of an iteration come from, and what is measured of them.

A group is sampled for its iteration, ahead of it, or over several of them (a partial rollout);
groups without any advantage may be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir import types
from matchtir.credit.advantages import RewardBatch
from matchtir.credit.normalisation import ZERO
from matchtir.credit.rewards import Credit
from matchtir.evaluation.metrics import measure
from matchtir.policy.losses import turn_sums
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import Attempt
from matchtir.rollout.runner import AttemptGroup, is_complete
from matchtir.types import ResultStatus, StopReason, Task, Trajectory
from matchtir.utils.options import check_at_least, check_option
from matchtir.utils.processes import all_gather, rank, world_size

if TYPE_CHECKING:
    from matchtir.training.module import PolicyGradientModule

log = logging.getLogger(__name__)

MAX_ROUNDS = 3  # of replacements in one iteration

# Groups under way are in checkpoints, which load with `weights_only`: so may these records.
_RECORDS = [
    each for each in vars(types).values() if getattr(each, "__module__", "") == types.__name__
]
torch.serialization.add_safe_globals([Attempt, SamplingParams, *_RECORDS])

Groups = list[list[Trajectory]]
Sampled = tuple[Groups, float, int]  # the seconds that it took, and how many attempts were dropped


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """The trajectories of an iteration and what each of their turns earned."""

    trajectories: list[Trajectory]  # N, group after group
    credits: list[Credit]
    rewards: RewardBatch
    advantages: Float[np.ndarray, "N T"]
    parts: dict[str, Float[np.ndarray, "N T"]] = field(default_factory=dict)  # see `parts_of`
    call_advantages: list[Float[np.ndarray, " _"]] | None = None  # with advantage_level=call
    metrics: dict[str, float] = field(default_factory=dict)  # of what shaped rewards, advantages

    @property
    def zero_advantage(self) -> Bool[np.ndarray, " N"]:
        """Which trajectories have no advantage anywhere, as where all of a group fail alike."""
        found = (np.abs(self.advantages) > ZERO).any(axis=1)
        for row, calls in enumerate(self.call_advantages or ()):
            found[row] |= (np.abs(calls) > ZERO).any()
        return ~found

    def sums_of_turns(
        self,
        rows: Int[np.ndarray, " B"],
        values: Mapping[str, Float[Tensor, "B L"]],
        turn_index: Int[Tensor, "B L"],
    ) -> dict[str, Float[np.ndarray, "N T"]]:
        """Sums over the tokens of each turn, of values of the tokens of some rows."""
        sums = {}
        for name, each in values.items():
            found = turn_sums(each, turn_index).numpy()
            sums[name] = np.zeros(self.advantages.shape)
            sums[name][rows, : found.shape[1]] = found
        return sums


class GroupSource:
    """The groups of each iteration of a module.

    Args:
        module: its `rollout` samples, from tasks of its trainer's data module.
        zero_advantage: "replace": a group without any advantage gives way to one of another task,
            up to three times (DAPO's dynamic sampling, 2503.14476).
        ahead: the next iteration's groups are sampled, in a thread, while the policy is updated.
        partial_groups: so many groups each process leaves under way at the end of an iteration.
        max_partial_iterations: how often a group may be left; it is waited for then.

    Raises:
        ValueError: options out of range, or that do not go together.
    """

    def __init__(
        self,
        module: PolicyGradientModule,
        zero_advantage: str,
        ahead: bool,
        partial_groups: int,
        max_partial_iterations: int,
    ) -> None:
        check_option("zero_advantage", zero_advantage, ("keep", "drop", "replace"))
        check_at_least(0, partial_groups=partial_groups)
        check_at_least(1, max_partial_iterations=max_partial_iterations)
        self.module = module
        self.replaces = zero_advantage == "replace"
        self.ahead = ahead
        self.partial_groups = partial_groups
        self.max_partial_iterations = max_partial_iterations
        self.off_policy = ahead or partial_groups > 0
        if self.replaces and self.off_policy:
            raise ValueError("zero_advantage=replace does not go with ahead or partial_groups")
        engine: Any = module.engine
        if ahead and (not engine.own_weights or getattr(engine, "sleep_level", False)):
            raise ValueError(
                "ahead: the engine samples during the update; it needs weights of its own and no "
                "sleep (rollout.engine.own_weights=true, or rollout=vllm with sleep_level=0)"
            )
        self.seconds = 0.0  # of sampling the groups of this iteration
        self.dropped = 0  # attempts at them
        self.rounds = self.replaced = 0  # of replacements in it; groups that were replaced
        self.partial: list[tuple[int, AttemptGroup]] = []  # how often it was left, and the group
        self._next: Future[Sampled] | None = None  # sampled ahead

    def sample(self, tasks: Sequence[Task]) -> Groups:
        """The groups of this iteration; with `ahead` those of the next one are begun with."""
        module = self.module
        with module.phases.timed("rollout"):
            taken, self._next = self.wait(), None
        if taken is None:
            with module.engine_synced():
                taken = self._timed_rollout(tasks, module.iteration)
        if self.ahead:
            self._begin(module.trainer.datamodule.tasks_of(module.iteration + 1))  # type: ignore[attr-defined]
        groups, self.seconds, self.dropped = taken
        self.rounds = self.replaced = 0
        return groups

    def replace(self, groups: Groups, scored: ScoredRollout) -> Groups | None:
        """Groups of other tasks in place of those without advantages; None: it is done with."""
        if not self.replaces or self.rounds == MAX_ROUNDS:
            return None
        zero, number = scored.zero_advantage, scored.rewards.group
        kept = [group for n, group in enumerate(groups) if not zero[number == n].all()]
        missing = len(groups) - len(kept)
        if not any(all_gather(missing)):  # processes go round together
            return None
        self.rounds += 1
        self.replaced += missing
        module = self.module
        place = module.iteration, self.rounds
        tasks = module.trainer.datamodule.spare_tasks(*place, missing)  # type: ignore[attr-defined]
        with module.engine_synced():
            others, seconds, dropped = self._timed_rollout(tasks, *place)
        self.seconds += seconds
        self.dropped += dropped
        return [*kept, *others]

    def _timed_rollout(self, tasks: Sequence[Task], *place: int) -> Sampled:
        """Groups of tasks; seeds depend on iteration and round."""
        if not tasks:
            return [], 0.0, 0
        sequence = np.random.SeedSequence((self.module.seed, *place))
        started = time.perf_counter()
        groups = self.module.rollout(tasks, int(sequence.generate_state(1)[0]))
        return groups, time.perf_counter() - started, len(self.module.episodes.dropped)

    def _begin(self, tasks: Sequence[Task]) -> None:
        """Sample the next iteration's groups in a thread; only one rollout is ever under way."""
        if not tasks:
            return
        module, iteration = self.module, self.module.iteration + 1
        module.engine.sync(module.policy, version=module.iteration)
        # Precision, GPU and stream are a thread's own: another has the first GPU, and a stream
        # that does not wait for the sync.
        stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

        def sample() -> Sampled:
            with torch.cuda.stream(stream), module.trainer.precision_plugin.forward_context():
                return self._timed_rollout(tasks, iteration)

        executor = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next = executor.submit(sample)
        executor.shutdown(wait=False)  # no more than this one

    def wait(self) -> Sampled | None:
        """The groups sampled ahead, if any; raises what sampling did."""
        return self._next.result() if self._next else None

    def finish_groups(self, fresh: Sequence[Sequence[Attempt]]) -> Groups:
        """Go on with partial and `fresh` groups, until all but `partial_groups` have ended."""
        under_way = [*self.partial, *((0, group) for group in fresh)]  # the oldest first
        must_finish = sum(left >= self.max_partial_iterations for left, _ in under_way)
        enough = max(1, len(under_way) - self.partial_groups)
        episodes = self.module.episodes
        groups = asyncio.run(
            episodes.resume([group for _, group in under_way], enough, must_finish)
        )
        self.partial = [
            (left + 1, group)
            for (left, _), group in zip(under_way, groups, strict=True)
            if not is_complete(group)
        ]
        ended = [group for group in groups if group and is_complete(group)]  # none: all dropped
        return [[each for each in group if isinstance(each, Trajectory)] for group in ended]

    # -- groups under way outlive an interruption ------------------------------------------------

    def state_dict(self) -> list[dict[str, Any]]:
        """Groups sampled ahead and partial ones, of all processes; every process must call this."""
        return all_gather({"ahead": self.wait(), "partial": self.partial})

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on with the groups of this process; with more or fewer processes, without any."""
        if len(states) != world_size():
            log.warning(
                "%d processes instead of %d: groups under way are dropped",
                world_size(),
                len(states),
            )
            return
        state = states[rank()]
        self.partial = state["partial"]
        if state["ahead"] is not None:
            self._next = Future()
            self._next.set_result(state["ahead"])


def check_rewards(credits: Sequence[Credit], trajectories: Sequence[Trajectory]) -> None:
    """Raise ValueError, naming the task, where a reward is no finite number, or not one a turn."""
    for credit, trajectory in zip(credits, trajectories, strict=True):
        rewards = [*credit.turn_rewards, credit.total, credit.outcome_reward]
        bad = [each for each in rewards if not (isinstance(each, Real) and math.isfinite(each))]
        if bad or len(credit.turn_rewards) != len(trajectory.turns):
            raise ValueError(
                f"task {trajectory.task.task_id}: its reward must be a finite number for each of "
                f"{len(trajectory.turns)} turns, not {list(credit.turn_rewards)}, together "
                f"{credit.total!r}"
            )


def rollout_metrics(scored: ScoredRollout, seconds: float, iteration: int) -> dict[str, float]:
    """Means and shares over the trajectories of one rollout that took `seconds` (docs/metrics.md).

    Every reason to stop and every status is there, at 0 where nothing ended so.
    """
    trajectories = scored.trajectories
    results = [result for trajectory in trajectories for result in trajectory.results]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    stops = Counter(trajectory.stop_reason for trajectory in trajectories)
    statuses = Counter(result.status for result in results)
    measured = [measure(trajectory) for trajectory in trajectories]
    count, calls = max(len(trajectories), 1), max(len(results), 1)
    ages = [iteration - turn.policy_version for turn in turns]
    sampled = sum(len(turn.token_ids) for turn in turns)
    return {
        **{
            f"train/{name}": sum(values[name] for values in measured) / count
            for name in ("success", "solve_f1", "answer_f1", "answered")
        },
        "train/reward": sum(credit.total for credit in scored.credits) / count,
        "train/staleness": sum(ages) / max(len(turns), 1),
        "train/turns": len(turns) / count,
        "train/calls": len(results) / count,
        **{f"train/stop/{reason}": stops[reason] / count for reason in StopReason},
        **{f"train/tool/{status}": statuses[status] / calls for status in ResultStatus},
        "train/tokens_per_s": sampled / seconds if seconds > 0 else 0.0,
        "time/tools": sum(result.seconds for result in results),
    }
