"""Advantages: rewards of a group of trajectories to one number per turn."""

from matchtir.credit.advantages.batch import Advantage, RewardBatch
from matchtir.credit.advantages.dr_grpo import DrGrpoAdvantage
from matchtir.credit.advantages.dual import DualAdvantage
from matchtir.credit.advantages.gigpo import GigpoAdvantage
from matchtir.credit.advantages.gtpo import GtpoHybridAdvantage
from matchtir.credit.advantages.intra_trajectory import IntraTrajectoryAdvantage
from matchtir.credit.advantages.mt_grpo import MtGrpoAdvantage
from matchtir.credit.advantages.reinforce_plus_plus import ReinforcePlusPlusAdvantage
from matchtir.credit.advantages.rloo import RlooAdvantage
from matchtir.credit.advantages.shrinkage import ShrinkageAdvantage
from matchtir.credit.advantages.trajectory import TrajectoryAdvantage
from matchtir.credit.advantages.turn import TurnAdvantage

__all__ = [
    "Advantage",
    "DrGrpoAdvantage",
    "DualAdvantage",
    "GigpoAdvantage",
    "GtpoHybridAdvantage",
    "IntraTrajectoryAdvantage",
    "MtGrpoAdvantage",
    "ReinforcePlusPlusAdvantage",
    "RewardBatch",
    "RlooAdvantage",
    "ShrinkageAdvantage",
    "TrajectoryAdvantage",
    "TurnAdvantage",
]
