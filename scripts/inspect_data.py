"""A task set before it is trained on: sizes, answers, duplicates, leaks, gold replay, splits.

python scripts/inspect_data.py data=custom data.path=tasks.jsonl data.tools=tools.py
python scripts/inspect_data.py data=ftrl tokenizer=Qwen/Qwen3-8B
python scripts/inspect_data.py data=custom ... split.by=entities split.out=tasks.split.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection
from operator import attrgetter
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import train
from matchtir.reports import task_page
from matchtir.reports.task_statistics import (
    answer_types,
    find_pairs,
    profiles,
    replay_gold,
    shared_with_training,
    tool_use,
)
from matchtir.tasks.custom import row_from_task
from matchtir.tasks.files import splits_there
from matchtir.tasks.rows import SPLITS
from matchtir.tasks.splits import evenly_spaced, split_tasks
from matchtir.types import Task
from matchtir.utils.config_check import check, plain_errors
from matchtir.utils.loggers import quiet
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import register_resolvers

KNOWN_KEYS = f"{train.KNOWN_KEYS} {train.SETTINGS} tokenizer max_tasks replay near page split"


def run(config: DictConfig) -> dict[str, list[Task]]:
    """Print the tables and write the page; returns the tasks by split."""
    quiet()
    check(config, KNOWN_KEYS)
    task_set = instantiate(config.data)
    found_splits, missing = splits_there(task_set)
    for reason in missing:
        print(reason, file=sys.stderr)
    splits = {
        split: evenly_spaced(tasks, config.max_tasks or None, attrgetter("scenario"))
        for split, tasks in found_splits.items()
    }
    if config.split.out:
        splits = _split_anew(splits, config.split, getattr(task_set, "tools", ()))
    everything = [task for tasks in splits.values() for task in tasks]
    if not everything:
        raise SystemExit("the task set has no tasks")

    name = config.tokenizer or config.model.get("name_or_path")
    tokenizer = AutoTokenizer.from_pretrained(name) if name else instantiate(config.model).tokenizer
    renderer = instantiate(config.renderer)(tokenizer=tokenizer)
    found = profiles(splits, lambda task: len(renderer.prompt_ids(task)))
    sections = [
        task_page.profile_section(found),
        task_page.counts_section(
            "Answers", "type", {split: answer_types(tasks) for split, tasks in splits.items()}
        ),
        task_page.tools_section(tool_use(everything)),
        task_page.pairs_section(find_pairs(splits, config.near)),
        task_page.shared_section(shared_with_training(splits)),
    ]
    if config.replay:
        sandbox, at_once = instantiate(config.sandbox), config.rollout.episodes.max_concurrent or 64
        try:
            replays = {s: replay_gold(tasks, sandbox, at_once) for s, tasks in splits.items()}
        finally:
            sandbox.shutdown()
        sections += [task_page.replay_section(replays), task_page.problems_section(replays)]

    console = Console()
    console.width = max(console.width, 140)
    for section in sections:
        if section.rows or section.note:
            console.print(section.table())
    title = f"{HydraConfig.get().runtime.choices['data']}: tasks"
    task_page.write_task_page(Path(config.page), title, sections, found)
    console.print(f"page: {config.page}", soft_wrap=True)
    return splits


def _split_anew(
    splits: dict[str, list[Task]], settings: DictConfig, named: Collection[str]
) -> dict[str, list[Task]]:
    """The same tasks in other splits, which are written as rows too."""
    tasks = [task for found in splits.values() for task in found]
    names = split_tasks(tasks, settings.by, settings.shares, settings.seed)
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({**row_from_task(task, named), "split": name}, ensure_ascii=False) + "\n"
        for task, name in zip(tasks, names, strict=True)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    sizes = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
    print(f"{path}: {sizes} tasks that share no {settings.by}")
    return {
        split: [task for task, name in zip(tasks, names, strict=True) if name == split]
        for split in SPLITS
        if split in names
    }


@hydra.main(version_base="1.3", config_path="../configs", config_name="inspect_data")
def main(config: DictConfig) -> None:
    """The command line."""
    quiet()
    with plain_errors():
        run(config)


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_current_names(sys.argv[1:])
    main()
