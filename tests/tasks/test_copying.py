"""Lists of names and numbers to be said again."""

import re
from collections.abc import Sequence
from itertools import islice

import pytest

from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.synthetic.copying import CopyTasks
from matchtir.tasks.synthetic.world import split_of
from matchtir.types import SubAnswer, Task, ToolCall


def entries(question: str) -> list[str]:
    return re.findall(r'"([^"]+)"', question)


def test_the_answer_repeats_the_list() -> None:
    tasks = CopyTasks(50, length=(2, 4)).tasks("train")
    assert len(tasks) == 50
    for number, task in enumerate(tasks):
        listed = entries(task.question)
        assert task.question == "Find " + ", ".join(f'"{entry}"' for entry in listed) + "."
        assert task.answer == ", ".join(listed)
        assert 2 <= len(listed) <= 4
        assert (task.task_id, task.tools, task.gold_calls) == (f"copy-{number}", (), ())
    assert {len(entries(task.question)) for task in tasks} == {2, 3, 4}


def test_names_are_those_of_the_training_split_and_differ() -> None:
    for task in CopyTasks(30, number_share=0.0):
        names = entries(task.question)
        assert len(set(names)) == len(names)
        assert {split_of(name) for name in names} == {"train"}


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True})])
def test_the_share_of_numbers(share: float, expected: set[bool]) -> None:
    listed = [
        entry for task in CopyTasks(20, number_share=share) for entry in entries(task.question)
    ]
    assert {entry.isdigit() for entry in listed} == expected
    assert all(10 <= int(entry) <= 99 for entry in listed if entry.isdigit())


def test_a_task_depends_on_its_seed_and_number_alone() -> None:
    assert [*CopyTasks(5)] == [*islice(CopyTasks(9), 5)]
    assert CopyTasks(5)[3].question != CopyTasks(5, seed=1)[3].question
    assert len({task.question for task in CopyTasks(50)}) == 50


def test_only_the_training_split_has_tasks() -> None:
    tasks = CopyTasks(5)
    assert len(tasks.tasks("validation")) == len(tasks.tasks("test")) == 0
    with pytest.raises(ValueError, match="split"):
        tasks.tasks("training")


@pytest.mark.parametrize("index", [-1, 5])
def test_a_number_outside_the_set_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"task {index} of 5"):
        CopyTasks(5)[index]


def test_a_gold_solution_is_one_turn_of_known_words() -> None:
    renderer = Renderer(tiny_tokenizer(), system_prompt="")
    for task in CopyTasks(5):
        (turn,) = gold_trajectory(task, renderer).turns
        assert turn.text == f"<answer>{task.answer}</answer>"
        # tags, two tokens per name, one per number, a comma between any two, and the end of turn
        listed = entries(task.question)
        words = sum(len(entry.split()) for entry in listed)
        assert len(turn.token_ids) == 2 + words + len(listed) - 1 + 1


@pytest.mark.parametrize("length", [(0, 3), (3, 2), (1,), (1, 2, 3), (1, 5000)])
def test_impossible_lengths_are_refused(length: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="length="):
        CopyTasks(1, length=length)


@pytest.mark.parametrize(
    ("arguments", "named"), [({"size": -1}, "train=-1"), ({"size": 1, "number_share": 1.5}, "1.5")]
)
def test_other_options_out_of_range_are_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CopyTasks(**arguments)  # type: ignore[arg-type]


class Phrases:
    """A task set of one task."""

    def tasks(self, split: str) -> Sequence[Task]:
        arguments = {"landmark": "Big Ben", "n": 3, "note": "far too long a text to be a phrase"}
        calls = (ToolCall("f", arguments),)
        answers = (SubAnswer("f", "London"), SubAnswer("f", '{"a": 1}'))
        return [Task("t", "q", (), calls, "x", sub_answers=answers)] if split == "train" else []


def test_half_of_the_lists_have_the_phrases_of_a_task_set_without_quotation_marks() -> None:
    tasks = CopyTasks(200, number_share=0.2, phrases_of=Phrases()).tasks("train")
    own = [task for task in tasks if '"' not in task.question]
    assert 60 < len(own) < 140
    for task in own:
        listed = task.answer.split(", ")
        assert task.question == f"Find {' and '.join(listed)}."
        assert {entry for entry in listed if not entry.isdigit()} <= {"Big Ben", "London"}
