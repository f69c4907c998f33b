"""Whether a run can start here and count rightly: machine, packages, room, tasks, template, engine.

python scripts/doctor.py                                        # takes what src/train.py takes
python scripts/doctor.py data=ftrl paths.data_dir=data experiment=matchtir_hard scale=single_gpu

Each check prints what it found and what to do about it. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from operator import attrgetter
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import train
from matchtir.evaluation.metrics import measure
from matchtir.reports.task_statistics import replay_gold
from matchtir.rollout.engine import SamplingParams
from matchtir.tasks.files import splits_there
from matchtir.tasks.gold import DONE, answer_text, gold_turn_texts
from matchtir.tasks.splits import evenly_spaced
from matchtir.tools.sandbox import Sandbox, replay_all
from matchtir.training.plan import GIB, MOMENTS, Plan
from matchtir.training.settings import unfit_settings
from matchtir.training.steps import build_module
from matchtir.types import StopReason, Task, ToolCall, Trajectory, Turn
from matchtir.utils.config_check import check, check_packages, plain_errors
from matchtir.utils.loggers import quiet
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import register_resolvers

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
SAMPLED = 500  # tasks of a split that are looked at
SHOWN = 5  # problems of one check
BAD_SHARE = 0.1  # of gold solutions, where bad rows are to be skipped

Finding = tuple[bool, str]  # whether it is a problem, and what was found
Check = Callable[[DictConfig], Iterator[Finding]]


def packages(config: DictConfig) -> Iterator[Finding]:
    """Versions against the project's bounds, and what this configuration needs besides."""
    check_packages(config)
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        version = metadata.version(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            yield True, f"{requirement.name} {version}: make install brings {requirement.specifier}"
    accelerator = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA"
    yield False, f"Python {sys.version.split()[0]}, torch {torch.__version__}, {accelerator}"


def isolation(config: DictConfig) -> Iterator[Finding]:
    """What keeps tool code in."""
    sandbox = instantiate(config.sandbox)
    if not hasattr(sandbox, "check"):
        yield False, f"{type(sandbox).__name__}: tools run elsewhere"
        return
    try:
        in_force, missing = sandbox.check()
    finally:
        sandbox.shutdown()
    yield False, f"{config.sandbox.get('isolation', 'best')}: {in_force or 'nothing'}"
    for part, why in missing.items():
        yield True, f"{part} is missing: {why}"


def room(config: DictConfig) -> Iterator[Finding]:
    """Memory of the host and of a device, and the disk, against the plan."""
    plan = Plan(config)
    for warning in plan.require_room():
        yield False, warning
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    folder = Path(config.paths.log_dir).resolve()
    disk = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    on_gpu = torch.cuda.is_available()
    held = max(plan.totals.values())
    parts = {"device": (held, torch.cuda.mem_get_info()[0] if on_gpu else host)}
    parts |= {"host": (sum(plan.host.values()), host)} if on_gpu else {}
    # While one is saved: three checkpoints, of weights and moments in 32 bits; and the weights of
    # the best one and of the policy itself.
    parts["disk"] = 4 * plan.size.parameters * (3 * (1 + MOMENTS) + 2), disk.free
    for name, (needed, free) in parts.items():
        yield needed > free, f"{name}: {needed / GIB:.2f} GiB needed, {free / GIB:.2f} free"


def tasks(config: DictConfig) -> Iterator[Finding]:
    """Rows that can be read, gold solutions that score 1, attempts without a call that score 0."""
    found, missing = splits_there(instantiate(config.data))
    for reason in missing:
        yield True, reason
    sandbox, at_once = instantiate(config.sandbox), config.rollout.episodes.max_concurrent or 64
    try:
        for split, of_split in found.items():
            chosen = evenly_spaced(of_split, SAMPLED, attrgetter("scenario"))
            skips = config.data.get("on_bad_row") == "skip"
            yield from _split(split, chosen, sandbox, at_once, skips)
    finally:
        sandbox.shutdown()


def _split(
    split: str, chosen: Sequence[Task], sandbox: Sandbox, at_once: int, skips: bool
) -> Iterator[Finding]:
    """Where bad rows of other people's data are to be skipped, outputs that are not theirs are few
    enough to be told: what is matched are the calls.
    """
    replay = replay_gold(chosen, sandbox, at_once)
    yield False, f"{split}: {len(chosen)} tasks, gold calls of {replay.tasks} replayed"
    few = skips and len(replay.problems) <= BAD_SHARE * replay.tasks
    if few and replay.problems:
        yield False, f"{split}: {len(replay.problems)} gold solutions are wrong (on_bad_row=skip):"
    for task_id, problem in replay.problems[: SHOWN if few else None]:
        yield not few, f"{split}: gold solution of {task_id}: {problem}"
    with_calls = [task for task in chosen if task.gold_calls]
    untouched = replay_all([(task, ()) for task in with_calls], sandbox, at_once)
    idle = (Turn((), (), answer_text(DONE)),)
    for task, nothing in zip(with_calls, untouched, strict=True):
        attempt = Trajectory(task, (), idle, StopReason.ANSWER, final_state=nothing.state)
        if measure(attempt)["success"] > 0:
            yield True, f"{split}: {task.task_id}: an attempt that makes no call succeeds"


def policy(config: DictConfig) -> Iterator[Finding]:
    """Gold solutions through tokenizer and parser, as turns go; the engine samples a turn."""
    loaded, sandbox = instantiate(config.model), instantiate(config.sandbox)
    module = build_module(config, config.module, loaded, sandbox)
    renderer, engine = module.renderer, module.engine
    found, _ = splits_there(instantiate(config.data))
    chosen = [task for of_split in found.values() for task in evenly_spaced(of_split, 100)]
    for task in chosen:
        calls: list[ToolCall] = []
        for text in gold_turn_texts(task, renderer.calls):
            back = renderer.decode(renderer.encode_turn(text))
            calls += renderer.calls.parse(back, {tool.name: tool.parameters for tool in task.tools})
        if sorted(map(_said, calls)) != sorted(map(_said, task.gold_calls)):
            yield True, f"{task.task_id}: its gold calls do not come through tokenizer and parser"
    yield False, f"template: {renderer.calls.name}, gold solutions of {len(chosen)} tasks"
    try:
        engine.sync(loaded.policy, 0)
        context = renderer.prompt_ids(Task("doctor", "Are you well?", (), (), "yes"))
        sampling = SamplingParams(max_new_tokens=4)
        turn = asyncio.run(engine.generate("doctor", context, sampling, seed=0))
        yield False, f"engine: {type(engine).__name__} sampled {len(turn.token_ids)} tokens"
    finally:
        engine.close()
        sandbox.shutdown()


def _said(call: ToolCall) -> str:
    return json.dumps([call.name, call.arguments], sort_keys=True)


def findings(look: Check, config: DictConfig) -> list[Finding]:
    """What a check found; an error that ends it is what is wrong."""
    found: list[Finding] = []
    try:
        found.extend(look(config))
    except Exception as error:  # whatever it is, it would end the run
        found.append((True, f"{type(error).__name__}: {error}"))
    return found


def run(config: DictConfig) -> Mapping[str, list[str]]:
    """Print what each check found; returns the problems by check."""
    quiet()
    check(config, train.KNOWN_KEYS, train.SETTINGS, unfit_settings(config))
    table = Table("check", "", "found", show_lines=True)
    problems: dict[str, list[str]] = {}
    console = Console(markup=False)
    for each in (packages, isolation, room, tasks, policy):
        with console.status(f"checking {each.__name__}"):
            found = findings(each, config)
        wrong = [text for is_problem, text in found if is_problem]
        fine = [text for is_problem, text in found if not is_problem]
        more = [f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        text = "\n".join([*fine, *wrong[:SHOWN], *more])
        table.add_row(each.__name__, "wrong" if wrong else "ok", text)
        problems |= {each.__name__: wrong} if wrong else {}
    console.print(table)
    print("wrong: " + ", ".join(problems) if problems else "all is well")
    return problems


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    """The command line."""
    quiet()
    with plain_errors():
        sys.exit(1 if run(config) else 0)


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_current_names(sys.argv[1:])
    main()
