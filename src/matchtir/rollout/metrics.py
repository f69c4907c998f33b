"""What a batch of trajectories says about the rollout that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matchtir.types import ResultStatus, StopReason, Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Means and shares over the trajectories of one rollout that took `seconds`.

    `train/turns`, `train/calls`: mean per trajectory. `train/stop/<reason>`: share of the
    trajectories. `train/tool/<status>`: share of the calls. `train/tokens_per_s`: sampled tokens
    per second. `time/tools`: seconds spent in tools, summed over calls that may overlap.
    Every reason and status is there, at 0 where nothing ended so.
    """
    results = [result for trajectory in trajectories for result in trajectory.results]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    stops = Counter(trajectory.stop_reason for trajectory in trajectories)
    statuses = Counter(result.status for result in results)
    count = max(len(trajectories), 1)
    sampled = sum(len(turn.token_ids) for turn in turns)
    return {
        "train/turns": len(turns) / count,
        "train/calls": len(results) / count,
        **{f"train/stop/{reason}": stops[reason] / count for reason in StopReason},
        **{
            f"train/tool/{status}": statuses[status] / max(len(results), 1)
            for status in ResultStatus
        },
        "train/tokens_per_s": sampled / seconds if seconds > 0 else 0.0,
        "time/tools": sum(result.seconds for result in results),
    }
