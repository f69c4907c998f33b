"""Gold calls executed: do they run, and do they lead to the gold outputs, answer and state?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matchtir.credit.outcome import missed
from matchtir.credit.solving import contains_answer, solving_calls
from matchtir.tools.sandbox import Replay, Sandbox, replay_all
from matchtir.types import ResultStatus, Task


@dataclass(frozen=True, slots=True)
class GoldReplay:
    """What came of the gold calls of some tasks."""

    tasks: int  # with gold calls
    statuses: Counter[str]  # of their calls
    solved: tuple[int, int]  # gold outputs that came out, of all
    answered: tuple[int, int]  # answers that stand in an output, of all
    reached: tuple[int, int]  # gold states, of all
    problems: tuple[tuple[str, str], ...]  # task id, what is wrong


def replay_gold(tasks: Sequence[Task], sandbox: Sandbox) -> GoldReplay:
    """Execute the gold calls of each task that has any, in a session of its own."""
    chosen = [task for task in tasks if task.gold_calls]
    replays = replay_all([(task, task.gold_calls) for task in chosen], sandbox)
    pairs = list(zip(chosen, replays, strict=True))
    answers = [(task, replay) for task, replay in pairs if task.answer]
    states = [(task, replay) for task, replay in pairs if task.gold_state is not None]
    return GoldReplay(
        tasks=len(chosen),
        statuses=Counter(str(result.status) for replay in replays for result in replay.results),
        solved=(
            sum(_solved(task, replay) for task, replay in pairs),
            sum(len(task.sub_answers) for task in chosen),
        ),
        answered=(sum(_answers(task, replay) for task, replay in answers), len(answers)),
        reached=(sum(_reaches(task, replay) for task, replay in states), len(states)),
        problems=tuple(
            (task.task_id, problem) for task, replay in pairs if (problem := _problem(task, replay))
        ),
    )


def _solved(task: Task, replay: Replay) -> int:
    outputs = [result.output for result in replay.results]
    return sum(solving_calls(task.gold_calls, outputs, task.sub_answers))


def _answers(task: Task, replay: Replay) -> bool:
    return contains_answer("\n".join(result.output for result in replay.results), task.answer)


def _reaches(task: Task, replay: Replay) -> bool:
    return task.gold_state is None or not missed(task.gold_state, replay.state)


def _problem(task: Task, replay: Replay) -> str:
    """The first thing that is wrong; "" where nothing is."""
    for call, result in zip(task.gold_calls, replay.results, strict=True):
        if result.status not in (ResultStatus.OK, ResultStatus.TRUNCATED):
            return f"{call.name}: {result.output}"
    if _solved(task, replay) < len(task.sub_answers):
        return f"only {_solved(task, replay)} of {len(task.sub_answers)} gold outputs come out"
    return missed(task.gold_state, replay.state) if task.gold_state is not None else ""
