"""What samples turns: token ids in, token ids and log-probabilities out. One writes a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from matchtir.rollout.renderer import Renderer


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; `temperature` 0 is greedy decoding."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    max_new_tokens: int = 128  # in episodes: what the limits leave for each turn


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens of one turn; the stop token, if one was sampled, is the last."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool  # False: cut at `max_new_tokens`


class Engine(Protocol):
    """Samples turns of many conversations at once; engines derive from it.

    A session is one conversation: its context only ever grows, so an engine may keep the
    session's KV cache and read just the tokens that are new since the last turn.

    An iteration is `wake`, `sync`, turns, `sleep`, and the update of the policy.
    """

    version: int  # of the weights that it samples from
    own_weights: bool  # a copy, so that it may sample while the policy is being trained
    cache_tokens: int | None = None  # in its KV cache; None: it takes up as many as it has room for

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`, the whole conversation so far.

        Raises ValueError where `context` does not extend the session's earlier context.
        """
        ...

    def release(self, session: str) -> None:
        """Forget a session; a no-op for an unknown one, so that it may be called on any exit."""
        return None

    def sync(self, policy: nn.Module, version: int) -> None:
        """Sample from these weights from now on, and drop every cache of older ones.

        Where the weights are sharded every process must call it.
        """
        ...

    def sleep(self) -> None:
        """Give the memory of weights and cache to others until `wake`; here there is none to give.

        An engine that has it raises RuntimeError for turns that are asked for while it sleeps.
        """
        return None

    def wake(self) -> None:
        """Make room for weights again; the next `sync` brings them, and turns can be sampled."""
        return None

    def close(self) -> None:
        """Give up processes and memory; the engine cannot be used afterwards."""
        return None


def session_name(seed: int, position: int, sample: int, task_id: str) -> str:
    """The name under which an engine knows an episode: unique within a run."""
    return f"{seed}.{position}/{sample}/{task_id}"


def task_id_of(session: str) -> str:
    """The task id in a session's name."""
    return session.split("/", 2)[2]


# -- a script: replays of gold solutions, baselines and tests --------------------------------------

# Text of a session's turn, from the session's name and the index of the turn.
Script = Callable[[str, int], str]


def replay(turn_texts: Mapping[str, Sequence[str]]) -> Script:
    """The script that writes, in every episode of a task, the turns given for its `task_id`."""

    def script(session: str, turn: int) -> str:
        texts = turn_texts[task_id_of(session)]
        if turn >= len(texts):
            raise ValueError(f"session {session}: turn {turn} of {len(texts)} was asked for")
        return texts[turn]

    return script


def turn_by_sample(script: Script) -> Script:
    """The script for sessions of one turn each, whose sample number says which turn it is."""
    return lambda session, _: script(session, int(session.split("/", 2)[1]))


class ScriptedEngine(Engine):
    """Writes what the script says, with log-probability 0, cut at `max_new_tokens`.

    What the script raises comes out of `generate`.
    """

    own_weights = True

    def __init__(self, renderer: Renderer, script: Script) -> None:
        self.renderer = renderer
        self.script = script
        self.version = 0
        self._turns: dict[str, int] = {}  # written so far in each session

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Write the session's next turn, whatever the context."""
        turn = self._turns.get(session, 0)
        token_ids = self.renderer.encode_turn(self.script(session, turn))
        written = token_ids[: sampling.max_new_tokens]
        self._turns[session] = turn + 1
        return Generation(written, (0.0,) * len(written), stopped=len(written) == len(token_ids))

    def release(self, session: str) -> None:
        """Forget a session: its next turn is the first again."""
        self._turns.pop(session, None)

    def sync(self, policy: nn.Module, version: int) -> None:
        """Take over the version; a script has no weights."""
        self.version = version
