"""`src/eval.py`: configs compose, a run leaves its files, mistakes are named."""

import csv
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import eval as program
from matchtir.tasks.synthetic import SCENARIOS
from matchtir.utils.config_check import ConfigError
from matchtir.utils.options import UserError
from matchtir.utils.run_folder import register_resolvers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def configure():
    register_resolvers()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        # Without Hydra's command line there is no name of the job.
        identity = ("identity.group=eval", "identity.name=eval")
        yield lambda *overrides: compose("eval", [*overrides, *identity])


BENCHMARKS = sorted(path.stem for path in (ROOT / "configs/benchmark").glob("[!_]*.yaml"))


def test_every_benchmark_has_its_own_name_and_takes_attempts_and_a_part_of_the_tasks(configure):
    options = ("policy=gold", "attempts=4", "temperature=0.7", "max_tasks=8")
    config = configure(f"benchmark=[{','.join(BENCHMARKS)}]", *options)
    assert all(key == node.name for key, node in config.benchmark.items())
    assert {*BENCHMARKS} - {"out_of_domain"} <= config.benchmark.keys()  # which is several
    nodes = config.benchmark.values()
    assert {(n.attempts, n.sampling.temperature, n.max_tasks) for n in nodes} == {(4, 0.7, 8)}
    chosen = [task.scenario for task in instantiate(config.benchmark.synthetic).select()]
    assert len(chosen) == 8 and {*chosen} == {*SCENARIOS}


@pytest.mark.parametrize("benchmark", ["ftrl", "nestful", "toolhop"])
def test_a_missing_file_names_the_key_and_how_to_set_it(configure, tmp_path, benchmark):
    paths = (f"paths.data_dir={tmp_path}", f"paths.run_dir={tmp_path}")
    config = configure(f"benchmark={benchmark}", "policy=gold", *paths)
    with pytest.raises(FileNotFoundError, match=r"benchmark\.NAME\.tasks\.test_path=FILE"):
        program.run(config)


def test_without_the_variable_data_lie_in_a_folder_data(configure, monkeypatch):
    monkeypatch.delenv("MATCHTIR_DATA", raising=False)
    config = configure("benchmark=ftrl", "policy=gold")
    assert config.benchmark.ftrl.tasks.test_path == "data/ftrl/test.parquet"


@pytest.mark.parametrize(
    ("given", "lists"),
    [
        ("benchmark=ftrl,toolhop policy=a,b", "benchmark=[ftrl,toolhop] policy=a,b"),
        ("benchmark=ftrl against=x,y", "benchmark=[ftrl] against=[x,y]"),
        ("benchmark=[ftrl]", "benchmark=[ftrl]"),
        ("-m benchmark=a,b", "-m benchmark=a,b"),
    ],
)
def test_several_values_of_a_key_become_a_list_outside_sweeps(given, lists):
    assert program.with_lists(given.split()) == lists.split()


def test_an_evaluation_of_gold_and_one_of_chance_compared_with_it(configure, tmp_path, capsys):
    def evaluate(policy, folder, *more):
        overrides = ("max_tasks=16", "sandbox.workers=1", f"paths.run_dir={tmp_path / folder}")
        return program.run(configure("benchmark=synthetic", f"policy={policy}", *overrides, *more))

    gold = evaluate("gold", "first")
    assert "synthetic, policy gold" in capsys.readouterr().out
    summary = gold["benchmarks"]["synthetic"]
    assert summary["stop_reasons"] == {"answer": 16} and summary["calls"].keys() == {"ok"}
    everything = summary["groups"]["all"]["all"]
    perfect = {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert everything["solve_f1"] == everything["answer_f1"] == perfect
    assert json.loads((tmp_path / "first" / "result.json").read_text()) == gold
    assert len((tmp_path / "first/traces/synthetic.jsonl").read_text().splitlines()) == 16
    assert "policy: gold" in (tmp_path / "first" / "config.yaml").read_text()

    chance = evaluate("random", "second", f"against=[{tmp_path / 'first'}]", "label=chance")
    assert [row["policy"] for row in chance["table"]] == ["gold", "chance", "gain over gold"]
    everything = chance["benchmarks"]["synthetic"]["groups"]["all"]["all"]
    assert everything["answered"]["mean"] == 1.0 and everything["solve_r"]["mean"] < 0.3
    (difference,) = chance["differences"].values()
    assert difference["synthetic"]["tasks"] == 16
    assert difference["synthetic"]["answer_f1"]["mean"] < 0
    table = (tmp_path / "second" / "table.csv").read_text().splitlines()
    first, second, gain = csv.DictReader(table)
    assert float(first["synthetic Solve-F1"]) == 100.0
    assert float(gain["synthetic Solve-F1"]) == float(second["synthetic Solve-F1"]) - 100


def test_what_is_not_there_is_named(configure, tmp_path):
    base = ("benchmark=synthetic", "policy=gold", f"paths.run_dir={tmp_path / 'new'}")
    with pytest.raises(FileNotFoundError, match=r"against: .*nowhere has no evaluation"):
        program.run(configure(*base, f"against=[{tmp_path / 'nowhere'}]"))
    with pytest.raises(FileNotFoundError, match="ckpt_path=last: no interrupted run"):
        program.run(configure(*base, "ckpt_path=last"))
    with pytest.raises(ValueError, match="an evaluation goes on from last alone"):
        program.run(configure(*base, "ckpt_path=some.ckpt"))
    few = (*base, "policy=owner/name", "sandbox.max_sessions=8")  # fewer than wait for each other
    with pytest.raises(UserError, match="sandbox.max_sessions=8: 64 conversations"):
        program.run(configure(*few))
    for enough in ("max_concurrent=8", "rollout.engine.rejoin_after=null"):
        program.check_sessions(configure(*few, enough))
    with pytest.raises(ConfigError, match="policy: a value must be given"):
        program.run(configure(*base, "policy=???"))
    assert not (tmp_path / "new").exists()
