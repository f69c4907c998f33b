"""Train a policy; its run folder gets config.yaml, metrics.csv, curves, traces and result.json.

python src/train.py experiment=matchtir_soft
python src/train.py experiment=matchtir_soft ckpt_path=last     # go on with an interrupted run
python src/train.py -m experiment=matchtir_hard,grpo seed=1,2,3
python src/train.py experiment=matchtir_soft scale=paper_8b dry_run=true    # what it would take
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from matchtir.training.settings import unfit_settings
from matchtir.utils.config_check import (
    check,
    check_after_imports,
    check_packages,
    hints_at_keys,
    instantiate_group,
    plain_errors,
)
from matchtir.utils.renamed import with_current_names
from matchtir.utils.run_folder import checkpoint_to_load, keep_inputs, opened, register_resolvers
from matchtir.utils.sweep import run_job

log = logging.getLogger(__name__)

KNOWN_KEYS = """
    seed tags ckpt_path curve user objective identity paths dry_run plan extras.print_config
    extras.threads extras.matmul_precision
    module model renderer rollout.engine rollout.limits rollout.episodes sandbox datamodule
    warm_start.module warm_start.datamodule warm_start.cache_dir trainer callbacks logger
"""
SETTINGS = """
    iterations tasks_per_iteration group_size mini_batches zero_advantage ahead partial_groups
    penalties.unmatched penalties.no_answer turn_reduction turn_groups turn_scale turn_baseline
    singleton advantage_level
    assignment reward advantage loss optimizer data validation
"""


def run(config: DictConfig) -> float:
    """Train, and test before and after; returns the metric that a search would optimise."""
    check(config, KNOWN_KEYS, SETTINGS, unfit_settings(config))  # before the slow imports
    from matchtir.training.plan import check_plan
    from matchtir.utils.loggers import quiet
    from matchtir.utils.processes import end_with_the_first, ended_with_status

    end_with_the_first()
    quiet()
    check_after_imports(config)
    check_plan(config, show=config.dry_run)
    if config.dry_run:
        return float("nan")
    check_packages(config)
    folder = Path(config.paths.run_dir)
    checkpoint = checkpoint_to_load(config.ckpt_path, folder)
    with ended_with_status(), opened(config, folder):
        return train_in(folder, config, checkpoint)


def train_in(folder: Path, config: DictConfig, checkpoint: Path | None) -> float:
    """Instantiate, train, score and save, in an open run folder; the value of the objective."""
    from lightning import Trainer

    from matchtir.policy.loading import POLICY_FOLDER, save_pretrained
    from matchtir.training import steps
    from matchtir.training.base import check_trainer
    from matchtir.training.data import TaskDataModule, check_prompts
    from matchtir.utils.loggers import close
    from matchtir.utils.processes import is_first, wait_for_all

    started = time.monotonic()
    with ExitStack() as at_the_end:
        steps.set_up(config)
        datamodule: TaskDataModule = instantiate(config.datamodule)
        keep_inputs(folder, steps.task_hashes(datamodule))
        callbacks, loggers = map(instantiate_group, (config.get("callbacks"), config.get("logger")))
        trainer: Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
        check_trainer(trainer)
        at_the_end.callback(close, loggers)
        for logger in loggers:
            logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        sandbox = instantiate(config.sandbox)
        at_the_end.callback(sandbox.shutdown)
        loaded = instantiate(config.model)
        keep_inputs(folder, steps.policy_hashes(loaded))
        module = steps.build_module(config, config.module, loaded, sandbox)
        if is_first():
            limit, share = config.rollout.limits.max_prompt_tokens, config.plan.skipped_share
            if said := check_prompts(datamodule.stages, module.renderer, limit, share):
                log.info(said)
        at_the_end.callback(module.engine.close)
        if config.get("warm_start"):
            steps.start_warm(config, loaded, sandbox)
        checkpoint = steps.start_from(checkpoint, loaded, folder)
        before = steps.scores_before(trainer, module, datamodule, folder / "before.json")
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        objective = steps.last_value(config.objective, trainer, folder)
        after = steps.test_scores(trainer, module, datamodule)
        save_pretrained(loaded, folder / POLICY_FOLDER)
        wait_for_all()
        if trainer.is_global_zero:
            facts = {"objective": objective, "seed": config.seed, "iterations": module.iteration}
            steps.report(folder, before, after, seconds=time.monotonic() - started, **facts)
    return objective


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> float | None:
    """The command line."""
    with plain_errors():
        return run_job(run, config)


if __name__ == "__main__":
    register_resolvers()
    sys.argv[1:] = with_current_names(sys.argv[1:])
    with hints_at_keys():
        main()
