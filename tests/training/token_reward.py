"""Something to learn for whole runs that begin with random weights."""

from dataclasses import replace

import numpy as np

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity

PAID = "reward._target_=tests.training.token_reward.TokenReward"


class TokenReward:
    """Pays for odd tokens, so that random weights, too, have something to learn."""

    def __init__(self, **_):
        pass

    def __call__(self, trajectories):
        credits = MatchReward(Similarity(), HardAssignment())(trajectories)
        return [self._paid(*each) for each in zip(trajectories, credits, strict=True)]

    def _paid(self, trajectory, credit):
        odd = [np.mean([token % 2 for token in turn.token_ids]) for turn in trajectory.turns]
        return replace(credit, turn_rewards=np.array(odd), total=float(sum(odd)))
