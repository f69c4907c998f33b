"""Speed of credit against plain loops and against POT, on one core.

    OMP_WAIT_POLICY=PASSIVE python scripts/bench_credit.py [--trajectories 4096] [--rounds 3]

Both sides of a comparison run in turn, several times, in this process; the table shows the median
CPU seconds of each and the median of the ratios of the rounds. The last line is `RESULT {json}`.
Needs POT (in the `dev` extra).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy is imported
os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import ot
import torch
from torch.nn.utils.rnn import pad_sequence

from matchtir.credit.advantages import DualAdvantage, RewardBatch
from matchtir.credit.assignment import Assigner, GreedyAssignment, HardAssignment, SoftAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.policy.losses import turns_to_tokens
from matchtir.types import StopReason, Task, ToolCall, ToolResult, Trajectory, Turn

GROUP, CALLS, REG, TOLERANCE = 16, 6, 0.1, 1e-9
Matrices = list[np.ndarray[Any, Any]]


# ---------------------------------------------------------------- data


def make_trajectories(count: int, seed: int = 0) -> list[Trajectory]:
    """Attempts at tasks of 6 gold calls, 16 per task: 6 calls in 3 to 5 turns, half of it right."""
    rng = np.random.default_rng(seed)
    values: list[Any] = ["Paris", "1912", 3, 4.5, True, None, ["a", "b"], {"unit": "km"}]
    keys = ["city", "year", "limit", "country", "unit"]

    def arguments() -> dict[str, Any]:
        chosen = rng.choice(keys, size=rng.integers(1, 4), replace=False)
        return {str(key): values[rng.integers(len(values))] for key in chosen}

    def attempt_of(gold: ToolCall) -> ToolCall:
        kind, name, made = rng.random(), gold.name, dict(gold.arguments)
        if kind > 0.8:
            name, made = f"tool_{rng.integers(10)}", arguments()
        elif kind > 0.5:
            made[str(rng.choice(keys))] = values[rng.integers(len(values))]
        return ToolCall(name, made, text=json.dumps({"name": name, "arguments": made}))

    trajectories = []
    for group in range(-(-count // GROUP)):
        gold = tuple(ToolCall(f"tool_{rng.integers(10)}", arguments()) for _ in range(CALLS))
        task = Task(f"task-{group}", "question", (), gold, "Alan Turing")
        for _ in range(GROUP):
            calls = [attempt_of(call) for call in gold]
            cuts = np.sort(rng.choice(np.arange(1, CALLS), rng.integers(2, 5), replace=False))
            turns = [
                Turn((1,), (0.0,), "", tuple(part), (ToolResult("ok"),) * len(part))
                for part in np.split(np.array(calls, dtype=object), cuts)
            ]
            turns.append(Turn((1,), (0.0,), "<answer>Alan Turing</answer>"))
            trajectories.append(Trajectory(task, (1,), tuple(turns), StopReason.ANSWER))
    return trajectories[:count]


# ---------------------------------------------------------------- the other sides


def plain_similarity(predicted: ToolCall, gold: ToolCall) -> float:
    """The paper's formula, written down as it stands."""
    left, right = set(predicted.arguments), set(gold.arguments)
    union = left | right
    same_name = 1.0 if predicted.name.lower() == gold.name.lower() else 0.0
    names = len(left & right) / len(union) if union else 1.0
    values = sum(1 for k in right if k in left and predicted.arguments[k] == gold.arguments[k])
    return same_name * (same_name + names + values) / (2 + len(right))


def plain_answer_f1(text: str, gold: str) -> float | None:
    """Token-set F1 of the answer in a text; None where there is none."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if not found:
        return None
    left, right = (set(re.sub(r"[^\w\s]", " ", a.lower()).split()) for a in (found[-1], gold))
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


def greedy_loop(trajectories: Sequence[Trajectory]) -> list[list[float]]:
    """Turn rewards by greedy matching, one trajectory, pair and turn after the other."""
    result = []
    for trajectory in trajectories:
        predicted, gold = trajectory.calls, trajectory.task.gold_calls
        pairs = [
            (plain_similarity(call, wanted), row, column)
            for row, call in enumerate(predicted)
            for column, wanted in enumerate(gold)
        ]
        pairs.sort(key=lambda pair: -pair[0])
        rewards = [0.0] * len(predicted)
        used_rows, used_columns = set(), set()
        for score, row, column in pairs:
            if score > 0 and row not in used_rows and column not in used_columns:
                used_rows.add(row)
                used_columns.add(column)
                rewards[row] = score
        turn_rewards, position = [], 0
        for turn in trajectory.turns:
            here = rewards[position : position + len(turn.calls)]
            position += len(turn.calls)
            reward = sum(here) / len(here) if here else 0.0
            answer = plain_answer_f1(turn.text, trajectory.task.answer)
            turn_rewards.append(reward if answer is None else reward + answer)
        result.append(turn_rewards)
    return result


def sinkhorn_loop(similarities: Matrices, iterations: int) -> Matrices:
    """One `ot.sinkhorn` per trajectory, to this tolerance or to the end of the iterations."""
    bounds: dict[str, Any] = {"stopThr": TOLERANCE, "numItermax": iterations, "warn": False}
    # Without masses they are uniform.
    return [ot.sinkhorn([], [], -matrix, REG, **bounds) for matrix in similarities]


def pot_batched(similarities: Matrices, iterations: int) -> Matrices:
    """POT's batched solver, in the faster of its two arithmetics, likewise."""
    bounds: dict[str, Any] = {"max_iter": iterations, "tol": TOLERANCE}
    cost = -np.stack(similarities)
    return list(ot.solve_batch(cost, REG, method="sinkhorn", grad="detach", **bounds).plan)


class Tokens(NamedTuple):
    """Turn rewards of N trajectories, and what belongs to each of their tokens, padded."""

    batch: RewardBatch
    turn_index: torch.Tensor  # [N, L]: the turn of a sampled token, -1 elsewhere
    rewards: torch.Tensor  # [N, L]: the reward of a turn at its last token
    lengths: list[int]  # without padding


def make_tokens(count: int, tokens_per_turn: int, seed: int = 2) -> Tokens:
    """Trajectories of 2 to 6 turns, with an observation after each."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(2, 7, count)
    mask = np.arange(turns.max()) < turns[:, None]
    rewards = np.where(mask, rng.random(mask.shape), 0.0)
    rows, token_rewards = [], []
    for row in range(count):
        index, here = [], []
        for turn in range(turns[row]):
            sampled = int(rng.integers(tokens_per_turn // 2, tokens_per_turn * 3 // 2))
            index += [turn] * sampled + [-1] * (tokens_per_turn // 4)
            here += [0.0] * (sampled - 1) + [rewards[row, turn]] + [0.0] * (tokens_per_turn // 4)
        rows.append(torch.tensor(index))
        token_rewards.append(torch.tensor(here, dtype=torch.float64))
    group, total = np.arange(count) // GROUP, rewards.sum(axis=1)
    batch = RewardBatch(rewards, mask, group, mask, total, np.zeros(count))
    turn_index = pad_sequence(rows, batch_first=True, padding_value=-1)
    padded = pad_sequence(token_rewards, batch_first=True)
    return Tokens(batch, turn_index, padded, [len(row) for row in rows])


def dual_vectorised(tokens: Tokens) -> torch.Tensor:
    """One advantage per turn, gathered by the tokens."""
    advantages = torch.from_numpy(DualAdvantage()(tokens.batch))
    return turns_to_tokens(advantages, tokens.turn_index)


def dual_token_loop(tokens: Tokens) -> torch.Tensor:
    """The same from rewards at the last tokens of turns: back and forth over every token."""
    returns, result = torch.zeros_like(tokens.rewards), torch.zeros_like(tokens.rewards)
    members: dict[tuple[int, int], list[float]] = {}
    totals = []
    for i, length in enumerate(tokens.lengths):
        group, running, current, total = int(tokens.batch.group[i]), 0.0, -1, 0.0
        for position in range(length - 1, -1, -1):
            turn = int(tokens.turn_index[i][position])
            if turn < 0:
                continue
            if turn != current:  # from behind, the last token of a turn comes first
                current = turn
                reward = float(tokens.rewards[i][position])
                total += reward
                running = reward + 0.9 * running
                members.setdefault((group, turn), []).append(running)
            returns[i][position] = running
        members.setdefault((group, -1), []).append(total)
        totals.append(total)
    statistics = {key: plain_statistics(found) for key, found in members.items()}
    for i, length in enumerate(tokens.lengths):
        group = int(tokens.batch.group[i])
        mean, std = statistics[group, -1]
        outer = (totals[i] - mean) / (std + 1e-6)
        for position in range(length):
            turn = int(tokens.turn_index[i][position])
            if turn >= 0:
                mean, std = statistics[group, turn]
                inner = (float(returns[i][position]) - mean) / (std + 1e-6)
                result[i][position] = outer + inner
    return result


def plain_statistics(values: list[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation; 0 and 1 of a single value."""
    if len(values) == 1:
        return 0.0, 1.0
    mean = sum(values) / len(values)
    return mean, (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5


# ---------------------------------------------------------------- measuring


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of this process's own CPU time (one thread) that one call takes.

    On a shared machine, wall time would also measure its other users.
    """
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> float:
    """Median ratio theirs / ours of interleaved rounds, after one call of ours to warm up."""
    ours()
    # Ours is short: a round takes the median of several calls.
    pairs = [(median(seconds(ours) for _ in range(5)), seconds(theirs)) for _ in range(rounds)]
    ratio = median(b / a for a, b in pairs)
    mine, other = median(a for a, _ in pairs), median(b for _, b in pairs)
    print(f"{name:<50}{mine:>9.4f} s{other:>10.4f} s{ratio:>9.1f} x", flush=True)
    return ratio


def largest_error(plans: Matrices) -> float:
    """Largest Euclidean norm of a marginal error, rows or columns."""
    stack = np.stack(plans)
    rows = np.linalg.norm(stack.sum(axis=2) - 1 / stack.shape[1], axis=1)
    columns = np.linalg.norm(stack.sum(axis=1) - 1 / stack.shape[2], axis=1)
    return float(np.maximum(rows, columns).max())


def check(trajectories: Sequence[Trajectory], tokens: Tokens) -> None:
    """Both sides compute the same (the plain loop is greedy, so it is held against ours)."""
    reward = MatchReward(Similarity("casefold", "python"), GreedyAssignment())
    for credit, expected in zip(reward(trajectories), greedy_loop(trajectories), strict=True):
        np.testing.assert_allclose(credit.turn_rewards, expected)
    ours, looped = dual_vectorised(tokens), dual_token_loop(tokens)
    torch.testing.assert_close(ours, looped, rtol=0, atol=1e-9)


def bench_soft(trajectories: Sequence[Trajectory], rounds: int) -> tuple[float, float]:
    """Transport plans at equal marginal error; the ratios for matrices as large as the calls'.

    The similarities of real calls have ties, on which plain iterations converge so slowly that
    POT is stopped after 1,000 of them: that comparison, of a quarter, is shown with its errors and
    not counted.
    """
    soft, similarity, count = SoftAssignment(REG), Similarity(), len(trajectories)
    of_calls = [similarity(t.calls, t.task.gold_calls) for t in trajectories[: count // 4]]
    data = {
        "of the calls": (of_calls, 1_000),
        "at random": (list(np.random.default_rng(1).random((count, CALLS, CALLS))), 100_000),
    }
    loop = batched = 0.0
    for name, (similarities, iterations) in data.items():
        name = f"soft, {len(similarities)} of {CALLS} x {CALLS} {name}"
        ours = partial(soft, similarities)
        others = [partial(f, similarities, iterations) for f in (sinkhorn_loop, pot_batched)]
        loop = compare(f"{name}; ot.sinkhorn", ours, others[0], rounds)
        batched = compare(f"{name}; ot.solve_batch", ours, others[1], rounds)
        found = [[assignment.plan for assignment in ours()], *(other() for other in others)]
        errors = ", ".join(f"{largest_error(plans):.1e}" for plans in found)
        print(f"    largest marginal error (ours, loop, batched): {errors}")
    return loop, batched


def bench_dual(count: int) -> float:
    """Advantages of all tokens; the smallest ratio of three sizes."""
    ratios = []
    for tokens_per_turn in (12, 25, 50):
        tokens = make_tokens(count, tokens_per_turn)
        name = f"dual, {sum(tokens.lengths) / 1e6:.2f} M tokens; loop"
        ours, loop = partial(dual_vectorised, tokens), partial(dual_token_loop, tokens)
        ratios.append(compare(name, ours, loop, 1))
    return min(ratios)


def bench_iteration(trajectories: Sequence[Trajectory], rounds: int) -> float:
    """Median seconds from trajectories to dual advantages; the slower of hard and soft."""
    group = [index // GROUP for index in range(len(trajectories))]
    slowest = 0.0
    assignments: dict[str, Assigner] = {"hard": HardAssignment(), "soft": SoftAssignment(REG)}
    for name, assignment in assignments.items():
        reward = MatchReward(Similarity(), assignment)

        def credit(reward: MatchReward = reward) -> None:
            DualAdvantage()(RewardBatch.from_credits(reward(trajectories), trajectories, group))

        credit()
        taken = median(seconds(credit) for _ in range(rounds))
        print(f"{f'credit of one iteration, {name}':<50}{taken:>9.4f} s")
        slowest = max(slowest, taken)
    return slowest


def main() -> None:
    """Measure, print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    count, rounds = arguments.trajectories, arguments.rounds
    torch.set_num_threads(1)
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, one used; load {load}")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, POT {ot.__version__}")
    print(f"command: python {' '.join(sys.argv)}")
    trajectories = make_trajectories(count)
    check(trajectories[:256], make_tokens(64, 32))
    print(f"\n{f'{count} trajectories; CPU seconds':<50}{'ours':>11}{'other':>12}{'ratio':>11}")
    soft_loop, soft_batched = bench_soft(trajectories, rounds)
    hard = partial(MatchReward(Similarity(), HardAssignment()), trajectories)
    loop = partial(greedy_loop, trajectories)
    result = {
        "hard_vs_greedy_loop": compare(f"hard, {CALLS} calls; loop", hard, loop, rounds),
        "soft_vs_sinkhorn_loop": soft_loop,
        "soft_vs_pot_batched": soft_batched,
        "dual_vs_token_loop": bench_dual(count),
        "credit_seconds_4096": bench_iteration(trajectories, rounds) * 4096 / count,
    }
    print("RESULT " + json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
