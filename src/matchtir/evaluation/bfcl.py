"""The Berkeley Function Calling Leaderboard, played and scored by its own package, `bfcl-eval`.

The package pins other versions of everything, so it has an environment of its own. It talks to the
policy over OpenAI's protocol, executes the calls in its simulated worlds and checks their state.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchtir.evaluation import bfcl_worker
from matchtir.evaluation.benchmark import Benchmark, BenchmarkResult, Setting, attempt_record
from matchtir.evaluation.policies import Address, EvaluatedPolicy, random_turn_texts
from matchtir.evaluation.statistics import Mean, MeanOf, Statistic, pass_names
from matchtir.evaluation.traces import Record, attempt_name, drop_unfinished_line, write_traces
from matchtir.rollout.engine import SamplingParams
from matchtir.rollout.episode import EpisodeLimits, derive_seed
from matchtir.tasks.rows import read_jsonl
from matchtir.tasks.splits import evenly_spaced
from matchtir.tools.formats import call_from_api, render_call
from matchtir.types import (
    ResultStatus,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    ToolSpec,
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


DONE = "Done."  # ends a turn of the user
NOT_POSSIBLE = "I cannot do that with what I have."  # where the gold solution makes no call

_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


class BfclBenchmark(Benchmark):
    """Categories of BFCL, each with its accuracy.

    `bfcl` is the paper's mean(multi-turn, agentic), where agentic is mean(memory, web search) and a
    family the mean of its categories. It is NaN, as a family is, where a category is missing: one
    that was not asked for, or cannot be run here (web search wants a key, the vector memory a model
    of sentence-transformers). The notes say which and why.

    Args:
        python: of the environment that has `bfcl-eval`.
        categories: by their official names.
        columns, sampling, name: as `Benchmark`.
        max_prompt_tokens: of a policy with weights; a conversation that is longer has failed.
        max_turn_tokens: sampled in one message of such a policy.
        attempts: at each conversation, in a folder of results each.
        max_tasks: run only so many of each category, spread evenly, and what they need; None: all.

    Raises:
        FileNotFoundError: there is no such environment.
        ValueError: a category of another kind, or as `Benchmark`.
    """

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
        families = {
            family: MeanOf([Mean(f"{family}_{kind}") for kind in kinds])
            for family, kinds in FAMILIES.items()
        }
        agentic = MeanOf([families["memory"], families["web_search"]])
        common = ("correct", "turns", "calls", "reward")
        statistics: dict[str, Statistic] = {
            "bfcl": MeanOf([families["multi_turn"], agentic]),
            **families,
            **{name: Mean(name) for name in (*common, *pass_names(attempts))},
        }
        details = [*FAMILIES, *common]
        super().__init__(
            name, columns, statistics, details, "correct", sampling, attempts, max_tasks
        )
        # Not resolved: the path through the environment's folder is what makes it that environment.
        self.python = Path(python).absolute()
        if not self.python.is_file():
            raise FileNotFoundError(
                f"{self.python}: there is no environment for BFCL; `make bfcl-env` makes it"
            )
        self.categories = list(categories)
        if not categories or (odd := sorted(set(categories) - set(CATEGORIES))):
            raise ValueError(f"categories={odd if categories else []}: of {', '.join(CATEGORIES)}")
        self.limits = EpisodeLimits(
            max_prompt_tokens=max_prompt_tokens, max_turn_tokens=max_turn_tokens
        )

    def run(self, policy: EvaluatedPolicy, setting: Setting) -> BenchmarkResult:
        """Let the package generate what is missing and score everything."""
        self.check_sampled(policy)
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

        def scripts(name: str, seed: int) -> Mapping[str, Sequence[str]]:
            return {entry.entry_id: scripted_texts(entry, name, seed) for entry in chosen}

        records = []
        for attempt, folder in enumerate(folders if categories else ()):
            for file in folder.rglob("*_result.json"):
                drop_unfinished_line(file)  # of a process that was killed
            seed = derive_seed(setting.seed, attempt) if attempt else setting.seed
            with policy.served(scripts, self.limits, self.sampling, seed) as address:
                self._worker(folder, ["run", str(setting.max_concurrent), *categories], address)
            lines = read_jsonl(folder / "scored.jsonl")
            notes += _troubles(lines, address)
            for number, line in enumerate(lines):
                records.append(_record((number, attempt), entries[line["id"]], line, setting))
        records.sort(key=lambda record: record["group"])
        write_traces(setting.attempts(self.name).path, records)
        return BenchmarkResult(records, time.perf_counter() - started, notes)

    def _choose(self, entries: Sequence[BfclEntry], folders: Sequence[Path]) -> list[BfclEntry]:
        """The entries to run; where they are not all, the files that tell the package so."""
        if self.max_tasks is None:
            return list(entries)
        ids: dict[str, set[str]] = {}
        for category in self.categories:
            scored = [e for e in entries if e.category == category and e.is_scored]
            for entry in evenly_spaced(scored, self.max_tasks):
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


# -- entries ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BfclEntry:
    """One conversation: what the user says turn by turn, and what should come of it."""

    entry_id: str
    category: str
    user_turns: tuple[str, ...]
    tools: tuple[ToolSpec, ...]
    gold_calls: tuple[tuple[ToolCall, ...], ...] | None  # of each turn; None: no calls are known
    gold_answers: tuple[str, ...]  # any of them will do; empty where calls are scored
    needs: tuple[str, ...]  # entries that must be run before

    @property
    def is_scored(self) -> bool:
        """Whether it counts; the others fill a memory for those that need them."""
        return self.gold_calls is not None or bool(self.gold_answers)


def entry_from_row(row: Mapping[str, Any]) -> BfclEntry:
    """An entry as the worker describes it.

    Raises:
        ValueError: a gold call that is no call of a known function with literal arguments.
    """
    tools = tuple(
        ToolSpec(each["name"], each["description"], _schema(each["parameters"]))
        for each in row["functions"]
    )
    gold = row["gold"] or ()
    answers = tuple(item for item in gold if isinstance(item, str))
    calls = None
    if row["gold"] is not None and not answers:
        parameters = {tool.name: list(tool.parameters["properties"]) for tool in tools}
        calls = tuple(tuple(read_call(text, parameters) for text in turn) for turn in gold)
    return BfclEntry(
        entry_id=row["id"],
        category=row["category"],
        user_turns=tuple("\n".join(texts) for texts in row["turns"]),
        tools=tools,
        gold_calls=calls,
        gold_answers=answers,
        needs=tuple(row["needs"]),
    )


def read_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """A gold call such as ``mv(source='a', destination='b')``, or with its arguments by position.

    Args:
        parameters: names of each function's parameters, in order.

    Raises:
        ValueError: it is no such call.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("not a call by name")
        given = [ast.literal_eval(argument) for argument in call.args]
        named = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        by_position = dict(zip(parameters[call.func.id], given, strict=False))
    except (SyntaxError, KeyError, ValueError) as error:
        raise ValueError(f"gold call {text!r}: {error}") from error
    if len(by_position) < len(given):
        raise ValueError(f"gold call {text!r}: {len(given)} arguments are too many")
    return ToolCall(call.func.id, by_position | named)


def scripted_texts(entry: BfclEntry, name: str, seed: int) -> tuple[str, ...]:
    """The messages of a scripted policy over the whole conversation.

    Random ones are some calls and a word in each turn of the user; gold ones are the gold calls of
    a turn in one message, then one that ends the turn. An entry without gold calls is answered; one
    that only fills a memory is acknowledged, since nobody says what should be remembered.
    """
    texts: list[str] = []
    for number, said in enumerate(entry.user_turns):
        if name == "random":
            task = Task(f"{entry.entry_id}/{number}", said, entry.tools, (), "")
            texts += random_turn_texts(task, seed)
        elif entry.gold_answers:
            texts.append(str({"answer": entry.gold_answers[0], "context": "It was said so."}))
        elif entry.gold_calls is None:
            texts.append(DONE)
        elif calls := entry.gold_calls[number]:
            texts += ["\n".join(render_call(c.name, c.arguments) for c in calls), DONE]
        else:
            texts.append(NOT_POSSIBLE)
    return tuple(texts)


def _schema(node: Any) -> Any:
    """A schema of BFCL's in the words of JSON schema."""
    if isinstance(node, list):
        return [_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: _schema(value) for key, value in node.items()}
    kind = node.get("type")
    return {**converted, "type": _TYPES.get(kind, kind)} if isinstance(kind, str) else converted


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
    calls = tuple(call_from_api(name, arguments, None) for name, arguments in step["calls"])
    failed = "Error during execution:"
    results = tuple(
        ToolResult(text, ResultStatus.EXCEPTION if text.startswith(failed) else ResultStatus.OK)
        for text in step["outputs"]
    )
    return Turn((), (), step["text"], calls, results)
