"""What a process does that runs tool code: forked by a worker, and confined (`isolation`).

Every call of a function executes its source in a fresh module, so that no global of a source
outlives a call. Only the compiled code is kept. (State inside imported modules does outlive a call,
but not the process: that is what `sandbox.fork` chooses.)

Methods are called on objects instead, one of each class, which last as long as the process. What
tools print goes to /dev/null, unless they are to return it. Standard library only, but for
jsonschema, where a tool asks for it.
"""

import contextlib
import dataclasses
import enum
import functools
import inspect
import io
import json
import math
import os
import re
import sys
import types

SEARCH_PATH = tuple(sys.path)  # of the worker, which imports this
OBJECTS: dict = {}  # an object per class
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Failure(Exception):
    """A call without a result: its status, where it is not "exception", and what to tell."""


@functools.lru_cache(maxsize=4096)
def compiled(source, name):
    """The code object of a tool's source."""
    return compile(source, f"<tool {name}>", "exec", dont_inherit=True)


def load(request, module_name):
    """A fresh module with the source executed in it; it finds its neighbours by its path."""
    path = request["path"]
    module = types.ModuleType(module_name)
    sys.modules[module_name] = module  # where dataclasses and the like look their module up
    sys.path[:] = [os.path.dirname(path), *SEARCH_PATH] if path else SEARCH_PATH
    if path:
        module.__file__ = path
    try:
        exec(compiled(request["source"], request["name"]), module.__dict__)
    except BaseException as error:
        raise Failure("broken_tool", describe(error)) from None
    return module


def find(module, name, kind):
    """What a module defines under a name; it must be something to call."""
    found = module.__dict__.get(name)
    if not callable(found):
        raise Failure("broken_tool", f"its source defines no {kind} {name}")
    return found


def make_objects(request, loaded):
    """An object of each class, with its initial state, and what earlier calls did to them."""
    modules: dict = {}
    for item in request["objects"]:
        place = item["source"], item["path"]
        if place not in modules:
            modules[place] = load({**item, "name": item["owner"]}, f"tool_{len(modules)}")
        make = find(modules[place], item["owner"], "class")
        try:
            OBJECTS[item["owner"]] = make(**item["state"])
        except BaseException as error:
            OBJECTS.clear()
            text = f"{item['owner']} cannot be made with its initial state: {describe(error)}"
            raise Failure("broken_tool", text) from error
    for earlier in request["earlier"]:
        with contextlib.suppress(BaseException):
            call({**request, **earlier}, loaded)


def read_state(request, _):
    """The public attributes of every object, as JSON."""
    return json.dumps({name: attributes(found) for name, found in OBJECTS.items()})


def attributes(value):
    """The public attributes of an object, as JSON values."""
    found = dict(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):  # perhaps with slots
        found |= {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: plain(item) for name, item in found.items() if not name.startswith("_")}


def plain(value):
    """A value as JSON has it: sets sorted, objects as their attributes, the rest as text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {k if isinstance(k, str) else str(k): plain(item) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=json.dumps)
    has_attributes = hasattr(value, "__dict__") or dataclasses.is_dataclass(value)
    return attributes(value) if has_attributes and not isinstance(value, type) else str(value)


def function_of(request):
    """What a call calls: a method of an object, or a function from a fresh module."""
    name, owner = request["name"], request["owner"]
    if not owner:
        return find(load(request, "tool"), name, "function")
    function = getattr(OBJECTS[owner], name, None)
    if not callable(function):
        raise Failure("broken_tool", f"{owner} has no method {name}")
    return function


def call(request, loaded):
    """Text of one call's result; sets the first byte of `loaded` when its source is."""
    function = function_of(request)
    loaded[0] = 1
    arguments = json.loads(request["arguments"])
    if request.get("strict"):
        arguments = fitting(arguments, request["parameters"])
    try:
        value = function(**arguments)
    except TypeError as error:
        if fits(function, arguments):
            raise
        # Python's own words: FTRL's metric finds a gold output of 1 in "missing 1 required ..."
        raise Failure("bad_arguments", str(error)) from error
    if inspect.iscoroutine(value):
        import asyncio  # slow

        value = asyncio.run(value)
    if "printed" in request:
        value = {"result": value, "stdout": printed_by(request)}
    return as_text(value, request["output"])


def fitting(arguments, schema):
    """The arguments as they fit a tool's schema: as given, or without optional ones that are null.

    Raises Failure with what does not fit.
    """
    import jsonschema  # slow: `sandbox.preload` can have it

    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator, required = kind(schema), schema.get("required", ())
    there = {name: v for name, v in arguments.items() if v is not None or name in required}
    for tried in (arguments, there):
        if validator.is_valid(tried):
            return tried
    error = jsonschema.exceptions.best_match(validator.iter_errors(there))
    place = ".".join(map(str, error.absolute_path))
    raise Failure("bad_arguments", f"{place}: {error.message}" if place else error.message)


def printed_by(request):
    """What the tool printed, up to half of what it may say."""
    return cut(request["printed"].getvalue(), request["max_output_chars"] // 2)[0]


def fits(function, arguments):
    """Whether the function takes these arguments; if so, a TypeError came from inside it."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError:
        return False
    except ValueError:
        pass  # a callable that does not tell its signature
    return True


def as_text(value, form):
    """A return value as the policy reads it."""
    if isinstance(value, str):
        return value
    if form == "python":
        return readable(value)
    try:
        return json.dumps(finite(value), ensure_ascii=False, default=readable)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, cycles, depth
        return readable(value)


def readable(value):
    """The value as text, without addresses: they differ from run to run."""
    return ADDRESS.sub("", str(value))


def finite(value):
    """The value with NaN and infinities as text: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(float(value))
    if isinstance(value, dict):
        return {finite(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def describe(error):
    """An exception in one line."""
    try:
        message = readable(error)
    except BaseException:
        message = ""
    kind = type(error).__name__
    return f"{kind}: {message}" if message else kind


def answer(request, loaded):
    """Status and text of the reply to one request."""
    # The stream is opened anew for each call, since the last tool may have closed it; and this one
    # may have been closed by now, too.
    with contextlib.suppress(OSError), open(os.devnull, "w") as null:
        sys.stdout = sys.stderr = null
        try:
            if request.get("objects") and not OBJECTS:
                make_objects(request, loaded)
            if request.get("stdout"):
                sys.stdout = request["printed"] = io.StringIO()
            act = read_state if request["action"] == "state" else call
            status, text = "ok", act(request, loaded)
        except BaseException as error:
            failed = isinstance(error, Failure)
            status, text = error.args if failed else ("exception", describe(error))
            if "printed" in request:
                text = f"{text}\n{printed_by(request)}"
    if "max_output_chars" in request:
        text, whole = cut(text, request["max_output_chars"])
        status = "truncated" if status == "ok" and not whole else status
    return status, text


def cut(text, cap):
    """A text as the policy may read it, and whether it is whole: longer ones end in a remark."""
    length = len(text)
    # Joins surrogate pairs and replaces lone ones: what the policy reads must be encodable.
    text = text[:cap].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    whole = length <= cap
    return (text if whole else f"{text}\n[cut here: {cap} of {length} characters]"), whole
