"""Rewards of the turns of a trajectory: its calls matched to the gold calls, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from matchtir.credit.assignment import Assigner, Assignment
from matchtir.credit.outcome import answer_f1, answer_match, final_answer, outcome_score
from matchtir.credit.similarity import COMPARABLE, GoldIndex, Similarity
from matchtir.tools.formats import extract_answer
from matchtir.types import ToolCall, Trajectory
from matchtir.utils.options import check_option

OUTCOMES: dict[str, Callable[[str | None, str], float] | None] = {
    "answer_f1": answer_f1,
    "answer_match": answer_match,
    "none": None,  # nor is a gold state worth anything
}


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
    gold_trace: int = 0  # what calls were matched to: 0 the gold calls, k the k-th alternative


@runtime_checkable
class Reward(Protocol):
    """Scores many trajectories at once; every reward of this project has this call."""

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]: ...


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
        outcome: ``answer_f1``, ``answer_match`` or ``none``.
        outcome_turns: ``final``, or ``every`` turn that has an answer (release).
        no_answer_penalty: taken from the last turn where the outcome is rewarded and the episode
            ends without an answer; 0 in the paper.
        malformed_calls: ``unmatched``: a call that does not parse counts as a call of similarity
            0; ``ignored``: it counts for nothing (release).
    """

    def __init__(
        self,
        similarity: Similarity,
        assignment: Assigner,
        turn_reduction: str = "mean",
        trajectory_reduction: str = "sum",
        rewards: str = "integrated",
        outcome: str = "answer_f1",
        outcome_turns: str = "final",
        no_answer_penalty: float = 0.0,
        malformed_calls: str = "unmatched",
    ) -> None:
        check_option("turn_reduction", turn_reduction, ("mean", "sum"))
        check_option("trajectory_reduction", trajectory_reduction, ("sum", "mean"))
        check_option("rewards", rewards, ("integrated", "turn", "outcome"))
        check_option("outcome", outcome, tuple(OUTCOMES))
        check_option("outcome_turns", outcome_turns, ("final", "every"))
        check_option("malformed_calls", malformed_calls, ("unmatched", "ignored"))
        if no_answer_penalty < 0:
            raise ValueError(f"no_answer_penalty={no_answer_penalty} must not be negative")
        self.similarity = similarity
        self.assignment = assignment
        self.turn_mean = turn_reduction == "mean"
        self.trajectory_mean = trajectory_reduction == "mean"
        self.pay_calls = rewards != "outcome"
        self.pay_outcome = rewards != "turn"
        self.score_answer = OUTCOMES[outcome]
        self.every_turn = outcome_turns == "every"
        self.no_answer_penalty = no_answer_penalty
        self.ignore_malformed = malformed_calls == "ignored"

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        """One `Credit` per trajectory, in order."""
        return [
            self._credit(trajectory, *match)
            for trajectory, match in zip(trajectories, self._matches(trajectories), strict=True)
        ]

    def _counts(self, call: ToolCall) -> bool:
        return not self.ignore_malformed or call.status in COMPARABLE

    def _matches(
        self, trajectories: Sequence[Trajectory]
    ) -> list[tuple[Float[np.ndarray, "_ _"], Assignment, int]]:
        """Similarity and assignment of every trajectory to the gold trace that suits it best."""
        indexed: dict[int, list[GoldIndex]] = {}  # of a task: the attempts of a group share it
        matrices: list[Float[np.ndarray, "_ _"]] = []
        first = [0]
        for trajectory in trajectories:
            task = trajectory.task
            traces = indexed.get(id(task))
            if traces is None:
                indices = [self.similarity.index(gold) for gold in task.gold_traces]
                traces = indexed[id(task)] = indices
            calls: Sequence[ToolCall] = trajectory.calls
            if self.ignore_malformed:
                calls = [call for call in calls if self._counts(call)]
            matrices.extend([self.similarity.rows(calls, gold) for gold in traces])
            first.append(len(matrices))
        assignments = self.assignment(matrices)
        matches = []
        for start, end in pairwise(first):
            best = start
            if end - start > 1:
                best = max(range(start, end), key=lambda k: assignments[k].rewards.sum())
            matches.append((matrices[best], assignments[best], best - start))
        return matches

    def _credit(
        self,
        trajectory: Trajectory,
        similarity: Float[np.ndarray, "k n"],
        match: Assignment,
        gold_trace: int,
    ) -> Credit:
        plan, call_rewards = match.plan, match.rewards
        if self.ignore_malformed:
            counted = np.array([self._counts(call) for call in trajectory.calls], dtype=bool)
            similarity, plan = _spread_rows(similarity, counted), _spread_rows(plan, counted)
            call_rewards = _spread_rows(call_rewards, counted)
        turn_rewards = self._call_part(trajectory, call_rewards)
        outcome, paid = self._pay_answers(trajectory, turn_rewards) if turn_rewards else (0.0, 0.0)
        total = sum(turn_rewards)
        if self.trajectory_mean and turn_rewards:
            total /= len(turn_rewards)
        rewards = np.array(turn_rewards, dtype=np.float64)
        return Credit(
            similarity, plan, call_rewards, rewards, outcome, paid, float(total), gold_trace
        )

    def _call_part(
        self, trajectory: Trajectory, call_rewards: Float[np.ndarray, " m"]
    ) -> list[float]:
        """What the calls of each turn earned [T]."""
        if not self.pay_calls:
            return [0.0] * len(trajectory.turns)
        rewards = call_rewards.tolist()
        turn_rewards = []
        position = 0
        for turn in trajectory.turns:
            made = len(turn.calls)
            reward = sum(rewards[position : position + made]) if made else 0.0
            position += made
            if self.turn_mean and made:
                counted = sum(map(self._counts, turn.calls)) if self.ignore_malformed else made
                reward /= max(counted, 1)
            turn_rewards.append(reward)
        return turn_rewards

    def _pay_answers(
        self, trajectory: Trajectory, turn_rewards: list[float]
    ) -> tuple[float, float]:
        """Add the answers to `turn_rewards` [T]; the last one's score, and what was paid for it."""
        every = self.every_turn
        last = extract_answer(trajectory.final_text) if every else final_answer(trajectory)
        outcome = self._outcome(trajectory, last)
        if not self.pay_outcome:
            return outcome, 0.0
        answered = last is not None
        for index, turn in enumerate(trajectory.turns[:-1] if every else ()):
            answer = extract_answer(turn.text)
            if answer is not None:
                answered = True
                turn_rewards[index] += self._outcome(trajectory, answer)
        paid = outcome - (0.0 if answered else self.no_answer_penalty)
        turn_rewards[-1] += paid
        return outcome, paid

    def _outcome(self, trajectory: Trajectory, answer: str | None) -> float:
        if self.score_answer is None:
            return 0.0
        return outcome_score(trajectory, answer, self.score_answer)


def _spread_rows(
    values: Float[np.ndarray, "k ..."], counted: np.ndarray
) -> Float[np.ndarray, "m ..."]:
    """The rows of the calls that count, among rows of zeros for those that do not."""
    spread = np.zeros((len(counted), *values.shape[1:]))
    spread[counted] = values
    return spread
