"""Finds mistakes in a composed config before anything is built from it; builds groups of it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

INSTANTIATE_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


class ConfigError(ValueError):
    """A config that cannot be run; the message names every key at fault."""


def check(config: DictConfig, known: str) -> None:
    """Raise ConfigError where a value is missing, a key is not read, or a target does not fit.

    Args:
        config: composed, interpolations and all.
        known: dotted keys that the program reads, with blanks between them; a key stands for
            everything below it.

    Raises:
        ConfigError: listing every missing value and broken interpolation, or else every key that
            is not known and every `_target_` that cannot be imported or called with its arguments.
    """
    problems = list(_unresolved(config))
    if not problems:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        problems = [*_unknown(plain, "", known.split()), *_misfits(plain, "")]
    if problems:
        raise ConfigError("\n".join(["the config cannot be run:", *problems]))


def instantiate_group(group: DictConfig | None) -> list[Any]:
    """The objects of a mapping from names to `_target_` nodes, in its order.

    An entry set to null is left out, which is how an experiment removes one.

    Raises:
        ValueError: an entry is something else.
    """
    nodes = {name: node for name, node in (group or {}).items() if node is not None}
    for name, node in nodes.items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ValueError(f"{name!s}: expected a node with a _target_, found {node!r}")
    return [instantiate(node) for node in nodes.values()]


def _unresolved(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """Missing values and interpolations that fail."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        name = f"{prefix}{key}"
        if OmegaConf.is_missing(node, key):
            yield f"  {name}: a value must be given"
            continue
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            yield f"  {name}: {str(error).splitlines()[0]}"
            continue
        if isinstance(value, DictConfig | ListConfig) and not value._is_none():
            yield from _unresolved(value, f"{name}.")


def _unknown(node: Mapping[str, Any], prefix: str, known: Collection[str]) -> Iterator[str]:
    """Leaves and targets that no known key covers."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in known:
            continue
        inside = any(entry.startswith(f"{name}.") for entry in known)
        if inside and isinstance(value, Mapping) and "_target_" not in value:
            yield from _unknown(value, f"{name}.", known)
        elif not inside or value is not None:
            yield f"  {name}: nothing reads this key{_suggest(name, known)}"


def _misfits(node: Any, prefix: str) -> Iterator[str]:
    """Targets that cannot be imported, and arguments that they do not take or still need."""
    if isinstance(node, Mapping) and "_target_" in node:
        yield from _target_misfits(node, prefix)
    inner = node.items() if isinstance(node, Mapping) else ()
    for key, value in enumerate(node) if isinstance(node, list) else inner:
        yield from _misfits(value, f"{prefix}{key}.")


def _target_misfits(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    target = node["_target_"]
    try:
        function = get_object(target)
    except Exception as error:  # an import may fail in any way
        reason = str(error).splitlines()[0]
        yield f"  {prefix}_target_: {target} cannot be imported: {reason}"
        return
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some built-ins have no signature
        return
    taken = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in node:
        if key not in taken and key not in INSTANTIATE_KEYS and not takes_any:
            yield f"  {prefix}{key}: {target} takes no such argument{_suggest(str(key), taken)}"
    if node.get("_partial_") or "_args_" in node:
        return
    for name in sorted(taken - set(node)):
        if parameters[name].default is inspect.Parameter.empty:
            yield f"  {prefix}{name}: {target} needs this argument"


def _suggest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
