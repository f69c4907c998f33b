"""Which tasks an iteration gets: a function of stages, seed and number, come what may."""

import re
from itertools import islice
from types import SimpleNamespace

import pytest

from matchtir.training.data import Stage, TaskBatches, TaskDataModule, check_prompts
from matchtir.types import Task
from tests.training.training_parts import TaskList


class Named:
    """Tasks whose ids say where they come from."""

    def __init__(self, name, train=0, validation=0, test=0):
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.name = name

    def tasks(self, split):
        count = self.sizes[split]
        return [Task(f"{self.name}-{split[:2]}-{n}", "?", (), (), "") for n in range(count)]


def ids(batches):
    return [[task.task_id for task in batch] for batch in batches]


def stages():
    return [Stage(Named("a", train=5), 4, 2), Stage(Named("b", train=3), 3, 4)]


def batches(seed=1, rank=0, world_size=1):
    return TaskBatches(stages(), seed, rank, world_size)


def data_module(held_out=None, rank=0, world_size=1, **settings):
    module = TaskDataModule(stages(), held_out, seed=1, **settings)
    place = SimpleNamespace(global_rank=rank, world_size=world_size)
    module.trainer = place if world_size > 1 else None
    return module


def test_tasks_that_a_limit_skips_are_counted_and_more_than_a_share_is_refused():
    renderer = SimpleNamespace(prompt_ids=lambda task: [0] * (1 + int(task.task_id[-1])))
    given = [Stage(Named("a", train=8), 1, 1)]  # prompts of 1 to 8 tokens
    assert check_prompts(given, renderer, 8, 0.0) == ""
    said = "2 of 8 training tasks .*max_prompt_tokens=6; the longest has 8 tokens"
    assert re.match(said, check_prompts(given, renderer, 6, 0.25))
    with pytest.raises(ValueError, match=f"{said}.*plan.skipped_share"):
        check_prompts(given, renderer, 6, 0.2)


def test_a_prompt_of_few_characters_may_have_many_tokens():
    task = Task("a", "\N{GRINNING FACE}" * 200, (), (), "")
    renderer = SimpleNamespace(prompt_ids=lambda task: task.question.encode())
    given = [Stage(TaskList([task]), 1, 1)]
    assert "1 of 1 training tasks are skipped" in check_prompts(given, renderer, 600, 1.0)


def test_stages_follow_each_other_each_with_an_order_of_its_own():
    found = ids(batches())
    assert len(found) == len(batches()) == 7
    assert [len(batch) for batch in found] == [2, 2, 2, 2, 4, 4, 4]
    assert [{task[0] for task in batch} for batch in found] == [{"a"}] * 4 + [{"b"}] * 3
    tasks = Named("a", train=20)
    first, second = TaskBatches([Stage(tasks, 1, 20), Stage(tasks, 1, 20)], seed=1)
    assert first != second and sorted(ids([first])[0]) == sorted(ids([second])[0])


def test_every_pass_over_a_task_set_has_each_task_once_in_an_order_of_its_own():
    stage = Stage(Named("a", train=10), iterations=15, batch_size=2)
    drawn = [task for batch in ids(TaskBatches([stage], seed=1)) for task in batch]
    passes = [tuple(drawn[start : start + 10]) for start in (0, 10, 20)]
    assert all(len(set(each)) == 10 for each in passes)
    assert len({*passes, tuple(sorted(drawn[:10]))}) == 4


def test_the_order_is_the_seeds_and_no_iteration_depends_on_those_before_it():
    assert ids(batches()) == ids(batches()) != ids(batches(seed=2))
    backwards = batches()
    found = ids([backwards.batch(number) for number in range(6, -1, -1)])
    assert found[::-1] == ids(batches())


@pytest.mark.parametrize("given", range(8))
def test_it_goes_on_where_it_stopped(given):
    """A list that was given out counts before the next one is asked for."""
    whole, interrupted, resumed = ids(batches()), batches(), batches()
    list(islice(interrupted, given))
    assert interrupted.state_dict() == {"given": given}
    resumed.load_state_dict(interrupted.state_dict())
    assert ids(resumed) == whole[given:]
    assert ids(resumed) == whole  # the next epoch is whole again


def test_processes_share_training_lists_and_held_out_tasks():
    modules = [data_module(Named("h", validation=5, test=2), rank, 2) for rank in (0, 1)]
    shares = [ids(module.train_dataloader()) for module in modules]
    assert shares == [ids(batches(rank=rank, world_size=2)) for rank in (0, 1)]
    for together, one, other in zip(ids(batches()), *shares, strict=True):
        assert len(one) == len(other) == len(together) / 2
        assert sorted(one + other) == sorted(together)
    held_out = [ids(module.val_dataloader())[0] for module in modules]
    assert held_out == [["h-va-0", "h-va-2", "h-va-4"], ["h-va-1", "h-va-3"]]


@pytest.mark.parametrize(("overfit", "count"), [(None, 4), (3, 3)])
def test_a_stage_may_have_the_first_tasks_alone(overfit, count):
    module = TaskDataModule([Stage(Named("a", train=9), 1, 1, first=4)], None, 1, overfit=overfit)
    assert len(module.stages[0].training_tasks) == count


def test_held_out_tasks_come_in_order_in_lists_of_the_batch_size():
    module = data_module(Named("h", validation=5, test=3), eval_batch_size=2)
    lists = [["h-va-0", "h-va-1"], ["h-va-2", "h-va-3"], ["h-va-4"]]
    assert ids(module.val_dataloader()) == lists
    assert ids(module.test_dataloader()) == [["h-te-0", "h-te-1"], ["h-te-2"]]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: batches(world_size=4), "stage 0: a batch of 2 tasks .* 4 processes"),
        (lambda: Stage(Named("a", train=1), 0, 1), "iterations=0 must be 1 or more"),
        (lambda: Stage(Named("a", train=1), 1, 0), "batch_size=0 must be 1 or more"),
        (lambda: Stage(Named("a"), 1, 1), "no training tasks"),
        (lambda: data_module(Named("h", test=1)), "no validation tasks"),
        (lambda: data_module(Named("h", validation=1)), "no test tasks"),
        (lambda: data_module(eval_batch_size=0), "eval_batch_size"),
        (lambda: data_module().val_dataloader(), "validation: there are no held-out tasks"),
        (
            lambda: data_module(Named("h", validation=2, test=1), 0, 2).test_dataloader(),
            "1 test tasks for 2 processes",
        ),
    ],
)
def test_what_cannot_be_given_out_is_refused(make, named):
    with pytest.raises((ValueError, RuntimeError), match=named):
        make()
