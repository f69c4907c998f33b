"""Builds a group of configured objects: callbacks, loggers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig


def instantiate_group(group: DictConfig | None) -> list[Any]:
    """The objects of a mapping from names to `_target_` nodes, in its order.

    An entry set to null is left out, which is how an experiment removes one.

    Raises:
        ValueError: an entry is something else.
    """
    objects = []
    for name, node in (group or {}).items():
        if node is None:
            continue
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ValueError(f"{name!s}: expected a node with a _target_, found {node!r}")
        objects.append(instantiate(node))
    return objects


def close(loggers: Iterable[Any]) -> None:
    """End the loggers that have an end, as W&B's has."""
    for logger in loggers:
        if hasattr(logger, "close"):
            logger.close()
