"""Scripted policies on benchmarks, through tokenizer, parser, sandbox and scorer."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from matchtir.credit.assignment import HardAssignment
from matchtir.credit.rewards import MatchReward
from matchtir.credit.similarity import Similarity
from matchtir.evaluation.metrics import MEASURES
from matchtir.evaluation.report import missing_modules, summarise, table, trace_records
from matchtir.evaluation.runner import Benchmark, evaluate, make_player, renderer_of_run
from matchtir.policy import loading
from matchtir.policy.tokenizer import tiny_tokenizer
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT
from matchtir.tasks.ftrl import FtrlTasks
from matchtir.tasks.synthetic.tasks import SyntheticTasks
from matchtir.tools.process_pool import ProcessPoolSandbox
from matchtir.types import StopReason, SubAnswer, Task, ToolCall, ToolSpec

REWARD = MatchReward(Similarity(), HardAssignment())


class Listed:
    """A task set of given tasks."""

    def __init__(self, *tasks):
        self._tasks = tasks

    def tasks(self, split):
        return self._tasks if split == "test" else ()


@pytest.fixture(scope="module")
def sandbox():
    pool = ProcessPoolSandbox(workers=2)
    yield pool
    pool.shutdown()


def play(policy, benchmark, sandbox, seed=0):
    tasks = benchmark.select()
    player = make_player(policy, tasks, benchmark, seed=seed)
    return evaluate(benchmark, tasks, player, sandbox, REWARD, seed)


def plain_task(source, gold="found 1902", **changes):
    schema = {"type": "object", "properties": {}}
    fields = {
        "task_id": "t",
        "question": "When?",
        "tools": (ToolSpec("look", "Looks.", schema, source),),
        "gold_calls": (ToolCall("look", {}),),
        "answer": "1902",
        "sub_answers": (SubAnswer("look", gold),),
        "scenario": "single",
    }
    return Task(**{**fields, **changes})


def test_gold_solves_synthetic_tasks_and_chance_does_not(sandbox):
    benchmark = Benchmark("synthetic", SyntheticTasks(sizes={"test": 16}))
    gold = play("gold", benchmark, sandbox)
    assert all(values["solve_f1"] == values["answer_f1"] == 1.0 for values in gold.values)
    assert all(item.stop_reason is StopReason.ANSWER for item in gold.trajectories)
    chance = play("random", benchmark, sandbox)
    assert all(values["answered"] == 1.0 for values in chance.values)
    assert sum(values["solve_r"] for values in chance.values) < 0.3 * len(chance.values)
    assert all(values["reward"] < 5 for values in chance.values)


def test_limits_of_tokens_do_not_bind_scripts_but_limits_of_turns_do(sandbox):
    limits = EpisodeLimits(max_turns=1, max_prompt_tokens=1, max_response_tokens=1)
    task = plain_task("def look():\n    return 'found 1902'\n")
    evaluation = play("gold", Benchmark("one", Listed(task), limits=limits), sandbox)
    (trajectory,) = evaluation.trajectories
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert evaluation.values[0]["solve_r"] == 1.0
    assert evaluation.values[0]["answered"] == 0.0


def test_scores_of_the_benchmark_are_measured_too(sandbox):
    task = plain_task("def look():\n    return 'found 1902'\n")
    scores = {"length": lambda trajectory: len(trajectory.turns)}
    evaluation = play("gold", Benchmark("one", Listed(task), scores=scores), sandbox)
    assert tuple(evaluation.values[0]) == (*MEASURES, "length", "reward")
    assert evaluation.values[0]["length"] == 2.0


def test_gold_needs_gold_calls(sandbox):
    with pytest.raises(ValueError, match=r"policy=gold.*no gold calls.*gold_traces_path"):
        play("gold", Benchmark("one", Listed(plain_task("", gold_calls=()))), sandbox)


def test_tasks_are_spread_evenly():
    tasks = [plain_task("", task_id=str(index)) for index in range(10)]
    chosen = Benchmark("ten", Listed(*tasks), max_tasks=4).select()
    assert [task.task_id for task in chosen] == ["0", "2", "5", "7"]
    assert len(Benchmark("ten", Listed(*tasks), max_tasks=99).select()) == 10


def test_a_benchmark_without_tasks_is_an_error():
    with pytest.raises(ValueError, match=r"none: the split 'train' has no tasks"):
        Benchmark("none", Listed(), split="train").select()
    with pytest.raises(ValueError, match="max_tasks must be at least 1"):
        Benchmark("none", Listed(), max_tasks=0)


def test_a_policy_with_weights_is_sampled(monkeypatch, sandbox):
    asked = []

    def load_policy(name):
        asked.append(name)
        return loading.load_tiny(hidden_size=32, layers=1, heads=2, key_value_heads=1)

    monkeypatch.setattr("matchtir.evaluation.runner.load_policy", load_policy)
    limits = EpisodeLimits(max_turns=2, max_turn_tokens=8)
    benchmark = Benchmark("two", SyntheticTasks(sizes={"test": 2}), limits=limits)
    first, second = (play("some/model", benchmark, sandbox, seed) for seed in (0, 1))
    assert asked == ["some/model"] * 2
    assert all(0 < len(item.turns[0].token_ids) <= 8 for item in first.trajectories)
    # greedy: the seed changes nothing
    assert [item.turns for item in first.trajectories] == [
        item.turns for item in second.trajectories
    ]


def test_a_runs_policy_gets_the_renderer_of_its_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "renderer:\n"
        "  _target_: matchtir.rollout.renderer.Renderer\n"
        "  _partial_: true\n"
        "  system_prompt: Be brief.\n"
    )
    assert renderer_of_run(str(tmp_path))(tiny_tokenizer()).system_prompt == "Be brief."
    assert renderer_of_run("gold")(tiny_tokenizer()).system_prompt == DEFAULT_SYSTEM_PROMPT


def test_summary_table_and_traces(sandbox):
    good = plain_task("def look():\n    return 'found 1902'\n")
    broken = plain_task(
        "def look():\n    import no_such_module\n",
        task_id="u",
        scenario="multi",
        metadata={"gold_quality": "clean"},
    )
    evaluation = play("gold", Benchmark("two", Listed(good, broken)), sandbox)
    summary = json.loads(json.dumps(summarise(evaluation)))
    everything = summary["groups"]["all"]["all"]
    assert everything["tasks"] == 2
    assert everything["solve_r"]["mean"] == 0.5
    assert everything["solve_r"]["low"] == 0.0
    assert everything["solve_r"]["high"] == 1.0
    assert set(summary["groups"]["scenario"]) == {"single", "multi"}
    assert summary["groups"]["gold_quality"]["clean"]["solve_r"]["mean"] == 0.0
    assert summary["stop_reasons"] == {"answer": 2}
    assert summary["result_statuses"] == {"ok": 1, "exception": 1}
    assert missing_modules(evaluation) == {"no_such_module"}

    console = Console(width=130, record=True, file=io.StringIO())
    console.print(table(summary, "scenario", "two, policy gold"))
    text = console.export_text()
    assert "single" in text
    assert "0.000-1.000" in text

    first, second = json.loads(json.dumps(trace_records(evaluation)))
    assert first["turns"][0]["calls"][0]["output"] == "found 1902"
    assert first["values"]["solve_f1"] == 1.0
    assert second["scenario"] == "multi"


needs_data = pytest.mark.skipif(
    "MATCHTIR_DATA" not in os.environ, reason="MATCHTIR_DATA is not set"
)


@needs_data
def test_gold_traces_of_ftrl_solve_their_rows(sandbox):
    folder = Path(os.environ["MATCHTIR_DATA"]) / "ftrl"
    tasks = FtrlTasks(
        test_path=str(folder / "test.parquet"),
        gold_traces_path=str(folder / "test_gold_derived.jsonl"),
    )
    evaluation = play("gold", Benchmark("ftrl", tasks), sandbox)
    missing = missing_modules(evaluation)
    checked = 0
    for trajectory, values in zip(evaluation.trajectories, evaluation.values, strict=True):
        task = trajectory.task
        needs = any(f"import {module}" in tool.source for module in missing for tool in task.tools)
        if task.metadata["gold_quality"] in ("clean", "literal") and not needs:
            checked += 1
            assert values["solve_r"] == 1.0, task.task_id
    assert checked >= 124  # of 125; one needs pytz
