"""Puts a training module together from its configured parts."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from matchtir.policy.loading import LoadedPolicy
from matchtir.tools.sandbox import Sandbox
from matchtir.training.base import PolicyModule


def build_module(
    config: DictConfig, module: DictConfig, loaded: LoadedPolicy, sandbox: Sandbox
) -> PolicyModule:
    """The module of node `module` around a policy, with renderer and engine for its tokens."""
    renderer = instantiate(config.renderer)(tokenizer=loaded.tokenizer)
    engine = instantiate(config.rollout.engine)(stop_token_ids=renderer.stop_token_ids)
    parts: dict[str, Any] = {"renderer": renderer, "engine": engine, "sandbox": sandbox}
    return instantiate(module)(policy=loaded.policy, **parts)
