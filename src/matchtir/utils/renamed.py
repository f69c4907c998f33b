"""Former names on the command line, which stay in use for a while and say what to write now."""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)

# A key, for itself and all below it, or `group=option`; and the words that stand for it today.
RENAMED = {
    "advantage=intra_product": "advantage=intra",
    "advantage=intra_sum": "advantage=intra advantage.combination=sum",
    "advantage=reinforce_plus_plus_baseline": (
        "advantage=reinforce_plus_plus advantage.baseline=group"
    ),
    "advantage=release": (
        "advantage=dual advantage.trajectory_weight=0.5 advantage.turn_weight=0.5"
    ),
    "advantage.outcome_weight": "advantage.trajectory_weight",
    "assignment=soft_release": "assignment=soft +assignment.max_iterations=1000",
    "carried_groups": "partial_groups",
    "data.val=custom": "benchmark@validation=custom",
    "data.val=ftrl": "benchmark@validation=ftrl",
    "data.val=nestful": "benchmark@validation=nestful +validation.tasks.on_bad_row=skip",
    "data.val=synthetic": "benchmark@validation=synthetic",
    "data.val=toolhop": "benchmark@validation=toolhop",
    "engine": "rollout.engine",
    "engine=transformers": "rollout=transformers",
    "engine=vllm": "rollout=vllm",
    "engine=vllm_server": "rollout=vllm_server",
    "experiment=ablation_cost_exponential": "experiment=matchtir_soft assignment.cost=exponential",
    "experiment=ablation_cost_normalized_inversion": (
        "experiment=matchtir_soft assignment.cost=normalized_inversion"
    ),
    "experiment=ablation_dual_turn": "experiment=matchtir_hard reward=turn",
    "experiment=ablation_intra_product": "experiment=matchtir_hard advantage=intra",
    "experiment=ablation_intra_sum": (
        "experiment=matchtir_hard advantage=intra advantage.combination=sum"
    ),
    "experiment=ablation_trajectory_integrated": "experiment=matchtir_hard advantage=trajectory",
    "experiment=ablation_trajectory_turn": (
        "experiment=matchtir_hard reward=turn advantage=trajectory"
    ),
    "experiment=ablation_turn_integrated": "experiment=matchtir_hard advantage=turn",
    "experiment=ablation_turn_turn": "experiment=matchtir_hard reward=turn advantage=turn",
    "experiment=ftrl_multi": "experiment=ftrl",
    "experiment=ftrl_single": (
        "experiment=ftrl reward.scope=turn advantage=turn advantage.gamma=0.0"
    ),
    "experiment=toolrl_multi": "experiment=toolrl",
    "experiment=toolrl_single": (
        "experiment=toolrl reward.scope=turn advantage=turn advantage.gamma=0.0"
    ),
    "hydra/launcher=processes": "hydra/launcher=joblib",
    "logger=many": "logger=[tensorboard,wandb]",
    "loss=dual_clip": "loss=clip +loss.dual_clip=3.0",
    "reward=ftrl_multi": "reward=ftrl",
    "reward=ftrl_single": "reward=ftrl reward.scope=turn",
    "reward=release": (
        "reward=integrated reward.similarity.names=casefold reward.similarity.values=python "
        "+reward.outcome_turns=every +reward.malformed_calls=ignored reward.turn_reduction=mean"
    ),
    "reward=toolrl_multi": "reward=toolrl",
    "reward=toolrl_single": "reward=toolrl reward.scope=turn",
    "module.most_carries": "module.max_partial_iterations",
    "rollout=transformers_12": "rollout=transformers rollout.engine.max_sessions=12",
    "silent": "zero_advantage",
    "trainer=default": "trainer=cpu trainer.accelerator=auto",
}


def with_current_names(
    arguments: Sequence[str], renamed: dict[str, str] | None = None
) -> list[str]:
    """The arguments of a program with former names replaced, a warning for each.

    Raises:
        SystemExit: a former option among several that are swept over, which are several words now.
    """
    renamed = RENAMED if renamed is None else renamed
    current = []
    for argument in arguments:
        words = _current(argument, renamed)
        if words != [argument]:
            log.warning("%s is a former name: write %s", argument, " ".join(words))
        current += words
    return current


def _current(argument: str, renamed: dict[str, str]) -> list[str]:
    if argument in renamed:
        return renamed[argument].split()
    key, equals, value = argument.partition("=")
    for option in value.split(",") if equals else ():
        if (words := renamed.get(f"{key}={option}")) is not None:
            raise SystemExit(f"{argument}: {key}={option} is a former name of `{words}`")
    bare = key.lstrip("+~")
    for former, now in renamed.items():
        if "=" not in former and (bare == former or bare.startswith(f"{former}.")):
            prefix = key[: len(key) - len(bare)]
            return [f"{prefix}{now}{bare.removeprefix(former)}{equals}{value}"]
    return [argument]
