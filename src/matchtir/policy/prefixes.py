"""Prompts that sequences share: attempts at one task begin alike."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Prefixes(NamedTuple):
    """What each sequence of a batch has in common with others, before its first scored token."""

    number: Int[Tensor, " B"]  # the same for sequences that begin alike
    length: Int[Tensor, " B"]  # tokens; 0 where no other sequence begins so


def shared_prefixes(input_ids: Int[Tensor, "B L"], scored: Bool[Tensor, "B L"]) -> Prefixes:
    """Find them by their tokens; a sequence without scored tokens shares nothing."""
    lengths = scored.int().argmax(dim=1).tolist()
    ids = input_ids.cpu().numpy()
    begins = [ids[row, :length].tobytes() for row, length in enumerate(lengths)]
    counts = Counter(begins)
    numbers = {begin: number for number, begin in enumerate(counts)}
    shared = [
        length if counts[begin] > 1 else 0 for begin, length in zip(begins, lengths, strict=True)
    ]
    return Prefixes(torch.tensor([numbers[begin] for begin in begins]), torch.tensor(shared))
