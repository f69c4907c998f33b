"""Task sets as environments of OpenEnv, for trainers and agents outside this project.

Needs the package openenv (the extra `openenv`).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict
from typing import Any

from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

from matchtir.credit.rewards import Reward
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import Attempt, Episode, EpisodeLimits, Response, Speaker
from matchtir.tasks.rows import SPLITS, TaskSet
from matchtir.tools.sandbox import Sandbox
from matchtir.types import Message, ToolResult


class TurnAction(Action):
    """One message of the policy, with its calls in ``<tool_call>`` tags or its ``<answer>``."""

    text: str


class TurnObservation(Observation):
    """What the policy sees: after a reset the task, after a turn the results of its calls.

    `reward` comes with the end of the episode; `metadata` then has the reward of each turn, the
    outcome, the final state and the reason for the end.
    """

    messages: list[dict[str, str]] = []  # noqa: RUF012 - pydantic copies it
    tools: list[dict[str, Any]] = []  # noqa: RUF012
    results: list[dict[str, str]] = []  # noqa: RUF012


class TaskEnvironment(Environment[TurnAction, TurnObservation, State]):
    """One session: an episode at a time of one task set.

    Args:
        tasks: the task set.
        sandbox: executes the calls; may be shared by many sessions.
        reward: of finished episodes.
        max_turns: where an episode ends at the latest.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, tasks: TaskSet, sandbox: Sandbox, reward: Reward, max_turns: int) -> None:
        super().__init__()
        self.task_set = tasks
        self.sandbox = sandbox
        self.reward = reward
        self.limits = EpisodeLimits(max_turns)
        self._episode: Episode | None = None
        self._state = State()

    # -- episodes -----------------------------------------------------------------------------

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str = "train",
        index: int | None = None,
        **kwargs: Any,
    ) -> TurnObservation:
        """Begin the episode of task `index` of a split, or of one that the seed draws."""
        await self._close()
        self._loop = asyncio.get_running_loop()
        tasks = self.task_set.tasks(split)
        if index is None:
            index = random.Random(seed).randrange(len(tasks))
        task = tasks[index]
        attempt = Attempt(task, (), SamplingParams(), 0, 0, 0)
        self._episode = Episode(attempt, Speaker(), self.sandbox, self.limits)
        self._state = State(episode_id=episode_id, step_count=0, task=task.task_id)
        return TurnObservation(
            messages=[asdict(m) for m in (*task.history, Message("user", task.question))],
            tools=[tool.schema() for tool in task.tools],
        )

    async def step_async(
        self, action: TurnAction, timeout_s: float | None = None, **kwargs: Any
    ) -> TurnObservation:
        """Say a turn.

        Raises:
            RuntimeError: there is no episode under way.
            TimeoutError: its calls took longer than `timeout_s`, which ends the episode.
        """
        if self._episode is None:
            raise RuntimeError("reset first: there is no episode under way")
        self._state.step_count += 1
        try:
            async with asyncio.timeout(timeout_s):
                reason = await self._episode.step(Response(action.text, stopped=True))
            if reason is None:
                turn = self._episode.attempt.turns[-1]
                reply = [asdict(Message("user", turn.reply))] if turn.reply else []
                return TurnObservation(messages=reply, results=_results(turn.results))
            said = await self._episode.end(reason)
        except BaseException:
            await self._close()
            raise
        await self._close()
        (credit,) = self.reward([said])
        return TurnObservation(
            results=_results(said.turns[-1].results),
            done=True,
            reward=credit.total,
            metadata={
                "turn_rewards": credit.turn_rewards.tolist(),
                "outcome": credit.outcome,
                "stop_reason": str(said.stop_reason),
                "final_state": said.final_state,
            },
        )

    def reset(self, *args: Any, **kwargs: Any) -> TurnObservation:
        """Not there, nor is `step`: episodes wait for their tools."""
        raise NotImplementedError("use reset_async and step_async")

    step = reset

    @property
    def state(self) -> State:
        """The episode's id, the number of its turns, and its task."""
        return self._state

    async def _close(self) -> None:
        """End the episode under way."""
        episode, self._episode = self._episode, None
        if episode is not None:
            await episode.close()

    def close(self) -> None:
        """Begin to end the episode under way."""
        if self._episode is not None:  # the server calls this in another thread
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    # -- what there is to choose from ---------------------------------------------------------

    def list_splits(self) -> list[str]:
        """The splits that have tasks."""
        return [split for split in SPLITS if self.num_tasks(split)]

    def num_tasks(self, split: str) -> int:
        """The number of tasks of a split."""
        return len(self.task_set.tasks(split))

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """One task, without its solution."""
        return self.get_task_range(split, index, index + 1)[0]

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """All tasks of a split, without their solutions."""
        return self.get_task_range(split)

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        """The tasks of a stretch of a split, without their solutions."""
        tasks = list(enumerate(self.task_set.tasks(split)))[start:stop]
        return [
            {"id": t.task_id, "index": index, "scenario": t.scenario, "question": t.question}
            for index, t in tasks
        ]


def _results(results: tuple[ToolResult, ...]) -> list[dict[str, str]]:
    return [{"output": result.output, "status": str(result.status)} for result in results]
