"""Gold solutions as conversations: what supervised fine-tuning imitates and replays write."""

from __future__ import annotations

from matchtir.rollout.renderer import Renderer
from matchtir.tasks.gold import gold_calls_by_turn, gold_turn_texts
from matchtir.types import StopReason, Task, ToolResult, Trajectory, Turn


def gold_trajectory(task: Task, renderer: Renderer) -> Trajectory:
    """The gold solution as a trajectory, its results taken from the task: nothing is executed.

    Its log-probabilities are zero: no policy sampled it.

    Raises:
        ValueError: the task does not know the output of each of its gold calls.
    """
    called = [call.name for call in task.gold_calls]
    if [sub_answer.tool for sub_answer in task.sub_answers] != called:
        raise ValueError(f"task {task.task_id}: sub_answers are not the outputs of its gold calls")
    # What the policy reads, where the task knows more of it than what an output must contain.
    texts = task.metadata.get("outputs") or [answer.output for answer in task.sub_answers]
    by_turn = gold_calls_by_turn(task, renderer.calls)
    outputs = [tuple(ToolResult(texts[index]) for index in turn) for turn in by_turn]
    names = {spec.name for spec in task.tools}
    turns = []
    for text, results in zip(gold_turn_texts(task, renderer.calls), [*outputs, ()], strict=True):
        token_ids = renderer.encode_turn(text)
        turns.append(
            Turn(
                token_ids=token_ids,
                logprobs=(0.0,) * len(token_ids),
                text=text,
                calls=renderer.calls.parse(text, names) if results else (),
                results=results,
                observation_ids=renderer.observation_ids(results, token_ids) if results else (),
            )
        )
    return Trajectory(task, renderer.prompt_ids(task), tuple(turns), StopReason.ANSWER)
