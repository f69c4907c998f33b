"""What a run is called: by its experiment and by what its command line chose besides."""

from __future__ import annotations

from collections.abc import Sequence

# Choices that change where a run goes and who watches it, not what it computes.
WATCHING = ("ckpt_path", "hparams_search", "logger", "paths", "extras", "callbacks")
MAX_TAG = 64  # characters, as W&B has it


def choices(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command line that tell methods apart: without experiment and seed."""
    return [text for text in overrides if _first_key(text) not in (*WATCHING, "experiment", "seed")]


def _first_key(override: str) -> str:
    """`trainer` of `+trainer.precision=16`; `data` of `data=ftrl`."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def group(experiment: str | None, overrides: Sequence[str]) -> str:
    """The name that runs share which differ in their seed alone."""
    return " ".join([experiment or "train", *choices(overrides)])


def name(experiment: str | None, overrides: Sequence[str], seed: int) -> str:
    """The name of one run: that of its group, and the seed."""
    return f"{group(experiment, overrides)} seed={seed}"


def tags(experiment: str | None, overrides: Sequence[str], seed: int) -> list[str]:
    """The experiment, each choice and the seed; a long one is cut at its end."""
    every = [experiment or "train", *choices(overrides), f"seed={seed}"]
    return list(dict.fromkeys(tag[:MAX_TAG] for tag in every))
