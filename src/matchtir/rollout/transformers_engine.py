"""Sampling with the trained model itself: KV cache across turns, continuous batching."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from matchtir.policy.packing import require_full_attention
from matchtir.policy.policy import Policy
from matchtir.policy.weights import load_full_weights
from matchtir.rollout.engine import Generation, SamplingParams
from matchtir.rollout.sampling import sample_tokens
from matchtir.rollout.slot_cache import SlotCache


@dataclass(slots=True, eq=False)
class _Request:
    """One turn being sampled."""

    context: list[int]
    sampling: SamplingParams
    uniforms: list[float]
    future: asyncio.Future[Generation]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Row:
    """A conversation that occupies a slot of the cache."""

    session: str
    ids: list[int]  # everything read or sampled so far
    prompt: tuple[int, ...]  # its first context, which a group shares
    cached: int = 0  # how many of `ids` have their keys in the cache
    request: _Request | None = None  # None: the episode is busy with its tools
    incoming: _Request | None = None  # its next turn, not taken up yet
    released: bool = False
    idle_since: int = 0  # tick at which the last turn ended

    @property
    def unread(self) -> int:
        return len(self.ids) - self.cached


class TransformersEngine:
    """Samples from any full-attention Hugging Face causal LM.

    Every tick reads a bounded piece of new context and decodes one token of every running row.
    A row that waits for its tools rides along unread, so nobody waits for it and nothing is moved.

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
        self.prefill_count = 0  # tokens of context read, for measurements
        self._stop = frozenset(stop_token_ids)
        self._max_sessions = max_sessions
        self._prefill_tokens = prefill_tokens
        self._rejoin_after = rejoin_after
        self._policy: Policy | None = None
        self._cache = SlotCache(max_sessions)
        self._rows: list[_Row] = []  # index = slot
        self._by_session: dict[str, _Row] = {}
        self._queue: deque[_Row] = deque()  # sessions without a slot
        self._tick = 0
        self._driver: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    # -- what episodes call -------------------------------------------------------------------

    async def generate(
        self, session: str, context: Sequence[int], sampling: SamplingParams, seed: int
    ) -> Generation:
        """Sample one turn after `context`; see the protocol."""
        if self._policy is None:
            raise RuntimeError("the engine has no weights yet: call sync first")
        if sampling.max_new_tokens < 1 or not context:
            raise ValueError(f"session {session}: an empty context or no tokens to generate")
        uniforms = np.random.default_rng(seed).random(sampling.max_new_tokens).tolist()
        future = asyncio.get_running_loop().create_future()
        request = _Request(list(context), sampling, uniforms, future)
        row = self._by_session.get(session)
        if row is None:
            row = _Row(session, request.context, tuple(request.context), request=request)
            self._by_session[session] = row
            self._queue.append(row)
        elif row.request or row.incoming:
            raise ValueError(f"session {session} is already generating")
        elif request.context[: len(row.ids)] != row.ids or len(request.context) <= row.cached:
            raise ValueError(f"session {session}: the context does not extend the earlier one")
        else:
            row.incoming = request
        self._start_driver()
        return await future

    def release(self, session: str) -> None:
        """Forget a session; a turn that is still being sampled is cancelled."""
        row = self._by_session.pop(session, None)
        if row is None:
            return
        row.released = True
        if row in self._queue:
            self._queue.remove(row)
        for request in (row.request, row.incoming):
            if request and not request.future.done():
                request.future.cancel()
        self._news.set()

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
        require_full_attention(policy.model, "the engine")
        if self.own_weights or any(isinstance(weight, DTensor) for weight in policy.parameters()):
            policy = self._copied(policy)
        if policy is not self._policy:
            self._cache = SlotCache(self._max_sessions)  # its buffers have the model's shapes
        self._policy = policy
        self.version = version

    def _copied(self, policy: Policy) -> Policy:
        """The engine's own whole policy, with these weights."""
        own = self._policy
        if own is None:
            config, weight = policy.model.config, next(policy.parameters())
            with torch.device(weight.device), torch.random.fork_rng(devices=[]):
                model = AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
            own = Policy(model, policy.head_chunk).eval().requires_grad_(False)
        load_full_weights(own, policy)
        return own

    def close(self) -> None:
        """Give up the cache and the weights."""
        self._policy = None
        self._cache = SlotCache(self._max_sessions)

    # -- the driver: one tick after the other while there are sessions ---------------------------

    def _start_driver(self) -> None:
        self._news.set()
        if self._driver is None or self._driver.done():
            self._news = asyncio.Event()
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        try:
            await asyncio.sleep(0)  # every episode that starts now is heard before the first tick
            while self._by_session:
                self._fill_slots()
                await self._take_up_turns()
                if any(row.request for row in self._rows):
                    self._advance()
                await asyncio.sleep(0)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):  # any other is raised by the episodes
                raise
        finally:
            self._rows.clear()

    def _fail(self, error: BaseException) -> None:
        """Hand the error to everyone who waits; the episodes raise it."""
        for row in [*self._rows, *self._queue]:
            for request in (row.request, row.incoming):
                if request and not request.future.done():
                    request.future.set_exception(
                        error if isinstance(error, Exception) else RuntimeError("engine stopped")
                    )
        self._by_session.clear()
        self._queue.clear()

    async def _take_up_turns(self) -> None:
        """Apply what idle rows want next (a new turn, or to leave), in slot order."""
        idle = [row for row in self._rows if row.request is None]
        running = len(idle) < len(self._rows)
        if self._rejoin_after is None:
            while not (running or self._can_admit()):
                if any(row.incoming or row.released for row in idle):
                    break
                await self._hear_news()
            due = [row for row in idle if row.incoming or row.released]
        else:
            if idle and not running:  # nothing to decode meanwhile: go to the next rendezvous
                self._tick = max(self._tick, min(r.idle_since for r in idle) + self._rejoin_after)
            due = [row for row in idle if self._tick - row.idle_since >= self._rejoin_after]
            while not all(row.incoming or row.released for row in due):
                await self._hear_news()
        for row in due:
            if row.released:
                self._vacate(row)
            elif row.incoming:
                row.ids, row.request, row.incoming = row.incoming.context, row.incoming, None

    async def _hear_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _vacate(self, row: _Row) -> None:
        """Free a slot: the last row moves into it, so that used slots stay 0..n-1."""
        hole, last = self._rows.index(row), len(self._rows) - 1
        if hole != last:
            self._cache.copy_slot(last, hole, self._rows[last].cached)
            self._rows[hole] = self._rows[last]
        self._rows.pop()

    def _fill_slots(self) -> None:
        for row in [r for r in self._rows if r.released and r.request]:
            self._vacate(row)  # cancelled in the middle of a turn
        while self._can_admit():
            self._rows.append(self._queue.popleft())

    def _can_admit(self) -> bool:
        return bool(self._queue) and len(self._rows) < self._max_sessions

    # -- one tick -----------------------------------------------------------------------------

    @torch.no_grad()
    def _advance(self) -> None:
        """Read some new context, then decode one token of every row that has read all its own."""
        self._tick += 1
        decoding = [s for s, row in enumerate(self._rows) if row.request and row.unread == 1]
        self._share_prompts()
        reading = self._choose_reading()
        if reading:
            self._read(reading)
        if decoding:
            self._decode(decoding)

    def _share_prompts(self) -> None:
        """Rows of one group copy the prompt that the first of them has read."""
        fresh = [s for s, row in enumerate(self._rows) if row.cached == 0 and row.request]
        if not fresh:
            return
        donors = {
            row.prompt: slot
            for slot, row in enumerate(self._rows)
            if row.cached >= len(row.prompt) - 1 > 0 and not row.released
        }
        for slot in fresh:
            row = self._rows[slot]
            if row.prompt in donors:
                self._cache.copy_slot(donors[row.prompt], slot, len(row.prompt) - 1)
                row.cached = len(row.prompt) - 1

    def _choose_reading(self) -> list[tuple[int, int]]:
        """(slot, tokens) to read now: at most `prefill_tokens` when padded to the longest."""
        chosen: list[tuple[int, int]] = []
        prompts = {row.prompt for row in self._rows if 0 < row.cached < len(row.prompt) - 1}
        longest = 0
        for slot, row in enumerate(self._rows):
            if not row.request or row.unread <= 1:
                continue
            if row.cached == 0:
                if row.prompt in prompts:
                    continue  # copied once it has been read
                prompts.add(row.prompt)
            count = min(row.unread, self._prefill_tokens)
            if chosen and (len(chosen) + 1) * max(longest, count) > self._prefill_tokens:
                break
            chosen.append((slot, count))
            longest = max(longest, count)
        return chosen

    def _read(self, reading: list[tuple[int, int]]) -> None:
        width = max(count for _, count in reading)
        tokens = torch.zeros(len(reading), width, dtype=torch.int64)
        starts = torch.tensor([self._rows[slot].cached for slot, _ in reading])
        for index, (slot, count) in enumerate(reading):
            row = self._rows[slot]
            tokens[index, :count] = torch.tensor(row.ids[row.cached : row.cached + count])
            row.cached += count
            self.prefill_count += count
        hidden = self._forward(torch.tensor([slot for slot, _ in reading]), tokens, starts)
        done = [i for i, (slot, _) in enumerate(reading) if self._rows[slot].unread == 0]
        if done:
            ends = torch.tensor([reading[i][1] - 1 for i in done], device=hidden.device)
            self._sample([reading[i][0] for i in done], hidden[done, ends])

    def _decode(self, decoding: list[int]) -> None:
        count = len(self._rows)
        # A pass over all slots reads the cache without a copy. Where most of them wait for tools,
        # copying is cheaper; with a rendezvous few ever do, and all batches stay the same.
        few = self._rejoin_after is None and 2 * len(decoding) < count
        slots = decoding if few else range(count)
        tokens = torch.zeros(len(slots), 1, dtype=torch.int64)
        # Rows that do not decode write one garbage key behind their own: harmless, see SlotCache.
        starts = torch.tensor([self._rows[slot].cached for slot in slots])
        places = range(count) if few else decoding
        for place, slot in zip(places, decoding, strict=False):
            tokens[place] = self._rows[slot].ids[-1]
            self._rows[slot].cached += 1
        hidden = self._forward(torch.tensor(slots) if few else count, tokens, starts)
        self._sample(decoding, hidden[:, 0] if few else hidden[decoding, 0])

    def _forward(self, rows: Tensor | int, tokens: Tensor, starts: Tensor) -> Tensor:
        """Hidden states [R, Q, H] of `tokens` at positions `starts`.. of the given slots."""
        assert self._policy is not None
        model = self._policy.model
        positions = starts[:, None] + torch.arange(tokens.shape[1])
        extent = int(positions.max()) + 1
        tokens, positions = tokens.to(model.device), positions.to(model.device)
        rows = rows if isinstance(rows, int) else rows.to(model.device)
        self._cache.aim(rows, positions, extent)
        keys = torch.arange(extent, device=model.device)
        return model.base_model(
            input_ids=tokens,
            attention_mask=(keys <= positions[:, :, None])[:, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def _sample(self, slots: list[int], hidden: Tensor) -> None:
        """Append one token to each row; end the turns that are complete."""
        assert self._policy is not None
        logits = self._policy.model.get_output_embeddings()(hidden)
        requests = [self._rows[slot].request for slot in slots]
        live = [request for request in requests if request is not None]
        tokens, logprobs = sample_tokens(
            logits,
            [request.sampling for request in live],
            [request.uniforms[len(request.token_ids)] for request in live],
        )
        for slot, request, token, logprob in zip(
            slots, live, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            row = self._rows[slot]
            row.ids.append(token)
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in self._stop
            if stopped or len(request.token_ids) == request.sampling.max_new_tokens:
                row.request, row.idle_since = None, self._tick
                if not request.future.done():
                    request.future.set_result(
                        Generation(tuple(request.token_ids), tuple(request.logprobs), stopped)
                    )
