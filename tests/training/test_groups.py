"""Groups that are sampled ahead, over several iterations, or replaced."""

import asyncio
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from matchtir.credit.advantages import RewardBatch
from matchtir.policy.losses import MismatchCorrection
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.training.groups import GroupSource, ScoredRollout, rollout_metrics
from matchtir.types import ResultStatus, StopReason, ToolCall, ToolResult, Trajectory, Turn
from tests.credit.builders import match_reward
from tests.rollout.episode_fakes import task
from tests.training.training_parts import (
    ATTEMPTS,
    Recorder,
    broken_and_resumed,
    fit,
    logged,
    policy_gradient,
    script,
    tasks,
    weights,
)

CORRECTED = {"correction": MismatchCorrection(cap=2.0)}


# -- ahead ----------------------------------------------------------------------------------------
def ahead_module(kind=Recorder):
    engine = TransformersEngine(policy_gradient().renderer.stop_token_ids, own_weights=True)
    return policy_gradient(kind, scripted=False, loss=CORRECTED, engine=engine, ahead=True)


def test_ahead_is_one_step_behind_and_learns_from_its_own_tasks(tmp_path):
    module = ahead_module()
    fit(module, tmp_path, tasks(8), iterations=4)
    assert logged(tmp_path, "train/staleness") == [0, 1, 1, 1]
    on_policy = policy_gradient(scripted=False, loss=CORRECTED)
    fit(on_policy, tmp_path / "on", tasks(8), iterations=4)
    for one, other in zip(module.groups, on_policy.groups, strict=True):
        assert [g[0].task.task_id for g in one] == [g[0].task.task_id for g in other]
    # The first two iterations sample from the same weights, since the second did not wait.
    versions = {t.policy_version for groups in module.groups[:2] for g in groups for t in g}
    assert versions == {1}


def test_a_run_with_groups_ahead_repeats_and_resumes(tmp_path):
    unbroken = ahead_module()
    fit(unbroken, tmp_path / "unbroken", tasks(8), iterations=4, validate=True)
    broken, resumed = broken_and_resumed(ahead_module, tmp_path, tasks(8))
    assert [len(module.groups) for module in (unbroken, broken, resumed)] == [4, 2, 2]
    expected = weights(unbroken)
    assert all(torch.equal(expected[name], each) for name, each in weights(resumed).items())


def test_what_sampling_ahead_raises_ends_the_run(tmp_path):
    class Fails(Recorder):
        def rollout(self, tasks, seed):
            if self.groups:
                raise OSError("device lost")
            return super().rollout(tasks, seed)

    with pytest.raises(OSError, match="device lost"):
        fit(ahead_module(Fails), tmp_path, tasks(8), iterations=3)


# -- partial rollouts -----------------------------------------------------------------------------
def partial_module():
    """The second sample of task t0 hangs in its first two iterations."""
    module = policy_gradient(loss=CORRECTED, partial_groups=1, max_partial_iterations=9)
    engine = module.engine
    generate = engine.generate

    async def slow(session, context, sampling, seed):
        if session.endswith("/1/t0"):
            if engine.version < 3 and engine._turns.get(session):
                await asyncio.Event().wait()
            # A session that goes on is new to the engine: its turn is that of its context.
            if engine.version >= 3 and not engine._turns.get(session):
                engine._turns[session] = 1
        return await generate(session, context, sampling, seed)

    engine.generate = slow
    return module


def test_a_group_that_takes_long_is_carried_over_with_its_turns_and_by_a_checkpoint(tmp_path):
    broken, resumed = broken_and_resumed(partial_module, tmp_path, tasks(6), 3, behind=1)
    assert len(broken.groups[0]) == len(broken.source.partial) == 1
    counts = [len(groups) for module in (broken, resumed) for groups in module.groups]
    assert sum(counts) + len(resumed.source.partial) == 6
    for folder in ("broken", "resumed"):
        assert logged(tmp_path / folder, "train/partial_groups")[0] == 1
    late = [t for groups in resumed.groups for g in groups for t in g if t.policy_version == 1]
    assert late and max(logged(tmp_path / "resumed", "train/staleness")) > 0


@pytest.mark.parametrize("max_partial_iterations", [1, 2, 99])
def test_a_group_is_waited_for_in_the_end(tmp_path, max_partial_iterations):
    """An attempt that is slower than all others is left until its group may be left no more."""
    module = policy_gradient(
        loss=CORRECTED, partial_groups=1, max_partial_iterations=max_partial_iterations
    )
    engine, slow = module.engine, []
    generate = engine.generate

    async def last(session, context, sampling, seed):
        slow[:] = slow or [session]
        if session == slow[0]:
            for _ in range(2000):  # turns of the event loop; the others need some fifty
                await asyncio.sleep(0)
        return await generate(session, context, sampling, seed)

    engine.generate = last
    fit(module, tmp_path, tasks(8), iterations=4, batch_size=2)
    name = slow[0].split("/", 2)[2]
    trained = [
        number
        for number, groups in enumerate(module.groups)
        if any(group[0].task.task_id == name for group in groups)
    ]
    assert trained == ([max_partial_iterations] if max_partial_iterations < 4 else [])


# -- replaced -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("differ_from", "places", "replaced"),
    [(0, "01", 0), (1, "01", 2), (99, "01", 6), (1, "1", 1)],
)
def test_groups_without_advantages_are_replaced_and_others_are_kept(
    tmp_path, differ_from, places, replaced
):
    """All attempts at the tasks in these places are alike until a rollout in which they differ."""

    class Drops(Recorder):
        def rollout(self, *given):
            groups = super().rollout(*given)
            self.episodes.dropped = ["an attempt"]
            return groups

    module, rollouts = policy_gradient(Drops, zero_advantage="replace"), {}

    def alike(session, turn):
        rollout, place = session.partition("/")[0].split(".")
        number = rollouts.setdefault(rollout, len(rollouts))
        is_alike = number < differ_from and place in places
        return ATTEMPTS[0][turn] if is_alike else script(session, turn)

    module.engine.script = alike
    fit(module, tmp_path, tasks(8))
    rounds = min(differ_from, 3)
    assert len(rollouts) == 1 + rounds and logged(tmp_path, "train/replaced") == [replaced]
    assert logged(tmp_path, "train/dropped") == [1.0 + rounds]
    assert logged(tmp_path, "train/zero_advantage") == [pytest.approx(float(differ_from == 99))]
    before, after = module.groups[0], module.groups[-1]
    kept = [one is other for one, other in zip(before, after, strict=True)]
    assert kept == [not rounds or place not in places for place in "01"]


def test_the_thread_that_samples_ahead_is_on_the_trainers_stream(monkeypatch):
    events = []
    source = object.__new__(GroupSource)
    source.module = SimpleNamespace(
        iteration=1,
        policy=None,
        engine=SimpleNamespace(sync=lambda *_, **__: None),
        trainer=SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext)),
    )
    source._timed_rollout = lambda *_: events.append("sampled")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", threading.current_thread)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(events.append(stream)))
    source._begin(tasks(1))
    source.wait()
    assert events == [threading.current_thread(), "sampled"]


# -- what is measured of them ---------------------------------------------------------------------
def scored(trajectories):
    credits = match_reward()(trajectories)
    rewards = RewardBatch.from_credits(credits, trajectories, [0] * len(trajectories))
    return ScoredRollout(trajectories, credits, rewards, rewards.turn_rewards)


def turn(tokens, *results):
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
    nothing = rollout_metrics(scored([]), seconds=0.0, iteration=0)
    assert nothing == {name: 0.0 for name in metrics}
