"""`src/eval.py`: configs compose, a run leaves its files, mistakes are named."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate

import eval as program
from matchtir.utils.config_check import ConfigError
from matchtir.utils.run_dir import register_resolvers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def configure():
    register_resolvers()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield lambda *overrides: compose("eval", overrides)


@pytest.mark.parametrize("benchmark", ["synthetic", "ftrl", "nestful"])
def test_every_benchmark_composes(configure, benchmark):
    config = configure(f"benchmark={benchmark}", "policy=gold")
    assert config.benchmark.name == benchmark


def test_a_missing_file_names_the_key_and_how_to_set_it(configure, tmp_path):
    config = configure("benchmark=ftrl", "policy=gold", f"paths.data_dir={tmp_path}")
    with pytest.raises(HydraException, match=r"test\.parquet.*benchmark\.tasks\.test_path=FILE"):
        instantiate(config.benchmark)


def test_without_the_variable_data_lie_beside_the_repository(configure, monkeypatch):
    monkeypatch.delenv("MATCHTIR_DATA", raising=False)
    config = configure("benchmark=ftrl", "policy=gold")
    assert config.benchmark.tasks.test_path == "../shared/data/ftrl/test.parquet"


def test_a_run_leaves_table_traces_and_result(configure, tmp_path, capsys):
    folder = tmp_path / "run"
    overrides = ("benchmark.max_tasks=4", "sandbox.workers=1", f"paths.run_dir={folder}")
    program.run(configure("benchmark=synthetic", "policy=gold", *overrides))
    assert "synthetic, policy gold" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    assert result["groups"]["all"]["all"]["solve_f1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert len((folder / "traces.jsonl").read_text().splitlines()) == 4
    assert "policy: gold" in (folder / "config.yaml").read_text()


def test_a_policy_must_be_named(configure, tmp_path):
    with pytest.raises(ConfigError, match="policy: a value must be given"):
        program.run(configure("benchmark=synthetic", f"paths.run_dir={tmp_path}"))
