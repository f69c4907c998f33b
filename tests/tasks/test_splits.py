"""Splits keep together what shares something; a part of the tasks has every scenario."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.tasks.splits import SPLIT_BY, evenly_spaced, shared_groups, split_tasks
from matchtir.types import Task, ToolCall


def task(index, tool="f", item="x", question=None):
    calls = (ToolCall(tool, {"item": item}),)
    return Task(str(index), question or f"What of {item} ({index})?", (), calls, "")


@pytest.mark.parametrize(
    ("by", "groups"),
    [("tools", [[0], [1, 2], [3], [4, 5]]), ("entities", [[0, 1], [2], [3], [4], [5]])],
)
def test_tools_and_entities_connect_over_several_tasks(by, groups):
    """An argument that is not in the question is no entity."""
    tasks = [task(0, "f", "a"), task(1, "g", "a"), task(2, "g", "b"), task(3, "h", "c")]
    tasks += [task(index, "i", "d", question=f"Question {index}") for index in (4, 5)]
    assert shared_groups(tasks, by) == groups


def test_the_same_question_or_solution_is_one_content():
    tasks = [task(0, item="a", question="One a?"), task(1, item="b", question="one  A")]
    tasks += [task(2, item="b"), task(3, item="c")]
    assert shared_groups(tasks, "content") == [[0, 1, 2], [3]]


@given(
    st.lists(st.tuples(st.sampled_from("fgh"), st.sampled_from("abcdefg")), min_size=1),
    st.sampled_from(SPLIT_BY),
    st.integers(0, 3),
)
def test_no_group_is_split_and_every_split_has_tasks(pairs, by, seed):
    tasks = [task(index, *pair) for index, pair in enumerate(pairs)]
    groups = shared_groups(tasks, by)
    assert sorted(position for group in groups for position in group) == list(range(len(tasks)))
    shares = {"train": 0.6, "validation": 0.1, "test": 0.3}
    if len(groups) < 3:
        with pytest.raises(ValueError, match=f"groups that share no {by}"):
            split_tasks(tasks, by, shares, seed)
        return
    splits = split_tasks(tasks, by, shares, seed)
    assert splits == split_tasks(tasks, by, shares, seed)
    assert set(splits) == set(shares)
    assert all(len({splits[position] for position in group}) == 1 for group in groups)


def test_sizes_follow_the_shares_and_the_seed_the_choice():
    tasks = [task(index, item=f"x{index}") for index in range(100)]
    shares = {"train": 3, "test": 1}
    chosen = [split_tasks(tasks, "content", shares, seed) for seed in (0, 1)]
    assert [splits.count("test") for splits in chosen] == [25, 25]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("shares", [{"dev": 1}, {"train": -1}, {"test": 0}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="dev|negative|no split has any"):
        split_tasks([task(0)], "content", shares, 0)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 60))
def test_a_part_has_the_shares_of_the_whole_in_its_order(kinds, count):
    items = list(enumerate(kinds))
    chosen = evenly_spaced(items, count, lambda item: item[1])
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(items))
    for kind, number in Counter(kinds).items():
        share = len(chosen) * number / len(items)
        assert abs(sum(item[1] == kind for item in chosen) - share) <= 1


def test_kinds_that_take_turns_have_equal_shares():
    kinds = list("abcd") * 64
    for count in (4, 8, 16, 32, 64):
        assert set(Counter(evenly_spaced(kinds, count, str)).values()) == {count // 4}
