"""A seeded generator of multi-hop tool worlds."""

from matchtir.tasks.synthetic.difficulty import SCENARIOS, Difficulty
from matchtir.tasks.synthetic.lexicon import laptop_words
from matchtir.tasks.synthetic.tasks import SyntheticTasks

__all__ = ["SCENARIOS", "Difficulty", "SyntheticTasks", "laptop_words"]
