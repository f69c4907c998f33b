"""Tools that are not written in the rows: a Python module's, or an MCP server's."""

from __future__ import annotations

import enum
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema

from matchtir.tools.mcp import server_tools
from matchtir.types import McpServer, ToolSpec

ToolSource = str | Mapping[str, Any]  # a module, or a mapping with what it is granted

_GRANTS = {"network": bool, "environment": Sequence, "timeout_s": int | float}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "module": {"module": str, "strict": bool, "stdout": bool, **_GRANTS},
    "command": {"command": Sequence, "shared": bool, "trusted": bool, **_GRANTS},
    "url": {"url": str, "token": str, "shared": bool, "timeout_s": int | float},
}


class ToolSourceError(ValueError):
    """Tools that cannot be read; the message names the module and the function, or the server."""


def read_tools(sources: ToolSource | Sequence[ToolSource] | None) -> tuple[ToolSpec, ...]:
    """The tools of one or several sources, in order.

    A source is a Python file or an importable module, of which `module.py:Name` takes one function
    or class alone, or a mapping with such a `module`, or with the `command` or the `url` of an MCP
    server (`shared`: one connection for all episodes; `trusted`: without isolation; `token`: name
    of the variable that has its bearer token). A mapping may grant its tools the `network`, and
    variables of the `environment`, by their names, and set their `timeout_s`. Tools of a module
    may be `strict` about their arguments, and return their `stdout`; see `ToolSpec`.

    Raises:
        ToolSourceError: a source that cannot be read, or two tools of one name.
        McpError: a server that does not start.
    """
    if sources is None:
        return ()
    several = [sources] if isinstance(sources, str | Mapping) else list(sources)
    found: dict[str, ToolSpec] = {}
    for source in several:
        tools = _of_mapping(source) if isinstance(source, Mapping) else module_tools(source)
        for tool in tools:
            if tool.name in found:
                raise ToolSourceError(f"{source}: there already is a tool called {tool.name!r}")
            found[tool.name] = tool
    return tuple(found.values())


def _of_mapping(source: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """The tools of a module or of an MCP server, which is started to be asked, with its options."""
    options: dict[str, Any] = {str(key): value for key, value in source.items()}
    named = [each for each in _OPTIONS if each in options]
    kinds = _OPTIONS[named[0]] if len(named) == 1 else {}
    fits = bool(kinds) and all(
        isinstance(value, kinds.get(key, ())) and (kinds[key] is str or not isinstance(value, str))
        for key, value in options.items()
    )
    if not fits or options.get("timeout_s", 1) <= 0:
        raise ToolSourceError(
            "an MCP server is given as {command: [program, argument, ...], shared: false} or "
            "{url: http://...}, a module as {module: file.py}, each perhaps with timeout_s: 60, "
            f"what runs here with network: true, environment: [NAME]; not as {options}"
        )
    for name in ("command", "environment"):
        if name in options:
            options[name] = tuple(map(str, options[name]))
    if "module" in options:
        tools = module_tools(options.pop("module"))
        return tuple(replace(tool, **options) for tool in tools)
    limit = options.pop("timeout_s", None)
    return tuple(replace(tool, timeout_s=limit) for tool in server_tools(McpServer(**options)))


def module_tools(source: str) -> tuple[ToolSpec, ...]:
    """The public functions of a module, and the public methods of its public classes.

    Public are the names in its `__all__`, else those that it defines itself and that do not begin
    with an underscore; decorated functions, static and class methods are among them. Classes of
    exceptions and enumerations are no tools. Each schema comes from the type hints and the
    docstring, by transformers' `get_json_schema`.
    """
    file, _, wanted = source.partition(":")
    path = _find(file)
    module = _load(path)
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    names = [wanted] if wanted else getattr(module, "__all__", own)
    text = path.read_text(encoding="utf-8")
    tools: list[ToolSpec] = []
    for name in names:
        if name not in vars(module):
            raise ToolSourceError(f"{path}: it defines no {name}")
        for owner, label, function in _functions(name, vars(module)[name]):
            schema = _schema(function, f"{path}: the tool {label}")
            given = schema["name"], schema["description"], schema["parameters"]
            tools.append(ToolSpec(*given, source=text, owner=owner, path=str(path)))
    if not tools:
        raise ToolSourceError(f"{path}: no public function, and no public class with methods")
    return tuple(tools)


def _find(source: str) -> Path:
    """The file of a module that is given as a file or by its importable name."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.resolve()
    try:
        spec = importlib.util.find_spec(source) if not source.endswith(".py") else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ToolSourceError(f"{source}: no such file, and no module that can be imported")
    return Path(spec.origin)


def _load(path: Path) -> types.ModuleType:
    """The module of a file, executed as the sandbox does it: alone, beside its neighbours."""
    module = types.ModuleType("tool")
    module.__file__ = str(path)
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(path.parent))
    sys.modules["tool"] = module  # where dataclasses look their module up
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    except Exception as error:
        raise ToolSourceError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before
        # Those of another folder may have the same names.
        for name in set(sys.modules) - known:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == path.parent:
                del sys.modules[name]
    return module


def _functions(name: str, value: Any) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(class or "", full name, function as it is called) of the tools in a module's value."""
    if not inspect.isclass(value):
        if callable(value):
            yield "", name, value
    elif not issubclass(value, BaseException | enum.Enum):
        for method in dict.fromkeys(key for base in reversed(value.__mro__) for key in vars(base)):
            static = inspect.getattr_static(value, method)
            function = getattr(value, method)
            if method.startswith("_") or inspect.isclass(function) or not callable(function):
                continue
            if not isinstance(static, staticmethod | classmethod):
                function = types.MethodType(function, object())  # hides self
            yield value.__name__, f"{value.__name__}.{method}", function


def _schema(function: Callable[..., Any], label: str) -> dict[str, Any]:
    try:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                kind = parameter.kind.description
                raise TypeError(f"no call by name fits its {kind} {parameter.name}")
        schema: dict[str, Any] = get_json_schema(function)["function"]
    except Exception as error:
        raise ToolSourceError(f"{label}: {error}") from error
    return schema
