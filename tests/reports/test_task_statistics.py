"""Statistics of a task set, its duplicates and leaks, and the replay of its gold calls."""

from dataclasses import replace

from matchtir.reports.task_statistics import (
    answer_types,
    find_pairs,
    profiles,
    replay_gold,
    shared_with_training,
    tool_use,
)
from matchtir.types import SubAnswer, Task, ToolCall, ToolSpec

TOOL = ToolSpec("double", "", {}, "def double(x):\n    return 2 * x\n")
OTHER = ToolSpec("idle", "", {}, "def idle():\n    return 1\n")


def task(name, question, *values, scenario="", answer="4", **fields):
    calls = tuple(ToolCall("double", {"x": value}) for value in values)
    outputs = tuple(SubAnswer("double", str(2 * value)) for value in values)
    given = {"tools": (TOOL, OTHER), "gold_calls": calls, "answer": answer, "sub_answers": outputs}
    return Task(name, question, **(given | {"scenario": scenario} | fields))


def test_profiles_are_of_each_scenario_then_of_the_split():
    tasks = [
        task("a", "one two", 2, scenario="short"),
        task("b", "one two three four", 2, 3, scenario="long", gold_turns=(0, 0)),
    ]
    found = profiles({"train": tasks, "test": []}, lambda task: 7)
    counts = [(p.split, p.scenario, p.tasks) for p in found]
    assert counts == [("train", "long", 1), ("train", "short", 1), ("train", "", 2)]
    means = {name: found[-1].mean(name) for name in found[-1].values}
    of_gold = {"hops": 1.0, "gold calls": 1.5, "gold outputs": 1.5, "arguments per call": 1.0}
    others = {"tools offered": 2.0, "question words": 3.0, "prompt tokens": 7.0}
    assert means == of_gold | others


def test_tasks_without_gold_calls_are_no_part_of_the_means_over_gold_calls():
    bare = Task("c", "Some instructions. Question: one two three", (TOOL,), (), "4")
    [mixed] = profiles({"test": [bare, task("a", "one", 2, 3)]}, lambda task: 7)
    assert mixed.tasks == 2 and mixed.mean("gold calls") == 2.0
    assert mixed.mean("question words") == 2.0  # instructions before the question do not count
    [without] = profiles({"test": [bare]}, lambda task: 7)
    assert without.mean("gold calls") is None and without.mean("arguments per call") is None


def test_counts_of_answers_and_tools():
    answers = {
        "number": ["12", "-1,200.5", "40 %"],
        "date": ["2024-05-01", "May 3, 1999"],
        "yes or no": ["Yes"],
        "list": ["a, b", "[1, 2]"],
        "name": ["Marie Curie"],
        "text": ["it is far too long to be one"],
        "none": [" "],
    }
    for kind, texts in answers.items():
        assert answer_types([task("a", "q", answer=text) for text in texts]) == {kind: len(texts)}
    assert tool_use([task("a", "q", 2), task("b", "r", 2, 3)]) == [("double", 2, 3), ("idle", 2, 0)]


def test_the_same_question_and_the_same_solution_in_two_splits_are_leaks():
    train = [task("a", "What is twice 2?", 2), task("b", "What is twice 3, please tell me now?", 3)]
    test = [
        task("c", "what is twice 2", 9),
        task("d", "What is twice 3, please tell me?", 8),
        task("e", "Something else", 2),
        task("f", "Nothing of the kind", 7),
    ]
    pairs = find_pairs({"train": train, "test": test}, near=0.6)
    found = {(pair.kind, pair.first[1], pair.second[1]) for pair in pairs if pair.is_leak}
    assert found == {("question", "a", "c"), ("near", "b", "d"), ("solution", "a", "e")}
    assert len(pairs) == 3
    (pair,) = find_pairs({"train": [task("a", "Same", 1), task("b", "same", 2)]})
    assert pair.kind == "question" and not pair.is_leak


def test_what_is_shared_with_training():
    def about(name, city):
        call = ToolCall("double", {"x": city})
        return replace(task(name, f"Where is {city}?"), gold_calls=(call,))

    splits = {"train": [about("a", "Oslo")], "test": [about("b", "Oslo"), about("c", "Lima")]}
    shared = {row[:3] for row in shared_with_training(splits)}
    assert shared == {("test", "a called tool", 1.0), ("test", "an entity of the question", 0.5)}


def test_gold_replay_names_what_does_not_come_out(sandbox):
    tasks = [
        task("good", "q", 2),
        task("odd", "q", 3, sub_answers=(SubAnswer("double", "77"),)),
        replace(task("broken", "q", 2), gold_calls=(ToolCall("double", {"y": 1}),)),
        task("none", "q"),
    ]
    found = replay_gold(tasks, sandbox)
    assert (found.tasks, found.solved, found.answered) == (3, (1, 3), (1, 3))
    assert dict(found.statuses) == {"ok": 2, "bad_arguments": 1}
    assert [name for name, _ in found.problems] == ["odd", "broken"]
    assert found.problems[0][1] == "only 0 of 1 gold outputs come out"
