"""ToolHop (arXiv 2501.02506): multi-hop questions, each with a local tool for every hop.

The published file is JSON lines: `question`, `answer`, `tools` (hop question -> tool, in order) and
`functions` (Python sources, in the order of the tools).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matchtir.credit.outcome import contains_answer
from matchtir.tasks.files import FileTasks
from matchtir.tasks.gold import read_trace, with_traces
from matchtir.tasks.rows import (
    Row,
    RowError,
    align_sub_answers,
    error_at,
    parameter_names,
    read_field,
    read_tool,
)
from matchtir.tools.formats import without_thinking
from matchtir.types import SubAnswer, Task, ToolSpec, Trajectory
from matchtir.utils.options import UserError, check_option

NO_FIT = float("-inf")
DIRECT, MANDATORY, FREE = SCENARIOS = ("direct", "mandatory", "free")

_FORMAT = (
    "The answer must be short. Write a date as YYYY-MM-DD, a person's name as first name and last "
    "name, and a number in digits, without leading zeros and without anything else. Give the "
    "answer as <answer>your answer</answer>."
)
_INSTRUCTIONS = {
    DIRECT: "Answer the following question.",
    MANDATORY: "Answer the following question with the help of the tools. Every step has to be a "
    "call of a tool: use no knowledge of your own, and take the answer from what a tool returned.",
    FREE: "Answer the following question. You may use the tools.",
}
PROMPTS = {
    name: f"{text}\n{_FORMAT}\n\nQuestion: {{question}}" for name, text in _INSTRUCTIONS.items()
}


class ToolHopTasks(FileTasks):
    """ToolHop's test tasks, each once in every scenario.

    In `direct` no tool is offered, in `mandatory` every step has to be a call, in `free` the policy
    chooses. There is no other split than the test.

    Args:
        test_path: the published file.
        gold_traces_path: JSON lines with gold calls (`gold_trace`) for each row, where known.
        scenarios: which of the three.
        prompts: text of the question in each scenario, with {question}; ours say what the
            published ones say, in other words.
        settings: on_bad_row and quarantine, as `FileTasks`.

    Raises:
        ValueError: an option that is not allowed.
    """

    benchmark = "ToolHop"

    def __init__(
        self,
        test_path: str,
        gold_traces_path: str | None = None,
        scenarios: Sequence[str] = SCENARIOS,
        prompts: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.prompts = {**PROMPTS, **(prompts or {})}
        for scenario in [*scenarios, *self.prompts]:
            check_option("scenario", scenario, SCENARIOS)
        for name, prompt in self.prompts.items():
            if "{question}" not in prompt:
                raise UserError(f"prompts.{name} has no place for the {{question}}")
        self.scenarios = tuple(scenarios)
        super().__init__({"test": test_path, "gold_traces": gold_traces_path}, **settings)

    def rows(self, path: str, split: str) -> Iterable[Row]:
        """The published rows with their gold traces."""
        return with_traces(super().rows(path, split), self.paths["gold_traces"], self.row_filter)

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions, one scenario after the other."""
        questions = super().tasks(split)
        return [self._posed(task, name) for name in self.scenarios for task in questions]

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

    def task(self, row: Mapping[str, Any], number: int, split: str) -> Task:
        """One question with its tools; the hops are its sub-questions.

        Of tools that share a name, the `sub_question` of a gold step says which one it means.
        """
        tools = _read_tools(row)  # by hop
        hops = read_field(row, "sub_task", dict)
        for hop, output in hops.items():
            if hop not in tools or not isinstance(output, str):
                raise RowError(f"sub_task: {hop!r}: no tool for it, or no text as its answer")
        steps = []
        for step in row["gold_trace"]:
            with error_at("gold_trace"):
                hop = read_field(step, "sub_question", str, optional=True)
            steps.append({**step, "name": tools[hop].name} if hop in tools else step)
        calls, turns = read_trace(steps, {tool.name for tool in tools.values()})
        sub_answers = [SubAnswer(tools[hop].name, output) for hop, output in hops.items()]
        return Task(
            task_id=str(number),
            question=read_field(row, "question", str),
            tools=tuple(tools.values()),
            gold_calls=calls,
            answer=read_field(row, "answer", str),
            sub_answers=align_sub_answers(calls, sub_answers),
            gold_turns=turns,
            metadata={
                "row": number,
                "gold_unknown": not steps,
                "domain": row.get("domain"),
                "answer_type": row.get("answer_type"),
            },
        )


def answer_correct(trajectory: Trajectory) -> float:
    """1 where the last message, or the tool result before it, contains the answer.

    An attempt that ends in calls, or says nothing outside its thinking, has no last message.
    """
    if not trajectory.turns or trajectory.turns[-1].calls:
        return 0.0
    said = without_thinking(trajectory.final_text)
    heard = [result.output for turn in trajectory.turns[-2:-1] for result in turn.results[-1:]]
    texts = [said, *heard] if said.strip() else []
    return float(any(contains_answer(text, trajectory.task.answer) for text in texts))


def mandatory_correct(trajectory: Trajectory) -> float | None:
    """`answer_correct` in the mandatory scenario alone, ToolHop's headline."""
    return answer_correct(trajectory) if trajectory.task.scenario == MANDATORY else None


def _read_tools(row: Mapping[str, Any]) -> dict[str, ToolSpec]:
    """The tool of each hop, in the order of their sources, which is the published order.

    Several tools of one row may share a name. Each gets a name of its own, the first one keeps it;
    the published evaluation offers them under one name and runs the last.
    """
    sources = read_field(row, "functions", list)
    waiting: dict[str, ToolSpec] = {}
    for hop, entry in read_field(row, "tools", dict).items():
        with error_at(f"tools: {hop!r}"):
            waiting[hop] = read_tool(entry)
    if len(sources) != len(waiting):
        raise RowError(f"functions: {len(sources)} sources for {len(waiting)} tools")
    in_place = list(waiting)
    tools: dict[str, ToolSpec] = {}
    names: Counter[str] = Counter()
    for index, source in enumerate(sources):
        if not isinstance(source, str):
            raise RowError(f"functions[{index}]: expected text, got {type(source).__name__}")
        # One that does not parse belongs to the hop in its place, if that is still waiting.
        fits = {hop: _fit(source, tool) for hop, tool in waiting.items()}
        hop = max(fits, key=lambda hop: (fits[hop], hop == in_place[index]))
        if fits[hop] == NO_FIT and hop != in_place[index]:
            raise RowError(f"functions[{index}]: defines none of the tools that are left")
        tool = waiting.pop(hop)
        names[tool.name] += 1
        unique = tool.name if names[tool.name] == 1 else f"{tool.name}_{names[tool.name]}"
        if unique != tool.name:
            source = f"{source}\n\n{unique} = {tool.name}\n"
        tools[hop] = replace(tool, name=unique, source=source)
    return tools


def _fit(source: str, tool: ToolSpec) -> float:
    """How well a source's parameters fit a tool's; `NO_FIT` where it does not define the tool."""
    properties = set(tool.parameters.get("properties") or {})
    known = parameter_names(source, tool.name)
    return NO_FIT if known is None else len(known & properties) - len(properties - known)
