import pytest

from matchtir.credit.advantages import RewardBatch
from matchtir.training.groups import ScoredRollout, rollout_metrics
from matchtir.types import ResultStatus, StopReason, ToolCall, ToolResult, Trajectory, Turn
from tests.credit.builders import match_reward
from tests.rollout.episode_fakes import task


def scored(trajectories: list[Trajectory]) -> ScoredRollout:
    credits = match_reward()(trajectories)
    rewards = RewardBatch.from_credits(credits, trajectories, [0] * len(trajectories))
    return ScoredRollout(trajectories, credits, rewards, rewards.turn_rewards)


def turn(tokens: int, *results: ToolResult) -> Turn:
    calls = tuple(ToolCall("f", {}) for _ in results)
    return Turn((1,) * tokens, (0.0,) * tokens, "", calls, results, observation_ids=(2,) * 9)


def test_rollout_metrics():
    good, late = ToolResult("x", seconds=0.5), ToolResult("", ResultStatus.TIMEOUT, 2.0)
    trajectories = [
        Trajectory(task(), (1,), (turn(10, good, good), turn(5)), StopReason.ANSWER),
        Trajectory(task(), (1,), (turn(5, good, late),), StopReason.MAX_TURNS),
        Trajectory(task(), (1,), (), StopReason.PROMPT_TOO_LONG),
        Trajectory(task(), (1,), (turn(20),), StopReason.ANSWER),
    ]
    metrics = rollout_metrics(scored(trajectories), seconds=8.0, iteration=0)
    assert metrics["train/turns"] == 1.0
    assert metrics["train/calls"] == 1.0
    assert metrics["train/stop/answer"] == 0.5
    assert metrics["train/stop/prompt_too_long"] == 0.25
    assert metrics["train/stop/turn_length"] == 0.0
    assert metrics["train/tool/ok"] == 0.75
    assert metrics["train/tool/timeout"] == 0.25
    assert metrics["train/tokens_per_s"] == 5.0  # sampled ones: no prompts, no observations
    assert metrics["time/tools"] == 3.5
    for kind in ("train/stop/", "train/tool/"):
        shares = [value for name, value in metrics.items() if name.startswith(kind)]
        assert sum(shares) == pytest.approx(1.0)


def test_nothing_was_sampled():
    metrics = rollout_metrics(scored([]), seconds=0.0, iteration=0)
    assert set(metrics.values()) == {0.0}
    assert set(metrics) == set(rollout_metrics(scored([]), seconds=1.0, iteration=0))
