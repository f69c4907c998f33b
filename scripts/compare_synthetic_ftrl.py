"""Holds the synthetic tasks of difficulty `ftrl` against FTRL's test set, figure by figure.

FTRL's column is measured where its files are given (--ftrl and --gold, or the folder
MATCHTIR_DATA); otherwise it holds the figures recorded from FTRL's 200 test tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.tasks.ftrl import FtrlTasks, question_text
from matchtir.tasks.synthetic import SCENARIOS, SyntheticTasks
from matchtir.tools.sandbox import ProcessPoolSandbox
from matchtir.types import ResultStatus, Task, ToolCall, ToolSpec

Figures = Mapping[str, float]

# FTRL's test set, 50 tasks of each scenario, in the order of SCENARIOS.
RECORDED_TASKS = {
    "tools offered, mean": (7.96, 7.48, 10.34, 11.26),
    "tools offered, least": (5, 1, 2, 8),
    "tools offered, most": (11, 12, 14, 15),
    "gold calls, mean": (1, 2.02, 5.72, 7.66),
    "gold calls, least": (1, 2, 2, 5),
    "gold calls, most": (1, 3, 10, 11),
    "depth, mean": (1, 1.06, 5.42, 4.38),
    "depth, most": (1, 2, 10, 7),
    "distractor tools, mean": (6.96, 6.12, 4.62, 3.72),
    "question characters, mean": (89, 116, 189, 267),
    "prompt and tools characters, mean": (13_700, 12_800, 18_100, 19_500),
    "arguments per gold call, mean": (3.04, 2.03, 1.35, 1.37),
}
RECORDED_ALL = {
    "parameters per tool": 7.1,
    "required parameters per tool": 1.6,
    "type string": 0.67,
    "type boolean": 0.185,
    "type object": 0.04,
    "type number": 0.035,
    "type array": 0.035,
    "type integer": 0.03,
    "with an enum": 0.26,
    "values per enum": 4.1,
    "with a default": 0.30,
    "errors: object": 0.60,
    "errors: text": 0.40,
    "errors: raised": 0.01,
    "argument from earlier output": 0.41,
    "argument from enum": 0.21,
    "argument from question": 0.23,
    "argument from elsewhere": 0.12,
    "unknown entity: soft": 0.54,
    "unknown entity: error object": 0.26,
    "unknown entity: value": 0.08,
}
_TYPES = ("string", "boolean", "object", "number", "array", "integer")
_ORIGINS = ("earlier output", "enum", "question", "elsewhere")
_ERROR_SIGNS = {
    "object": re.compile(r"""["']error["']\s*:"""),
    "text": re.compile(r"""["']Error"""),
    "raised": re.compile(r"\braise\b"),
}
_NOT_FOUND = re.compile(
    r"\b(not?|unknown|none|unavailable|unsupported|invalid)\b|\bn't\b", re.IGNORECASE
)
_STRANGER = "Zanthar Quill"  # an entity that no tool knows
_PROBED_TASKS = 140


def main() -> None:
    """Print both columns."""
    arguments = _parse_arguments()
    if arguments.tasks < len(SCENARIOS):
        sys.exit(f"--tasks {arguments.tasks}: at least one task of each scenario is needed")
    real = _read_ftrl(arguments.ftrl, arguments.gold)
    source = SyntheticTasks("ftrl", {"train": arguments.tasks}, seed=arguments.seed)
    synthetic = list(source.tasks("train"))
    print(f"synthetic: {len(synthetic)} tasks, seed {arguments.seed}")
    if real:
        print(f"FTRL: {len(real)} tasks, measured")
    else:
        print("FTRL: 200 tasks, as recorded (give --ftrl and --gold, or MATCHTIR_DATA, to measure)")
    _print_tasks(_by_scenario(real), _by_scenario(synthetic))
    _print_all(_measure_all(real) if real else RECORDED_ALL, _measure_all(synthetic))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ftrl", type=Path, help="FTRL's test.parquet")
    parser.add_argument("--gold", type=Path, help="JSON lines with gold traces of its rows")
    parser.add_argument("--tasks", type=int, default=800, help="synthetic tasks (default: 800)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic tasks (default: 0)")
    return parser.parse_args()


def _read_ftrl(path: Path | None, gold: Path | None) -> list[Task]:
    folder = os.environ.get("MATCHTIR_DATA")
    if path is None and gold is None and folder:
        path = Path(folder) / "ftrl" / "test.parquet"
        gold = Path(folder) / "ftrl" / "test_gold_derived.jsonl"
    if (path is None) != (gold is None):
        sys.exit("--ftrl and --gold belong together: the gold calls are not in the parquet file")
    if path is None or gold is None:
        return []
    for file in (path, gold):
        if not file.is_file():
            sys.exit(f"no such file: {file}")
    try:
        return list(FtrlTasks(test_path=str(path), gold_traces_path=str(gold)).tasks("test"))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def _by_scenario(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    groups = defaultdict(list)
    for task in tasks:
        groups[task.scenario.replace("single_hop", "single")].append(task)
    return groups


def _measure_all(tasks: Sequence[Task]) -> Figures:
    probed = asyncio.run(_probe(tasks[:_PROBED_TASKS]))
    return {**measure_tools(tasks), **measure_origins(tasks), **probed}


async def _probe(tasks: Sequence[Task]) -> Figures:
    """Runs the gold calls, and runs them again with an entity that does not exist."""
    sandbox = ProcessPoolSandbox(workers=2)
    lengths, refusals = [], Counter[str]()
    try:
        for task in tasks:
            session = await sandbox.open(task.tools)
            for call in task.gold_calls:
                result = await session.call(call)
                entity = next((k for k, v in call.arguments.items() if isinstance(v, str)), None)
                if result.status != ResultStatus.OK or entity is None:
                    continue
                lengths.append(len(result.output))
                strange = {**call.arguments, entity: _STRANGER}
                result = await session.call(ToolCall(call.name, strange))
                refusals[classify_refusal(result.output)] += 1
            await session.close()
    finally:
        sandbox.shutdown()
    total = max(sum(refusals.values()), 1)
    kinds = ("soft", "error object", "error text", "value")
    shares = {f"unknown entity: {kind}": refusals[kind] / total for kind in kinds}
    return {**shares, "output characters, mean": fmean(lengths) if lengths else 0.0}


def _print_tasks(real: Mapping[str, list[Task]], synthetic: Mapping[str, list[Task]]) -> None:
    ours = {scenario: measure_tasks(synthetic[scenario]) for scenario in SCENARIOS}
    theirs = {scenario: measure_tasks(tasks) for scenario, tasks in real.items()}
    print(f"\n{'FTRL | synthetic':36}" + "".join(f"{scenario:>21}" for scenario in SCENARIOS))
    for figure in ours["single"]:
        cells = []
        for index, scenario in enumerate(SCENARIOS):
            recorded = RECORDED_TASKS.get(figure)
            left = theirs[scenario][figure] if theirs else recorded[index] if recorded else None
            cells.append(f"{_number(left)} | {_number(ours[scenario][figure])}")
        print(f"{figure:36}" + "".join(f"{cell:>21}" for cell in cells))


def _print_all(real: Figures, synthetic: Figures) -> None:
    print(f"\n{'all scenarios':36}{'FTRL':>12}{'synthetic':>12}")
    for figure, value in synthetic.items():
        print(f"{figure:36}{_number(real.get(figure)):>12}{_number(value):>12}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def measure_tasks(tasks: Sequence[Task]) -> dict[str, float]:
    """Sizes of the tasks of one scenario: means, and some extremes."""
    tools = [len(task.tools) for task in tasks]
    calls = [len(task.gold_calls) for task in tasks]
    depths = [len(set(task.gold_turns)) for task in tasks]
    called = [len({call.name for call in task.gold_calls}) for task in tasks]
    return {
        "tools offered, mean": fmean(tools),
        "tools offered, least": min(tools),
        "tools offered, most": max(tools),
        "gold calls, mean": fmean(calls),
        "gold calls, least": min(calls),
        "gold calls, most": max(calls),
        "depth, mean": fmean(depths),
        "depth, most": max(depths),
        "width, mean": fmean(max(Counter(task.gold_turns).values(), default=0) for task in tasks),
        "distractor tools, mean": fmean(a - b for a, b in zip(tools, called, strict=True)),
        "question characters, mean": fmean(len(question_text(task)) for task in tasks),
        "prompt and tools characters, mean": fmean(map(_prompt_size, tasks)),
        "arguments per gold call, mean": _mean(
            len(call.arguments) for task in tasks for call in task.gold_calls
        ),
    }


def measure_tools(tasks: Sequence[Task]) -> dict[str, float]:
    """Parameters and error styles of all tools of the tasks."""
    tools = [tool for task in tasks for tool in task.tools]
    properties = [list(tool.parameters.get("properties", {}).values()) for tool in tools]
    schemas = [schema for group in properties for schema in group]
    enums = [schema["enum"] for schema in schemas if "enum" in schema]
    kinds = Counter(str(schema.get("type")) for schema in schemas)
    styles = Counter(_error_style(tool) for tool in tools)
    return {
        "parameters per tool": fmean(map(len, properties)),
        "required parameters per tool": fmean(
            len(tool.parameters.get("required", ())) for tool in tools
        ),
        **{f"type {kind}": kinds[kind] / len(schemas) for kind in _TYPES},
        "with an enum": len(enums) / len(schemas),
        "values per enum": _mean(map(len, enums)),
        "with a default": fmean("default" in schema for schema in schemas),
        **{f"errors: {style}": styles[style] / len(tools) for style in _ERROR_SIGNS},
    }


def measure_origins(tasks: Sequence[Task]) -> dict[str, float]:
    """Where the argument values of gold calls come from, the first that applies."""
    origins = Counter(origin for task in tasks for origin in _origins(task))
    total = max(sum(origins.values()), 1)
    return {f"argument from {origin}": origins[origin] / total for origin in _ORIGINS}


def classify_refusal(output: str) -> str:
    """What a tool makes of an unknown entity: "error object", "error text", "soft" or "value"."""
    if _ERROR_SIGNS["object"].search(output[:12]):
        return "error object"
    if output.lower().startswith("error"):
        return "error text"
    return "soft" if _NOT_FOUND.search(output) else "value"


def _prompt_size(task: Task) -> int:
    return len(task.question) + len(json.dumps([tool.schema() for tool in task.tools]))


def _error_style(tool: ToolSpec) -> str:
    for style, sign in _ERROR_SIGNS.items():
        if sign.search(tool.source):
            return style
    return "none"


def _origins(task: Task) -> Iterable[str]:
    question = question_text(task).lower()
    schemas = {tool.name: tool.parameters.get("properties", {}) for tool in task.tools}
    outputs: list[str] = []
    for position, call in enumerate(task.gold_calls):
        for name, value in call.arguments.items():
            yield _origin(value, schemas[call.name].get(name, {}), question, outputs)
        if position < len(task.sub_answers):
            outputs.append(task.sub_answers[position].output.lower())


def _origin(value: Any, schema: Any, question: str, outputs: Sequence[str]) -> str:
    texts = [str(item).lower() for item in (value if isinstance(value, list) else [value])]

    def all_in(holds: Callable[[str, str], bool], places: Sequence[str]) -> bool:
        return all(any(holds(text, place) for place in places) for text in texts)

    if all_in(lambda text, output: text in output.replace(",", "") or output in text, outputs):
        return "earlier output"
    if value in schema.get("enum", ()):
        return "enum"
    return "question" if all_in(lambda text, place: text in place, [question]) else "elsewhere"


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return fmean(values) if values else 0.0


if __name__ == "__main__":
    main()
