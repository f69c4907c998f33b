"""Lists of names and numbers to be said again: the first stage of a warm start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from matchtir.tasks.rows import SPLITS, TaskSet
from matchtir.tasks.synthetic.lexicon import LAPTOP
from matchtir.tasks.synthetic.tasks import check_sizes
from matchtir.tasks.synthetic.world import Names
from matchtir.types import Task
from matchtir.utils.options import check_option

KINDS = ("person", "place", "thing")
_PHRASE = re.compile(r"[^\W\d][\w'-]*( [\w'-]+){0,3}")
LONGEST = 1000  # there are about 3,000 names, and no list has one twice


class CopyTasks(Sequence[Task]):
    """Questions without tools whose answer repeats the names and numbers in them, in order.

    Copying is the one hard part of calling tools for a very small model. A list has several times
    as much to copy as a gold trace, so that the skill appears within seconds.

    Args:
        size: number of tasks; there is only a training split.
        length: (least, most) entries of a list.
        number_share: of the entries, the others are names.
        phrases_of: a task set: half of the lists have short texts out of the gold solutions of its
            training tasks in place of invented names, and are written without quotation marks.
        seed: task i depends on (seed, i) alone.

    Raises:
        ValueError: a negative size, an impossible range or share.
    """

    def __init__(
        self,
        size: int,
        length: Sequence[int] = (3, 8),
        number_share: float = 0.3,
        phrases_of: TaskSet | None = None,
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
        self.phrases = _phrases(phrases_of.tasks("train")) if phrases_of else ()

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
        own = bool(self.phrases) and rng.random() < 0.5
        listed = [
            str(rng.randint(10, 99))
            if rng.random() < self.number_share
            else rng.choice(self.phrases)
            if own
            else names.draw(rng.choice(KINDS))
            for _ in range(rng.randint(*self.length))
        ]
        quoted = ", ".join(f'"{entry}"' for entry in listed)
        return Task(
            task_id=f"copy-{index}",
            question=f"Find {' and '.join(listed) if own else quoted}.",
            tools=(),
            gold_calls=(),
            answer=", ".join(listed),
            scenario="copy",
        )


def _phrases(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The texts of a few words among the arguments and outputs of gold calls, each once."""
    texts = []
    for task in tasks:
        texts += [text for call in task.gold_calls for text in call.arguments.values()]
    texts += [sub_answer.output for task in tasks for sub_answer in task.sub_answers]
    found = (text for text in texts if isinstance(text, str) and _PHRASE.fullmatch(text))
    return tuple(dict.fromkeys(found))
