"""Which tasks an iteration gets: a function of stages, seed and number, come what may."""

from collections.abc import Sequence
from itertools import islice

import pytest

from matchtir.training.data import Stage, TaskBatches, TaskDataModule
from matchtir.types import Task


class Named:
    """Tasks whose ids say where they come from."""

    def __init__(self, name: str, train: int = 0, validation: int = 0, test: int = 0) -> None:
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.name = name

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{self.name}-{split}-{n}", "?", (), (), "") for n in range(self.sizes[split])]


def ids(batches: Sequence[Sequence[Task]]) -> list[list[str]]:
    return [[task.task_id for task in batch] for batch in batches]


def stages() -> list[Stage]:
    return [Stage(Named("a", train=5), 4, 2), Stage(Named("b", train=3), 3, 4)]


def test_stages_follow_each_other() -> None:
    batches = ids([*TaskBatches(stages(), seed=1)])
    assert len(batches) == len(TaskBatches(stages(), seed=1)) == 7
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 4, 4, 4]
    assert [{task[0] for task in batch} for batch in batches] == [{"a"}] * 4 + [{"b"}] * 3


def test_every_pass_over_a_task_set_has_each_task_once_in_an_order_of_its_own() -> None:
    stage = Stage(Named("a", train=10), iterations=15, batch_size=2)
    drawn = [task for batch in ids([*TaskBatches([stage], seed=1)]) for task in batch]
    passes = [tuple(drawn[start : start + 10]) for start in (0, 10, 20)]
    assert all(len(set(each)) == 10 for each in passes)
    assert len({*passes, tuple(sorted(drawn[:10]))}) == 4


def test_the_order_is_the_seeds() -> None:
    assert ids([*TaskBatches(stages(), seed=1)]) == ids([*TaskBatches(stages(), seed=1)])
    assert ids([*TaskBatches(stages(), seed=1)]) != ids([*TaskBatches(stages(), seed=2)])


def test_an_iteration_does_not_depend_on_those_before_it() -> None:
    in_order = ids([*TaskBatches(stages(), seed=1)])
    backwards = TaskBatches(stages(), seed=1)
    assert ids([backwards.batch(number) for number in range(6, -1, -1)])[::-1] == in_order


def test_stages_with_the_same_tasks_have_different_orders() -> None:
    tasks = Named("a", train=20)
    first, second = TaskBatches([Stage(tasks, 1, 20), Stage(tasks, 1, 20)], seed=1)
    assert first != second and sorted(ids([first])[0]) == sorted(ids([second])[0])


@pytest.mark.parametrize("given", range(8))
def test_it_goes_on_where_it_stopped(given: int) -> None:
    whole = ids([*TaskBatches(stages(), seed=1)])
    interrupted = TaskBatches(stages(), seed=1)
    list(islice(interrupted, given))
    resumed = TaskBatches(stages(), seed=1)
    resumed.load_state_dict(interrupted.state_dict())
    assert ids([*resumed]) == whole[given:]
    assert ids([*resumed]) == whole  # the next epoch is whole again


def test_a_list_that_was_given_out_counts_before_the_next_is_asked_for() -> None:
    batches = TaskBatches(stages(), seed=1)
    running = iter(batches)
    for given in (1, 2, 3):
        next(running)
        assert batches.state_dict() == {"given": given}


def test_processes_share_every_list() -> None:
    whole = ids([*TaskBatches(stages(), seed=1)])
    shares = [ids([*TaskBatches(stages(), 1, rank, 2)]) for rank in (0, 1)]
    for together, one, other in zip(whole, *shares, strict=True):
        assert len(one) == len(other) == len(together) / 2
        assert sorted(one + other) == sorted(together)


def test_a_list_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 0: a batch of 2 tasks .* 4 processes"):
        TaskBatches(stages(), seed=1, world_size=4)


@pytest.mark.parametrize(("iterations", "batch_size"), [(0, 1), (1, 0)])
def test_a_stage_has_iterations_and_tasks_per_iteration(iterations: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="=0 must be 1 or more"):
        Stage(Named("a", train=1), iterations, batch_size)


def test_a_stage_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="no training tasks"):
        Stage(Named("a"), 1, 1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_split_without_tasks_is_refused(split: str) -> None:
    held_out = Named("h", **({"validation": 1, "test": 1} | {split: 0}))
    with pytest.raises(ValueError, match=f"no {split} tasks"):
        TaskDataModule(stages(), held_out, seed=1)


def test_held_out_tasks_come_in_order_in_lists_of_the_batch_size() -> None:
    module = TaskDataModule(stages(), Named("h", validation=5, test=3), 1, eval_batch_size=2)
    assert ids([*module.val_dataloader()]) == [
        ["h-validation-0", "h-validation-1"],
        ["h-validation-2", "h-validation-3"],
        ["h-validation-4"],
    ]
    assert ids([*module.test_dataloader()]) == [["h-test-0", "h-test-1"], ["h-test-2"]]


class Place:
    """What the data module reads of a trainer."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size


def on_rank(rank: int, world_size: int, held_out: Named) -> TaskDataModule:
    module = TaskDataModule(stages(), held_out, seed=1)
    module.trainer = Place(rank, world_size)  # type: ignore[assignment]
    return module


def test_processes_share_held_out_tasks_and_training_lists() -> None:
    held_out = Named("h", validation=5, test=2)
    modules = [on_rank(rank, 2, held_out) for rank in (0, 1)]
    shares = [ids([*module.val_dataloader()])[0] for module in modules]
    assert shares == [
        ["h-validation-0", "h-validation-2", "h-validation-4"],
        ["h-validation-1", "h-validation-3"],
    ]
    training = [ids([*module.train_dataloader()]) for module in modules]
    assert training == [ids([*TaskBatches(stages(), 1, rank, 2)]) for rank in (0, 1)]


def test_every_process_needs_a_held_out_task() -> None:
    module = on_rank(0, 2, Named("h", validation=2, test=1))
    assert len(module.val_dataloader()) == 1
    with pytest.raises(ValueError, match="1 test tasks for 2 processes"):
        module.test_dataloader()


def test_a_module_that_only_trains_has_no_held_out_tasks() -> None:
    module = TaskDataModule(stages(), None, seed=1)
    assert len(module.train_dataloader()) == 7
    with pytest.raises(RuntimeError, match="validation"):
        module.val_dataloader()


def test_tasks_stay_as_they_are_on_their_way_to_a_device() -> None:
    batch = Named("a", train=2).tasks("train")
    module = TaskDataModule(stages(), None, seed=1)
    assert module.transfer_batch_to_device(batch, "cpu", 0) is batch


def test_lists_of_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="eval_batch_size"):
        TaskDataModule(stages(), None, seed=1, eval_batch_size=0)
