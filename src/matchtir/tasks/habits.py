"""An imperfect demonstrator: gold solutions with the bad habits of a policy that is worth training.

A pre-trained model knows how to call tools and still stops early, calls look-alikes and repeats
itself. Imitating this demonstrator gives a skilled small policy the same habits, for reinforcement
learning to take away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any, NamedTuple

from matchtir.tasks.gold import gold_answer, gold_calls_by_turn, gold_outputs
from matchtir.tools.formats import CallFormat
from matchtir.types import Task, ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class Habits:
    """Probabilities, each drawn anew at every gold turn.

    At the defaults the right way stays in reach of every attempt; around a half, greedy decoding
    itself does the wrong thing afterwards.

    Raises:
        ValueError: one outside of [0, 1].
    """

    distractor: float = 0.35  # to call a tool that the gold solution does not need first
    drop: float = 0.3  # to leave the last of several calls out
    repeat: float = 0.25  # to make a call of the turn again in a turn of its own
    stop: float = 0.3  # to answer after the turn, although calls are missing

    def __post_init__(self) -> None:
        for habit in fields(self):
            if not 0 <= getattr(self, habit.name) <= 1:
                raise ValueError(f"habits.{habit.name} must lie between 0 and 1")


class Demonstration(NamedTuple):
    """What an imperfect demonstrator does: calls turn by turn, then an answer."""

    turns: tuple[tuple[ToolCall, ...], ...]
    answer: str


def imperfect(task: Task, habits: Habits, rng: Random, calls: CallFormat) -> Demonstration:
    """The gold solution with bad habits; without any it is the gold solution.

    A call whose argument is the output of a call that was not made cannot be made either. The
    answer is what the demonstrator knows then: the outputs that no later call went on from.

    Raises:
        ValueError: as `gold_outputs`.
    """
    outputs = gold_outputs(task)
    sources = [_sources(task, index, outputs) for index in range(len(task.gold_calls))]
    gold_turns = gold_calls_by_turn(task, calls)
    made: set[int] = set()
    turns: list[tuple[ToolCall, ...]] = []
    for number, gold_turn in enumerate(gold_turns):
        turn = [index for index in gold_turn if sources[index] <= made]
        if len(turn) > 1 and rng.random() < habits.drop:
            turn = turn[: rng.randint(1, len(turn) - 1)]
        if not turn:
            continue
        wrong = _distractor_call(task, task.gold_calls[turn[0]], rng)
        if wrong and rng.random() < habits.distractor:
            turns.append((wrong,))
        turns.append(tuple(task.gold_calls[index] for index in turn))
        made.update(turn)
        if rng.random() < habits.repeat:
            turns.append((task.gold_calls[rng.choice(turn)],))
        if number + 1 < len(gold_turns) and rng.random() < habits.stop:
            break
    if len(made) == len(task.gold_calls):
        return Demonstration(tuple(turns), gold_answer(task))
    used = set().union(*(sources[index] for index in made))
    return Demonstration(tuple(turns), ", ".join(outputs[i] for i in sorted(made - used)))


def _sources(task: Task, index: int, outputs: Sequence[str]) -> set[int]:
    """The earlier gold calls whose outputs an argument of a gold call comes from.

    A value that the question says needs no call.
    """
    sources = set()
    for text in map(str, task.gold_calls[index].arguments.values()):
        if text and text not in task.question:
            sources.update([number for number in range(index) if text in outputs[number]][-1:])
    return sources


def _distractor_call(task: Task, call: ToolCall, rng: Random) -> ToolCall | None:
    """A call of a tool that the gold solution does not need, with the arguments of `call`."""
    needed = {gold.name for gold in task.gold_calls}
    spare = [tool for tool in task.tools if tool.name not in needed]
    fitting = {tool.name: _fitting_arguments(tool, call.arguments) for tool in spare}
    candidates = [ToolCall(name, arguments) for name, arguments in fitting.items() if arguments]
    return rng.choice(candidates) if candidates else None


def _fitting_arguments(tool: ToolSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values under the names of the tool's required parameters.

    A parameter of the same name gets its value, any other the next text that is left; nothing where
    there are not enough of them.
    """
    required = tool.parameters.get("required", [])
    arguments = {name: given[name] for name in required if name in given}
    left = [v for name, v in given.items() if name not in arguments and isinstance(v, str)]
    for name in required:
        options = tool.parameters.get("properties", {}).get(name)
        options = options if isinstance(options, Mapping) else {}  # true: anything
        if name in arguments:
            continue
        if "enum" in options:
            arguments[name] = options["enum"][0]
        elif left and options.get("type", "string") == "string":
            arguments[name] = left.pop(0)
        else:
            return {}
    return arguments
