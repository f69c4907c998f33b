"""What the making of one task goes by: its knobs, its vocabulary, its names, its random numbers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from matchtir.tasks.rows import SPLITS
from matchtir.tasks.synthetic.difficulty import Difficulty
from matchtir.tasks.synthetic.records import Lexicon, Relation


def split_of(entity: str) -> str:
    """The split that owns an entity: 80 % train, 10 % validation, 10 % test.

    It depends on the name alone, so that tasks of different seeds or difficulties (a warm start
    and the training that follows it) never share an entity across splits.
    """
    bucket = zlib.crc32(entity.encode()) % 10
    return SPLITS[max(0, bucket - 7)]


class Names:
    """Draws names of one split, each once."""

    def __init__(self, lexicon: Lexicon, split: str, rng: Random) -> None:
        self._lexicon, self._split, self._rng = lexicon, split, rng
        self._drawn: set[str] = set()

    def draw(self, kind: str) -> str:
        """A name that this task has not seen yet."""
        while True:
            name = self._lexicon.invent(kind, self._rng)
            if name not in self._drawn and split_of(name) == self._split:
                self._drawn.add(name)
                return name


@dataclass(frozen=True, slots=True)
class World:
    """The surroundings of one task."""

    scenario: str
    difficulty: Difficulty
    lexicon: Lexicon
    names: Names
    rng: Random

    def draw_fact(self, relation: Relation) -> str | int:
        """Any value that the relation may lead to, as a tool stores it."""
        if relation.target == "number":
            return self.rng.randint(relation.low, relation.high)
        return self.draw_date() if relation.target == "date" else self.names.draw(relation.target)

    def draw_date(self) -> str:
        """A date as YYYY-MM-DD."""
        year, month, day = (self.rng.randint(*ends) for ends in ((1850, 2020), (1, 12), (1, 28)))
        return f"{year}-{month:02d}-{day:02d}"

    def number(self, value: int) -> str:
        """A number as gold outputs and answers write it."""
        return format(value, self.lexicon.number_format)
