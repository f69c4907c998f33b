"""Rewards of the turns of a trajectory: its calls matched to the gold calls, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment import Assigner, Assignment
from matchtir.credit.outcome import (
    answer_f1,
    answer_match,
    environment_reward,
    final_answer,
    needs_no_answer,
    outcome_score,
)
from matchtir.credit.similarity import COMPARABLE, Similarity
from matchtir.tools.formats import extract_answer
from matchtir.types import Trajectory
from matchtir.utils.options import check_at_least, check_option


@dataclass(frozen=True, slots=True)
class Credit:
    """What one trajectory earned, by call and by turn (T turns, m calls, n gold calls)."""

    similarity: Float[np.ndarray, "m n"]
    plan: Float[np.ndarray, "m n"]
    call_rewards: Float[np.ndarray, " m"]
    turn_rewards: Float[np.ndarray, " T"]
    outcome: float  # score of the final answer, as measured
    outcome_reward: float  # what the last turn was paid for it, penalty included
    total: float  # R_i
    gold_index: int = 0  # what calls were matched to: 0 the gold calls, k the k-th alternative


@runtime_checkable
class Reward(Protocol):
    """Scores many trajectories at once; every reward of this project has this call."""

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]: ...


@dataclass(frozen=True)
class MatchReward:
    """Turn rewards from matched calls, integrated with the outcome (paper eq. 8-10).

    ``r_t`` is the mean reward of the calls of turn t, 0 without calls; the outcome is paid in the
    final turn, the one without calls; ``R = sum_t r_t``. An episode that never reached its final
    turn has outcome 0, and one that never started (no turns) has R = 0. Where the task has
    alternative gold traces, the one that earns the calls most counts.

    Args:
        similarity: of predicted and gold calls.
        assignment: of predicted calls to gold calls.
        turn_reduction: ``mean`` or ``sum`` over the calls of a turn. The mean pays three right
            calls in three turns three times what it pays for them in one turn.
        trajectory_reduction: ``sum`` or ``mean`` over turns.
        rewards: ``integrated``, or ``turn`` or ``outcome`` alone (paper Table 2).
        outcome: ``answer_f1``, ``answer_match``, ``none``, or ``environment``: the sum of what an
            external environment gave, answer or not.
        outcome_turns: ``final``, or ``every`` turn that has an answer (release).
        no_answer_penalty: taken from the last turn where the outcome is rewarded and the episode
            ends without an answer that it needs; 0 in the paper.
        malformed_calls: ``unmatched``: a call that does not parse counts as a call of similarity
            0; ``ignored``: it counts for nothing (release).
    """

    similarity: Similarity
    assignment: Assigner
    turn_reduction: str = "mean"
    trajectory_reduction: str = "sum"
    rewards: str = "integrated"
    outcome: str = "answer_f1"
    outcome_turns: str = "final"
    no_answer_penalty: float = 0.0
    malformed_calls: str = "unmatched"

    def __post_init__(self) -> None:
        check_option("turn_reduction", self.turn_reduction, ("mean", "sum"))
        check_option("trajectory_reduction", self.trajectory_reduction, ("sum", "mean"))
        check_option("rewards", self.rewards, ("integrated", "turn", "outcome"))
        outcomes = "answer_f1", "answer_match", "none", "environment"
        check_option("outcome", self.outcome, outcomes)
        check_option("outcome_turns", self.outcome_turns, ("final", "every"))
        check_option("malformed_calls", self.malformed_calls, ("unmatched", "ignored"))
        check_at_least(0, no_answer_penalty=self.no_answer_penalty)

    @property
    def pays_calls(self) -> bool:
        """Whether the rewards of turns are made of those of their calls."""
        return self.rewards != "outcome"

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory, in order."""
        if self.malformed_calls == "unmatched":
            return self._credits(trajectories)
        credits = self._credits([_parsed(trajectory) for trajectory in trajectories])
        return list(map(_with_malformed, credits, trajectories))

    def _credits(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """The credits, where each trajectory is matched to the gold trace that suits it best."""
        indices = {}  # gold calls are indexed once per task
        matrices = []
        first = [0]
        for trajectory in trajectories:
            task = trajectory.task
            if id(task) not in indices:
                indices[id(task)] = [self.similarity.index(gold) for gold in task.gold_traces]
            calls = trajectory.calls
            matrices += [self.similarity.matrix(calls, gold) for gold in indices[id(task)]]
            first.append(len(matrices))
        assignments = self.assignment(matrices)
        credits = []
        for trajectory, (start, end) in zip(trajectories, pairwise(first), strict=True):
            best = start
            if end - start > 1:
                best = max(range(start, end), key=lambda k: assignments[k].rewards.sum())
            match, trace = assignments[best], best - start
            credits.append(self._credit(trajectory, matrices[best], match, trace))
        return credits

    def _credit(
        self,
        trajectory: Trajectory,
        similarity: Float[np.ndarray, "m n"],
        match: Assignment,
        gold_index: int,
    ) -> Credit:
        turn_rewards = self._call_part(trajectory, match.rewards)
        outcome, paid = self._pay_answers(trajectory, turn_rewards) if turn_rewards else (0.0, 0.0)
        total = sum(turn_rewards)
        if self.trajectory_reduction == "mean" and turn_rewards:
            total /= len(turn_rewards)
        rewards = np.array(turn_rewards, dtype=np.float64)
        return Credit(
            similarity, match.plan, match.rewards, rewards, outcome, paid, float(total), gold_index
        )

    def _call_part(
        self, trajectory: Trajectory, call_rewards: Float[np.ndarray, " m"]
    ) -> list[float]:
        """What the calls of each turn earned [T]."""
        if self.rewards == "outcome":
            return [0.0] * len(trajectory.turns)
        left = iter(call_rewards.tolist())
        turn_rewards = []
        for turn in trajectory.turns:
            reward = sum([next(left) for _ in turn.calls], 0.0)
            mean = self.turn_reduction == "mean" and turn.calls
            turn_rewards.append(reward / len(turn.calls) if mean else reward)
        return turn_rewards

    def _pay_answers(
        self, trajectory: Trajectory, turn_rewards: list[float]
    ) -> tuple[float, float]:
        """Add the answers to `turn_rewards` [T]; the last one's score, and what was paid for it."""
        every = self.outcome_turns == "every"
        last = extract_answer(trajectory.final_text) if every else final_answer(trajectory)
        outcome = self._outcome(trajectory, last)
        if self.rewards == "turn":
            return outcome, 0.0
        answered = last is not None or needs_no_answer(trajectory)
        for index, turn in enumerate(trajectory.turns[:-1] if every else ()):
            answer = extract_answer(turn.text)
            if answer is not None:
                answered = True
                turn_rewards[index] += self._outcome(trajectory, answer)
        paid = outcome - (0.0 if answered else self.no_answer_penalty)
        turn_rewards[-1] += paid
        return outcome, paid

    def _outcome(self, trajectory: Trajectory, answer: str | None) -> float:
        if self.outcome == "environment":
            return environment_reward(trajectory)
        if self.outcome == "none":  # nor is a gold state worth anything
            return 0.0
        score = answer_f1 if self.outcome == "answer_f1" else answer_match
        return outcome_score(trajectory, answer, score)


def _parsed(trajectory: Trajectory) -> Trajectory:
    """The trajectory without the calls that do not parse."""
    turns = (
        replace(turn, calls=tuple(call for call in turn.calls if call.status in COMPARABLE))
        for turn in trajectory.turns
    )
    return replace(trajectory, turns=tuple(turns))


def _with_malformed(credit: Credit, trajectory: Trajectory) -> Credit:
    """The credit with rows of zeros for the calls that do not parse."""
    counted = np.array([call.status in COMPARABLE for call in trajectory.calls], dtype=bool)
    # Of each malformed call: how many stand before it.
    rows = partial(np.insert, obj=np.cumsum(counted)[~counted], values=0.0, axis=0)
    similarity, plan, rewards = map(rows, (credit.similarity, credit.plan, credit.call_rewards))
    return replace(credit, similarity=similarity, plan=plan, call_rewards=rewards)
