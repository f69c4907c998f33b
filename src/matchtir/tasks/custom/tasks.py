"""The task set of one's own questions and tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matchtir.credit.outcome import missed
from matchtir.tasks.custom.rows import task_from_row
from matchtir.tasks.custom.tool_sources import ToolSource, read_tools
from matchtir.tasks.rows import SPLITS, RowError, existing_file, read_jsonl, within
from matchtir.tasks.splits import SPLIT_BY, split_tasks
from matchtir.tools.sandbox import Replay, Sandbox, replay_all
from matchtir.types import ResultStatus, SubAnswer, Task
from matchtir.utils.options import check_option

GOLD = ("required", "optional")
DEFAULT_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


class CustomTasks:
    """Questions in JSON lines; the schema of a row is in docs/your-own-tools.md.

    Gold calls without outputs are executed once, when the tasks are read: their outputs are what
    the Solve metrics count and what fine-tuning shows the policy, and a gold call that fails, or
    gold calls that miss the row's gold state, are a mistake in the row.

    Args:
        path: the rows. Each has a `split`, or none has; then they are split here.
        tools: where tools come from that rows name, see `read_tools`; None: rows bring their own.
        sandbox: executes the gold calls, and is shut down afterwards; None: nothing is executed.
        gold: "required", or "optional" for rows whose gold calls are still to be found.
        split_by: what tasks of two splits may not share: "content", "tools" or "entities".
        shares: relative sizes of the splits.
        seed: of the splitting.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an option that is not allowed, or tools that cannot be read.
    """

    def __init__(
        self,
        path: str,
        tools: ToolSource | Sequence[ToolSource] | None = None,
        sandbox: Sandbox | None = None,
        gold: str = "required",
        split_by: str = "content",
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        check_option("gold", gold, GOLD)
        check_option("split_by", split_by, SPLIT_BY)
        self.path = existing_file(path, "path")
        self.tools = {tool.name: tool for tool in read_tools(tools)}
        self.sandbox = sandbox
        self.gold = gold
        self.split_by = split_by
        self.shares = dict(shares or DEFAULT_SHARES)
        self.seed = seed
        self._splits: dict[str, tuple[Task, ...]] | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "validation" or "test"; the file is read when first asked for.

        Raises:
            ValueError: an unknown split.
            RowError: a malformed row: file, row and field.
        """
        check_option("split", split, SPLITS)
        if self._splits is None:
            tasks = self._with_splits(self.rows())
            self._splits = {
                name: tuple(task for task in tasks if task.metadata["split"] == name)
                for name in SPLITS
            }
        return self._splits[split]

    def rows(self) -> tuple[Task, ...]:
        """All tasks in the order of their rows; `metadata` has the split of those that have one."""
        return self._executed(self._read())

    def _with_splits(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        if not any("split" in task.metadata for task in tasks):
            splits = split_tasks(tasks, self.split_by, self.shares, self.seed)
            return tuple(
                replace(task, metadata={**task.metadata, "split": split})
                for task, split in zip(tasks, splits, strict=True)
            )
        for number, task in enumerate(tasks):
            if "split" not in task.metadata:
                raise RowError(f"{self.path}, row {number}: split: is missing; other rows have one")
        return tasks

    def _read(self) -> tuple[Task, ...]:
        tasks: dict[str, Task] = {}
        for number, row in enumerate(read_jsonl(self.path)):
            with within(f"{self.path}, row {number}"):
                task = task_from_row(row, f"{self.path.stem}/{number}", self.tools, self.gold)
                if task.task_id in tasks:
                    raise RowError(f"id: an earlier row has {task.task_id!r} too")
            tasks[task.task_id] = task
        return tuple(tasks.values())

    def _executed(self, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        """The tasks with the outputs of their gold calls."""
        if self.sandbox is None:
            return tasks
        try:
            replays = replay_all([(task, task.gold_calls) for task in tasks], self.sandbox)
        finally:
            self.sandbox.shutdown()
        executed = []
        for number, (task, replay) in enumerate(zip(tasks, replays, strict=True)):
            with within(f"{self.path}, row {number}"):
                executed.append(with_outputs(task, replay))
        return tuple(executed)


def with_outputs(task: Task, replay: Replay) -> Task:
    """The task with what its gold calls returned.

    Raises:
        RowError: a call failed, or the gold state was not reached.
    """
    for index, (call, result) in enumerate(zip(task.gold_calls, replay.results, strict=True)):
        if result.status not in (ResultStatus.OK, ResultStatus.TRUNCATED):
            raise RowError(f"gold_calls[{index}]: {call.name} fails: {result.output}")
    if task.gold_state is not None and task.gold_calls:
        problem = missed(task.gold_state, replay.state)
        if problem:
            raise RowError(f"gold_state: after the gold calls, {problem}")
    outputs = (result.output for result in replay.results)
    answers = tuple(SubAnswer(c.name, o) for c, o in zip(task.gold_calls, outputs, strict=True))
    return replace(task, sub_answers=task.sub_answers or answers)
