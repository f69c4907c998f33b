"""ToolHop (arXiv 2501.02506): multi-hop questions, each with a local tool for every hop.

The published file is JSON lines: `question`, `answer`, `tools` (hop question -> tool, in order) and
`functions` (Python sources, in the order of the tools).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matchtir.credit.solving import contains_answer
from matchtir.tasks.gold_traces import read_traces
from matchtir.tasks.rows import ON_BAD_ROW, SPLITS, convert_rows, existing_file, read_jsonl
from matchtir.tasks.toolhop_rows import task_from_row
from matchtir.tools.formats import spoken_text
from matchtir.types import Task, Trajectory
from matchtir.utils.options import check_option

DIRECT, MANDATORY, FREE = SCENARIOS = ("direct", "mandatory", "free")

FORMAT = (
    "The answer must be short. Write a date as YYYY-MM-DD, a person's name as first name and last "
    "name, and a number in digits, without leading zeros and without anything else. Give the "
    "answer as <answer>your answer</answer>."
)
PROMPTS = {
    DIRECT: f"Answer the following question.\n{FORMAT}\n\nQuestion: {{question}}",
    MANDATORY: (
        "Answer the following question with the help of the tools. Every step has to be a call of "
        "a tool: use no knowledge of your own, and take the answer from what a tool returned.\n"
        f"{FORMAT}\n\nQuestion: {{question}}"
    ),
    FREE: (
        f"Answer the following question. You may use the tools.\n{FORMAT}\n\nQuestion: {{question}}"
    ),
}


class ToolHopTasks:
    """ToolHop's test tasks, each once in every scenario.

    In `direct` no tool is offered, in `mandatory` every step has to be a call, in `free` the policy
    chooses. There is no other split than the test.

    Args:
        test_path: the published file.
        gold_traces_path: JSON lines with gold calls (`gold_trace`) for each row, where known.
        scenarios: which of the three.
        prompts: text of the question in each scenario, with {question}; ours say what the
            published ones say, in other words.
        on_bad_row: "error" or "skip".

    Raises:
        FileNotFoundError: a path that is no file.
        ValueError: an option that is not allowed.
    """

    def __init__(
        self,
        test_path: str,
        gold_traces_path: str | None = None,
        scenarios: Sequence[str] = SCENARIOS,
        prompts: Mapping[str, str] | None = None,
        on_bad_row: str = "error",
    ) -> None:
        check_option("on_bad_row", on_bad_row, ON_BAD_ROW)
        self.prompts = {**PROMPTS, **(prompts or {})}
        for scenario in [*scenarios, *self.prompts]:
            check_option("scenario", scenario, SCENARIOS)
        self.path = existing_file(test_path, "test_path")
        if gold_traces_path is not None:
            existing_file(gold_traces_path, "gold_traces_path")
        self.gold_traces_path = gold_traces_path
        self.scenarios = tuple(scenarios)
        self.on_bad_row = on_bad_row
        self._loaded: tuple[Task, ...] | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        """The test tasks, one scenario after the other; none in other splits.

        Raises:
            ValueError: an unknown split.
            RowError: a malformed row (with on_bad_row=error): file, row and field.
        """
        check_option("split", split, SPLITS)
        if split != "test":
            return ()
        if self._loaded is None:
            traces = read_traces(self.gold_traces_path)

            def convert(number: int, row: Mapping[str, Any]) -> Task:
                return task_from_row(row, number, traces.get(number, ()))

            rows = read_jsonl(self.path)
            questions = convert_rows(rows, convert, str(self.path), self.on_bad_row)
            self._loaded = tuple(self._posed(task, s) for s in self.scenarios for task in questions)
        return self._loaded

    def _posed(self, task: Task, scenario: str) -> Task:
        """The task as it is asked in a scenario; without tools there is nothing to call."""
        no_tools = dict.fromkeys(("tools", "gold_calls", "gold_turns", "sub_answers"), ())
        changes: dict[str, Any] = no_tools if scenario == DIRECT else {}
        return replace(
            task,
            task_id=f"toolhop/{scenario}/{task.task_id}",
            question=self.prompts[scenario].replace("{question}", task.question),
            scenario=scenario,
            **changes,
        )


def answer_correct(trajectory: Trajectory) -> float:
    """1 where the last message, or the tool result before it, contains the answer.

    An attempt that ends in calls, or says nothing outside its thinking, has no last message.
    """
    if not trajectory.turns or trajectory.turns[-1].calls:
        return 0.0
    said = spoken_text(trajectory.final_text)
    heard = [result.output for turn in trajectory.turns[-2:-1] for result in turn.results[-1:]]
    texts = [said, *heard] if said.strip() else []
    return float(any(contains_answer(text, trajectory.task.answer) for text in texts))


def mandatory_correct(trajectory: Trajectory) -> float | None:
    """`answer_correct` in the mandatory scenario alone, ToolHop's headline."""
    return answer_correct(trajectory) if trajectory.task.scenario == MANDATORY else None
