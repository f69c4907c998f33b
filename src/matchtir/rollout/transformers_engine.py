"""Sampling with the trained model itself: KV cache across turns, continuous batching."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from matchtir.policy.packing import use_packed_attention
from matchtir.policy.policy import Policy
from matchtir.policy.weights import load_full_weights
from matchtir.rollout.engine import Engine, Generation, SamplingParams
from matchtir.rollout.slot_decoder import Conversation, Request, SlotDecoder


class TransformersEngine(Engine):
    """Samples from any full-attention Hugging Face causal LM.

    Every tick reads a bounded piece of new context and decodes one token of every running row.

    Args:
        stop_token_ids: tokens that end a turn; part of the generation.
        max_sessions: conversations in the cache at once; more wait for a place, in order.
        prefill_tokens: padded tokens of new context read per tick.
        rejoin_after: ticks after the end of a turn at which the row's next turn is taken up. The
            engine waits for a tool that is slower, and parks a result that is faster, so that the
            batches, and with them the last bits of every number, repeat from run to run. None:
            a row goes on as soon as its tools are done, which is faster with slow tools.
        own_weights: sample from a copy, which each `sync` fills anew: for a policy that is trained
            while it samples. Of one whose weights are sharded there is always a copy.

    Raises:
        ValueError: an option out of range, or a model with other than full attention.
    """

    def __init__(
        self,
        stop_token_ids: Sequence[int],
        max_sessions: int = 64,
        prefill_tokens: int = 8192,
        rejoin_after: int | None = 4,
        own_weights: bool = False,
    ) -> None:
        if max_sessions < 1 or prefill_tokens < 1:
            raise ValueError("max_sessions and prefill_tokens must be at least 1")
        if rejoin_after is not None and rejoin_after < 0:
            raise ValueError(f"rejoin_after must be None or at least 0, got {rejoin_after}")
        self.version = -1
        self.own_weights = own_weights
        self._max_sessions = max_sessions
        self._rejoin_after = rejoin_after
        self._decoder = SlotDecoder(
            stop_token_ids, max_sessions, prefill_tokens, sparse=rejoin_after is None
        )
        self._by_session: dict[str, Conversation] = {}
        self._queue: deque[Conversation] = deque()  # sessions without a slot
        self._driver: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def prefill_count(self) -> int:
        """Tokens of context read so far, for measurements."""
        return self._decoder.prefill_count

    # -- what episodes call -------------------------------------------------------------------

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol."""
        if self._decoder.policy is None:
            raise RuntimeError("the engine has no weights yet: call sync first")
        if sampling.max_new_tokens < 1 or not context:
            raise ValueError(f"session {session}: an empty context or no tokens to generate")
        uniforms = np.random.default_rng(seed).random(sampling.max_new_tokens).tolist()
        future = asyncio.get_running_loop().create_future()
        request = Request(list(context), sampling, uniforms, future)
        row = self._by_session.get(session)
        if row is None:
            row = Conversation(session, request.context, tuple(request.context), request=request)
            self._by_session[session] = row
            self._queue.append(row)
        elif row.request or row.incoming:
            raise ValueError(f"session {session} is already generating")
        elif request.context[: len(row.ids)] != row.ids or len(request.context) <= row.cached:
            raise ValueError(f"session {session}: the context does not extend the earlier one")
        else:
            row.incoming = request
        self._changed.set()
        if self._driver is None or self._driver.done():
            self._changed = asyncio.Event()  # of this rollout's event loop
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        return await future

    def release(self, session: str) -> None:
        """Forget a session; a turn that is still being sampled is cancelled."""
        row = self._by_session.pop(session, None)
        if row is None:
            return
        row.released = True
        if row in self._queue:
            self._queue.remove(row)
        for request in row.requests:
            request.future.cancel()
        self._changed.set()

    def sync(self, policy: nn.Module, version: int) -> None:
        """Sample from `policy`: the trainer's own module, or a copy with its weights.

        Raises:
            RuntimeError: sessions are open.
            TypeError: not a `Policy`.
            ValueError: a model with other than full attention.
        """
        if self._by_session:
            raise RuntimeError(f"{len(self._by_session)} sessions are open while weights change")
        if not isinstance(policy, Policy):
            raise TypeError(f"expected a Policy, got {type(policy).__name__}")
        use_packed_attention(policy.model, "the engine")
        if self.own_weights or any(isinstance(weight, DTensor) for weight in policy.parameters()):
            policy = self._copied(policy)
        self._decoder.use(policy)
        self.version = version

    def _copied(self, policy: Policy) -> Policy:
        """The engine's own whole policy, with these weights."""
        own = self._decoder.policy
        if own is None:
            config, weight = policy.model.config, next(policy.parameters())
            with torch.device(weight.device), torch.random.fork_rng(devices=[]):
                model = AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
            own = Policy(model, head_float32=policy.head_float32).eval().requires_grad_(False)
        load_full_weights(own, policy)
        return own

    def close(self) -> None:
        """Give up the cache and the weights."""
        self._decoder.use(None)

    # -- the driver: one tick after the other while there are sessions ---------------------------

    async def _drive(self) -> None:
        try:
            await asyncio.sleep(0)  # every episode that starts now is heard before the first tick
            while self._by_session:
                for row in [r for r in self._decoder.rows if r.released and r.request]:
                    self._decoder.vacate(row)  # cancelled in the middle of a turn
                while self._can_admit():
                    self._decoder.rows.append(self._queue.popleft())
                await self._take_up_turns()
                if any(row.request for row in self._decoder.rows):
                    self._decoder.advance()
                await asyncio.sleep(0)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):  # any other is raised by the episodes
                raise
        finally:
            self._decoder.rows.clear()

    def _fail(self, error: BaseException) -> None:
        """Hand the error to everyone who waits; the episodes raise it."""
        told = error if isinstance(error, Exception) else RuntimeError("engine stopped")
        for row in [*self._decoder.rows, *self._queue]:
            for request in row.requests:
                request.future.set_exception(told)
        self._by_session.clear()
        self._queue.clear()

    async def _take_up_turns(self) -> None:
        """Apply what idle rows want next (a new turn, or to leave), in slot order."""
        idle = [row for row in self._decoder.rows if row.request is None]
        running = len(idle) < len(self._decoder.rows)
        if self._rejoin_after is None:
            while not (running or self._can_admit()):
                if any(row.incoming or row.released for row in idle):
                    break
                await self._wait_for_change()
            due = [row for row in idle if row.incoming or row.released]
        else:
            if idle and not running:  # nothing to decode meanwhile: go to the next rendezvous
                self._decoder.tick = max(
                    self._decoder.tick, min(r.idle_since for r in idle) + self._rejoin_after
                )
            due = [row for row in idle if self._decoder.tick - row.idle_since >= self._rejoin_after]
            while not all(row.incoming or row.released for row in due):
                await self._wait_for_change()
        for row in due:
            if row.released:
                self._decoder.vacate(row)
            elif row.incoming:
                row.ids, row.request, row.incoming = row.incoming.context, row.incoming, None

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _can_admit(self) -> bool:
        return bool(self._queue) and len(self._decoder.rows) < self._max_sessions
