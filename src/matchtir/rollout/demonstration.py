"""Written solutions as conversations: what supervised fine-tuning imitates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from random import Random

from matchtir.rollout.renderer import Renderer
from matchtir.tasks.gold import answer_text, gold_calls_by_turn, gold_outputs, gold_turn_texts
from matchtir.tasks.habits import Habits, imperfect
from matchtir.tools.sandbox import Sandbox, replay_all
from matchtir.types import StopReason, Task, ToolResult, Trajectory, Turn
from matchtir.utils.options import UserError


def gold_trajectory(task: Task, renderer: Renderer) -> Trajectory:
    """The gold solution as a trajectory, its results taken from the task: nothing is executed.

    Raises:
        ValueError: the task does not know the output of each of its gold calls.
    """
    outputs = gold_outputs(task)
    by_turn = gold_calls_by_turn(task, renderer.calls)
    results = [[ToolResult(outputs[index]) for index in turn] for turn in by_turn]
    return written_trajectory(task, gold_turn_texts(task, renderer.calls), results, renderer)


def check_demonstrable(task: Task) -> None:
    """Raise UserError where the task has a user, whose part nobody has written."""
    if task.has_user:
        raise UserError(
            f"task {task.task_id}: conversations with a user are not demonstrated; "
            "warm_start=none does without demonstrations"
        )


def written_trajectory(
    task: Task,
    texts: Sequence[str],
    results: Sequence[Sequence[ToolResult]],
    renderer: Renderer,
) -> Trajectory:
    """Written turns and the results of their calls as a trajectory.

    Its log-probabilities are zero: no policy sampled it.

    Args:
        texts: of the turns, the answer last.
        results: of the calls of every turn but the last.

    Raises:
        UserError: the task has a user, whose part nobody has written.
    """
    check_demonstrable(task)
    tools = {spec.name: spec.parameters for spec in task.tools}
    turns = []
    for text, outcome in zip(texts, [*map(tuple, results), ()], strict=True):
        token_ids = renderer.encode_turn(text)
        turns.append(
            Turn(
                token_ids=token_ids,
                logprobs=(0.0,) * len(token_ids),
                text=text,
                calls=renderer.calls.parse(text, tools) if outcome else (),
                results=outcome,
                observation_ids=renderer.observation_ids(outcome, token_ids) if outcome else (),
                spans=renderer.spans(text, token_ids),
            )
        )
    return Trajectory(task, renderer.prompt_ids(task), tuple(turns), StopReason.ANSWER)


def imperfect_trajectories(
    tasks: Sequence[Task], habits: Habits, renderer: Renderer, sandbox: Sandbox, seed: str
) -> list[Trajectory]:
    """Demonstrations with the results that the tools really give, one per task.

    Args:
        seed: a demonstration depends on it and on the id of its task.
    """
    shown = [
        imperfect(task, habits, Random(f"{seed}/{task.task_id}"), renderer.calls) for task in tasks
    ]
    calls = [list(chain(*demonstration.turns)) for demonstration in shown]
    replays = replay_all(list(zip(tasks, calls, strict=True)), sandbox)
    trajectories = []
    for task, made, replay in zip(tasks, shown, replays, strict=True):
        results = iter(replay.results)
        by_turn = [[next(results) for _ in turn] for turn in made.turns]
        texts = [*map(renderer.calls.write, made.turns), answer_text(made.answer)]
        trajectories.append(written_trajectory(task, texts, by_turn, renderer))
    return trajectories
