"""Attempt the tasks of a benchmark with a policy: table, traces.jsonl and result.json.

python src/eval.py benchmark=ftrl policy=gold
python src/eval.py benchmark=nestful policy=random benchmark.max_tasks=50
python src/eval.py benchmark=ftrl policy=<run folder or Hugging Face model>
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from matchtir.evaluation.report import missing_modules, summarise, table, trace_records
from matchtir.evaluation.runner import evaluate, make_player, renderer_of_run
from matchtir.reports.trace import write_traces
from matchtir.utils.config_check import check
from matchtir.utils.run_dir import keep_config, register_resolvers
from matchtir.utils.run_files import RESULT_FILE

log = logging.getLogger(__name__)

KNOWN_KEYS = (
    *("benchmark", "sandbox", "assignment", "reward", "penalties", "turn_reduction"),
    *("renderer", "engine", "policy", "seed", "max_concurrent", "ckpt_path", "paths"),
)


def run(config: DictConfig) -> dict[str, object]:
    """One evaluation; what it found is also in the run's folder."""
    check(config, KNOWN_KEYS)
    folder = Path(config.paths.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keep_config(config, folder)

    benchmark = instantiate(config.benchmark)
    tasks = benchmark.select()
    player = make_player(
        config.policy,
        tasks,
        benchmark,
        renderer=instantiate(config.get("renderer")) or renderer_of_run(config.policy),
        engine=instantiate(config.engine),
        seed=config.seed,
    )
    log.info("%d tasks of %s, policy %s", len(tasks), benchmark.name, config.policy)
    sandbox = instantiate(config.sandbox)
    try:
        evaluation = evaluate(
            benchmark,
            tasks,
            player,
            sandbox,
            instantiate(config.reward),
            config.seed,
            config.max_concurrent,
        )
    finally:
        sandbox.shutdown()

    for module in sorted(missing_modules(evaluation)):
        log.warning("tools failed for want of the Python module %s: install it and repeat", module)
    summary = summarise(evaluation)
    result = {"benchmark": benchmark.name, "policy": config.policy, "seed": config.seed, **summary}
    write_traces(folder / "traces.jsonl", trace_records(evaluation))
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    console = Console()
    console.width = max(console.width, 140)  # in a file or a pipe it would be 80
    console.print(table(summary, "scenario", f"{benchmark.name}, policy {config.policy}"))
    if config.policy == "gold" and "gold_quality" in summary["groups"]:
        console.print(table(summary, "gold_quality", "by quality of the gold steps"))
    console.print(f"{len(tasks)} tasks in {summary['seconds']:.1f} s: {folder}")
    return result


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    """The command line."""
    run(config)


if __name__ == "__main__":
    register_resolvers()
    main()
