"""Reinforcement learning with one advantage per turn: one training step is one iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from matchtir.credit.advantages.batch import Advantage, RewardBatch
from matchtir.credit.diagnostics import diagnose
from matchtir.credit.rewards import Credit, Reward
from matchtir.evaluation.metrics import measure
from matchtir.rollout.metrics import rollout_metrics
from matchtir.training.groups import Ahead, Carried, Groups, own_state
from matchtir.training.phases import Phases
from matchtir.training.sharing import advantages_of, metrics_of_all
from matchtir.training.update import UpdateModule, silent_rows
from matchtir.types import Task, Trajectory
from matchtir.utils.options import check_option
from matchtir.utils.processes import gathered, largest

SILENT_OPTIONS = ("keep", "drop", "replace")
MOST_ROUNDS = 3  # of replacements in one iteration


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """The trajectories of an iteration and what each of their turns earned."""

    trajectories: list[Trajectory]  # N, group after group
    credits: list[Credit]
    rewards: RewardBatch
    advantages: Float[np.ndarray, "N T"]


class PolicyGradientModule(UpdateModule):
    """Group-sampled policy gradient (paper eq. 14). Override `rollout`, `score` or `loss`.

    Args:
        reward: calls and answers to turn rewards.
        advantage: turn rewards to one advantage per turn.
        group_size: trajectories per task, G.
        silent: what becomes of trajectories that have no advantage in any turn, as in groups that
            all succeed or fail alike. "keep"; "drop": they are left out of the update; "replace":
            so are they, after a silent group has been replaced by one of another task, up to three
            times (DAPO's dynamic sampling). Their share is logged either way.
        ahead: sample the next iteration's groups while the policy is updated: with weights that
            are one iteration old, never older.
        carried_groups: an iteration does not wait for so many groups; the next ones go on with
            them. Their later turns come from newer weights than their first ones.
        most_carries: how often a group may be carried over.
        settings: see `UpdateModule`.

    Raises:
        ValueError: options that do not go together; see the message.
    """

    def __init__(
        self,
        reward: Reward,
        advantage: Advantage,
        group_size: int,
        silent: str = "keep",
        ahead: bool = False,
        carried_groups: int = 0,
        most_carries: int = 2,
        **settings: Any,
    ) -> None:
        check_option("silent", silent, SILENT_OPTIONS)
        super().__init__(drop_silent=silent != "keep", **settings)
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.reward = reward
        self.advantage = advantage
        self.group_size = group_size
        self.replace_silent = silent == "replace"
        self.samples_ahead = ahead
        self.ahead = Ahead()
        self.carried = Carried(carried_groups, most_carries)
        self._check_off_policy()
        self.phases = Phases(self.device)  # of the iteration under way

    def _check_off_policy(self) -> None:
        stale = self.samples_ahead or self.carried.most > 0
        if stale and self.replace_silent:
            raise ValueError("silent=replace does not go together with ahead or carried groups")
        if stale and self.objective.correction is None:
            raise ValueError(
                "ahead and carried groups come from older weights: they need a loss that corrects "
                "for it (loss=truncated_is)"
            )
        if self.samples_ahead and not self.engine.own_weights:
            raise ValueError(
                "ahead: the engine samples from the weights that are being updated meanwhile; it "
                "needs its own (rollout.engine.own_weights=true, or rollout=vllm)"
            )

    # -- one iteration, top to bottom -----------------------------------------------------------

    def training_step(self, tasks: list[Task], batch_index: int) -> None:
        """Sample groups, score their turns, update the policy."""
        self.phases = Phases(self.device)
        groups, sampling_seconds = self._sample(tasks)
        with self.phases.measured("credit"):
            scored = self.score(groups)
        replaced = 0
        if self.replace_silent:
            scored, replaced = self._replace_silent(groups, scored)
        with self.phases.measured("update"):
            losses = self.update(scored.trajectories, scored.advantages, scored.rewards.group)
        self.step_schedules()
        self.last_rollout = scored
        metrics = self._rollout_metrics(scored, sampling_seconds) | losses
        metrics |= {"train/carried": float(len(self.carried.groups)), "train/replaced": replaced}
        self.log_row(metrics_of_all(metrics | self.phases.metrics()))

    # -- the hooks; the third, `loss`, is the update's -------------------------------------------

    def rollout(self, tasks: Sequence[Task], seed: int) -> Groups:
        """One group of trajectories per task, sampled from the weights that the engine has.

        With carried groups: those that are whole first, of these tasks and of earlier ones.
        """
        places = range(
            self.global_rank, self.trainer.world_size * len(tasks), self.trainer.world_size
        )
        fresh = self.episodes.attempts(tasks, self.group_size, self.sampling, seed, places)
        return self.carried.complete(self.episodes, fresh)

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> ScoredRollout:
        """What every turn earned, and its advantage."""
        trajectories = [trajectory for group in groups for trajectory in group]
        numbers = [number for number, group in enumerate(groups) for _ in group]
        credits = self.reward(trajectories)
        batch = RewardBatch.from_credits(credits, trajectories, numbers)
        advantages = advantages_of(self.advantage, batch)
        return ScoredRollout(trajectories, credits, batch, advantages)

    # -- where groups come from ------------------------------------------------------------------

    def _sample(self, tasks: Sequence[Task]) -> tuple[Groups, float]:
        """The groups of this iteration, and the seconds that sampling them took."""
        with self.phases.measured("rollout"):
            sampled = self.ahead.take()
        if sampled is None:
            self._sync()
            with self.phases.measured("rollout"), self.policy_at_rest():
                groups = self.rollout(tasks, self._rollout_seed(self.iteration))
            sampled = groups, self.phases.seconds["rollout"]
        if self.samples_ahead:
            self._sample_ahead()
        return sampled

    def _sample_ahead(self) -> None:
        """Begin with the groups of the next iteration, where there is one."""
        tasks = self.trainer.datamodule.tasks_of(self.iteration + 1)  # type: ignore[attr-defined]
        if tasks:
            self._sync()
            seed = self._rollout_seed(self.iteration + 1)
            self.ahead.start(partial(self._rollout_in_thread, tasks, seed))

    def _rollout_in_thread(self, tasks: Sequence[Task], seed: int) -> Groups:
        # The trainer's precision holds in its own thread only.
        with self.trainer.precision_plugin.forward_context():
            return self.rollout(tasks, seed)

    def _replace_silent(self, groups: Groups, scored: ScoredRollout) -> tuple[ScoredRollout, int]:
        """Groups with signal as far as they can be had, scored, and how many are new."""
        replaced = 0
        for round_ in range(1, MOST_ROUNDS + 1):
            silent = silent_rows(scored.advantages)
            groups_of = scored.rewards.group
            telling = [g for n, g in enumerate(groups) if not silent[groups_of == n].all()]
            missing = len(groups) - len(telling)
            if not largest(missing, self.device):
                break
            tasks = self.trainer.datamodule.spare_tasks(  # type: ignore[attr-defined]
                self.iteration, round_, missing
            )
            with self.phases.measured("rollout"), self.policy_at_rest():
                seed = self._rollout_seed(self.iteration, round_)
                more = self.rollout(tasks, seed) if tasks else []
            groups = [*telling, *more]
            replaced += missing
            with self.phases.measured("credit"):
                scored = self.score(groups)
        return scored, replaced

    def _rollout_seed(self, iteration: int, *round_: int) -> int:
        sequence = np.random.SeedSequence((self.seed, iteration, *round_))
        return int(sequence.generate_state(1)[0])

    def _sync(self) -> None:
        with self.phases.measured("sync"):
            self.sync_engine()

    # -- groups under way outlive an interruption ------------------------------------------------

    def on_validation_start(self) -> None:
        """The engine is needed for validation."""
        self.ahead.wait()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep groups that were sampled ahead or carried over."""
        state = {"ahead": self.ahead.wait(), "carried": self.carried.groups}
        checkpoint["groups"] = gathered(state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        state = own_state(checkpoint["groups"])
        if state is not None:
            self.ahead.put(state["ahead"])
            self.carried.groups = state["carried"]

    # -- what is logged ----------------------------------------------------------------------

    def _rollout_metrics(self, scored: ScoredRollout, seconds: float) -> dict[str, float]:
        measured = [measure(trajectory) for trajectory in scored.trajectories]
        means = {
            f"train/{name}": float(np.mean([values[name] for values in measured]))
            for name in ("solve_f1", "answer_f1", "answered")
        }
        reward = float(np.mean([credit.total for credit in scored.credits]))
        versions = [turn.policy_version for each in scored.trajectories for turn in each.turns]
        staleness = self.iteration - float(np.mean(versions)) if versions else 0.0
        rollout = rollout_metrics(scored.trajectories, seconds)
        found = diagnose(
            self.reward, scored.trajectories, scored.credits, scored.rewards, scored.advantages
        )
        credit = {f"credit/{name}": value for name, value in found.items()}
        return means | {"train/reward": reward, "train/staleness": staleness} | rollout | credit
