"""Finds mistakes in a composed config before anything is built from it; builds groups of it.

A run reads some keys itself (`known`). Other keys are *settings*: parts of the config that the run
reads only where another part refers to them, as `advantage.turn_groups: ${turn_groups}` does. What
the command line sets and nothing refers to would be ignored in silence, so it is refused.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from matchtir.utils.options import UserError, suggest

# Numbers and tools, imported at once; all else comes with PyTorch, which takes seconds.
LIGHT = ("matchtir.credit.", "matchtir.tools.")
INSTANTIATE_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
REFERENCE = re.compile(r"(?:\$\{|oc\.select:)([\w.]+)(?=[},])")
Found = Iterable[tuple[str, dict[str, Any]]]  # what `targets` yields


class ConfigError(UserError):
    """A config that cannot be run; the message names every key at fault."""


def check(config: DictConfig, known: str, settings: str = "", also: Iterable[str] = ()) -> None:
    """Raise ConfigError where a value is missing or unfit, or a key is not read.

    Nothing slow is imported for it: `check_after_imports` judges the targets that are left.

    Args:
        config: composed, interpolations and all.
        known: dotted keys that the program reads, with blanks between them; a key stands for
            everything below it.
        settings: keys that it reads by reference alone. Those on the command line of the running
            program must be referred to.
        also: further problems, looked for where no value is missing.

    Raises:
        ConfigError: listing every missing value, or the first broken interpolation, or else every
            key that is not known or not read, every `_target_` that is not there or cannot be
            called with its arguments, and every argument of another type than its annotation; or
            else what constructors of a `_partial_` node's arguments say against their values.
    """
    _raise_if(_unresolved(config))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    raw: Any = OmegaConf.to_container(config)  # with references as text
    problems = _unknown(plain, "", [*known.split(), *settings.split()])
    unread = _not_read(raw, known.split(), settings.split())
    found = [*_targets(plain, raw)]
    _raise_if([*problems, *unread, *_misfits(found, _is_light), *also])
    _raise_if(_constructor_errors(found, _is_light))


def check_after_imports(config: DictConfig) -> None:
    """Raise ConfigError for what `check` leaves: targets whose import takes seconds."""
    found = [*targets(config)]
    _raise_if(_misfits(found, lambda _: True))
    _raise_if(_constructor_errors(found, lambda _: True))


def _raise_if(problems: Iterable[str]) -> None:
    if lines := [*problems]:
        raise ConfigError("\n".join(["the config cannot be run:", *lines]))


def check_packages(config: DictConfig) -> None:
    """Raise ConfigError where a target `needs` packages that are not installed.

    A target that imports packages late says so: `needs = {"package": "how to install it"}`; a
    service that runs elsewhere, at its `url`, needs none here.
    """
    missing = [
        f"  {name}_target_: {node['_target_']} needs the package {package}: {how}"
        for name, node in targets(config)
        for package, how in getattr(resolve_name(node["_target_"]), "needs", {}).items()
        if not node.get("url") and find_spec(package) is None
    ]
    if missing:
        raise ConfigError("\n".join(["not installed:", *missing]))


@contextmanager
def plain_errors() -> Iterator[None]:
    """End with the message alone where settings, rows or files are at fault.

    `HYDRA_FULL_ERROR=1` shows the traceback, as it does for Hydra's own messages. The folder of a
    run that left nothing in it, since it was refused or dry, goes.

    Raises:
        SystemExit: instead of a UserError, of a file that is not there, and of what a constructor
            says against its arguments.
    """
    try:
        yield
    except (UserError, FileNotFoundError, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        found = _of_constructor(error) if isinstance(error, InstantiationException) else str(error)
        hint = "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
        raise SystemExit(f"{found}\n\n{hint}") from error
    finally:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
            _remove_unused(Path(HydraConfig.get().runtime.output_dir))


def _remove_unused(folder: Path) -> None:
    """Remove a folder that has nothing but Hydra's empty log."""
    left = [*folder.iterdir()] if folder.is_dir() else []
    if left and all(file.suffix == ".log" and not file.stat().st_size for file in left):
        for file in left:
            file.unlink()
        folder.rmdir()


@contextmanager
def hints_at_keys() -> Iterator[None]:
    """Say what a key on the command line that Hydra refused may have been meant to be."""
    try:
        yield
    except SystemExit as ended:
        # Hydra raises SystemExit while it handles its own error.
        error = ended.__context__ and ended.__context__.__cause__
        if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node:
            above = str(error.full_key).removesuffix(str(error.key))
            hint = suggest(str(error.full_key), [f"{above}{key}" for key in error.parent_node])
            print(f"{error.full_key}: there is no such key{hint}", file=sys.stderr)
        raise


def _of_constructor(error: InstantiationException) -> str:
    """What Hydra wrapped, behind the key that it gives in its last line; a file says its own."""
    key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
    if isinstance(error.__cause__, FileNotFoundError):
        return str(error.__cause__)
    return f"{key}: {error.__cause__}" if key and error.__cause__ else str(error)


def instantiate_group(group: DictConfig | None) -> list[Any]:
    """The objects of a mapping from names to `_target_` nodes, in its order.

    An entry set to null is left out, which is how an experiment removes one.

    Raises:
        ValueError: an entry is something else.
    """
    nodes = {name: node for name, node in (group or {}).items() if node is not None}
    if nodes.pop("none", False):  # callbacks=none: settings of absent entries are left out
        nodes = {name: node for name, node in nodes.items() if "_target_" in node}
    for name, node in nodes.items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ValueError(f"{name!s}: expected a node with a _target_, found {node!r}")
    return [instantiate(node) for node in nodes.values()]


def targets(config: DictConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a `_target_`, after its dotted key (with a final dot); references are not.

    Outer nodes come first. What is referred to is yielded where it stands.
    """
    yield from _targets(
        OmegaConf.to_container(config, resolve=True), OmegaConf.to_container(config)
    )


def _targets(node: Any, raw: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of a resolved node beside the same with references as text."""
    if isinstance(node, dict) and "_target_" in node:
        yield prefix, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(raw[key], dict | list):
            yield from _targets(value, raw[key], f"{prefix}{key}.")


# -- keys ------------------------------------------------------------------------------------------


def _unresolved(config: DictConfig) -> list[str]:
    """Missing values, or the first reference that fails."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return [f"  {error.full_key}: {str(error).splitlines()[0]}"]
    return [f"  {key}: a value must be given" for key in missing]


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
            yield f"  {name}: nothing reads this key{suggest(name, known)}"


def _not_read(raw: Any, known: Collection[str], settings: Collection[str]) -> Iterator[str]:
    """Settings on the command line that nothing in this config refers to."""
    if not HydraConfig.initialized():
        return
    read: set[str] = set()
    found = set(known)
    while found:
        read |= found
        texts = (str(_at(raw, key.split("."))) for key in found)
        found = {key for text in texts for key in REFERENCE.findall(text)} - read
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        if _covered(key, settings) and not _covered(key, read):
            yield f"  {override}: nothing in this run reads {key} (see --cfg job)"


def _covered(key: str, others: Collection[str]) -> bool:
    """Whether one of the others is the key, above it or below it."""
    return any(
        f"{a}.".startswith(f"{b}.") for other in others for a, b in ((key, other), (other, key))
    )


def _at(node: Any, path: Sequence[str]) -> Any:
    """What stands at a path of keys; None: nothing."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


# -- targets and their arguments -------------------------------------------------------------------


def _is_light(target: str) -> bool:
    """Whether importing a target takes no time."""
    return "torch" in sys.modules or target.startswith(LIGHT)


def _misfits(found: Found, judged: Callable[[str], bool]) -> Iterator[str]:
    """Targets that cannot be imported, and arguments that they do not take or still need."""
    for prefix, node in found:
        if not judged(target := node["_target_"]):
            continue
        try:
            taken, takes_others = _parameters(target)
        except Exception as error:  # whatever its module does when it is imported
            yield f"  {prefix}_target_: {target} cannot be imported: {error}"
            continue
        for key in (key for key in node if key not in INSTANTIATE_KEYS):
            if key not in taken:
                if not takes_others:
                    yield f"  {prefix}{key}: {target} takes no such argument{suggest(key, taken)}"
            elif not fits(node[key], taken[key].annotation):
                wanted = inspect.formatannotation(taken[key].annotation)
                yield f"  {prefix}{key}: {target} takes {wanted}, not {node[key]!r}"
        if not node.get("_partial_") and "_args_" not in node:
            for name in sorted(taken.keys() - node.keys()):
                if taken[name].default is inspect.Parameter.empty:
                    yield f"  {prefix}{name}: {target} needs this argument"


@cache
def _parameters(target: str) -> tuple[dict[str, inspect.Parameter], bool]:
    """What a target takes by name, and whether it takes any others.

    Arguments `**more` of a constructor are those of its base classes. What these need it may give
    them itself.
    """
    makers = [resolve_name(target)]
    if isinstance(makers[0], type):
        above = makers[0].__mro__[:-1]
        makers = [each for each in above if {"__init__", "__new__"} & vars(each).keys()]
    taken: dict[str, inspect.Parameter] = {}
    takes_others = False
    for maker in makers:
        try:
            signature = inspect.signature(maker, eval_str=True)
        except NameError:  # a name for type checkers alone: what it annotates is not judged
            signature = inspect.signature(maker)
        except ValueError:  # compiled
            return taken, True
        for each in signature.parameters.values():
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                own = each if maker is makers[0] else each.replace(default=None)
                taken.setdefault(each.name, own)
        takes_others = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if not takes_others:
            break
    return taken, takes_others


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config is of a type; objects of other classes are not judged."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, hint | int) and not isinstance(value, bool)
    if isinstance(origin, type) and inner:
        if issubclass(origin, Mapping):
            return isinstance(value, Mapping) and all(fits(v, inner[1]) for v in value.values())
        if issubclass(origin, Collection):
            return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    return True


def _constructor_errors(found: Found, judged: Callable[[str], bool]) -> Iterator[str]:
    """What constructors say against the arguments of partial nodes, which are light to build."""
    for name, partial in found:
        for key, node in partial.items() if partial.get("_partial_") else ():
            inside = _targets(node, node) if isinstance(node, dict | list) else ()
            named = [each["_target_"] for _, each in inside]
            if not named or not all(map(judged, named)) or "_partial_" in node:
                continue
            try:
                instantiate(node)
            except InstantiationException as error:
                yield f"  {name}{key}: {error.__cause__ or error}"
