"""Compare the project, set to its release options, with numbers recorded from the release.

    python scripts/check_reference.py FOLDER [--data DATA]

FOLDER holds assignment.json, turn_rewards.json, dual_advantage.json and ftrl_solve.json; DATA
holds ftrl/test.parquet, whose tools are executed for the last of them. Prints the largest
difference per file and exits 1 where one is above 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.credit.advantages import DualAdvantage, RewardBatch
from matchtir.credit.assignment import Assigner, GreedyAssignment, SoftAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.evaluation.metrics import solve_metrics
from matchtir.tasks.ftrl import FtrlTasks
from matchtir.tools.sandbox import ProcessPoolSandbox, replay_all
from matchtir.types import ResultStatus, StopReason, Task, ToolCall, Trajectory, Turn

TOLERANCE = 1e-6
Case = dict[str, Any]


def release_similarity() -> Similarity:
    """Tool names without case, values by Python's ``==``."""
    return Similarity(names="casefold", values="python")


def release_soft(reg: float = 0.1) -> SoftAssignment:
    """Sinkhorn that stops after 1,000 iterations, converged or not."""
    return SoftAssignment(reg, max_iterations=1000)


def calls_of(records: Sequence[Case]) -> tuple[ToolCall, ...]:
    """Tool calls from their recorded form."""
    return tuple(ToolCall(record["name"], record["arguments"]) for record in records)


def largest(differences: Sequence[float]) -> float:
    """The largest difference; infinite where nothing was compared or something is not a number."""
    return float("inf") if not differences or np.isnan(differences).any() else max(differences)


def gap(left: Any, right: Any) -> float:
    """Largest absolute difference of two arrays; ValueError where their shapes differ."""
    left, right = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape} differ")
    return float(np.abs(left - right).max(initial=0.0))


def check_assignment(cases: Sequence[Case]) -> dict[str, float]:
    """Similarity matrices, greedy rewards and soft rewards of calls against gold calls."""
    similarity = release_similarity()
    matrices = [similarity(calls_of(case["pred"]), calls_of(case["gold"])) for case in cases]
    differences = [gap(m, case["similarity"]) for m, case in zip(matrices, cases, strict=True)]
    gaps = {"similarity": largest(differences)}
    solvers: list[tuple[str, str, Any]] = [
        ("greedy_rewards", key, GreedyAssignment(-float(key))) for key in cases[0]["greedy_rewards"]
    ]
    solvers += [("ot_rewards", key, release_soft(float(key))) for key in cases[0]["ot_rewards"]]
    for field, key, solver in solvers:
        pairs = zip(solver(matrices), cases, strict=True)
        gaps[f"{field} {key}"] = largest([gap(a.rewards, c[field][key]) for a, c in pairs])
    return gaps


def check_turn_rewards(cases: Sequence[Case]) -> dict[str, float]:
    """Turn rewards of whole trajectories, and the F1 of their answers."""
    trajectories = []
    for case in cases:
        task = Task("recorded", "", (), calls_of(case["gold"]), case["answer"])
        turns = tuple(Turn((), (), t["text"], calls_of(t["calls"])) for t in case["turns"])
        trajectories.append(Trajectory(task, (), turns, StopReason.ANSWER))
    gaps = {}
    assigners: dict[str, Assigner] = {"hard_greedy": GreedyAssignment(), "soft_ot": release_soft()}
    for name, assignment in assigners.items():
        reward = MatchReward(
            release_similarity(), assignment, outcome_turns="every", malformed_calls="ignored"
        )
        pairs = list(zip(reward(trajectories), cases, strict=True))
        gaps[name] = largest([gap(r.turn_rewards, c["turn_rewards"][name]) for r, c in pairs])
        gaps["answer_f1"] = largest([gap(r.outcome, c["answer_f1"]) for r, c in pairs])
    return gaps


def check_dual_advantage(cases: Sequence[Case]) -> dict[str, float]:
    """Dual-level advantages, halved and in single precision as the release computes them.

    Statistics have the precision of the rewards, which matters where a group hardly differs.
    """
    differences = []
    for case in cases:
        recorded = case["turn_rewards"]
        lengths = np.array([len(turns) for turns in recorded])
        mask = np.arange(lengths.max()) < lengths[:, None]
        rewards = np.zeros(mask.shape)
        rewards[mask] = np.concatenate(recorded)
        group = np.unique(case["group"], return_inverse=True)[1]
        single, total = rewards.astype(np.float32), rewards.sum(axis=1).astype(np.float32)
        batch = RewardBatch(single, mask, group, mask, total, np.zeros(len(group)))
        given = {"gamma": case["discount"], "epsilon": case["std_epsilon"]}
        dual = DualAdvantage(**given, trajectory_weight=0.5, turn_weight=0.5)
        differences.append(gap(dual(batch)[mask], np.concatenate(case["turn_advantages"])))
    return {"turn_advantages": largest(differences)}


def check_ftrl_solve(cases: Sequence[Case], test_path: Path) -> dict[str, float]:
    """Solve metrics of calls to FTRL's own tools, which are executed for it.

    A case whose tool needs a Python package that is not installed is left out, and named.
    """
    tasks = FtrlTasks(test_path=str(test_path)).tasks("test")
    attempts = [(tasks[case["row"]], calls_of(case["calls"])) for case in cases]
    sandbox = ProcessPoolSandbox(workers=2)
    try:
        outcomes = [replay.results for replay in replay_all(attempts, sandbox)]
    finally:
        sandbox.shutdown()
    failed = (ResultStatus.EXCEPTION, ResultStatus.BROKEN_TOOL)
    names = ("solve_precision", "solve_rate", "solve_f1")
    differences: dict[str, list[float]] = {name: [] for name in names}
    for case, (task, calls), results in zip(cases, attempts, outcomes, strict=True):
        errors = [result.output for result in results if result.status in failed]
        missing = [error for error in errors if "No module named" in error]
        if missing:
            print(f"ftrl_solve.json: left out a case of row {case['row']}: {missing[0]}")
            continue
        metrics = solve_metrics(calls, [r.output for r in results], task.sub_answers)
        measured = (metrics.precision, metrics.rate, metrics.f1)
        for name, value in zip(names, measured, strict=True):
            differences[name].append(gap(value, case["metrics"][name]))
    return {name: largest(values) for name, values in differences.items()}


def main() -> int:
    """Run every check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the recorded cases lie")
    parser.add_argument(
        "--data", type=Path, help="folder of ftrl/test.parquet; default $MATCHTIR_DATA, ../data"
    )
    arguments = parser.parse_args()
    folder = arguments.folder
    data = arguments.data or Path(os.environ.get("MATCHTIR_DATA", folder.parent / "data"))
    checks: dict[str, Callable[[Sequence[Case]], dict[str, float]]] = {
        "assignment.json": check_assignment,
        "turn_rewards.json": check_turn_rewards,
        "dual_advantage.json": check_dual_advantage,
        "ftrl_solve.json": partial(check_ftrl_solve, test_path=data / "ftrl" / "test.parquet"),
    }
    worst = 0.0
    for file, check in checks.items():
        cases = json.loads((folder / file).read_text())
        gaps = check(cases)
        worst = max(worst, *gaps.values())
        print(f"{file}: {len(cases)} cases, largest difference {max(gaps.values()):.3g}")
        for part, value in gaps.items():
            print(f"    {part}: {value:.3g}")
    print(f"agrees to {TOLERANCE}" if worst <= TOLERANCE else f"DIFFERS by more than {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
