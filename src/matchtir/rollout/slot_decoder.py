"""Conversations in the slots of one cache: contexts are read, tokens sampled, tick by tick."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from matchtir.policy.policy import Policy
from matchtir.rollout.engine import Generation, SamplingParams

GROWTH = 256  # tokens by which the buffers grow, so that they are rarely copied


def sample_tokens(
    logits: Float[Tensor, "R V"], params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Tokens and their log-probabilities under the distribution that they were drawn from.

    Row r inverts its cumulative distribution at `uniforms[r]`, so that a row's token depends on
    nothing but its own logits and number. Greedy rows take the argmax and report its
    log-probability at temperature 1.
    """
    temperature = torch.tensor([p.temperature or 1.0 for p in params], device=logits.device)
    scores = _truncated(logits.float() / temperature[:, None], params)
    logprobs = scores.log_softmax(dim=-1)
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    mass = cumulative[:, -1:]
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * mass
    tokens = torch.searchsorted(cumulative, points, right=True)
    # The last token with any mass bounds the draw where rounding leaves the point at the very end.
    tokens = torch.minimum(tokens, torch.searchsorted(cumulative, mass.contiguous())).squeeze(-1)
    greedy = torch.tensor([p.temperature == 0 for p in params], device=logits.device)
    tokens = torch.where(greedy, logits.argmax(dim=-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def _truncated(scores: Float[Tensor, "R V"], params: Sequence[SamplingParams]) -> Tensor:
    """Scores with everything outside top-k and the top-p nucleus at minus infinity."""
    none = torch.empty(0, dtype=torch.int64)  # the warpers look at no earlier tokens
    for top_k, top_p in {(p.top_k, p.top_p) for p in params} - {(0, 1.0)}:
        rows = [row for row, p in enumerate(params) if (p.top_k, p.top_p) == (top_k, top_p)]
        kept = scores[rows]
        if top_k:
            kept = TopKLogitsWarper(top_k)(none, kept)
        if top_p < 1:
            kept = TopPLogitsWarper(top_p)(none, kept)
        scores[rows] = kept
    return scores


class SlotCache(Cache):
    """Buffers [slots, key-value heads, capacity, head dimension] per layer.

    Slot s holds the keys of one conversation from position 0 on; there is no padding between
    tokens, so a slot can be extended, copied or dropped without touching the others. Positions
    beyond a slot's length hold garbage that causal masking hides and later tokens overwrite.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._capacity = 0

    def aim(
        self, rows: Int[Tensor, " R"] | int, positions: Int[Tensor, "R Q"], extent: int
    ) -> None:
        """Say where the next forward pass writes, and how far (`extent`) its attention looks.

        `rows` as a number n means slots 0..n-1, which are read without a copy.
        """
        self._rows = slice(0, rows) if isinstance(rows, int) else rows
        self._positions, self._extent = positions, extent
        if extent > self._capacity:
            extra = -(-extent // GROWTH) * GROWTH - self._capacity
            for buffers in (self._keys, self._values):
                for layer, buffer in buffers.items():
                    buffers[layer] = torch.nn.functional.pad(buffer, (0, 0, 0, extra))
            self._capacity += extra

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Store [R, heads, Q, dim] at the aimed places; return [R, heads, extent, dim]."""
        if layer_idx not in self._keys:
            shape = (self._slots, key_states.shape[1], self._capacity, key_states.shape[3])
            self._keys[layer_idx] = key_states.new_zeros(shape)
            self._values[layer_idx] = value_states.new_zeros(shape)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        rows = torch.arange(keys.shape[0], device=keys.device)[self._rows][:, None]
        keys[rows, :, self._positions] = key_states.transpose(1, 2)
        values[rows, :, self._positions] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._extent], values[self._rows, :, : self._extent]

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of `target` those of `source`."""
        for buffer in (*self._keys.values(), *self._values.values()):
            buffer[target, :, :length] = buffer[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given explicitly."""
        return 0


@dataclass(slots=True, eq=False)
class Request:
    """One turn being sampled."""

    context: list[int]
    sampling: SamplingParams
    uniforms: list[float]
    future: asyncio.Future[Generation]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Conversation:
    """A conversation that occupies a slot of the cache."""

    session: str
    ids: list[int]  # everything read or sampled so far
    prompt: tuple[int, ...]  # its first context, which a group shares
    cached: int = 0  # how many of `ids` have their keys in the cache
    request: Request | None = None  # None: the episode is busy with its tools
    incoming: Request | None = None  # its next turn, not taken up yet
    released: bool = False
    idle_since: int = 0  # tick at which the last turn ended

    @property
    def unread(self) -> int:
        """Tokens whose keys are not cached yet; 1 where it decodes: the one sampled last."""
        return len(self.ids) - self.cached

    @property
    def requests(self) -> list[Request]:
        """Those that somebody waits for."""
        both = (self.request, self.incoming)
        return [request for request in both if request and not request.future.done()]


class SlotDecoder:
    """Reads and samples for the rows in its slots; who gets a slot and when is not its concern.

    A row that waits for its tools rides along unread, so nobody waits for it and nothing is moved.

    Args:
        stop_token_ids: tokens that end a turn.
        slots: rows at once.
        prefill_tokens: padded tokens of new context read per tick.
        sparse: leave waiting rows out of a pass where they are most of them. The batches, and with
            them the last bits of every number, then depend on how long tools took.
    """

    def __init__(
        self, stop_token_ids: Sequence[int], slots: int, prefill_tokens: int, sparse: bool
    ) -> None:
        self.rows: list[Conversation] = []  # index = slot
        self.tick = 0
        self.prefill_count = 0  # tokens of context read, for measurements
        self._stop = frozenset(stop_token_ids)
        self._slots = slots
        self._prefill_tokens = prefill_tokens
        self._sparse = sparse
        self.policy: Policy | None = None  # what tokens are sampled from
        self._cache = SlotCache(slots)

    def use(self, policy: Policy | None) -> None:
        """Sample from this policy; the cache is dropped with another one."""
        if policy is not self.policy:
            self._cache = SlotCache(self._slots)  # its buffers have the model's shapes
        self.policy = policy

    def vacate(self, row: Conversation) -> None:
        """Free a slot: the last row moves into it, so that used slots stay 0..n-1."""
        hole, last = self.rows.index(row), len(self.rows) - 1
        if hole != last:
            self._cache.copy_slot(last, hole, self.rows[last].cached)
            self.rows[hole] = self.rows[last]
        self.rows.pop()

    @torch.no_grad()
    def advance(self) -> None:
        """Read some new context, then decode one token of every row that has read all its own."""
        self.tick += 1
        decoding = {s: 1 for s, row in enumerate(self.rows) if row.request and row.unread == 1}
        self._share_prompts()
        prefill = self._choose_prefill()
        if prefill:
            self.prefill_count += sum(prefill.values())
            self._pass(prefill, dense=False)
        if decoding:
            # A pass over all slots reads the cache without a copy. Where most of them wait for
            # tools, copying is cheaper; a pass over all keeps the batches the same.
            few = self._sparse and 2 * len(decoding) < len(self.rows)
            self._pass(decoding, dense=not few)

    def _share_prompts(self) -> None:
        """Rows of one group copy the prompt that the first of them has read."""
        fresh = [s for s, row in enumerate(self.rows) if row.cached == 0 and row.request]
        if not fresh:
            return
        donors = {
            row.prompt: slot
            for slot, row in enumerate(self.rows)
            if row.cached >= len(row.prompt) - 1 > 0 and not row.released
        }
        for slot in fresh:
            row = self.rows[slot]
            if row.prompt in donors:
                self._cache.copy_slot(donors[row.prompt], slot, len(row.prompt) - 1)
                row.cached = len(row.prompt) - 1

    def _choose_prefill(self) -> dict[int, int]:
        """Tokens to read now, by slot: at most `prefill_tokens` when padded to the longest."""
        chosen: dict[int, int] = {}
        prompts = {row.prompt for row in self.rows if 0 < row.cached < len(row.prompt) - 1}
        longest = 0
        for slot, row in enumerate(self.rows):
            if not row.request or row.unread <= 1:
                continue
            if row.cached == 0:
                if row.prompt in prompts:
                    continue  # copied once it has been read
                prompts.add(row.prompt)
            count = min(row.unread, self._prefill_tokens)
            if chosen and (len(chosen) + 1) * max(longest, count) > self._prefill_tokens:
                break
            chosen[slot] = count
            longest = max(longest, count)
        return chosen

    def _pass(self, counts: Mapping[int, int], dense: bool) -> None:
        """Read so many tokens of each slot; sample for those that have read all of theirs.

        A dense pass goes over all slots. Rows with nothing to read write one garbage key behind
        their own then: harmless, see `SlotCache`.
        """
        assert self.policy is not None
        model, device = self.policy.model, self.policy.model.device
        slots = list(range(len(self.rows)) if dense else counts)
        width = max(counts.values())
        tokens, starts = [], [self.rows[slot].cached for slot in slots]
        for slot in slots:
            row, count = self.rows[slot], counts.get(slot, 0)
            tokens.append(row.ids[row.cached : row.cached + count] + [0] * (width - count))
            row.cached += count
        where = len(slots) if dense else torch.tensor(slots, device=device)
        positions = (torch.tensor(starts)[:, None] + torch.arange(width)).to(device)
        extent = max(starts) + width
        self._cache.aim(where, positions, extent)
        hidden = model.base_model(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=(torch.arange(extent, device=device) <= positions[:, :, None])[:, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        done = [n for n, s in enumerate(slots) if s in counts and self.rows[s].unread == 0]
        if done:
            ends = torch.tensor([counts[slots[n]] - 1 for n in done], device=device)
            self._sample([slots[n] for n in done], hidden[done, ends])

    def _sample(self, slots: list[int], hidden: Tensor) -> None:
        """Append one token to each row; end the turns that are complete."""
        assert self.policy is not None
        rows = [self.rows[slot] for slot in slots]
        requests = [row.request for row in rows if row.request is not None]
        tokens, logprobs = sample_tokens(
            self.policy.model.get_output_embeddings()(hidden),
            [request.sampling for request in requests],
            [request.uniforms[len(request.token_ids)] for request in requests],
        )
        drawn = zip(rows, requests, tokens.tolist(), logprobs.tolist(), strict=True)
        for row, request, token, logprob in drawn:
            row.ids.append(token)
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in self._stop
            if stopped or len(request.token_ids) == request.sampling.max_new_tokens:
                row.request, row.idle_since = None, self.tick
                if not request.future.done():
                    ids, logprobs_of_ids = tuple(request.token_ids), tuple(request.logprobs)
                    request.future.set_result(Generation(ids, logprobs_of_ids, stopped))
