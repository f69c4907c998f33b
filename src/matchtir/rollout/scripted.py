"""An engine that writes given turns: for replays of gold solutions, baselines and tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from matchtir.rollout.attempt import task_id_of
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.renderer import Renderer

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


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine was asked for."""

    session: str
    context: tuple[int, ...]
    sampling: SamplingParams
    seed: int


class ScriptedEngine:
    """Writes what the script says, with log-probability 0, cut at `max_new_tokens`.

    Every request is kept in `requests`. What the script raises comes out of `generate`.
    """

    own_weights = True

    def __init__(self, renderer: Renderer, script: Script) -> None:
        self.renderer = renderer
        self.script = script
        self.version = 0
        self.requests: list[Request] = []
        self._turns: dict[str, int] = {}
        self._contexts: dict[str, tuple[int, ...]] = {}

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Write the session's next turn.

        Raises ValueError where `context` does not extend the session's earlier context.
        """
        context = tuple(context)
        known = self._contexts.get(session, ())
        if context[: len(known)] != known:
            raise ValueError(f"session {session}: the context does not extend the earlier one")
        self.requests.append(Request(session, context, sampling, seed))
        turn = self._turns.get(session, 0)
        token_ids = self.renderer.encode_turn(self.script(session, turn))
        written = token_ids[: sampling.max_new_tokens]
        self._turns[session] = turn + 1
        self._contexts[session] = context + written
        return Generation(written, (0.0,) * len(written), stopped=len(written) == len(token_ids))

    def release(self, session: str) -> None:
        """Forget a session: its next turn is the first again."""
        self._turns.pop(session, None)
        self._contexts.pop(session, None)

    def sync(self, policy: nn.Module, version: int) -> None:
        """Take over the version; a script has no weights."""
        self.version = version

    def close(self) -> None:
        """There is nothing to give up."""
