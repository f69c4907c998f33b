"""What whole runs in other processes are given: something to learn, and a process that fails."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import Credit, MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.training.policy_gradient import PolicyGradientModule
from matchtir.types import Trajectory

FAILS = "TEST_FAILS"  # "<rank>:<iteration>", or "<rank>:<iteration>/hangs"


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


class FailingModule(PolicyGradientModule):
    """Raises in one process and one iteration, where the environment says so."""

    def score(self, groups: Any) -> Any:
        where, _, how = os.environ.get(FAILS, "").partition("/")
        if where == f"{self.global_rank}:{self.iteration}":
            if how == "hangs":
                time.sleep(600)
            raise RuntimeError("this process fails")
        return super().score(groups)
