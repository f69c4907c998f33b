"""A process that runs tool code: started by file name, needs nothing but the standard library.

It reads requests from a private socket and answers each on it, JSON in frames of a 4-byte length
and a body. What tools print goes to /dev/null.

Every call executes its source in a fresh module, so that no global of a source outlives a call:
which worker a call lands on must not show in its result. Only the compiled code is kept. (State
inside imported modules does outlive a call; the process is the border for that.)
"""

import contextlib
import functools
import inspect
import json
import os
import resource
import signal
import socket
import struct
import sys
import types

HEADER = struct.Struct("!I")
FOLDER = os.getcwd()
GRACE_S = 1.0  # the parent enforces the deadline; a worker without a parent ends itself this later


class Failure(Exception):
    """A call without a result: its status and what to tell."""


@functools.lru_cache(maxsize=4096)
def compiled(source, name):
    """The code object of a tool's source."""
    return compile(source, f"<tool {name}>", "exec", dont_inherit=True)


def load(source, name):
    """The tool's function, from a fresh module."""
    module = types.ModuleType("tool")
    sys.modules["tool"] = module  # where dataclasses and the like look their module up
    try:
        exec(compiled(source, name), module.__dict__)
    except BaseException as error:
        raise Failure("broken_tool", describe(error)) from None
    function = module.__dict__.get(name)
    if not callable(function):
        raise Failure("broken_tool", f"its source defines no function {name}")
    return function


def execute(request):
    """Status and text of one call."""
    function = load(request["source"], request["name"])
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
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that JSON has not, cycles, depth
        return str(value)


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
            status, text = execute(request)
        except Failure as failure:
            status, text = failure.args
            out_of_memory = isinstance(failure.__cause__, MemoryError)
    cap, length = request["max_output_chars"], len(text)
    # Joins surrogate pairs and replaces lone ones: what the policy reads must be encodable.
    text = text[:cap].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if length > cap:
        text += f"\n[cut here: {cap} of {length} characters]"
        status = "truncated" if status == "ok" else status
    last = out_of_memory or damaged()
    return {"id": request["id"], "status": status, "output": text, "last": last}


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


def limit(kind, value):
    """Lower a resource limit where the system has it."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def main(descriptor, memory_mb):
    """Answer requests until the parent goes away."""
    channel = socket.socket(fileno=descriptor)
    limit(resource.RLIMIT_CORE, 0)
    if memory_mb:
        limit(resource.RLIMIT_AS, memory_mb << 20)
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
