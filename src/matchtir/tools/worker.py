"""A process that runs tool code: started by file name, needs nothing but the standard library.

It reads requests from a private socket and answers each on it, JSON in frames of a 4-byte length
and a body. What tools print goes to /dev/null.

Every call of a function executes its source in a fresh module, so that no global of a source
outlives a call: which worker a call lands on must not show in its result. Only the compiled code is
kept. (State inside imported modules does outlive a call; the process is the border for that.)

Methods are called on objects instead, one of each class, which "open" makes and which last until
"close", the next "open", or the end of the process: a session has its worker to itself meanwhile.
"""

import contextlib
import dataclasses
import enum
import functools
import inspect
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import types

HEADER = struct.Struct("!I")
FOLDER = os.getcwd()
SEARCH_PATH = tuple(sys.path)
OBJECTS: dict = {}  # of the session that has this process: an object per class
FOLDERS: set = set()  # of their sources
NEIGHBOURS: list = [""]  # the folder whose modules a source finds now
GRACE_S = 1.0  # the parent enforces the deadline; a worker without a parent ends itself this later


class Failure(Exception):
    """A call without a result: its status and what to tell."""


@functools.lru_cache(maxsize=4096)
def compiled(source, name):
    """The code object of a tool's source."""
    return compile(source, f"<tool {name}>", "exec", dont_inherit=True)


def load(request, module_name):
    """A fresh module with the source executed in it; it finds its neighbours by its path."""
    path = request["path"]
    folder = os.path.dirname(path) if path else ""
    if folder != NEIGHBOURS[0] and not OBJECTS:  # another folder's modules may have the same names
        forget({NEIGHBOURS[0]})
        NEIGHBOURS[0] = folder
    module = types.ModuleType(module_name)
    sys.modules[module_name] = module  # where dataclasses and the like look their module up
    sys.path[:] = [folder, *SEARCH_PATH] if path else SEARCH_PATH
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


def open_objects(request):
    """An object of each class, made with the arguments that are its initial state."""
    close_objects(request)
    modules: dict = {}
    for item in request["objects"]:
        FOLDERS.add(os.path.dirname(item["path"]))
        place = item["source"], item["path"]
        if place not in modules:
            modules[place] = load({**item, "name": item["owner"]}, f"tool_{len(modules)}")
        make = find(modules[place], item["owner"], "class")
        try:
            OBJECTS[item["owner"]] = make(**item["state"])
        except BaseException as error:
            text = f"{item['owner']} cannot be made with its initial state: {describe(error)}"
            raise Failure("broken_tool", text) from error
    return "ok", ""


def close_objects(request):
    """Nothing of the session stays, nor in modules that lie beside its sources."""
    OBJECTS.clear()
    forget(FOLDERS)
    FOLDERS.clear()
    return "ok", ""


def forget(folders):
    """The modules in these folders, so that they are imported anew."""
    for name, module in list(sys.modules.items()):
        if os.path.dirname(getattr(module, "__file__", None) or "") in folders - {""}:
            del sys.modules[name]


def read_state(request):
    """The public attributes of every object, as JSON."""
    try:
        return "ok", json.dumps({name: attributes(found) for name, found in OBJECTS.items()})
    except BaseException as error:
        raise Failure("exception", describe(error)) from error


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
        return {
            key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=json.dumps)
    if isinstance(value, type) or not (
        hasattr(value, "__dict__") or dataclasses.is_dataclass(value)
    ):
        return str(value)
    return attributes(value)


def function_of(request):
    """What a call calls: a method of this session's object, or a function from a fresh module."""
    name, owner = request["name"], request["owner"]
    if not owner:
        return find(load(request, "tool"), name, "function")
    if owner not in OBJECTS:
        raise Failure("crashed", f"{owner} and its state were lost with an earlier call")
    function = getattr(OBJECTS[owner], name, None)
    if not callable(function):
        raise Failure("broken_tool", f"{owner} has no method {name}")
    return function


def call(request):
    """Status and text of one call."""
    function = function_of(request)
    try:
        arguments = json.loads(request["arguments"])
        return "ok", as_text(function(**arguments), request["output"])
    except TypeError as error:
        if fits(function, arguments):
            raise Failure("exception", describe(error)) from error
        # Python's own words: FTRL's metric finds a gold output of 1 in "missing 1 required ..."
        raise Failure("bad_arguments", str(error)) from error
    except BaseException as error:
        raise Failure("exception", describe(error)) from error


ACTIONS = {"call": call, "open": open_objects, "state": read_state, "close": close_objects}


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
        return str(value)
    try:
        try:
            return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
        except ValueError:  # NaN or an infinity; or a cycle, which ends in RecursionError
            return json.dumps(finite(value), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, cycles, depth
        return str(value)


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
        message = str(error)
    except BaseException:
        message = ""
    kind = type(error).__name__
    return f"{kind}: {message}" if message else kind


def answer(request):
    """The reply to one request."""
    out_of_memory = False
    with open(os.devnull, "w") as null:  # anew for each call: the last tool may have closed it
        sys.stdout = sys.stderr = null
        try:
            status, text = ACTIONS[request["action"]](request)
        except Failure as failure:
            status, text = failure.args
            out_of_memory = isinstance(failure.__cause__, MemoryError)
    if "max_output_chars" in request:
        text, whole = cut(text, request["max_output_chars"])
        status = "truncated" if status == "ok" and not whole else status
    # A session with objects keeps its process, whatever they do to it, until it is closed.
    last = not OBJECTS and (out_of_memory or damaged())
    return {"id": request["id"], "status": status, "output": text, "last": last}


def cut(text, cap):
    """A text as the policy may read it, and whether it is whole: longer ones end in a remark."""
    length = len(text)
    # Joins surrogate pairs and replaces lone ones: what the policy reads must be encodable.
    text = text[:cap].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return (
        (text, True)
        if length <= cap
        else (f"{text}\n[cut here: {cap} of {length} characters]", False)
    )


def damaged():
    """Whether the call left something behind that the next one would run into."""
    if len(sys._current_frames()) > 1:  # a thread
        return True
    try:
        for descriptor in range(3):
            os.fstat(descriptor)
        return os.getcwd() != FOLDER
    except OSError:
        return True


def receive(channel, size):
    """Exactly `size` bytes; ends the process where the parent has closed its end."""
    data = bytearray()
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


def send(channel, reply):
    """One frame."""
    body = json.dumps(reply).encode()
    channel.sendall(HEADER.pack(len(body)) + body)


def confine(memory_mb):
    """What this process gives up before it runs any tool: the one place for its isolation."""
    limits = {resource.RLIMIT_CORE: 0}
    if memory_mb:
        limits[resource.RLIMIT_AS] = memory_mb << 20
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a limit that the system has not
            resource.setrlimit(kind, (value, value))


def main(descriptor, memory_mb):
    """Answer requests until the parent goes away."""
    channel = socket.socket(fileno=descriptor)
    confine(memory_mb)
    pid = os.getpid()
    send(channel, {"id": 0})  # ready
    while True:
        (size,) = HEADER.unpack(receive(channel, HEADER.size))
        request = json.loads(receive(channel, size))
        # The kernel ends this process even inside C code, should the parent be gone by then.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + GRACE_S)
        reply = answer(request)
        if os.getpid() != pid:
            os._exit(0)  # a fork made by the tool
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(channel, reply)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
