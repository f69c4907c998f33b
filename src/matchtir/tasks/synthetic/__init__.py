"""A seeded generator of multi-hop tool worlds."""

from matchtir.tasks.synthetic.tasks import CopyTasks, SyntheticTasks
from matchtir.tasks.synthetic.world import SCENARIOS, Difficulty, laptop_words

__all__ = ["SCENARIOS", "CopyTasks", "Difficulty", "SyntheticTasks", "laptop_words"]
