"""Trajectories as padded tensors: the one place where turns become training tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from matchtir.policy.packing import Prefixes
from matchtir.types import SpanKind, Trajectory


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B token sequences of padded length L (right padding).

    Every tensor is aligned at the token itself: what stands at [b, l] belongs to `input_ids[b, l]`.
    """

    input_ids: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]  # real tokens, observations included
    sampled: Bool[Tensor, "B L"]  # tokens drawn by the policy: the response mask
    turn_index: Int[Tensor, "B L"]  # turn of a sampled token, -1 elsewhere
    sampler_logprobs: Float[Tensor, "B L"]  # the engine's own, 0 where not sampled
    extras: dict[str, Tensor] = field(default_factory=dict)  # [B, L], see `LossInputs`

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Real tokens of each sequence."""
        return self.attention_mask.sum(dim=1)

    def rows(self, index: Tensor) -> TokenBatch:
        """The given rows, cut to the longest of them."""
        length = int(self.lengths[index].max()) if len(index) else 0
        return self._each(lambda tensor: tensor[index, :length])

    @classmethod
    def dummy(cls, pad_id: int) -> TokenBatch:
        """A sequence of two tokens without loss, for a pass that other processes make, too."""
        real = torch.ones(1, 2, dtype=torch.bool)
        ids = torch.full((1, 2), pad_id)
        return cls(ids, real, ~real, torch.full((1, 2), -1), torch.zeros(1, 2))

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        extras = {name: change(each) for name, each in values.pop("extras").items()}
        return TokenBatch(**{name: change(each) for name, each in values.items()}, extras=extras)


def collate(trajectories: Sequence[Trajectory], pad_id: int) -> TokenBatch:
    """Token ids, masks and turn numbers of trajectories, from their records alone.

    A trajectory is its prompt, then per turn the sampled tokens and the forced observation.
    """
    rows = [_flatten(trajectory) for trajectory in trajectories]
    length = max((len(ids) for ids, _, _ in rows), default=0)
    shape = (len(rows), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    turn_index = torch.full(shape, -1, dtype=torch.int64)
    logprobs = torch.zeros(shape, dtype=torch.float32)
    for row, (ids, turns, sampler) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = True
        turn_index[row, : len(ids)] = torch.tensor(turns)
        logprobs[row, : len(ids)] = torch.tensor(sampler)
    return TokenBatch(input_ids, attention_mask, turn_index >= 0, turn_index, logprobs)


def _flatten(trajectory: Trajectory) -> tuple[list[int], list[int], list[float]]:
    """Token ids, turn index (-1: forced) and sampler log-probability of each token."""
    ids = list(trajectory.prompt_ids)
    turns = [-1] * len(ids)
    logprobs = [0.0] * len(ids)
    for index, turn in enumerate(trajectory.turns):
        forced = len(turn.observation_ids)
        ids += [*turn.token_ids, *turn.observation_ids]
        turns += [index] * len(turn.token_ids) + [-1] * forced
        logprobs += [*turn.logprobs, *([0.0] * forced)]
    return ids, turns, logprobs


def values_to_tokens(
    trajectories: Sequence[Trajectory],
    turns: Float[np.ndarray, "B T"],
    calls: Sequence[Float[np.ndarray, " _"]] | None,
    length: int,
) -> Float[Tensor, "B L"]:
    """For each sampled token of `collate` the number of its turn, or of the call it is part of.

    Args:
        turns, calls: their numbers; None: only turns have one.
        length: L.

    Raises ValueError for a turn whose spans are not known, or not those of its calls.
    """
    found = np.zeros((len(trajectories), length), dtype=np.float32)
    for row, trajectory in enumerate(trajectories):
        place, of_calls = len(trajectory.prompt_ids), iter(() if calls is None else calls[row])
        for turn, value in zip(trajectory.turns, turns[row], strict=False):
            tokens = found[row, place : place + len(turn.token_ids)]
            tokens[:] = value
            spans = [span for span in turn.spans if span.kind is SpanKind.CALL]
            if calls is not None and len(spans) != len(turn.calls):
                name, count = trajectory.task.task_id, len(spans)
                raise ValueError(f"{name}: {count} spans of calls for {len(turn.calls)} calls")
            for span, own in zip(spans, of_calls, strict=False):
                tokens[span.start : span.end] = own
            place += len(turn.token_ids) + len(turn.observation_ids)
    return torch.from_numpy(found)


def micro_batch_rows(
    lengths: Int[Tensor, " B"], max_tokens: int, packed: Prefixes | None = None
) -> list[Tensor]:
    """Row indices in groups of at most `max_tokens` tokens.

    Rows of similar length are together, and padding counts as tokens. Of packed rows those that
    share a prompt are together, as far as they fit, and the prompt counts once; the groups are of
    about as many tokens each. A row longer than `max_tokens` gets a group of its own.
    """
    if packed is not None:
        return _balanced(_families(lengths, max_tokens, packed), max_tokens)
    groups: list[list[int]] = []
    for row in torch.argsort(lengths, stable=True).tolist():
        if groups and (len(groups[-1]) + 1) * int(lengths[row]) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [torch.tensor(group) for group in groups]


def _families(
    lengths: Int[Tensor, " B"], max_tokens: int, packed: Prefixes
) -> list[tuple[int, list[int]]]:
    """Tokens and rows of each prompt, in pieces of at most `max_tokens`."""
    pieces: list[tuple[int, list[int]]] = []
    for row in torch.argsort(packed.number, stable=True).tolist():
        prompt, own = int(packed.length[row]), int(lengths[row] - packed.length[row])
        tokens, rows = pieces[-1] if pieces else (0, [])
        same = prompt and rows and packed.number[row] == packed.number[rows[-1]]
        if same and tokens + own <= max_tokens:
            pieces[-1] = tokens + own, [*rows, row]
        else:
            pieces.append((prompt + own, [row]))
    return pieces


def _balanced(pieces: list[tuple[int, list[int]]], max_tokens: int) -> list[Tensor]:
    """Pieces in groups: the largest first, each to where there is the most room."""
    room = [max_tokens] * -(-sum(tokens for tokens, _ in pieces) // max_tokens)
    groups: list[list[int]] = [[] for _ in room]
    for tokens, rows in sorted(pieces, key=lambda piece: -piece[0]):
        most = max(range(len(room)), key=room.__getitem__)
        if tokens > room[most] and groups[most]:
            most = len(room)
            room.append(max_tokens)
            groups.append([])
        room[most] -= tokens
        groups[most] += rows
    return [torch.tensor(group) for group in groups if group]
