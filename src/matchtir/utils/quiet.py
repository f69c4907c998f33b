"""Keeps out of logs what libraries say in every run and no reader can act on."""

from __future__ import annotations

import sys
import warnings

from transformers.utils.logging import disable_progress_bar

# Messages about nothing that can be changed here: (category, beginning).
CHATTER: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning with torch
    (UserWarning, r"Checkpoint directory .* exists and is not empty"),  # a resumed run has one
    (UserWarning, r"The '\w+_dataloader' does not have many workers"),  # tasks are in memory
    (UserWarning, r"It is recommended to use `self\.log\(.*sync_dist=True"),  # vLLM's group of one
)


def quiet() -> None:
    """Silence these warnings, and where nobody watches the bars of loading and saving weights."""
    for category, beginning in CHATTER:
        warnings.filterwarnings("ignore", beginning, category)
    if not sys.stderr.isatty():
        disable_progress_bar()
