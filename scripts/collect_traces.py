"""Gold traces from a teacher: it attempts each question with the real tools; what is right is kept.

python scripts/collect_traces.py data=custom data.path=questions.jsonl data.tools=tools.py \
    teacher=https://api.openai.com/v1 endpoint.model=... out=traces
python scripts/collect_traces.py ... teacher=logs/matchtir_hard/runs/<time> out=traces

Run again, it goes on where it stopped. `out/gold.jsonl` are rows of data=custom.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import train
from matchtir.collection import Attempt, Collector, gold_task
from matchtir.evaluation.policies import find_policy
from matchtir.evaluation.traces import AttemptLog
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.runner import EpisodeRunner
from matchtir.tasks.custom import row_from_task
from matchtir.types import Task
from matchtir.utils.config_check import check, plain_errors
from matchtir.utils.loggers import quiet
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import keep_config, register_resolvers

KNOWN_KEYS = f"""{train.KNOWN_KEYS} {train.SETTINGS}
    teacher endpoint out attempts enough least_outcome alternatives temperature max_concurrent price
"""
# What decides what an attempt is: a folder is gone on with under the same ones only.
FIXED = ("teacher", "endpoint.model", "temperature", "least_outcome", "data.path", "data.tools")


def run(config: DictConfig) -> dict[str, object]:
    """Collect, and write what was found."""
    quiet()
    check(config, KNOWN_KEYS)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    keep_config(OmegaConf.create({key: OmegaConf.select(config, key) for key in FIXED}), folder)
    task_set = instantiate(config.data)
    tasks = task_set.rows()
    wanted = [task for task in tasks if not task.gold_calls]
    policy = find_policy(
        config.teacher,
        engine=instantiate(config.rollout.engine),
        endpoint=instantiate(config.endpoint),
    )
    speaker = policy.speaker(_no_script)
    limits = policy.limits(instantiate(config.rollout.limits))
    sandbox = instantiate(config.sandbox)
    collector = Collector(
        EpisodeRunner(speaker, sandbox, limits),
        SamplingParams(temperature=config.temperature),
        AttemptLog(folder / "attempts.jsonl"),
        attempts=config.attempts,
        enough=config.enough,
        least_outcome=config.least_outcome,
        max_concurrent=config.max_concurrent,
        seed=config.seed,
    )
    try:
        collector.run(wanted, _say)
    finally:
        sandbox.shutdown()

    teacher = {"teacher": config.endpoint.model or config.teacher}
    attempts = {task.task_id: collector.of(task) for task in wanted}
    gold: dict[str, Task] = {}
    for task in wanted:
        made = attempts[task.task_id]
        if traces := [attempt.trace for attempt in made if attempt.trace is not None]:
            provenance = teacher | {"temperature": config.temperature, "attempts": len(made)}
            gold[task.task_id] = gold_task(task, traces, config.alternatives, provenance)
    rows = [gold.get(task.task_id, task) for task in tasks]
    lines = [
        json.dumps(row_from_task(task, task_set.tools), ensure_ascii=False) + "\n"
        for task in rows
        if task.gold_calls or task.task_id in gold
    ]
    (folder / "gold.jsonl").write_text("".join(lines), encoding="utf-8")
    summary = summarise(attempts, list(gold.values()), policy.counts, config.price)
    summary["attempts that could not be made"] = collector.refused
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(summary_table(summary))
    console.print(f"{len(lines)} rows with gold calls: {folder / 'gold.jsonl'}", soft_wrap=True)
    return summary


def _say(attempt: Attempt) -> None:
    verdict = "kept" if attempt.trace is not None else "right, but does not replay"
    if not attempt.right:
        verdict = f"outcome {attempt.outcome:.2f}, ended by {attempt.stop_reason}"
    print(f"{attempt.task}: {attempt.calls} calls, {verdict}", flush=True)


def _no_script(name: str, seed: int) -> dict[str, tuple[str, ...]]:
    raise SystemExit(f"teacher={name}: a script is no teacher")


def summarise(
    attempts: Mapping[str, Sequence[Attempt]],
    gold: Sequence[Task],
    usage: Mapping[str, int],
    price: Mapping[str, float],
) -> dict[str, Any]:
    """Counts of tasks, attempts, calls and tokens; all of the folder, tokens of this run alone.

    Args:
        attempts: at each task, by its id.
        gold: the tasks that got gold calls.
        usage: requests and tokens of this run.
        price: of a million tokens, "input" and "output".
    """
    made = [attempt for group in attempts.values() for attempt in group]
    kept = [attempt for attempt in made if attempt.trace is not None]
    tokens = {"input": usage.get("prompt_tokens", 0), "output": usage.get("completion_tokens", 0)}
    solved = {task.task_id for task in gold}
    return {
        "tasks": len(attempts),
        "tasks with gold calls": len(solved),
        "attempts": len(made),
        "right attempts": sum(attempt.right for attempt in made),
        "right attempts that replay": len(kept),
        "distinct traces": sum(1 + len(task.alternative_gold_calls) for task in gold),
        "calls in right attempts": sum(attempt.calls for attempt in kept),
        "calls kept of them": sum(len(attempt.trace or ()) for attempt in kept),
        "requests": usage.get("requests", 0),
        "requests made again": usage.get("retries", 0),
        "input tokens": tokens["input"],
        "output tokens": tokens["output"],
        "cost": round(sum(tokens[kind] * price[kind] for kind in tokens) / 1e6, 6),
        "unsolved": [name for name in attempts if name not in solved],
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The counts, one per row."""
    table = Table("collected", "", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in summary.items():
        if not isinstance(value, list):
            table.add_row(name, f"{value:,}")
    return table


@hydra.main(version_base="1.3", config_path="../configs", config_name="collect_traces")
def main(config: DictConfig) -> None:
    """The command line."""
    quiet()
    with plain_errors():
        missing = run(config)["attempts that could not be made"]
    if missing:
        raise SystemExit(f"{missing} attempts could not be made; the same command makes them")


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_current_names(sys.argv[1:])
    main()
