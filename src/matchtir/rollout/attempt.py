"""An attempt at a task before it is a trajectory: which one it is, and its turns so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from matchtir.rollout.engine import SamplingParams
from matchtir.types import StopReason, Task, Trajectory, Turn


def session_name(seed: int, position: int, sample: int, task_id: str) -> str:
    """The name under which an engine knows an episode: unique within a run."""
    return f"{seed}.{position}/{sample}/{task_id}"


def task_id_of(session: str) -> str:
    """The task id in a session's name."""
    return session.split("/", 2)[2]


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on its arguments alone, whatever the order of sampling."""
    key = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def turn_seed(seed: int, position: int, sample: int, turn: int) -> int:
    """The seed of one turn of one attempt at one task."""
    return derive_seed(seed, position, sample, turn)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Sample number `sample` of the task at `position` of a rollout, as far as it has come.

    It can be gone on with at any time, also by another process: all that matters is in its turns.
    """

    task: Task
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    position: int
    sample: int
    turns: tuple[Turn, ...] = ()  # each with its observation
    seconds: float = 0.0  # wall time so far

    @property
    def session(self) -> str:
        """Its name."""
        return session_name(self.seed, self.position, self.sample, self.task.task_id)

    @property
    def context(self) -> tuple[int, ...]:
        """All tokens so far."""
        turns = [turn.token_ids + turn.observation_ids for turn in self.turns]
        return self.prompt_ids + tuple(token for ids in turns for token in ids)

    def turn_seed(self, turn: int) -> int:
        """Of the sampling of one turn."""
        return turn_seed(self.seed, self.position, self.sample, turn)

    def ended(self, reason: StopReason, version: int) -> Trajectory:
        """The trajectory that it is; `version` stands where no turn has one."""
        first = self.turns[0].policy_version if self.turns else version
        return Trajectory(self.task, self.prompt_ids, self.turns, reason, first, self.seconds)
