"""Writes docs/results.md and its picture from results/*.csv, or checks that it says what they say.

python scripts/results_page.py            writes the page
python scripts/results_page.py --check    exit status 1 where the page is another, or where its text
                                          (scripts/results_page.md.j2) has a number of its own
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from matchtir.evaluation.statistics import Estimate, nested_bootstrap
from scripts.results import (
    HOPS,
    OUT_OF_DOMAIN,
    ROOT,
    STEPS,
    Key,
    experiments,
    key_of,
    planned,
    read_table,
    test_tasks,
    unpack,
)

PAGE, TEMPLATE = ROOT / "docs" / "results.md", ROOT / "scripts" / "results_page.md.j2"
PICTURE = ROOT / "docs" / "results.png"
RUNS_FILE, MEASUREMENTS_FILE = ROOT / "results" / "runs.csv", ROOT / "results" / "measurements.csv"
METHODS = ("grpo", "ftrl_s", "ftrl_m", "toolrl_s", "toolrl_m", "soft", "hard")
MAIN = ("start", *(f"short_{method}" for method in METHODS))  # of Table 1
TWICE = ("start", "grpo", "soft", "hard")  # with twice its budget
NAMES = {
    "start": "before training",
    "grpo": "GRPO",
    "soft": "MatchTIR soft",
    "hard": "MatchTIR hard",
}
NAMES |= {"ftrl_s": "FTRL-S", "ftrl_m": "FTRL-M", "toolrl_s": "ToolRL-S", "toolrl_m": "ToolRL-M"}
CELLS = {
    "trajectory": ("short_grpo", "short_trajectory_turn", "short_trajectory_integrated"),
    "turn": ("short_turn_outcome", "short_turn_turn", "short_turn_integrated"),
    "dual": ("short_dual_outcome", "short_dual_turn", "short_hard"),
}
Values = dict[tuple[str, int], np.ndarray]  # by start and seed: of each task, or one mean


class Results:
    """What the page says, as functions of the rows."""

    def __init__(self, runs: Path = RUNS_FILE, measurements: Path = MEASUREMENTS_FILE) -> None:
        self.rows: dict[Key, Mapping[str, str]] = {key_of(row): row for row in read_table(runs)}
        self.measurements = {row["name"]: row["value"] for row in read_table(measurements)}
        self.starts = {run.name: run.starts for run in planned("all")}

    @cached_property
    def hops(self) -> np.ndarray:
        """Number of gold calls of each test task."""
        return np.array([len(task.gold_calls) for task in test_tasks()])

    # -- numbers -----------------------------------------------------------------------------------

    def values(self, name: str, measure: str) -> Values:
        """The scores of a method's runs that have them, by task where successes are."""
        found = {}
        for (own, start, seed), row in self.rows.items():
            if own == name and row.get(_column(measure)):
                found[str(start), seed] = self._scores(row, measure)
        return found

    def _scores(self, row: Mapping[str, str], measure: str) -> np.ndarray:
        cell = row[_column(measure)]
        if not _column(measure).endswith("bits"):
            return np.array([float(cell)])
        bits = unpack(cell)
        calls = re.fullmatch(r"success_(\d)_calls", measure)
        return bits[self.hops == int(calls[1])] if calls else bits

    def value(self, name: str, measure: str = "success") -> float:
        """Mean over a method's runs, each start counting once."""
        return nested_bootstrap(self.values(name, measure), samples=2).mean

    def gains(self, name: str, measure: str = "success") -> Values:
        """What each run of a method gained over its starting weights."""
        before = self.values(self.starts[name], measure)
        found = self.values(name, measure)
        return {key: scores - before[key[0], 0] for key, scores in found.items()}

    def gain(self, name: str, measure: str = "success") -> str:
        """A method's gain over its starting weights, with its interval."""
        return shown(nested_bootstrap(self.gains(name, measure)))

    def least(self, name: str) -> float:
        """The smallest gain in success of a method's runs."""
        return min(float(gain.mean()) for gain in self.gains(name).values())

    def most(self, name: str) -> float:
        """The largest gain in success of a method's runs."""
        return max(float(gain.mean()) for gain in self.gains(name).values())

    def difference(self, name: str, base: str, measure: str = "success") -> Estimate | None:
        """A method's scores less another's, over the starts and seeds that both have."""
        ours, theirs = self.values(name, measure), self.values(base, measure)
        both = [key for key in ours if key in theirs]
        return nested_bootstrap({k: ours[k] - theirs[k] for k in both}) if both else None

    def versus(self, name: str, base: str, measure: str = "success") -> str:
        """The difference with its interval; a dash where there is none."""
        found = self.difference(name, base, measure)
        return shown(found) if found and name != base else "–"

    def stands(self, name: str, base: str, measure: str = "success") -> str:
        """What a difference says, and the difference."""
        found = self.difference(name, base, measure)
        if found is None:
            return "not measured"
        verdict = "not shown to differ"
        if found.low > 0 or found.high < 0:
            verdict = "higher" if found.low > 0 else "lower"
        pairs = self.values(name, measure).keys() & self.values(base, measure).keys()
        return f"{verdict} ({shown(found)}, n={len(pairs)})"

    def count(self, name: str, measure: str = "success") -> int:
        """Runs of a method that have a measure."""
        return len(self.values(name, measure))

    def total(self) -> int:
        """Finished runs of reinforcement learning."""
        return sum(name in self.starts for name, _, _ in self.rows)

    def fine_tuned(self) -> int:
        """Finished runs of fine-tuning."""
        return len(self.rows) - self.total()

    def hours(self) -> float:
        """Hours that all runs took, on one thread each."""
        return sum(float(row["seconds"]) for row in self.rows.values()) / 3600

    def mean_of(self, name: str, column: str) -> float:
        """Mean of a column over a method's rows."""
        rows = [row for key, row in self.rows.items() if key[0] == name]
        return float(np.mean([float(row[column]) for row in rows]))

    def measured(self, name: str) -> str:
        """A number of results/measurements.csv."""
        return self.measurements[name]

    # -- tables ------------------------------------------------------------------------------------

    def table1(self, names: Sequence[str], measures: Mapping[str, str]) -> str:
        """Means of methods by heading -> measure, gains, distances of success from GRPO's."""
        heads = ["", "runs", *measures, "success, gain", "success, less GRPO's"]
        start, base, *_ = names
        rows = []
        for name in self._present(names):
            cells = [self.mean(name, measure) for measure in measures.values()]
            gained = "" if name == start else self.gain(name)
            against = "" if name == start else self.versus(name, base)
            rows.append([label(name), str(self.count(name)), *cells, gained, against])
        return markdown(heads, rows)

    def means(self, names: Sequence[str], measures: Mapping[str, str]) -> str:
        """Means of methods by heading -> measure, of the runs that have the first one."""
        first = next(iter(measures.values()))
        rows = [
            [label(n), str(self.count(n, first)), *(self.mean(n, m) for m in measures.values())]
            for n in self._present(names, first)
        ]
        return markdown(["", "runs", *measures], rows)

    def course(self, names: Sequence[str], steps: Sequence[int] = STEPS) -> str:
        """Success on the validation tasks by iteration."""
        return self.means(names[1:], {str(step): f"val_success_{step}" for step in steps})

    def against(self, names: Sequence[str], base: str, measures: Mapping[str, str]) -> str:
        """How far methods are from another by heading -> measure."""
        rows = [
            [label(name), *(self.versus(name, base, measure) for measure in measures.values())]
            for name in self._present(names)
            if any(self.difference(name, base, measure) for measure in measures.values())
        ]
        return markdown([f"less {label(base)}'s", *measures], rows)

    def figure3(self, names: Sequence[str]) -> str:
        """Gain in success by number of gold calls."""
        heads = ["", "runs", *(f"{n} ({sum(self.hops == n)} tasks)" for n in HOPS)]
        rows = []
        for name in self._present(names):
            by_hops = [f"success_{n}_calls" for n in HOPS]
            shows = self.mean if name == names[0] else self.gain
            rows.append([label(name), str(self.count(name)), *(shows(name, m) for m in by_hops)])
        return markdown(heads, rows)

    def outside(self, names: Sequence[str]) -> str:
        """Success / Solve-F1 out of domain."""
        rows = []
        for name in self._present(names, "twins_success"):
            cells = [
                f"{self.mean(name, f'{each}_success')} / {self.mean(name, f'{each}_solve_f1')}"
                for each in OUT_OF_DOMAIN
            ]
            rows.append([label(name), str(self.count(name, "twins_success")), *cells])
        return markdown(["", "runs", *OUT_OF_DOMAIN], rows)

    def grid(self) -> str:
        """Success on the validation tasks after 100 iterations, by method and rates."""
        tried = {
            name: (float(row["matrix_lr"]), float(row["lr"]), float(row["val_success_100"]))
            for (name, *first), row in self.rows.items()
            if first == [1, 1] and row["val_success_100"]
        }
        rates = sorted({(matrices, others) for matrices, others, _ in tried.values()})
        rows = []
        for method in METHODS:
            cells = dict.fromkeys(rates, "–")
            for name, (matrices, others, success) in tried.items():
                if name.split("-")[0] == method:
                    mark = "**" if name == method else ""
                    cells[matrices, others] = f"{mark}{success:.3f}{mark}"
            rows.append([label(method), *cells.values()])
        heads = [f"{matrices:g} / {others:g}" for matrices, others in rates]
        return markdown(["matrices / all other weights", *heads], rows)

    def table2(self) -> str:
        """Success of every advantage with every reward, and its distance from GRPO's."""
        rows = []
        for advantage, names in CELLS.items():
            cells = [advantage]
            for name in names:
                known = self.count(name)
                text = f"{self.mean(name, 'success')}, {self.versus(name, 'short_grpo')}, n={known}"
                cells.append(text if known else "–")
            rows.append(cells)
        return markdown(["advantage", "outcome", "turn", "integrated"], rows)

    def variants(self, names: Mapping[str, str], base: str) -> str:
        """Variants of a method: what they score and how far they are from it."""
        measures = {"success": "success", "Solve-F1": "solve_f1", "answer F1": "answer_f1"}
        measures |= {"calls": "calls", "answered": "answered"}
        rows = []
        for name, setting in {base: "the method", **names}.items():
            if self.count(name):
                cells = [self.mean(name, measure) for measure in measures.values()]
                rows.append([setting, str(self.count(name)), *cells, self.versus(name, base)])
        return markdown(["", "runs", *measures, "success, less the method's"], rows)

    def habits(self) -> str:
        """Success before and after, by the habits of the start."""
        rows = []
        for habit in experiments().starts:
            kind = habit.removeprefix("start")
            prefix = f"short_{kind}"
            if not (self.count(f"{prefix}_grpo") and self.count(f"{prefix}_hard")):
                continue
            row = [kind, str(self.count(f"{prefix}_hard")), self.mean(habit, "success")]
            row += [self.mean(f"{prefix}_{method}", "success") for method in ("grpo", "hard")]
            rows.append([*row, self.versus(f"{prefix}_hard", f"{prefix}_grpo")])
        heads = ["habit", "runs each", "before", "GRPO", "MatchTIR hard", "hard less GRPO"]
        return markdown(heads, rows) if rows else "No run has finished yet."

    def _present(self, names: Sequence[str], measure: str = "success") -> list[str]:
        return [name for name in names if self.count(name, measure)]

    def mean(self, name: str, measure: str) -> str:
        """A method's mean as text; a dash where there is none."""
        if not self.count(name, measure):
            return "–"
        mean = self.value(name, measure)
        return f"{mean:.2f}" if measure.startswith("calls") else f"{mean:.3f}"


def label(name: str) -> str:
    """What tables call a method."""
    method = name.removeprefix("short_")
    return NAMES.get(method, method)


def _column(measure: str) -> str:
    """Where the scores of a measure are: those of each task, if the row has them."""
    if re.fullmatch(r"success(_\d_calls)?", measure):
        return "bits"
    outside = measure.removesuffix("_success")
    return f"{outside}_bits" if outside in OUT_OF_DOMAIN else measure


def shown(gain: Estimate) -> str:
    """A number and its interval."""
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def render(results: Results) -> str:
    """The page."""
    loader = FileSystemLoader(TEMPLATE.parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    functions: dict[str, Any] = {
        name: getattr(results, name)
        for name in dir(Results)
        if not name.startswith("_") and callable(getattr(Results, name))
    }
    functions |= {"MAIN": MAIN, "TWICE": TWICE}
    return environment.get_template(TEMPLATE.name).render(functions)


def own_numbers(template: str) -> list[str]:
    """Numbers that a template has itself, outside of commands, links and the names of things."""
    told = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|`[^`]*`|\]\([^)]*\)", "", template, flags=re.S)
    told = re.sub(r"^    .*$", "", told, flags=re.M)
    told = re.sub(r"(Tables?|Figures?) \d( and \d)?|95 % intervals?|Qwen\d|F1|[A-Z]\.\d", "", told)
    return re.findall(r".*\d.*", told)


def draw(results: Results, path: Path) -> None:
    """The course of success and the gain by number of gold calls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name in results._present(TWICE[1:]):
        points = [results.value(name, f"val_success_{step}") for step in STEPS]
        left.plot(STEPS, points, marker="o", label=label(name))
        gains = [nested_bootstrap(results.gains(name, f"success_{n}_calls")).mean for n in HOPS]
        right.plot(HOPS, gains, marker="o", label=label(name))
    left.set(xlabel="iterations", ylabel="success, validation tasks", ylim=(0, 1))
    right.set(xlabel="gold calls of the task", ylabel="gain in success, test tasks")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    results = Results()
    page = render(results)
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        draw(results, PICTURE)
        return
    wrong = [f"number in the text: {n}" for n in own_numbers(TEMPLATE.read_text(encoding="utf-8"))]
    old = PAGE.read_text(encoding="utf-8").splitlines()
    wrong += difflib.unified_diff(old, page.splitlines(), "docs/results.md", "results/", n=0)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
