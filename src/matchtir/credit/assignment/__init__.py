"""Assignments of predicted calls to gold calls: hard, soft and their relatives.

Every assignment is called with the similarity matrices of many trajectories, each [m, n], and
returns one `Assignment` per matrix, in order.
"""

from matchtir.credit.assignment.base import Assigner, Assignment
from matchtir.credit.assignment.greedy import GreedyAssignment
from matchtir.credit.assignment.hard import HardAssignment
from matchtir.credit.assignment.ordered import OrderedAssignment
from matchtir.credit.assignment.partial import PartialAssignment
from matchtir.credit.assignment.soft import SoftAssignment

__all__ = [
    "Assigner",
    "Assignment",
    "GreedyAssignment",
    "HardAssignment",
    "OrderedAssignment",
    "PartialAssignment",
    "SoftAssignment",
]
