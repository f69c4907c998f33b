"""A process that runs tool code in forks of itself: started by `pool`, standard library only.

It moves into namespaces when it starts, and says what it could not give up. For each episode, or
each call, it forks a child that is confined before it reads a line of tool code, and ends it with
everything that the child started; the next one is forked at once, so that it is ready when it is
needed. So it is the worker, which no tool code ever shares a process with, that keeps deadlines,
says how a call ended, and ends everything when its parent goes away.

Frames: the parent's are a length and JSON; replies, of worker and child, are a status, a length
and text. A child's reply may have the first few statuses only.
"""

import contextlib
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import time

from matchtir.tools.child import answer, compiled
from matchtir.tools.isolation import Isolation, Rules

REQUEST, REPLY = struct.Struct("!I"), struct.Struct("!BI")
OF_CHILDREN = ("ok", "truncated", "exception", "bad_arguments", "broken_tool")
STATUSES = (*OF_CHILDREN, "ready", "crashed", "timeout", "load_timeout", "lost")
MAX_REPLY_BYTES = 1 << 28
# What tools are likely to import: once per worker rather than once per episode.
COMMON = """bisect calendar collections copy csv datetime decimal fractions functools hashlib heapq
itertools math operator random re statistics string textwrap typing unicodedata uuid"""


class Child:
    """A fork that runs tool code. It is made ahead, for folders that it may read, and gets its
    episode (`key`) with its first request; `parent` is the channel of the worker's own parent.
    """

    def __init__(self, isolation, parent, key):
        self.key, (_, self.folders) = None, key  # its key is None until it is needed
        self.loaded = mmap.mmap(-1, 1)  # set once the source of a call is loaded
        self._isolation, self._parent = isolation, parent.fileno()
        self.channel, theirs = socket.socketpair()
        self.pid = isolation.fork(self.folders)
        if self.pid == 0:
            _become_child(isolation, theirs.detach(), self.loaded)
        theirs.close()
        self._poll = select.poll()
        for descriptor in (self.channel.fileno(), self._parent):
            self._poll.register(descriptor, select.POLLIN)

    def ask(self, body, timeout_s):
        """(status, text as bytes) of a request, within its seconds."""
        deadline = time.monotonic() + timeout_s
        self.loaded[0] = 0
        try:
            self.channel.settimeout(timeout_s)
            self.channel.sendall(REQUEST.pack(len(body)) + body)
            return self._reply(deadline)
        except TimeoutError:
            return "timeout" if self.loaded[0] else "load_timeout", f"{timeout_s:g}".encode()
        except OSError:
            return self._death()

    def serves(self, key):
        """Whether it is for these, lives, and says nothing that it was not asked."""
        if self.key not in (None, key) or self.folders != key[1]:
            return False
        self.channel.setblocking(False)
        try:
            self.channel.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def end(self):
        """End it, with everything that it started."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if not self._isolation.has_pids:
            _end_descendants()
        self.channel.close()
        self.loaded.close()
        self._isolation.clear()

    def _reply(self, deadline):
        """One frame of one that may send anything."""
        data, size = bytearray(), 0
        while len(data) < REPLY.size + size:
            ready = self._poll.poll(max(deadline - time.monotonic(), 0) * 1_000)
            if any(descriptor == self._parent for descriptor, _ in ready):
                os._exit(0)  # the parent says nothing meanwhile, unless it is gone
            if not ready:
                raise TimeoutError
            part = self.channel.recv(1 << 16)
            if not part:
                raise ConnectionError
            data += part
            if len(data) >= REPLY.size:
                status, size = REPLY.unpack_from(data)
                too_long = size > MAX_REPLY_BYTES or len(data) > REPLY.size + size
                if too_long or status >= len(OF_CHILDREN):
                    return "crashed", b"it disturbed the protocol"
        return OF_CHILDREN[status], bytes(data[REPLY.size :])

    def _death(self):
        """How it ended, which closed its end of the channel."""
        end = time.monotonic() + 1.0  # a child that lives on without a channel is ended
        while not (found := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            if time.monotonic() > end:
                return "crashed", b"it closed its channel"
            time.sleep(0.001)
        if found.si_code == os.CLD_EXITED:
            return "crashed", f"exit code {found.si_status}".encode()
        if found.si_status == signal.SIGKILL and self._isolation.has_pids:
            return "lost", b""  # from outside: nobody inside can do that
        cause = signal.strsignal(found.si_status) or f"signal {found.si_status}"
        return "crashed", cause.encode()


def _become_child(isolation, descriptor, loaded):
    """Confine this process and answer requests in it, until it is ended."""
    try:
        os.setsid()
        isolation.confine()
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, 1 << 16)
        channel, pid = socket.socket(fileno=descriptor), os.getpid()
        while True:
            status, text = answer(json.loads(receive(channel)), loaded)
            if os.getpid() != pid:
                os._exit(0)  # a fork made by the tool
            send(channel, status, text.encode("utf-8", "replace"))
    finally:
        os._exit(70)


def _end_descendants():
    """Without a PID namespace: kill what was left behind, which then are children of this one."""
    while True:
        try:
            with open("/proc/thread-self/children") as file:
                left = file.read().split()
        except OSError:
            return  # no Linux
        if not left:
            return
        for pid in map(int, left):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def serve(channel, isolation):
    """Answer requests until the parent goes away."""
    send(channel, "ready", json.dumps(isolation.report()).encode())
    child = None
    while True:
        body = receive(channel)
        request = json.loads(body)
        key, ends = request["key"], request["action"] == "end"
        if child and (child.key == key if ends else not child.serves(key)):
            child.end()
            child = None
        if ends:
            send(channel, "ok", b"")
        else:
            child = child or Child(isolation, channel, key)
            child.key = key
            status, text = child.ask(body, request["timeout_s"])
            send(channel, status, text)
            with contextlib.suppress(Exception):  # the child says what is wrong with it
                compiled(request["source"], request["name"])
            if status in OF_CHILDREN and not request["once"]:
                continue
            child.end()
            child = None
        child = child or Child(isolation, channel, key)


def receive(channel):
    """One request; ends the process where the other end is closed."""
    data, size = bytearray(), REQUEST.size
    while len(data) < size:
        part = channel.recv(1 << 16)
        if not part:
            os._exit(0)
        data += part
        if len(data) >= REQUEST.size:
            size = REQUEST.size + REQUEST.unpack_from(data)[0]
    return bytes(data[REQUEST.size :])


def send(channel, status, text):
    """One reply."""
    channel.sendall(REPLY.pack(STATUSES.index(status), len(text)) + text)


def main(descriptor, rules, preload):
    """What a worker process does, with its arguments as its parent wrote them."""
    for name in (*COMMON.split(), *preload):
        importlib.import_module(name)
    isolation = Isolation(Rules(**rules))
    gc.freeze()  # forks copy fewer pages
    serve(socket.socket(fileno=descriptor), isolation)
