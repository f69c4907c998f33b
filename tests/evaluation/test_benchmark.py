"""Policies on benchmarks of tasks, through tokenizer, parser, sandbox and scorer."""

import json
from pathlib import Path

import pytest

from matchtir.evaluation.benchmark import Setting, TaskBenchmark
from matchtir.evaluation.metrics import MEASURES
from matchtir.evaluation.policies import renderer_of_run
from matchtir.evaluation.tables import report
from matchtir.policy.tiny.model import load_tiny
from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.engine import SamplingParams, ScriptedEngine
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT
from matchtir.tasks.synthetic.tasks import SyntheticTasks
from tests.evaluation.benchmark_helpers import COLUMNS, benchmark, plain_task, play


def test_limits_of_tokens_do_not_bind_scripts_but_limits_of_turns_do(sandbox, tmp_path):
    limits = EpisodeLimits(max_turns=1, max_prompt_tokens=1, max_response_tokens=1)
    (record,) = play(benchmark(plain_task(), limits=limits), "gold", sandbox, tmp_path).records
    assert record["stop_reason"] == "max_turns"
    assert (record["values"]["solve_r"], record["values"]["answered"]) == (1.0, 0.0)


def test_scores_and_groups_of_the_benchmark(sandbox, tmp_path):
    scored = benchmark(
        plain_task(),
        scores={"failed": "matchtir.evaluation.metrics.call_errors"},
        groups={"complexity": "matchtir.tasks.ftrl.complexity"},
    )
    (record,) = play(scored, "gold", sandbox, tmp_path).records
    assert tuple(record["values"]) == (*MEASURES, "failed", "reward")
    assert record["values"]["failed"] == 0.0
    assert record["groups"] == {"scenario": "single", "complexity": "1-3 calls"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train"}, "one: the split 'train' has no tasks"),
        ({"max_tasks": 0}, "max_tasks=0 must be 1 or more"),
        ({"attempts": 0}, "attempts=0 must be 1 or more"),
        ({"columns": {"F1": "f1"}}, "statistic of benchmark one='f1' is not one of success"),
        ({"attempts": 4}, r"benchmark one: attempts=4 at temperature=0 .*say temp"),
        ({"attempts": 4, "sampling": SamplingParams()}, "one: attempts=4 of policy=gold"),
        ({}, r"policy=gold.*one have no gold calls.*gold_traces_path"),
    ],
)
def test_a_benchmark_that_cannot_be_run_says_so(sandbox, tmp_path, settings, message):
    unknown = plain_task(gold_calls=(), metadata={"gold_unknown": True})
    with pytest.raises(ValueError, match=message):
        play(benchmark(unknown, **settings), "gold", sandbox, tmp_path)


def test_where_some_tasks_have_no_gold_calls_the_others_can_be_there_already(sandbox, tmp_path):
    unknown = plain_task(task_id="unknown", gold_calls=(), metadata={"gold_unknown": True})
    both = benchmark(plain_task(), unknown)
    play(both, "gold", sandbox, tmp_path)
    traces = tmp_path / "traces" / "one.jsonl"
    traces.write_text(traces.read_text().splitlines(keepends=True)[0])
    assert len(play(both, "gold", sandbox, tmp_path).records) == 2  # goes on with that one alone


def test_no_episode_at_once_is_refused():
    with pytest.raises(ValueError, match="max_concurrent=0 must be 1 or more"):
        Setting(Path(), None, None, max_concurrent=0)


@pytest.fixture
def load(monkeypatch):
    """Every policy with weights is a new tiny one; the names that were asked for."""
    asked = []

    def load_policy(name):
        asked.append(name)
        return load_tiny(hidden_size=32, layers=1, heads=2, key_value_heads=1)

    monkeypatch.setattr("matchtir.evaluation.policies.load_policy", load_policy)
    return asked


TWO_TASKS = SyntheticTasks(sizes={"test": 2})


def test_a_policy_with_weights_is_loaded_once_and_sampled(load, sandbox, tmp_path):
    limits = EpisodeLimits(max_turns=2, max_turn_tokens=8)
    played = TaskBenchmark("two", TWO_TASKS, COLUMNS, limits=limits)
    first = play(played, "some/model", sandbox, tmp_path / "first", seed=0)
    second = play(played, "some/model", sandbox, tmp_path / "second", seed=1)
    assert load == ["some/model"] * 2
    assert all(0 < record["turns"][0]["tokens"] <= 8 for record in first.records)
    # greedy: the seed changes nothing
    assert [r["turns"] for r in first.records] == [r["turns"] for r in second.records]


def test_attempts_are_sampled_with_seeds_of_their_own_and_go_on(load, sandbox, tmp_path):
    options = {"limits": EpisodeLimits(max_turns=1, max_turn_tokens=8)}
    options["sampling"] = SamplingParams(temperature=1.0)
    three = TaskBenchmark("three", TWO_TASKS, COLUMNS, attempts=3, **options)
    assert {"pass@1", "pass@2", "pass@3"} <= three.statistics.keys()
    assert three.columns == {**COLUMNS, "pass@3": "pass@3"}
    whole = play(three, "some/model", sandbox, tmp_path / "whole")
    assert [(r["group"], r["attempt"]) for r in whole.records] == [
        (task, attempt) for task in range(2) for attempt in range(3)
    ]
    assert len({json.dumps(record["turns"]) for record in whole.records}) == 6
    one = TaskBenchmark("one", TWO_TASKS, COLUMNS, **options)
    records = play(one, "some/model", sandbox, tmp_path).records
    assert untimed(records) == untimed(whole.records[::3])

    (tmp_path / "traces").joinpath("one.jsonl").rename(tmp_path / "traces" / "three.jsonl")
    resumed = play(three, "some/model", sandbox, tmp_path)
    assert untimed(resumed.records) == untimed(whole.records)
    numbers = report(tmp_path, "some", [(three, resumed)], [], {})["benchmarks"]["three"]
    assert (numbers["tasks"], numbers["attempts"]) == (2, 6)
    assert numbers["groups"]["all"]["all"]["pass@3"]["mean"] == 0.0


def test_a_runs_policy_gets_the_renderer_of_its_run(tmp_path):
    renderer = {"_target_": "matchtir.rollout.renderer.Renderer", "_partial_": True}
    config = {"renderer": renderer | {"system_prompt": "Be brief."}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert renderer_of_run(str(tmp_path))(tiny_tokenizer()).system_prompt == "Be brief."
    assert renderer_of_run("gold")(tiny_tokenizer()).system_prompt == DEFAULT_SYSTEM_PROMPT


def test_an_interrupted_evaluation_goes_on_where_it_stopped(sandbox, tmp_path, monkeypatch):
    synthetic = TaskBenchmark("synthetic", SyntheticTasks(sizes={"test": 12}), COLUMNS)
    whole = play(synthetic, "random", sandbox, tmp_path / "whole", seed=3)

    # The engine fails at the last turn of some attempt, others being finished or under way.
    generate, asked = ScriptedEngine.generate, []

    async def failing(self, session, *arguments):
        asked.append(session.split("/", 2)[2])
        if len(asked) == 20:
            raise ConnectionError("the machine went away")
        return await generate(self, session, *arguments)

    monkeypatch.setattr(ScriptedEngine, "generate", failing)
    with pytest.raises(ConnectionError):
        play(synthetic, "random", sandbox, tmp_path / "parts", seed=3)
    file = tmp_path / "parts" / "traces" / "synthetic.jsonl"
    done = file.read_bytes().count(b"\n") if file.exists() else 0
    assert done < 12
    with file.open("ab") as torn:
        torn.write(b'{"task": "synthetic/te')  # killed while it wrote

    before = len(asked)
    resumed = play(synthetic, "random", sandbox, tmp_path / "parts", seed=3)
    assert len({*asked[before:]}) == 12 - done
    assert untimed(resumed.records) == untimed(whole.records)
    assert [json.loads(line) for line in file.read_text().splitlines()] == list(resumed.records)


def untimed(records):
    return [{key: value for key, value in each.items() if key != "seconds"} for each in records]
