"""The named difficulties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from matchtir.tasks.synthetic.difficulty import Difficulty
from matchtir.utils.options import check_option

LAPTOP = Difficulty(
    name="laptop",
    vocabulary="laptop",
    verbose=False,
    width=(2, 5),
    depth=(2, 6),
    chains=(2, 2),
    chain_depth=(2, 3),
    closings={},
    attribute_share=0.35,
    other_unit_share=0.5,
    repeat_tool_share=0.2,
    distractors=(1, 3),
    qualifiers=(0, 0),
    qualifier_forms={"choice": 1.0},
    required_share=1.0,
    parameters=(1, 1),
    parameter_types={"string": 1.0},
    default_shares={},
    spare_facts=(1, 2),
    unknown_entity={"refuse": 0.9, "wrong": 0.1},
    error_styles={"object": 0.6, "text": 0.4},
    output_styles={"bare": 1.0},
)

# Fitted to FTRL's test set by scripts/compare_synthetic_ftrl.py.
FTRL = Difficulty(
    name="ftrl",
    vocabulary="ftrl",
    verbose=True,
    width=(2, 2.01, 3),
    depth=(2, 5.42, 10),
    chains=(2, 2.25, 3),
    chain_depth=(1, 3.3, 6),
    closings={
        "parallel_single": {
            "sum": 0.45,
            "difference": 0.25,
            "compare": 0.17,
            "yes_no": 0.1,
            "calculator": 0.03,
        },
        "multi_hop": {"list": 0.7, "distance": 0.3},
        "parallel_multi_hop": {"calculator": 0.4, "compare": 0.35, "rank": 0.1, "yes_no": 0.15},
    },
    attribute_share=0.5,
    other_unit_share=0.3,
    repeat_tool_share=0.6,
    distractors={
        "single": (4, 6.96, 10),
        "parallel_single": (2, 6.12, 9),
        "multi_hop": (0, 4.62, 8),
        "parallel_multi_hop": (1, 3.72, 6),
    },
    qualifiers={
        "single": (0, 2.0, 4),
        "parallel_single": (0, 1.0, 3),
        "multi_hop": (0, 0.33, 2),
        "parallel_multi_hop": (0, 0.33, 2),
    },
    qualifier_forms={"choice": 0.54, "date": 0.27, "flag": 0.14, "year": 0.03, "place": 0.02},
    required_share=0.85,
    parameters=(4, 7.1, 10),
    parameter_types={
        "choice": 0.27,
        "string": 0.295,
        "boolean": 0.245,
        "object": 0.055,
        "number": 0.05,
        "array": 0.05,
        "integer": 0.035,
    },
    default_shares={
        "boolean": 0.98,
        "choice": 0.39,
        "string": 0.05,
        "number": 0.3,
        "integer": 0.25,
        "array": 0.1,
    },
    spare_facts=(1, 4),
    unknown_entity={"soft": 0.53, "refuse": 0.39, "wrong": 0.08},
    error_styles={"object": 0.6, "text": 0.39, "raise": 0.01},
    output_styles={"bare": 0.15, "sentence": 0.25, "value": 0.2, "record": 0.3, "json": 0.1},
)

DIFFICULTIES = {"laptop": LAPTOP, "ftrl": FTRL}


def resolve_difficulty(
    difficulty: str | Difficulty, knobs: Mapping[str, Any] | None = None
) -> Difficulty:
    """The named difficulty, with some of its knobs replaced.

    Raises:
        ValueError: an unknown difficulty or knob, or a value that the knob does not take.
    """
    if isinstance(difficulty, str):
        check_option("difficulty", difficulty, tuple(DIFFICULTIES))
        difficulty = DIFFICULTIES[difficulty]
    known = tuple(knob.name for knob in fields(Difficulty))
    for knob in knobs or {}:
        check_option("knobs", knob, known)
    return replace(difficulty, **{knob: _plain(value) for knob, value in (knobs or {}).items()})


def _plain(value: Any) -> Any:
    """Configuration nodes as dictionaries and tuples, which are much faster to read."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(item) for item in value)
    return value
