"""The episodes of an environment behind an OpenEnv server as tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.tasks.custom import with_outputs
from matchtir.tasks.rows import SPLITS, error_at, read_calls, read_field, read_jsonl
from matchtir.tools.openenv import OpenEnvSandbox, observation_text
from matchtir.tools.sandbox import replay_all
from matchtir.types import ENVIRONMENT, Task
from matchtir.utils.options import UserError, check_option

SEED_OF = {"train": 0, "validation": 1 << 20, "test": 1 << 21}  # of the first task of a split


class OpenEnvTasks:
    """Episodes that begin with different seeds, or at different tasks of the environment's own.

    The question is the first observation. Success is a sum of rewards of `sandbox.solved`; there
    are no gold calls, unless a file has those of some tasks, which are then executed once.

    Args:
        sandbox: where the server is.
        sizes: how many tasks each split has.
        reset: "seed": reset(seed=number); "index": reset(split=..., index=number), for environments
            with tasks in splits.
        instructions: before the question.
        question: dotted path to the question in the observation; None: all of it.
        gold: JSON lines, each with the `id` of a task and its `gold_calls`, [{name, arguments}].

    Raises:
        UserError: `reset` is another word, or there is no such file.
    """

    def __init__(
        self,
        sandbox: OpenEnvSandbox,
        sizes: Mapping[str, int],
        reset: str = "seed",
        instructions: str = "",
        question: str | None = None,
        gold: str | None = None,
    ) -> None:
        if not isinstance(sandbox, OpenEnvSandbox):
            raise UserError("tasks of an OpenEnv server need sandbox=openenv sandbox.url=...")
        check_option("reset", reset, ("seed", "index"))
        self.sandbox = sandbox
        self.sizes = dict(sizes)
        self.reset = reset
        self.instructions = instructions
        self.question = question
        self.gold = {row["id"]: row for row in read_jsonl(Path(gold))} if gold else {}
        self._tasks: dict[str, list[Task]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; the server is asked for their observations once.

        Raises:
            UserError: the server does not answer, an observation has no question, or gold calls
                fail or do not solve their task.
        """
        check_option("split", split, SPLITS)
        if split not in self._tasks:
            tasks = asyncio.run(self._read(split))
            known = [(task, task.gold_calls) for task in tasks if task.gold_calls]
            played = iter(replay_all(known, self.sandbox, max_concurrent=1))
            self._tasks[split] = [
                with_outputs(task, next(played)) if task.gold_calls else task for task in tasks
            ]
        return self._tasks[split]

    async def _read(self, split: str) -> list[Task]:
        async with self.sandbox.connected() as connection:
            tools = await connection.tools()
            tasks = []
            for number in range(self.sizes.get(split, 0)):
                name = f"openenv/{split}/{number}"
                by_seed = {"seed": SEED_OF[split] + number}
                reset = by_seed if self.reset == "seed" else {"split": split, "index": number}
                first = (await connection.ask("reset", reset))["observation"]
                row = self.gold.get(name, {"gold_calls": []})
                with error_at(f"gold of {name}"):
                    items = read_field(row, "gold_calls", list)
                    calls = read_calls("gold_calls", items, [tool.name for tool in tools])
                tasks.append(
                    Task(
                        name,
                        "\n\n".join(filter(None, [self.instructions, self._question(first)])),
                        tools,
                        calls,
                        answer="",
                        initial_state={ENVIRONMENT: reset},
                        gold_state={ENVIRONMENT: {"solved": True}},
                        metadata={} if calls else {"gold_unknown": True},
                    )
                )
        return tasks

    def _question(self, observation: Mapping[str, Any]) -> str:
        if self.question is None:
            return observation_text(observation)
        found: Any = observation
        for key in self.question.split("."):
            if not isinstance(found, Mapping) or key not in found:
                raise UserError(f"question={self.question}: the observation is {observation}")
            found = found[key]
        return str(found)
