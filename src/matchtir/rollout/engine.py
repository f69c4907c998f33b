"""What the episode loop needs from a sampler: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; `temperature` 0 is greedy decoding."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    max_new_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens of one turn; the stop token, if one was sampled, is the last."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool  # False: cut at `max_new_tokens`


class Engine(Protocol):
    """Samples turns of many conversations at once.

    A session is one conversation: its context only ever grows, so an engine may keep the
    session's KV cache and read just the tokens that are new since the last turn.
    """

    version: int  # of the weights that it samples from
    own_weights: bool  # a copy, so that it may sample while the policy is being trained

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`, the whole conversation so far.

        Raises ValueError where `context` does not extend the session's earlier context.
        """
        ...

    def release(self, session: str) -> None:
        """Forget a session; a no-op for an unknown one, so that it may be called on any exit."""
        ...

    def sync(self, policy: nn.Module, version: int) -> None:
        """Sample from these weights from now on, and drop every cache of older ones.

        Where the weights are sharded every process must call it.
        """
        ...

    def close(self) -> None:
        """Give up processes and memory; the engine cannot be used afterwards."""
        ...
