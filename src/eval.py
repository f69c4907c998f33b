"""Attempt the tasks of benchmarks with a policy: one table, all scores, every trace.

python src/eval.py benchmark=ftrl,toolhop,nestful,bfcl policy=gold
python src/eval.py benchmark=ftrl policy=<run folder | Hugging Face model | URL of an endpoint>
python src/eval.py benchmark=ftrl policy=... against=<folder of an earlier evaluation>
python src/eval.py benchmark=ftrl policy=... ckpt_path=last     # go on with an interrupted one
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from matchtir.utils.config_check import (
    check,
    check_after_imports,
    check_packages,
    hints_at_keys,
    instantiate_group,
    plain_errors,
)
from matchtir.utils.options import UserError
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import (
    CONFIG_FILE,
    LAST,
    checkpoint_to_load,
    opened,
    register_resolvers,
)

KNOWN_KEYS = """
    benchmark max_tasks attempts temperature policy label against seed max_concurrent sandbox
    reward user renderer rollout.engine endpoint ckpt_path paths identity logger
"""
SETTINGS = "penalties.unmatched penalties.no_answer turn_reduction assignment"


def run(config: DictConfig) -> dict[str, Any]:
    """One evaluation; what it found is also in the run's folder."""
    check(config, KNOWN_KEYS, SETTINGS)  # before the slow imports
    from matchtir.evaluation.benchmark import Setting, TaskBenchmark
    from matchtir.evaluation.policies import LocalPolicy, find_policy
    from matchtir.evaluation.tables import PastEvaluation, overall, report
    from matchtir.utils.loggers import close, quiet

    quiet()
    check_after_imports(config)
    check_packages(config)
    folder = Path(config.paths.run_dir)
    if config.ckpt_path not in (None, LAST):
        raise UserError(f"ckpt_path={config.ckpt_path}: an evaluation goes on from {LAST} alone")
    checkpoint_to_load(config.ckpt_path, folder, CONFIG_FILE)
    earlier = [PastEvaluation.load(path) for path in config.against]
    benchmarks = [instantiate(node) for node in config.benchmark.values()]
    for benchmark in benchmarks:
        if isinstance(benchmark, TaskBenchmark):
            benchmark.select()  # files that are not there are named before a policy is loaded
    policy = find_policy(
        config.policy,
        renderer=instantiate(config.get("renderer")),
        engine=instantiate(config.rollout.engine),
        endpoint=instantiate(config.endpoint),
        seed=config.seed,
    )
    if isinstance(policy, LocalPolicy) and not policy.scripted:
        check_sessions(config)
    with opened(config, folder), ExitStack() as at_the_end:
        sandbox = instantiate(config.sandbox)
        at_the_end.callback(sandbox.shutdown)
        reward = instantiate(config.reward)
        user = instantiate(config.get("user"))
        setting = Setting(folder, sandbox, reward, config.seed, config.max_concurrent, user)
        outcomes = [benchmark.run(policy, setting) for benchmark in benchmarks]
    facts = {"policy": config.policy, "seed": config.seed, "requests": dict(policy.counts)}
    label = config.label or config.policy
    result = report(folder, label, list(zip(benchmarks, outcomes, strict=True)), earlier, facts)
    loggers = instantiate_group(config.get("logger"))
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        logger.log_metrics(overall(result), step=0)
    close(loggers)
    return result


def check_sessions(config: DictConfig) -> None:
    """Raise UserError where a conversation could wait for the tools of one that waits for it."""
    from matchtir.training.settings import waiting_for_each_other

    if at_once := waiting_for_each_other(config, config.max_concurrent):
        sessions = config.sandbox.max_sessions
        raise UserError(
            f"sandbox.max_sessions={sessions}: {at_once} conversations are under way, each waits "
            f"for the tools of all: max_concurrent={sessions}, or rollout.engine.rejoin_after=null"
        )


def with_lists(arguments: Sequence[str]) -> list[str]:
    """The command line with `benchmark=a,b` as the list that Hydra wants, outside sweeps."""
    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    return [re.sub(r"^(benchmark|against)=([^\[].*)", r"\1=[\2]", each) for each in arguments]


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    """The command line."""
    with plain_errors():
        run(config)


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_lists(with_current_names(sys.argv[1:]))
    with hints_at_keys():
        main()
