"""The Berkeley Function Calling Leaderboard, played and scored by its own package, `bfcl-eval`.

The package pins other versions of everything, so it has an environment of its own. It talks to the
policy over OpenAI's protocol, executes the calls in its simulated worlds and checks their state.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchtir.evaluation import bfcl_worker
from matchtir.evaluation.benchmark import (
    Outcome,
    Setting,
    attempt_record,
    check_attempts,
    check_chance,
)
from matchtir.evaluation.policies import Address, EvaluatedPolicy, random_turn_texts
from matchtir.evaluation.statistics import Mean, MeanOf, Statistic, passes, shown
from matchtir.evaluation.traces import Record, attempt_name, drop_unfinished_line, write_traces
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits, derive_seed
from matchtir.tasks.bfcl import BfclEntry, entry_from_row, gold_turn_texts
from matchtir.tasks.rows import read_jsonl
from matchtir.tasks.splits import spread
from matchtir.types import (
    CallStatus,
    ResultStatus,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)

log = logging.getLogger(__name__)

FAMILIES = {
    "multi_turn": ("base", "miss_func", "miss_param", "long_context"),
    "memory": ("kv", "rec_sum", "vector"),
    "web_search": ("base", "no_snippet"),
}
CATEGORIES = tuple(f"{family}_{kind}" for family, kinds in FAMILIES.items() for kind in kinds)


class BfclBenchmark:
    """Categories of BFCL, each with its accuracy.

    `bfcl` is the paper's mean(multi-turn, agentic), where agentic is mean(memory, web search) and a
    family the mean of its categories. It is NaN, as a family is, where a category is missing: one
    that was not asked for, or cannot be run here (web search wants a key, the vector memory a model
    of sentence-transformers). The notes say which and why.

    Args:
        python: of the environment that has `bfcl-eval`.
        categories: by their official names.
        columns: of the table over all benchmarks.
        max_prompt_tokens: of a policy with weights; a conversation that is longer has failed.
        max_turn_tokens: sampled in one message of such a policy.
        sampling: how tokens are drawn; greedy by default.
        attempts: at each conversation, in a folder of results each.
        max_tasks: run only so many of each category, spread evenly, and what they need; None: all.

    Raises:
        FileNotFoundError: there is no such environment.
        ValueError: a category of another kind, `max_tasks` or `attempts` below 1, or several greedy
            attempts.
    """

    passed = "correct"

    def __init__(
        self,
        python: str,
        categories: Sequence[str],
        columns: Mapping[str, str],
        max_prompt_tokens: int = 30_000,
        max_turn_tokens: int = 4_096,
        max_tasks: int | None = None,
        sampling: SamplingParams | None = None,
        attempts: int = 1,
        name: str = "bfcl",
    ) -> None:
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
        # Not resolved: the path through the environment's folder is what makes it that environment.
        self.python = Path(python).absolute()
        if not self.python.is_file():
            raise FileNotFoundError(
                f"{self.python}: there is no environment for BFCL; `make bfcl-env` makes it"
            )
        self.name = name
        self.sampling = sampling or SamplingParams(temperature=0.0)
        check_attempts(f"benchmark {name}", attempts, self.sampling.temperature)
        self.attempts = attempts
        self.categories = list(categories)
        if not categories or (odd := sorted(set(categories) - set(CATEGORIES))):
            raise ValueError(f"categories={odd if categories else []}: of {', '.join(CATEGORIES)}")
        families = {
            family: MeanOf([Mean(f"{family}_{kind}") for kind in kinds])
            for family, kinds in FAMILIES.items()
        }
        agentic = MeanOf([families["memory"], families["web_search"]])
        common = ("correct", "turns", "calls", "reward")
        self.statistics: dict[str, Statistic] = {
            "bfcl": MeanOf([families["multi_turn"], agentic]),
            **families,
            **{name: Mean(name) for name in (*common, *passes(attempts))},
        }
        self.details = shown([*FAMILIES, *common], attempts)
        self.columns = {**columns, **{name: name for name in passes(attempts)[-1:]}}
        self.limits = EpisodeLimits(
            max_prompt_tokens=max_prompt_tokens, max_turn_tokens=max_turn_tokens
        )
        self.max_tasks = max_tasks

    def run(self, policy: EvaluatedPolicy, setting: Setting) -> Outcome:
        """Let the package generate what is missing and score everything."""
        check_chance(f"benchmark {self.name}", self.attempts, policy)
        started = time.perf_counter()
        folders = [
            (setting.folder / attempt_name(self.name, attempt)).absolute()
            for attempt in range(self.attempts)
        ]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        described = json.loads(self._worker(folders[0], ["describe", *self.categories]))
        entries = {row["id"]: entry_from_row(row) for row in described["entries"]}
        chosen = self._choose(list(entries.values()), folders)
        categories = [name for name in self.categories if name not in described["gaps"]]
        log.info("%s: %d conversations; %s", self.name, len(chosen), folders[0] / "worker.log")
        notes = [f"{name} was not run: {why}" for name, why in described["gaps"].items()]
        if missing := [name for name in CATEGORIES if name not in categories]:
            notes.append(f"no BFCL mean, which is over all categories: no {', '.join(missing)}")
        records = []
        for attempt, folder in enumerate(folders if categories else ()):
            lines, troubles = self._play(attempt, folder, categories, chosen, policy, setting)
            records += [
                _record((number, attempt), entries[line["id"]], line, setting)
                for number, line in enumerate(lines)
            ]
            notes += troubles
        records.sort(key=lambda record: record["group"])
        write_traces(setting.attempts(self.name).path, records)
        return Outcome(records, time.perf_counter() - started, notes)

    def _play(
        self,
        attempt: int,
        folder: Path,
        categories: Sequence[str],
        chosen: Sequence[BfclEntry],
        policy: EvaluatedPolicy,
        setting: Setting,
    ) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
        """What the package scored of one attempt at everything, and what went wrong in it."""
        for file in folder.rglob("*_result.json"):
            drop_unfinished_line(file)  # of a process that was killed

        def scripts(name: str, seed: int) -> Mapping[str, Sequence[str]]:
            return {entry.entry_id: scripted_texts(entry, name, seed) for entry in chosen}

        seed = derive_seed(setting.seed, attempt) if attempt else setting.seed
        with policy.served(scripts, self.limits, self.sampling, seed) as address:
            arguments = ["run", str(setting.max_concurrent), *categories]
            self._worker(folder, arguments, address)
        lines = read_jsonl(folder / "scored.jsonl")
        return lines, _troubles(lines, address)

    def _choose(self, entries: Sequence[BfclEntry], folders: Sequence[Path]) -> list[BfclEntry]:
        """The entries to run; where they are not all, the files that tell the package so."""
        if self.max_tasks is None:
            return list(entries)
        ids: dict[str, set[str]] = {}
        for category in self.categories:
            scored = [e for e in entries if e.category == category and e.is_scored]
            for entry in spread(scored, self.max_tasks):
                ids.setdefault(category, set()).update((entry.entry_id, *entry.needs))
        listed = {category: sorted(found) for category, found in ids.items()}
        for folder in folders:
            (folder / "test_case_ids_to_generate.json").write_text(json.dumps(listed, indent=1))
        return [entry for entry in entries if entry.entry_id in ids.get(entry.category, ())]

    def _worker(
        self, folder: Path, arguments: Sequence[str], address: Address | None = None
    ) -> str:
        """What the package's side prints; its chatter goes to worker.log.

        Raises:
            RuntimeError: it failed; the message has the end of its log.
        """
        variables = {**os.environ, "BFCL_PROJECT_ROOT": str(folder)}
        variables.pop("PYTHONPATH", None)
        if address is not None:
            variables |= {
                "OPENAI_BASE_URL": address.url,
                "OPENAI_API_KEY": address.api_key,
                "BFCL_MODEL": address.model,
            }
            if self.sampling.temperature:  # else the package's own, which is next to nothing
                variables["BFCL_TEMPERATURE"] = str(self.sampling.temperature)
        file = folder / "worker.log"
        # -P: the names of our modules must not stand before those of the standard library.
        command = [str(self.python), "-P", bfcl_worker.__file__, *arguments]
        with file.open("ab") as chatter:
            done = subprocess.run(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if arguments[0] == "describe" else chatter,
                stderr=chatter,
                cwd=folder,
            )
        if done.returncode:
            end = file.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"bfcl-eval failed ({' '.join(command[:4])} ...): {file}:\n{end}")
        return (done.stdout or b"").decode()


def _troubles(lines: Sequence[Mapping[str, Any]], address: Address) -> list[str]:
    """What went wrong with the protocol, so that no failure passes for a wrong answer."""
    crashed = [line for line in lines if line["crashed"]]
    notes = []
    if crashed:
        first = crashed[0]
        notes.append(
            f"{len(crashed)} of {len(lines)} conversations broke off and count as wrong; "
            f"{first['id']}: {first['crashed'][:300]}"
        )
    refused = Counter(address.server.counts if address.server else {})
    del refused["requests"]
    notes += [f"{count} requests were refused: {reason}" for reason, count in refused.items()]
    return notes


def scripted_texts(entry: BfclEntry, name: str, seed: int) -> tuple[str, ...]:
    """The messages of a scripted policy: for random ones, some calls in each turn of the user."""
    if name == "gold":
        return gold_turn_texts(entry)
    turns = [
        random_turn_texts(Task(f"{entry.entry_id}/{number}", text, entry.tools, (), ""), seed)
        for number, text in enumerate(entry.user_turns)
    ]
    return tuple(text for turn in turns for text in turn)


def _record(
    place: tuple[int, int], entry: BfclEntry, line: Mapping[str, Any], setting: Setting
) -> Record:
    """An attempt in the form of all others; the reward compares its calls with the gold calls."""
    task = Task(
        task_id=f"bfcl/{entry.entry_id}",
        question="\n\n".join(entry.user_turns),
        tools=entry.tools,
        gold_calls=tuple(call for turn in entry.gold_calls or () for call in turn),
        answer=" | ".join(entry.gold_answers),
        scenario=entry.category,
    )
    turns = tuple(_turn(step) for step in line["steps"])
    trajectory = Trajectory(task, (), turns, StopReason.ANSWER)
    correct = float(line["valid"])
    counts = {"turns": float(len(turns)), "calls": float(len(trajectory.calls))}
    values = {"correct": correct, entry.category: correct, **counts}
    groups = {"scenario": entry.category}
    record = attempt_record(place, trajectory, setting.reward, groups, values)
    return {**record, "error": line["error"]}


def _turn(step: Mapping[str, Any]) -> Turn:
    calls = tuple(_call(name, arguments) for name, arguments in step["calls"])
    failed = "Error during execution:"
    results = tuple(
        ToolResult(text, ResultStatus.EXCEPTION if text.startswith(failed) else ResultStatus.OK)
        for text in step["outputs"]
    )
    return Turn((), (), step["text"], calls, results)


def _call(name: str, arguments: str) -> ToolCall:
    """A call as the server gave it; other servers than ours may give arguments that are no JSON."""
    try:
        return ToolCall(name, json.loads(arguments))
    except ValueError:
        return ToolCall(name, None, CallStatus.INVALID_JSON, arguments)
