"""Which tasks each iteration trains on, and on which the policy is validated and tested."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from matchtir.evaluation.benchmark import TaskBenchmark, check_attempts
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.rows import TaskSet
from matchtir.types import Task
from matchtir.utils.options import UserError, check_at_least

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: so many iterations of so many tasks each, from one task set."""

    tasks: TaskSet
    iterations: int
    batch_size: int
    first: int | None = None  # the first so many tasks alone

    def __post_init__(self) -> None:
        check_at_least(1, iterations=self.iterations, batch_size=self.batch_size)
        if not len(self.training_tasks):
            raise ValueError("the task set of a stage has no training tasks")

    @property
    def training_tasks(self) -> Sequence[Task]:
        """What there is to train on."""
        tasks = self.tasks.tasks("train")
        return tasks if self.first is None else tasks[: self.first]


def existing(tasks: Sequence[Task]) -> Sequence[Task]:
    """What to look at before a run begins: all tasks, or the first of those made on demand."""
    return tasks if isinstance(tasks, list | tuple) else tasks[:64]


PROMPTS = 5000  # of one stage, whose lengths are looked at before a run begins


def check_prompts(
    stages: Sequence[Stage], renderer: Renderer, limit: int, allowed_share: float
) -> str:
    """How many training tasks a limit on prompts skips, in words; "" where it skips none.

    Of a stage with more than `PROMPTS` tasks so many are looked at, evenly spread.

    Raises:
        UserError: more than `allowed_share` of them.
    """
    tasks: dict[str, Task] = {}
    for all_tasks in (stage.training_tasks for stage in stages):
        chosen = range(0, len(all_tasks), -(-len(all_tasks) // PROMPTS) or 1)
        tasks |= {(task := all_tasks[place]).task_id: task for place in chosen}
    lengths = [
        len(renderer.prompt_ids(task))
        for task in tasks.values()
        # A text of half as many bytes does not have so many tokens: it need not be written.
        if len(repr((task.question, task.history, task.tools)).encode()) > limit // 2
    ]
    skipped = sum(length > limit for length in lengths)
    said = (
        f"{skipped} of {len(tasks)} training tasks are skipped, whose prompts are longer than "
        f"rollout.limits.max_prompt_tokens={limit}"
    )
    said += f"; the longest has {max(lengths)} tokens" if lengths else ""
    if skipped > allowed_share * len(tasks):
        raise UserError(f"{said}. To go on without them: plan.skipped_share=1")
    return said if skipped else ""


class TaskBatches:
    """The task lists of all iterations; one epoch of this loader is the whole run.

    The tasks of iteration i depend on the stages, the seed and i alone: each pass over a task set
    has an order of its own. The state is the number of lists given out.

    Args:
        stages: one after the other.
        seed: of the order of tasks.
        rank, world_size: with several processes each gets its share of every list.
    """

    def __init__(
        self, stages: Sequence[Stage], seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        for number, stage in enumerate(stages):
            if stage.batch_size % world_size:
                raise ValueError(
                    f"stage {number}: a batch of {stage.batch_size} tasks cannot be shared evenly "
                    f"among {world_size} processes"
                )
        self.stages = stages
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._given = 0
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def __iter__(self) -> Iterator[list[Task]]:
        start = self._given
        for iteration in range(start, len(self)):
            self._given = iteration + 1
            yield self.batch(iteration)
        self._given = 0

    def batch(self, iteration: int) -> list[Task]:
        """The tasks of one iteration, counted from 0 over all stages."""
        number, within = self.stage_of(iteration)
        stage = self.stages[number]
        tasks = stage.training_tasks
        first = within * stage.batch_size
        places = range(first + self.rank, first + stage.batch_size, self.world_size)
        return [tasks[self._place(number, len(tasks), place)] for place in places]

    def stage_of(self, iteration: int) -> tuple[int, int]:
        """Number of the stage of an iteration, and which iteration of the stage it is."""
        number = 0
        while iteration >= self.stages[number].iterations:
            iteration -= self.stages[number].iterations
            number += 1
        return number, iteration

    def _place(self, stage: int, size: int, place: int) -> int:
        epoch, position = divmod(place, size)
        if (stage, epoch) not in self._orders:
            order = np.random.default_rng((self.seed, stage, epoch)).permutation(size)
            self._orders = {(stage, epoch): order}  # of the last one alone
        return int(self._orders[stage, epoch][position])

    def state_dict(self) -> dict[str, Any]:
        """Lightning keeps this in checkpoints."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the lists already given out."""
        self._given = state["given"]


class TaskDataModule(LightningDataModule):
    """Training stages, and held-out tasks for validation and test.

    Args:
        stages: of training.
        held_out: task set whose validation and test splits measure the policy; None: it is only
            trained.
        seed: of the order of training tasks.
        eval_batch_size: tasks that are attempted at once.
        attempts: at each validation task; several also give val/pass@k.
        temperature: of these attempts; 0 is greedy.
        validation: a benchmark that validates in place of the validation split.
        overfit: train on the first so many tasks of each stage, again and again; None: on all.

    Raises:
        ValueError: an option out of range, or a split without tasks: before any model is loaded.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        held_out: TaskSet | None,
        seed: int,
        eval_batch_size: int = 128,
        validation: TaskBenchmark | None = None,
        overfit: int | None = None,
        attempts: int = 1,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        check_attempts("datamodule", attempts, temperature)
        if validation is not None and (attempts, temperature) != (1, 0.0):
            raise UserError("a benchmark validates: say validation.attempts, validation.sampling")
        if overfit is not None:
            check_at_least(1, overfit=overfit)
        check_at_least(1, eval_batch_size=eval_batch_size)
        for split in ("validation", "test"):
            if held_out is not None and not len(held_out.tasks(split)):
                raise ValueError(f"the held-out task set has no {split} tasks")
        if validation is not None:
            validation.select("validation")
            if validation.split == "test":
                log.warning(
                    "validating on the test tasks of %s: what is chosen by them must not be "
                    "tested on them",
                    validation.name,
                )
        # Hydra hands records over as configs of their fields.
        self.stages = [
            Stage(s.tasks, s.iterations, s.batch_size, overfit or s.first) for s in stages
        ]
        self.validation = validation
        self.attempts, self.sampling = attempts, SamplingParams(temperature)
        if validation is not None:
            self.attempts, self.sampling = validation.attempts, validation.sampling
        self.held_out = held_out
        self.seed = seed
        self.eval_batch_size = eval_batch_size

    def train_dataloader(self) -> TaskBatches:
        """All iterations of the run."""
        rank, world_size = self._place()
        return TaskBatches(self.stages, self.seed, rank, world_size)

    def tasks_of(self, iteration: int) -> list[Task]:
        """This process' tasks of an iteration, counted from 1; none behind the last one."""
        batches = self.train_dataloader()
        return batches.batch(iteration - 1) if iteration <= len(batches) else []

    def spare_tasks(self, iteration: int, round_: int, count: int) -> list[Task]:
        """Tasks to sample in an iteration instead of others, from the same stage, at random."""
        rank, _ = self._place()
        batches = self.train_dataloader()
        tasks = self.stages[batches.stage_of(iteration - 1)[0]].training_tasks
        rng = np.random.default_rng((self.seed, iteration, round_, rank))
        return [tasks[int(place)] for place in rng.integers(len(tasks), size=count)]

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Validation tasks in lists of `eval_batch_size`."""
        chosen = None if self.validation is None else self.validation.select("validation")
        return self._eval_loader("validation", chosen)

    def test_dataloader(self) -> DataLoader[list[Task]]:
        """Test tasks in lists of `eval_batch_size`."""
        return self._eval_loader("test")

    def _eval_loader(
        self, split: str, tasks: Sequence[Task] | None = None
    ) -> DataLoader[list[Task]]:
        """These tasks, or those of the held-out split; with several processes a part of them."""
        if tasks is None:
            if self.held_out is None:
                raise RuntimeError(f"{split}: there are no held-out tasks")
            tasks = self.held_out.tasks(split)
        rank, world_size = self._place()
        if len(tasks) < world_size:  # a process without tasks would not take part in the means
            raise ValueError(f"{len(tasks)} {split} tasks for {world_size} processes")
        mine: Any = tasks[rank::world_size]
        return DataLoader(mine, batch_size=self.eval_batch_size, collate_fn=list)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Tasks are records of text: they stay where they are."""
        return batch
