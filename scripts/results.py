"""The rows of results/runs.csv: what to train for a table, and what came out of it.

python scripts/results.py plan table1         which runs there are and how long the others take
python scripts/results.py starts table1       the commands of starting weights that these need
python scripts/results.py commands table1     the command of each run that is not there yet
python scripts/results.py collect FOLDER...   a row for each finished run and for its start
python scripts/results.py evaluate FOLDER...  adds what further attempts of their weights score

The tables are those of scripts/experiments.yaml. A run's folder is <name>__<start>_<seed>. Rows
have the scores that a run left of its greedy attempts at the 256 test tasks. The weights of runs
of the tables `COMPARED` and of their starts make further attempts: greedy ones at the first half of
these tasks, of which calls are counted, and at benchmark=out_of_domain; four sampled ones at a
quarter. What made the starts has rows, too: "start" and "skill", with seed 0.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.credit.outcome import solving_calls, succeeds
from matchtir.evaluation.metrics import MEASURES, measure
from matchtir.policy.tiny.model import load_start
from matchtir.reports.runs import read_run
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.tasks.synthetic import SCENARIOS, SyntheticTasks
from matchtir.tools.sandbox import succeeded
from matchtir.types import Task, Trajectory
from matchtir.utils.loggers import quiet
from matchtir.utils.run_folder import CONFIG_FILE, RESULT_FILE, register_resolvers, write_csv

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results" / "runs.csv"
RUNS = "logs/results"
COMPARED = ("table1", "twice")
SECONDS = 1.5  # an iteration, before anything is known
AT_ONCE = 128  # attempts
STEPS = (25, 50, 75, 100)  # of validation
HABITS = ["strong", "distractor", "drop", "repeat", "stop"]
OUT_OF_DOMAIN = ("longer", "renamed", "moved", "punctuated", "twins")
HOPS = (1, 2, 3, 4, 5, 6)
FACTS = (
    *("name", "start", "seed", "overrides", "config", "commit", "iterations", "matrix_lr", "lr"),
    *("sampled_tokens", "seconds", *(f"val_success_{step}" for step in STEPS)),
)
CALLS = ("calls_made", "calls_succeeded", "calls_failed", "calls_redundant")
GROUPS = tuple(f"success_{group}" for group in (*(f"{n}_calls" for n in HOPS), *SCENARIOS))
OUTSIDE = tuple(f"{s}_{m}" for s in OUT_OF_DOMAIN for m in ("success", "solve_f1", "bits"))
COLUMNS = (*FACTS, *MEASURES, *GROUPS, *CALLS, "sampled_success", "bits", *OUTSIDE)
Record = Mapping[str, Any]
Key = tuple[str, int, int]  # name, start, seed; of starting weights the seed is 0


def read_table(path: Path | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file, by default of every run; none where there is no file."""
    path = path or FILE
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: Record) -> Key:
    """What tells a row from others."""
    return row["name"], int(row["start"]), int(row["seed"])


def pack(successes: Sequence[float]) -> str:
    """One bit per task as hexadecimal digits; the first task is the highest bit."""
    bits = "".join(str(round(value)) for value in successes)
    return f"{int(bits, 2):0{len(bits) // 4}x}"


def unpack(digits: str) -> np.ndarray:
    """The successes [n] that `pack` packed."""
    return np.array([float(bit) for bit in f"{int(digits, 16):0{4 * len(digits)}b}"])


# -- what to train ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A training run of a table."""

    name: str
    start: int
    seed: int
    iterations: int
    overrides: str
    starts: str  # its starting weights are number `start` of these

    @property
    def key(self) -> Key:
        """Of its row."""
        return self.name, self.start, self.seed

    @property
    def folder(self) -> Path:
        """Where it is trained, in the project's folder."""
        return Path(RUNS, f"{self.name}__{self.start}_{self.seed}")

    def command(self) -> str:
        """The command that trains it, or goes on with it."""
        start = start_folder(self.starts, self.start)
        settings = f"{self.overrides} iterations={self.iterations} seed={self.seed}"
        return _command(f"{settings} model.folder={start}/policy", self.folder)


def start_folder(starts: str, number: int) -> Path:
    """Where starting weights are."""
    return Path("logs/policies", f"{starts}_{number}")


def _command(overrides: str, folder: Path) -> str:
    goes_on = (ROOT / folder / "checkpoints" / "last.ckpt").exists()
    resumed = " ckpt_path=last" if goes_on else ""
    return f"src/train.py {overrides} paths.run_dir={folder}{resumed}"


def experiments() -> Any:
    """The list of runs."""
    return OmegaConf.load(ROOT / "scripts" / "experiments.yaml")


def planned(table: str) -> list[Planned]:
    """The runs of a table, or of all of them; those of the first seed first.

    Raises:
        SystemExit: there is no such table.
    """
    config = experiments()
    tables = {"all": list(config.tables), "figure3": ["table1"], "habits": HABITS}
    runs: dict[Key, Planned] = {}
    for name in tables.get(table, [table]):
        if name not in config.tables:
            raise SystemExit(f"{table} is not one of {', '.join([*config.tables, *tables])}")
        node = config.tables[name]
        starts = node.get("from", "start")
        for seed, start, (run, overrides) in product(node.seeds, node.starts, node.runs.items()):
            settings = f"{overrides} {config.common}"
            each = Planned(run, start, seed, node.iterations, settings, starts)
            runs[each.key] = each
    return list(runs.values())


def start_commands(table: str) -> list[str]:
    """The commands that train further starting weights which the missing runs of a table need."""
    config = experiments()
    commands = {}
    for run in missing(table):
        folder = start_folder(run.starts, run.start)
        if run.starts in config.starts and not (ROOT / folder / RESULT_FILE).exists():
            habits = config.starts[run.starts].items()
            chosen = " ".join(f"+module.habits.{name}={share}" for name, share in habits)
            skilled = f"model.folder=logs/policies/skill_{run.start}/policy"
            overrides = f"experiment=habits seed={run.start} {skilled} {chosen} {config.common}"
            commands[folder] = _command(overrides, folder)
    return list(commands.values())


def missing(table: str) -> list[Planned]:
    """The runs of a table that have neither a row nor a finished folder."""
    known = {key_of(row) for row in read_table()}
    return [
        run
        for run in planned(table)
        if run.key not in known and not (ROOT / run.folder / RESULT_FILE).exists()
    ]


def plan(table: str, jobs: int) -> str:
    """How many runs there are, and how long the others take."""
    rows, runs, left = read_table(), planned(table), missing(table)
    timed = [row for row in rows if int(row["seed"])]  # not fine-tuning
    iterations = sum(int(row["iterations"]) for row in timed)
    each = sum(float(row["seconds"]) for row in timed) / iterations if timed else SECONDS
    hours = each * sum(run.iterations for run in left) / jobs / 3600
    there = f"{table}: {len(runs) - len(left)} of {len(runs)} runs are there"
    return f"{there}; the others take {hours:.1f} h, {jobs} at a time"


# -- what came out ---------------------------------------------------------------------------------


class Evaluation:
    """Attempts of policies at the tasks in and out of domain, with today's settings."""

    def __init__(self) -> None:
        register_resolvers()
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cheap = ["sandbox.isolation=none", "sandbox.fork=none"]
            cheap.append(f"rollout.engine.max_sessions={AT_ONCE}")
            self.config = compose("train", cheap)
            outside = compose("eval", ["benchmark=out_of_domain", "policy=none"]).benchmark
        self.benchmarks = {name: instantiate(outside[name]) for name in OUT_OF_DOMAIN}
        self.sandbox = instantiate(self.config.sandbox)

    def columns(self, policy: Path, tasks: Sequence[Task]) -> dict[str, Any]:
        """What attempts of this policy, at these and other tasks, add to a row."""
        config = self.config
        loaded = load_start(str(policy))
        loaded.policy.eval()
        renderer = instantiate(config.renderer)(tokenizer=loaded.tokenizer)
        engine = instantiate(config.rollout.engine)(stop_token_ids=renderer.stop_token_ids)
        engine.sync(loaded.policy, version=0)
        make_runner = instantiate(config.rollout.episodes)
        speaker = TokenSpeaker(engine, renderer)
        greedy, sampled = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)
        runner = make_runner(speaker, self.sandbox)
        inside = [group[0] for group in runner.run(tasks[: len(tasks) // 2], 1, greedy, seed=0)]
        groups = runner.run(tasks[: len(tasks) // 4], 4, sampled, seed=0)
        found: dict[str, Any] = count_calls(inside)
        found["sampled_success"] = np.mean([[succeeds(a) for a in group] for group in groups])
        for name, benchmark in self.benchmarks.items():
            runner = make_runner(speaker, self.sandbox, limits=benchmark.limits)
            groups = runner.run(benchmark.select(), 1, greedy, seed=0)
            scores = [measure(group[0]) for group in groups]
            for each in ("success", "solve_f1"):
                found[f"{name}_{each}"] = np.mean([score[each] for score in scores])
            found[f"{name}_bits"] = pack([score["success"] for score in scores])
        return found


def count_calls(attempts: Sequence[Trajectory]) -> dict[str, float]:
    """Calls per attempt; redundant ones succeed and solve no sub-question that was unsolved."""
    counts = []
    for each in attempts:
        well = [succeeded(result) for result in each.results]
        outputs = [result.output for result in each.results]
        solving = solving_calls(each.calls, outputs, each.task.sub_answers, well)
        counts.append((len(well), sum(well), len(well) - sum(well), sum(well) - sum(solving)))
    return dict(zip(CALLS, np.mean(counts, axis=0).tolist(), strict=True))


def scores_of(tasks: Sequence[Task], scores: Mapping[str, Record]) -> dict[str, Any]:
    """Means of a run's own test scores, also by number of calls and scenario, and every success."""
    ordered = [scores[task.task_id] for task in tasks]
    found: dict[str, Any] = {m: np.mean([score[m] for score in ordered]) for m in MEASURES}
    success = np.array([score["success"] for score in ordered])
    hops = np.array([len(task.gold_calls) for task in tasks])
    scenarios = np.array([task.scenario for task in tasks])
    by_group = [success[hops == n] for n in HOPS] + [success[scenarios == s] for s in SCENARIOS]
    found |= {name: part.mean() for name, part in zip(GROUPS, by_group, strict=True)}
    return {**found, "bits": pack(success.tolist())}


def facts_of(folder: Path, key: Key, commit: str) -> dict[str, Any]:
    """What identifies the run of a folder, and what it took; nothing where it is not there."""
    facts = dict(zip(FACTS, key, strict=False))
    if not (folder / RESULT_FILE).exists():
        return facts | {"iterations": 0, "seconds": 0}
    config: Any = OmegaConf.load(folder / CONFIG_FILE)
    run = read_run(folder)
    optimizer = config.module.get("optimizer", config.optimizer)
    tags = [tag for tag in config.identity.group.split() if not tag.startswith("model.folder=")]
    none: tuple[list[int], list[float]] = ([], [])
    speeds, seconds = (run.curves.get(c, none)[1] for c in ("train/tokens_per_s", "time/rollout"))
    validation = dict(zip(*run.curves.get("val/success", none), strict=True))
    return {
        **facts,
        "overrides": " ".join(tags),
        "config": hashlib.sha256(run.method.encode()).hexdigest()[:8],
        "commit": commit,
        "iterations": int(config.iterations),
        "matrix_lr": optimizer.get("matrix_lr", optimizer.lr),
        "lr": optimizer.lr,
        "sampled_tokens": round(sum(a * b for a, b in zip(speeds, seconds, strict=False))),
        "seconds": round(run.seconds or 0.0),
        **{f"val_success_{step}": validation.get(step, "") for step in STEPS},
    }


def start_of(folder: Path) -> Path:
    """The folder of the run that made the starting weights of a run."""
    return Path(OmegaConf.load(folder / CONFIG_FILE).model.folder).parent


def scores_before(folder: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """The scores of a run's starting weights."""
    return scores_of(tasks, json.loads((folder / "before.json").read_text(encoding="utf-8")))


def finished(folders: Sequence[Path]) -> Iterator[tuple[Path, Key]]:
    """The finished runs at or below these folders whose names say what they are."""
    for folder in sorted({file.parent for path in folders for file in path.rglob(RESULT_FILE)}):
        named = re.fullmatch(r"(.+?)_{1,2}(\d+)_(\d+)", folder.name)
        if named:
            yield folder, (named[1], int(named[2]), int(named[3]))


def test_tasks() -> list[Task]:
    """Those that every run scores itself at."""
    return list(SyntheticTasks(sizes={"test": 256}).tasks("test"))


def collect(folders: Sequence[Path], commit: str, out: Path) -> None:
    """Add a row for each run that has none, and for what made its start where that has none."""
    rows: dict[Key, Record] = {key_of(row): row for row in read_table(out)}
    tasks, starts = test_tasks(), {run.name: run.starts for run in planned("all")}
    for folder, key in finished(folders):
        if key in rows or key[0] not in starts:
            continue
        run = read_run(folder)
        if run.seed != key[2] or run.after is None:
            raise SystemExit(f"{folder}: not a run of seed {key[2]}")
        made, before = start_of(folder), scores_before(folder, tasks)
        start = (starts[key[0]], key[1], 0)
        if start not in rows:
            rows[start] = facts_of(made, start, commit) | before
            skill = ("skill", key[1], 0)
            if (made / "before.json").exists() and skill not in rows:
                scores = scores_before(made, tasks)
                rows[skill] = facts_of(start_of(made), skill, commit) | scores
        if rows[start]["bits"] != before["bits"]:
            raise SystemExit(f"{folder}: another start than {start[0]} {start[1]}")
        rows[key] = facts_of(folder, key, commit) | scores_of(tasks, run.after)
        print(f"{folder.name}: success {float(rows[key]['success']):.3f}")
    write(rows, out)


def evaluate(folders: Sequence[Path], out: Path) -> None:
    """Add the scores of further attempts to the rows that are to have them, one by one."""
    rows: dict[Key, Record] = {key_of(row): row for row in read_table(out)}
    policies: dict[Key, Path] = {}
    compared = {run.key: run for table in COMPARED for run in planned(table)}
    for folder, key in finished(folders):
        if key in rows and key in compared:
            policies[key] = folder / "policy"
            policies[compared[key].starts, key[1], 0] = start_of(folder) / "policy"
    left = [key for key in sorted(policies) if not rows[key].get("twins_bits")]
    evaluation, tasks = Evaluation() if left else None, test_tasks()
    for key in left:
        assert evaluation is not None
        started = time.perf_counter()
        rows[key] = {**rows[key], **evaluation.columns(policies[key], tasks)}
        write(rows, out)
        print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)
    if evaluation:
        evaluation.sandbox.shutdown()


def write(rows: Mapping[Key, Record], path: Path) -> None:
    """Every row in a fixed order; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    cells = ([_cell(rows[key].get(name, "")) for name in COLUMNS] for key in sorted(rows))
    write_csv(new, COLUMNS, cells)
    os.replace(new, path)


def _cell(value: Any) -> Any:
    return round(float(value), 5) if isinstance(value, float | np.floating) else value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("plan", "starts", "commands", "collect", "evaluate"))
    parser.add_argument("names", nargs="+", help="a table, or folders of runs, or above")
    parser.add_argument("--commit", default="", help="of the code that trained the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    quiet()
    if options.what == "plan":
        print(plan(options.names[0], options.jobs))
    elif options.what == "starts":
        print("\n".join(start_commands(options.names[0])))
    elif options.what == "commands":
        print("\n".join(run.command() for run in missing(options.names[0])))
    elif options.what == "collect":
        collect([Path(name) for name in options.names], options.commit, options.out)
    else:
        evaluate([Path(name) for name in options.names], options.out)


if __name__ == "__main__":
    main()
