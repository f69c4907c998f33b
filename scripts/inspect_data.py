"""A task set before it is trained on: sizes, answers, duplicates, leaks, gold replay, splits.

python scripts/inspect_data.py data=custom data.path=tasks.jsonl data.tools=tools.py
python scripts/inspect_data.py data=ftrl tokenizer=Qwen/Qwen3-8B
python scripts/inspect_data.py data=custom ... split.by=entities split.out=tasks.split.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
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
from matchtir.reports.gold_replay import replay_gold
from matchtir.reports.task_leaks import find_pairs, shared_with_training
from matchtir.reports.task_statistics import answer_types, profiles, tool_use
from matchtir.tasks.custom.rows import row_from_task
from matchtir.tasks.rows import SPLITS
from matchtir.tasks.splitting import split_tasks
from matchtir.types import Task
from matchtir.utils.config_check import check
from matchtir.utils.run_dir import register_resolvers

KNOWN_KEYS = (*train.KNOWN_KEYS, "tokenizer", "max_tasks", "replay", "near", "page", "split")


def run(config: DictConfig) -> dict[str, list[Task]]:
    """Print the tables and write the page; returns the tasks by split."""
    check(config, KNOWN_KEYS, train.GIVEN)
    splits = {split: _spread(tasks, config.max_tasks) for split, tasks in _read(config).items()}
    if config.split.out:
        splits = _split_anew(splits, config)
    everything = [task for tasks in splits.values() for task in tasks]
    if not everything:
        raise SystemExit("the task set has no tasks")

    name = config.tokenizer or config.model.get("name_or_path")
    tokenizer = AutoTokenizer.from_pretrained(name) if name else instantiate(config.model).tokenizer
    renderer = instantiate(config.renderer)(tokenizer=tokenizer)
    found = profiles(splits, lambda task: len(renderer.prompt_ids(task)))
    sections = [
        task_page.profile_section(found),
        task_page.shares_section(
            "Answers", "type", {split: answer_types(tasks) for split, tasks in splits.items()}
        ),
        task_page.tools_section(tool_use(everything)),
        task_page.pairs_section(find_pairs(splits, config.near)),
        task_page.shared_section(shared_with_training(splits)),
    ]
    if config.replay:
        sandbox = instantiate(config.sandbox)
        try:
            replays = {split: replay_gold(tasks, sandbox) for split, tasks in splits.items()}
        finally:
            sandbox.shutdown()
        sections += [task_page.replay_section(replays), task_page.problems_section(replays)]

    console = Console()
    console.width = max(console.width, 140)
    for section in sections:
        if section.rows:
            console.print(section.table())
    title = f"{HydraConfig.get().runtime.choices['data']}: tasks"
    task_page.write_task_page(Path(config.page), title, sections, found)
    console.print(f"page: {config.page}", soft_wrap=True)
    return splits


def _read(config: DictConfig) -> dict[str, Sequence[Task]]:
    """The tasks of each split that is there; files that are not are named, and done without."""
    for name, path in list(config.data.items()):
        if str(name).endswith("_path") and path and Path(path).suffix and not Path(path).exists():
            print(f"without data.{name}: there is no {path}", file=sys.stderr)
            config.data[name] = None
    task_set = instantiate(config.data)
    present = {"validation": "train"}  # the split whose file it is cut from
    return {
        split: task_set.tasks(split)
        for split in SPLITS
        if config.data.get(f"{present.get(split, split)}_path", "no such key") is not None
    }


def _spread(tasks: Sequence[Task], most: int | None) -> list[Task]:
    count = min(most or len(tasks), len(tasks))
    return [tasks[index * len(tasks) // count] for index in range(count)]


def _split_anew(splits: dict[str, list[Task]], config: DictConfig) -> dict[str, list[Task]]:
    """The same tasks in other splits, which are written as rows too."""
    tasks = [task for found in splits.values() for task in found]
    settings = config.split
    names = split_tasks(tasks, settings.by, settings.shares, settings.seed)
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({**row_from_task(task, own_tools=True), "split": name}, ensure_ascii=False)
        for task, name in zip(tasks, names, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = ", ".join(f"{count} {name}" for name, count in Counter(names).items())
    print(f"{path}: {sizes} tasks that share no {settings.by}")
    return {
        name: [task for task, chosen in zip(tasks, names, strict=True) if chosen == name]
        for name in SPLITS
        if name in names
    }


@hydra.main(version_base="1.3", config_path="../configs", config_name="inspect_data")
def main(config: DictConfig) -> None:
    """The command line."""
    run(config)


if __name__ == "__main__":
    register_resolvers()
    main()
