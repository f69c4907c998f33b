"""Something to learn for whole runs that begin with random weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import Credit, MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.types import Trajectory

PAID = "reward._target_=tests.training.token_reward.TokenReward"


class TokenReward:
    """Pays for odd tokens, so that random weights, too, have something to learn."""

    def __init__(self, **_: Any) -> None:
        pass

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Credit]:
        credits = MatchReward(Similarity(), HardAssignment())(trajectories)
        return [self._paid(*each) for each in zip(trajectories, credits, strict=True)]

    def _paid(self, trajectory: Trajectory, credit: Credit) -> Credit:
        odd = [np.mean([token % 2 for token in turn.token_ids]) for turn in trajectory.turns]
        return replace(credit, turn_rewards=np.array(odd), total=float(sum(odd)))
