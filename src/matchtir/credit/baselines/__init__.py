"""Rewards of the methods that the paper compares with; the same call as `MatchReward`.

The plain outcome reward is ``MatchReward(rewards="outcome")``.
"""

from matchtir.credit.baselines.ftrl import FtrlReward
from matchtir.credit.baselines.toolrl import ToolRlReward

__all__ = ["FtrlReward", "ToolRlReward"]
