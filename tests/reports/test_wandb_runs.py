"""Runs from W&B's service; the offline ones are tested with the logger that writes them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matchtir.reports.wandb_runs import online_runs

SCRIPT = Path(__file__).parents[2] / "scripts" / "wandb_compare.py"


class File:
    def __init__(self, path: str) -> None:
        self.path = path

    def download(self, root: str, replace: bool) -> None:
        file = Path(root) / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"columns": ["task", "solve_f1"], "data": [["t1", 0.25]]}))


class Run:
    """What `wandb.Api` gives for one run."""

    name, group = "grpo seed=3", "grpo"
    config = {"seed": 3, "lr": 0.1, "_wandb": {}}  # noqa: RUF012

    def scan_history(self) -> list[dict[str, Any]]:
        table = {"_type": "table-file", "path": "media/table/t.table.json"}
        return [
            {"_runtime": 1.0, "iteration": 0, "test/scores_before": table},
            {"_runtime": 2.0, "iteration": 1, "train/reward": 0.5, "samples": {"nrows": 1}},
            {"_runtime": 9.0, "iteration": 1, "test/scores_after": table, "train/reward": None},
        ]

    def file(self, path: str) -> File:
        return File(path)


def test_runs_of_a_project() -> None:
    class Api:
        def runs(self, project: str, filters: dict[str, Any]) -> list[Run]:
            assert (project, filters) == ("me/matchtir", {"group": "grpo"})
            return [Run()]

    (run,) = online_runs(Api(), "me/matchtir", {"group": "grpo"})
    assert (run.name, run.group, run.seed, run.seconds) == ("grpo seed=3", "grpo", 3, 9.0)
    assert run.settings == {"lr": 0.1}
    assert run.curves == {"train/reward": ([1], [0.5])}
    assert run.before == run.after == {"t1": {"solve_f1": 0.25}}


@pytest.mark.slow  # W&B's client tries again and again
def test_a_service_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    environment = {
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, "me/no-such-project"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "me/no-such-project is no folder, and as a project" in done.stderr
