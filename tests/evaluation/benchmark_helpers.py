"""A task with one tool, task sets of given tasks, and benchmarks of them played to the end."""

from dataclasses import replace
from pathlib import Path

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.evaluation.benchmark import BenchmarkResult, Setting, TaskBenchmark
from matchtir.evaluation.policies import find_policy
from matchtir.tools.sandbox import Sandbox
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec

REWARD = MatchReward(Similarity(), HardAssignment())
COLUMNS = {"Solve-F1": "solve_f1"}
LOOK = "def look():\n    return 'found 1902'\n"


class Listed:
    """A task set of given test tasks."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = tasks

    def tasks(self, split: str):
        return self._tasks if split == "test" else ()


def plain_task(**changes) -> Task:
    tools = (ToolSpec("look", "Looks.", {"type": "object", "properties": {}}, LOOK),)
    calls, outputs = (ToolCall("look", {}),), (SubAnswer("look", "found 1902"),)
    made = Task("t", "When?", tools, calls, "1902", sub_answers=outputs, scenario="single")
    return replace(made, **changes)


def benchmark(*tasks: Task, columns=COLUMNS, **settings) -> TaskBenchmark:
    return TaskBenchmark("one", Listed(*tasks), columns, **settings)


def play(
    played: TaskBenchmark, policy: str, sandbox: Sandbox, folder: Path, seed: int = 0, **parts
) -> BenchmarkResult:
    setting = Setting(folder, sandbox, REWARD, seed)
    return played.run(find_policy(policy, seed=seed, **parts), setting)
