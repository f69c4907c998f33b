"""What the targets of a config take, read off their sources: importing them may take seconds.

Nothing but the standard library is imported. Where a source does not tell (compiled modules, names
that are made when a module runs) anything is taken: building the object says more.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

SLOW = frozenset({"torch", "transformers", "lightning"})  # packages that take seconds to import

_Defined = tuple[str, ast.stmt]  # the module of a definition, and the definition
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Signature:
    """The named arguments of a function or class."""

    types: dict[str, Any] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)
    takes_others: bool = False


@cache
def signature(target: str) -> Signature:
    """What a target takes; arguments `**more` of a constructor are those of its base classes.

    What base classes need it may give them itself.

    Raises:
        LookupError: there is no such module, or nothing of that name in it.
    """
    root, _, name = target.partition(".")
    if not name or _spec(root) is None:
        raise LookupError(f"there is no module {root!r}")
    taken, by_it = Signature(), True  # whether what is missing must be given by whoever calls it
    for module, node in _makers(_resolved(root, name)):
        is_dataclass = isinstance(node, ast.ClassDef)  # its bases may have fields, too
        for argument, annotation, has_default in (
            _fields(node) if is_dataclass else _arguments(node)
        ):
            if by_it and not has_default and argument not in taken.types:
                taken.needed.add(argument)
            taken.types.setdefault(argument, _type(module, annotation))
        by_it = is_dataclass
        taken.takes_others = not is_dataclass and _takes_others(node)
        if not is_dataclass and not taken.takes_others:
            break
    return taken


@cache
def is_slow(target: str) -> bool:
    """Whether the module of a target imports a slow package, or imports one that does."""
    waiting, seen = [target], set[str]()
    root = target.partition(".")[0]
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] in SLOW:
            return True
        while name and _spec(name) is None:  # a name in a module
            name = name.rpartition(".")[0]
        if name not in seen and name.partition(".")[0] == root:
            seen.add(name)
            waiting += [
                each for node in set(_names(name).values()) for each in _imported(name, node)
            ]
    return False


def _imported(module: str, node: ast.stmt) -> Iterable[str]:
    """The dotted names that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{_source(module, node)}.{alias.name}" for alias in node.names]
    return []


# -- definitions -----------------------------------------------------------------------------------


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; its parents are not imported."""
    parent = module.rpartition(".")[0]
    if not parent:
        return find_spec(module) if module else None
    above = _spec(parent)
    places = list(above.submodule_search_locations or ()) if above else []
    try:
        return PathFinder.find_spec(module, places) if places else None
    except KeyError:  # a namespace, which looks its parent up among what is imported
        spec = ModuleSpec(module, None, is_package=True)
        own = (Path(place, module.rpartition(".")[2]) for place in places)
        spec.submodule_search_locations = [str(place) for place in own if place.is_dir()]
        return spec


@cache
def _names(module: str) -> dict[str, ast.stmt]:
    """What binds each name of a module; "*" and "__getattr__" where others may be bound."""
    spec = _spec(module)
    if spec is None or not str(spec.origin).endswith(".py"):
        return {} if spec and spec.submodule_search_locations else {"*": ast.Pass()}
    return dict(_bound(ast.parse(Path(str(spec.origin)).read_bytes()).body))


def _bound(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name, node
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((each.asname or each.name.partition(".")[0], node) for each in aliases)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.If() | ast.Try():
                for part in (
                    node.orelse,
                    *(h.body for h in getattr(node, "handlers", ())),
                    node.body,
                ):
                    yield from _bound(part)


def _source(module: str, node: ast.ImportFrom) -> str:
    """The module that a statement imports from."""
    spec = _spec(module)
    package = spec.parent if spec else None
    return resolve_name("." * node.level + (node.module or ""), package)


def _resolved(module: str, dotted: str) -> _Defined | None:
    """The definition of a name as it is seen in a module; None: its source does not tell."""
    head, _, rest = dotted.partition(".")
    names = _names(module)
    node = names.get(head)
    if isinstance(node, ast.ImportFrom):
        (name,) = (each.name for each in node.names if (each.asname or each.name) == head)
        return _resolved(_source(module, node), f"{name}.{rest}".rstrip("."))
    if isinstance(node, ast.Import):
        source = next((each.name for each in node.names if each.asname == head), head)
        return _resolved(source, rest) if rest else None
    if node is None and rest and _spec(f"{module}.{head}"):
        return _resolved(f"{module}.{head}", rest)
    if node is None and {"*", "__getattr__"} & names.keys():
        return None
    if isinstance(node, ast.ClassDef) and rest:
        node = dict(_bound(node.body)).get(rest)
        if node is None:
            return None
    if node is None:
        raise LookupError(f"there is no {head!r} in {module}")
    return module, node


def _makers(found: _Defined | None) -> Iterator[_Defined]:
    """The function; or of a class and its bases the constructors, or classes that are dataclasses.

    Where a base is not known it is yielded as an empty statement, and ends them.
    """
    if found is None or not isinstance(found[1], ast.ClassDef):
        yield found or ("", ast.Pass())
        return
    module, node = found
    assert isinstance(node, ast.ClassDef)
    inside = dict(_bound(node.body))
    own = inside.get("__init__", inside.get("__new__"))
    if own is not None:
        yield module, own
    elif any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        yield module, node
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name not in ("ABC", "Generic", "Protocol", "object"):
            try:
                above = _resolved(module, name)
            except LookupError:  # a built-in
                above = None
            yield from _makers(above)


_Argument = tuple[str, ast.expr | None, bool]  # name, annotation, whether it has a default


def _takes_others(node: ast.stmt) -> bool:
    """Whether a function takes arguments of any name; what is not known may."""
    return not isinstance(node, _FUNCTIONS) or node.args.kwarg is not None


def _arguments(node: ast.stmt) -> Iterator[_Argument]:
    """The arguments that a function takes by name; not those of the object or class."""
    if not isinstance(node, _FUNCTIONS):
        return
    given, by_name = node.args.args, node.args.kwonlyargs
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    for number, (each, default) in enumerate(zip(given, defaults, strict=True)):
        if number or each.arg not in ("self", "cls"):
            yield each.arg, each.annotation, default is not None
    for each, default in zip(by_name, node.args.kw_defaults, strict=True):
        yield each.arg, each.annotation, default is not None


def _fields(node: ast.stmt) -> Iterator[_Argument]:
    """The fields of a dataclass that its constructor takes."""
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            kind, value = ast.unparse(each.annotation), ast.unparse(each.value or ast.Pass())
            if not kind.startswith("ClassVar") and "init=False" not in value:
                yield each.target.id, each.annotation, each.value is not None


# -- types -----------------------------------------------------------------------------------------


def _type(module: str, annotation: ast.expr | None) -> Any:
    """The type that an annotation means in a module; Any for classes that are not built in."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if annotation is None:
        return Any
    code = compile(ast.Expression(annotation), module, "eval")
    try:
        return eval(code, {"__builtins__": {}}, _Scope(module))
    except Exception:  # an expression of what only running the module makes
        return Any


class _Scope(dict[str, Any]):
    """The names of a module as far as they are types."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        node = _names(self.module).get(name)
        if node is None:
            return getattr(builtins, name)
        for dotted in _imported(self.module, node):
            source = dotted.rpartition(".")[0] or dotted
            if source.partition(".")[0] in sys.stdlib_module_names:
                library = importlib.import_module(source)
                return getattr(library, name) if isinstance(node, ast.ImportFrom) else library
        found = _resolved(self.module, name)
        if found and isinstance(found[1], ast.Assign | ast.AnnAssign):
            return _type(found[0], found[1].value)
        return Any
