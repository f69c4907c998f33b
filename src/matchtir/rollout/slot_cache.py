"""A key-value cache with one slot per conversation, each of its own length."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache

GROWTH = 256  # tokens by which the buffers grow, so that they are rarely copied


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
        self._rows: Int[Tensor, " R"] | slice = slice(0, 0)
        self._positions: Int[Tensor, "R Q"] = torch.empty(0, 0, dtype=torch.int64)
        self._extent = 0

    def aim(
        self, rows: Int[Tensor, " R"] | int, positions: Int[Tensor, "R Q"], extent: int
    ) -> None:
        """Say where the next forward pass writes, and how far (`extent`) its attention looks.

        `rows` as a number n means slots 0..n-1, which are read without a copy.
        """
        self._rows = slice(0, rows) if isinstance(rows, int) else rows
        self._positions = positions
        self._extent = extent
        if extent > self._capacity:
            self._grow(-(-extent // GROWTH) * GROWTH)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
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
        for buffers in (self._keys, self._values):
            for buffer in buffers.values():
                buffer[target, :, :length] = buffer[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given explicitly."""
        return 0

    def _grow(self, capacity: int) -> None:
        extra = capacity - self._capacity
        for buffers in (self._keys, self._values):
            for layer, buffer in buffers.items():
                buffers[layer] = torch.nn.functional.pad(buffer, (0, 0, 0, extra))
        self._capacity = capacity
