"""The synthetic task set: determinism, splits, shares, knobs, and what it refuses."""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from matchtir.tasks.synthetic import SCENARIOS, SyntheticTasks, laptop_words
from matchtir.tasks.synthetic.copying import CopyTasks
from matchtir.tasks.synthetic.difficulty import DIFFICULTIES, draw, resolve_difficulty
from matchtir.tasks.synthetic.lexicon import ADJECTIVES, NOUNS
from matchtir.tasks.synthetic.world import split_of

QUOTED = re.compile(r'"([a-z]+ [a-z]+)"')


def some_tasks(count=80, split="train", difficulty="laptop", seed=3, **options):
    return list(SyntheticTasks(difficulty, {split: count}, seed=seed, **options).tasks(split))


def digest_of(tasks):
    """A hash of everything that tasks say."""
    digest = hashlib.sha256()
    for task in tasks:
        tools = [[tool.schema(), tool.source] for tool in task.tools]
        calls = [[call.name, call.arguments] for call in task.gold_calls]
        outputs = [[item.tool, item.output] for item in task.sub_answers]
        said = [task.task_id, task.scenario, task.question, task.answer, tools, calls]
        said += [task.gold_turns, outputs, task.metadata]
        digest.update(json.dumps(said).encode())
    return digest.hexdigest()[:16]


DIGESTS = {  # of 200 tasks of each scenario
    "laptop": "6b6a27280e4a8e16 15e6aa61553b4db2 565021e44fdfcd61 845000f099aa8d6e",
    "ftrl": "e8994a4c8964399b bc3ff92fe5410640 e1c3ceb5963ab522 3d7c37d3d53b8942",
}


@pytest.mark.parametrize("difficulty", DIGESTS)
def test_tasks_are_those_that_policies_were_trained_on(difficulty):
    for scenario, digest in zip(SCENARIOS, DIGESTS[difficulty].split(), strict=True):
        source = SyntheticTasks(difficulty, {"train": 200}, shares={scenario: 1})
        assert digest_of(source.tasks("train")) == digest


def test_tasks_of_a_warm_start_are_those_that_policies_were_trained_on():
    knobs = {"width": [2, 2], "depth": [2, 2], "chain_depth": [1, 2]}
    short = SyntheticTasks("laptop", {"train": 200}, seed=1, knobs=knobs)
    assert digest_of(short.tasks("train")) == "8de9ae2d56963e89"
    assert digest_of(CopyTasks(200)) == "910a2aaf41c8a9bd"
    own = CopyTasks(200, phrases_of=SyntheticTasks(sizes={"train": 50}))
    assert digest_of(own) == "3596d0538a3dcf7c"


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_task_is_a_function_of_seed_split_and_index(difficulty):
    few = SyntheticTasks(difficulty, {"train": 4, "test": 2}, seed=5)
    many = SyntheticTasks(difficulty, {"train": 12}, seed=5)
    assert list(few.tasks("train")) == list(many.tasks("train"))[:4]
    assert few.tasks("train")[3] == many.tasks("train")[3]  # in any order
    other_seed = SyntheticTasks(difficulty, {"train": 4}, seed=6)
    pairs = zip(few.tasks("train"), other_seed.tasks("train"), strict=True)
    assert all(one.question != other.question for one, other in pairs)
    assert few.tasks("train")[0].question != few.tasks("test")[0].question


def test_the_sequence_behaves_like_one():
    tasks = SyntheticTasks(sizes={"train": 5}).tasks("train")
    assert len(tasks) == 5
    assert tasks[-1] == tasks[4]
    assert [task.task_id for task in tasks[1:3]] == [tasks[1].task_id, tasks[2].task_id]
    assert tasks[2] is tasks[2]  # generated once
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5 in split 'train'"):
            tasks[index]
    assert len(SyntheticTasks(sizes={"train": 5}).tasks("test")) == 0


def test_splits_share_words_but_no_entity():
    entities, words = {}, {}
    for split in ("train", "validation", "test"):
        texts = [
            task.question + json.dumps([call.arguments for call in task.gold_calls]) + task.answer
            for task in some_tasks(200, split)
        ]
        entities[split] = {name for text in texts for name in QUOTED.findall(text)}
        words[split] = {word for name in entities[split] for word in name.split()}
        assert all(split_of(name) == split for name in entities[split])
    assert not entities["train"] & entities["test"]
    assert not entities["train"] & entities["validation"]
    assert not entities["validation"] & entities["test"]
    assert words["test"] <= words["train"]


def test_tool_facts_keep_to_the_split():
    known = {f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS}
    pattern = re.compile(r"'([a-z]+ [a-z]+)'")
    for task in some_tasks(60, "test"):
        for tool in task.tools:
            names = known.intersection(pattern.findall(tool.source))
            assert names and {split_of(name) for name in names} == {"test"}


@given(start=st.integers(0, 500), blocks=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_every_aligned_block_of_four_holds_each_scenario_once(start, blocks):
    source = SyntheticTasks()
    scenarios = [source.scenario_of(index) for index in range(4 * start, 4 * (start + blocks))]
    assert Counter(scenarios) == dict.fromkeys(SCENARIOS, blocks)


@given(
    shares=st.dictionaries(st.sampled_from(SCENARIOS), st.floats(0.05, 1), min_size=1),
    count=st.integers(100, 600),
)
@settings(max_examples=30, deadline=None)
def test_shares_hold_for_every_length(shares, count):
    source = SyntheticTasks(shares=shares)
    counts = Counter(source.scenario_of(index) for index in range(count))
    for scenario, share in shares.items():
        assert counts[scenario] == pytest.approx(count * share / sum(shares.values()), abs=12)


def test_knobs_restrict_hops_and_width():
    knobs = {"depth": [1, 2], "width": (2, 2), "chain_depth": (1, 2), "distractors": (0, 0)}
    tasks = some_tasks(120, knobs=knobs)
    depths = {"single": {1}, "parallel_single": {1}}
    for task in tasks:
        assert len(set(task.gold_turns)) in depths.get(task.scenario, {1, 2})
        assert {call.name for call in task.gold_calls} == {tool.name for tool in task.tools}
        assert max(Counter(task.gold_turns).values()) == (2 if "parallel" in task.scenario else 1)
    assert {len(task.gold_calls) for task in tasks if task.scenario == "multi_hop"} == {1, 2}


def test_configuration_nodes_are_taken():
    node = OmegaConf.create({"depth": [2, 2], "error_styles": {"text": 1.0}})
    tasks = some_tasks(8, knobs=node, shares=OmegaConf.create({"multi_hop": 1}))
    assert {len(task.gold_calls) for task in tasks} == {2}
    assert resolve_difficulty("laptop", node).depth == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": "desktop"}, "difficulty='desktop' is not one of laptop, ftrl"),
        ({"shares": {"double": 1}}, "shares='double' is not one of single"),
        ({"shares": {"single": -1}}, "single=-1"),
        ({"shares": {"single": 0}}, "positive share"),
        ({"sizes": {"dev": 3}}, "split='dev' is not one of train, validation, test"),
        ({"sizes": {"train": -3}}, "train=-3"),
        ({"knobs": {"hops": 3}}, "knobs='hops' is not one of"),
        ({"knobs": {"depth": (3, 2)}}, r"depth=\(3, 2\)"),
        ({"knobs": {"depth": 3}}, "depth=3"),
        ({"knobs": {"width": (0, 2)}}, r"width=\(0, 2\)"),
        ({"knobs": {"attribute_share": 2}}, "attribute_share=2"),
        ({"knobs": {"vocabulary": "german"}}, "vocabulary='german'"),
        ({"knobs": {"unknown_entity": {"guess": 1}}}, "unknown_entity: 'guess'"),
        ({"knobs": {"error_styles": {"text": 0}}}, "error_styles="),
        ({"knobs": {"closings": {"multi_hop": {"distance": 1}}}}, "distance"),
        ({"knobs": {"closings": {"tree": {"list": 1}}}}, "closings: 'tree'"),
    ],
)
def test_refused_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticTasks(**options)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='dev'"):
        SyntheticTasks().tasks("dev")


def test_more_hops_than_relations_are_refused():
    tasks = SyntheticTasks(sizes={"train": 1}, shares={"multi_hop": 1}, knobs={"depth": (40, 40)})
    with pytest.raises(ValueError, match="no chain of 40 relations"):
        tasks.tasks("train")[0]


@given(st.integers(0, 4), st.floats(0, 1), st.integers(0, 6), st.randoms(use_true_random=False))
def test_draws_stay_in_range(low, share, span, rng):
    high = low + span
    assert low <= draw((low, high), rng) <= high
    assert low <= draw((low, low + share * span, high), rng) <= high


def test_draws_have_the_mean_that_is_asked_for():
    rng = random.Random(0)
    draws = [draw((2, 5.42, 10), rng) for _ in range(4000)]
    assert sum(draws) / len(draws) == pytest.approx(5.42, abs=0.1)


@pytest.mark.parametrize("preset", DIFFICULTIES.values(), ids=lambda preset: preset.name)
def test_every_knob_is_checked(preset):
    for knob in fields(preset):
        if knob.name not in ("name", "verbose"):
            with pytest.raises(ValueError, match=knob.name):
                replace(preset, **{knob.name: {"nothing": -1}})


def test_laptop_words_cover_every_text_of_a_task():
    words = laptop_words()
    assert len(words) == len(set(words)) < 400
    for task in some_tasks(300, shares=dict.fromkeys(SCENARIOS, 1)):
        texts = [task.question, task.answer, *(answer.output for answer in task.sub_answers)]
        texts += [json.dumps(tool.schema()["function"]["parameters"]) for tool in task.tools]
        texts += [f"{tool.name} {tool.description}" for tool in task.tools]
        texts += [json.dumps(call.arguments) for call in task.gold_calls]
        frames = {"type", "object", "properties", "string", "required", "enum", "default"}
        found = {word for text in texts for word in re.findall(r"\w+", text)}
        assert found - frames <= set(words)
