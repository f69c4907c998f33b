"""Short ways to write tasks and trajectories, their scores, and batches of rewards."""

import numpy as np

from matchtir.credit.advantages import RewardBatch
from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.types import (
    CallStatus,
    StopReason,
    SubAnswer,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)

MALFORMED = ToolCall("", None, CallStatus.INVALID_JSON, "{")


def call(name="f", **arguments):
    return ToolCall(name, arguments)


def turn(*calls, outputs=None, text=""):
    outputs = outputs or [""] * len(calls)
    results = tuple(ToolResult(output) for output in outputs)
    return Turn((1,), (0.0,), text, tuple(calls), results)


def says(text):
    return turn(text=f"<answer>{text}</answer>")


def task(*gold, answer="blue", **fields):
    return Task("task", "question", (), tuple(gold), answer, **fields)


def attempt(of, *turns, stop=None):
    """An attempt that ends with an answer where its last turn makes no calls."""
    if stop is None:
        stop = StopReason.ANSWER if turns and not turns[-1].calls else StopReason.MAX_TURNS
    return Trajectory(of, (1,), tuple(turns), stop)


def sub_answers(*pairs):
    return tuple(SubAnswer(tool, output) for tool, output in pairs)


def match_reward(assignment=None, **options):
    return MatchReward(Similarity(), assignment or HardAssignment(), **options)


def score(trajectory, assignment=None, **options):
    return match_reward(assignment, **options)([trajectory])[0]


def scored(trajectories, group=None, **options):
    """The reward of these options, its credits of trajectories, and a batch of them."""
    reward = match_reward(**options)
    credits = reward(trajectories)
    numbers = group or [0] * len(trajectories)
    return reward, credits, RewardBatch.from_credits(credits, trajectories, numbers)


def assigned(assignment, similarity):
    """The assignment of a single matrix."""
    return assignment([np.asarray(similarity, dtype=float)])[0]


def batch(rows, group=None, has_calls=None, outcome=None, states=None, actions=None):
    """A batch from ragged rows of turn rewards; the last turn of each makes no calls."""
    longest = max((len(row) for row in rows), default=0)
    mask = np.array([[t < len(row) for t in range(longest)] for row in rows], dtype=bool)
    rewards = np.zeros(mask.shape)
    rewards[mask] = np.concatenate([np.asarray(row, dtype=float) for row in rows])
    last = np.array([[t == len(row) - 1 for t in range(longest)] for row in rows], dtype=bool)
    calls = mask & ~last if has_calls is None else np.asarray(has_calls, dtype=bool)
    if outcome is None:
        outcome = [row[-1] if len(row) else 0.0 for row in rows]
    group = np.zeros(len(rows), dtype=int) if group is None else np.asarray(group)
    keys = [None if each is None else np.asarray(each) for each in (states, actions)]
    paid = rewards.sum(axis=1), np.asarray(outcome, dtype=float)
    return RewardBatch(rewards, mask, group, calls, *paid, *keys)
