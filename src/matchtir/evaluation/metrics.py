"""What is measured of trajectories, and its means over any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from matchtir.credit.answer import answer_f1
from matchtir.credit.answer import final_answer as final_answer
from matchtir.credit.outcome import succeeds
from matchtir.evaluation.solve import solve_metrics
from matchtir.types import Trajectory

MEASURES = (
    *("solve_p", "solve_r", "solve_f1", "answer_f1", "success", "answered"),
    *("turns", "calls"),
)


def measure(trajectory: Trajectory) -> dict[str, float]:
    """The value of each of `MEASURES` for one trajectory."""
    task = trajectory.task
    solve = solve_metrics(trajectory, task)
    answer = final_answer(trajectory)
    return {
        "solve_p": solve.precision,
        "solve_r": solve.rate,
        "solve_f1": solve.f1,
        "answer_f1": answer_f1(answer, task.answer),
        "success": float(succeeds(trajectory)),
        "answered": float(answer is not None),
        "turns": float(len(trajectory.turns)),
        "calls": float(len(trajectory.calls)),
    }


class TrajectoryMetrics(Metric):
    """Means of `MEASURES`, and of the reward, over trajectories.

    Means are built from sums, so processes with unequal numbers of trajectories (none included)
    add up exactly. The values of the single tasks, which a paired bootstrap needs, are kept beside.

    Args:
        reward: whether each update brings rewards, and "reward" is among the means.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, reward: bool = True) -> None:
        super().__init__()
        self.names = (*MEASURES, "reward") if reward else MEASURES
        # float64, so that a mean does not depend on the order of thousands of updates
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._values: list[tuple[str, dict[str, float]]] = []

    def update(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[float] | None = None
    ) -> None:
        """Add trajectories [N] and, where the metric was made for them, their rewards [N].

        Raises:
            ValueError: rewards that are missing, not wanted, or of another number.
        """
        if (rewards is not None) != ("reward" in self.names):
            raise ValueError(f"rewards {'missing' if rewards is None else 'not wanted'}")
        if rewards is not None and len(rewards) != len(trajectories):
            raise ValueError(f"{len(rewards)} rewards for {len(trajectories)} trajectories")
        for index, trajectory in enumerate(trajectories):
            values = measure(trajectory)
            if rewards is not None:
                values["reward"] = float(rewards[index])
            self._values.append((trajectory.task.task_id, values))
            self.total += self.total.new_tensor([values[name] for name in self.names])
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """Mean of each measure; NaN before the first trajectory."""
        means = self.total / self.count
        return dict(zip(self.names, means.unbind(), strict=True))

    def per_task(self) -> Mapping[str, Mapping[str, float]]:
        """Mean values of each task id over its trajectories, of all processes, ids sorted.

        Every process must call this where there are several.
        """
        values = self._values
        if distributed.is_available() and distributed.is_initialized():
            parts: list[list[tuple[str, dict[str, float]]]] = [[]] * distributed.get_world_size()
            distributed.all_gather_object(parts, values)
            values = [value for part in parts for value in part]
        grouped: dict[str, list[dict[str, float]]] = {}
        for task_id, measured in values:
            grouped.setdefault(task_id, []).append(measured)
        return {
            task_id: {
                name: sum(measured[name] for measured in group) / len(group) for name in self.names
            }
            for task_id, group in sorted(grouped.items())
        }

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._values = []
