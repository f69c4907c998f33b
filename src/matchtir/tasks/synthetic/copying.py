"""Lists of names and numbers to be said again: the first stage of a warm start."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from matchtir.tasks.rows import SPLITS
from matchtir.tasks.synthetic.lexicon import LAPTOP
from matchtir.tasks.synthetic.tasks import check_sizes
from matchtir.tasks.synthetic.world import Names
from matchtir.types import Task
from matchtir.utils.options import check_option

KINDS = ("person", "place", "thing")
LONGEST = 1000  # there are about 3,000 names, and no list has one twice


class CopyTasks(Sequence[Task]):
    """Questions without tools whose answer repeats the names and numbers in them, in order.

    Copying is the one hard part of calling tools for a very small model. A list has several times
    as much to copy as a gold trace, so that the skill appears within seconds.

    Args:
        size: number of tasks; there is only a training split.
        length: (least, most) entries of a list.
        number_share: of the entries, the others are names.
        seed: task i depends on (seed, i) alone.

    Raises:
        ValueError: a negative size, an impossible range or share.
    """

    def __init__(
        self,
        size: int,
        length: Sequence[int] = (3, 8),
        number_share: float = 0.3,
        seed: int = 0,
    ) -> None:
        check_sizes({"train": size})
        if len(length) != 2 or not 1 <= length[0] <= length[1] <= LONGEST:
            raise ValueError(f"length={list(length)}: expected (least, most), 1 to {LONGEST}")
        if not 0 <= number_share <= 1:
            raise ValueError(f"number_share={number_share}: a share lies between 0 and 1")
        self.size = size
        self.length = length
        self.number_share = number_share
        self.seed = seed

    def tasks(self, split: str) -> Sequence[Task]:
        """The training tasks; every other split is empty.

        Raises:
            ValueError: an unknown split.
        """
        check_option("split", split, SPLITS)
        return self if split == "train" else ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Task:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(f"task {index} of {self.size}")
        rng = Random(f"copy/{self.seed}/{index}")
        names = Names(LAPTOP, "train", rng)
        listed = [
            str(rng.randint(10, 99))
            if rng.random() < self.number_share
            else names.draw(rng.choice(KINDS))
            for _ in range(rng.randint(*self.length))
        ]
        return Task(
            task_id=f"copy-{index}",
            question="Find " + ", ".join(f'"{entry}"' for entry in listed) + ".",
            tools=(),
            gold_calls=(),
            answer=", ".join(listed),
            scenario="copy",
        )
