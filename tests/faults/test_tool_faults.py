"""Part A: what tool code may try. Each case: the result, the next call, no process left."""

import os
import socket
import textwrap
from pathlib import Path

import pytest

from matchtir.types import ResultStatus
from tests.faults.helpers import DEADLINE_S, fault, linux, need_isolation, nothing_left
from tests.tools.sandbox_helpers import run

ROOT = Path(__file__).parents[2]
OK, EXCEPTION, CRASHED = ResultStatus.OK, ResultStatus.EXCEPTION, ResultStatus.CRASHED


def case(name, what, expected, source, status, words=""):
    """A tool that does something, and how its call must end; `{...}` are places of the test."""
    marks = fault(f"A {name}", what, expected)
    return pytest.param(textwrap.dedent(source), status, words, id=name, marks=marks)


TYPED, KEPT, DENIED = "a typed error", "no effect", "denied"

CALLS = [
    # Failures of the tool's own.
    case("raises", "raises", TYPED, "def f(): return {}['k']", EXCEPTION, "KeyError: 'k'"),
    case("exits", "sys.exit", TYPED, "import sys\ndef f(): sys.exit(3)", EXCEPTION, "SystemExit"),
    case("interrupts", "KeyboardInterrupt", TYPED, "def f(): raise KeyboardInterrupt", EXCEPTION),
    case("recurses", "endless recursion", TYPED, "def f(): return f()", EXCEPTION, "Recursion"),
    case("input", "reads the terminal", TYPED, "def f(): return input()", EXCEPTION, "EOFError"),
    case("memory", "1 TiB at once", TYPED, "def f(): bytearray(1 << 40)", EXCEPTION, "MemoryError"),
    case("leak", "2 GB, bit by bit", TYPED,
         "def f():\n a = []\n while True: a.append(bytearray(1 << 26))", EXCEPTION, "MemoryError"),
    case("_exit", "os._exit", TYPED, "import os\ndef f(): os._exit(3)", CRASHED, "exit code 3"),
    case("segfault", "SIGSEGV", TYPED, "import ctypes\ndef f(): ctypes.string_at(0)", CRASHED,
         "Segmentation fault"),
    case("C stack", "overflows the C stack", TYPED, """
        import sys
        def f():
            sys.setrecursionlimit(10**9)
            class A:
                def __getattr__(self, n): return getattr(self, n)
            A().x
        """, CRASHED, "Segmentation fault"),
    case("arity", "a call of the wrong arguments", TYPED, "def f(a): return a",
         ResultStatus.BAD_ARGUMENTS, "missing 1 required"),
    case("reduce", "returns what unpickles to harm", "text", """
        import os
        class Evil:
            def __reduce__(self): return os._exit, (1,)
            def __str__(self): return "evil"
        def f(): return Evil()
        """, OK, '"evil"'),
    case("str", "__str__ that raises", TYPED, """
        class Mute:
            def __str__(self): raise KeyError("mute")
        def f(): return Mute()
        """, EXCEPTION, "KeyError"),
    # What is returned.
    case("NaN", "returns NaN and infinities", "JSON that our parser reads",
         "def f(): return [float('nan'), float('-inf')]", OK, '["NaN", "-Infinity"]'),
    case("address", "returns an object", "text without an address",
         "def f(): return [object(), f]", OK, '["<object object>", "<function f>"]'),
    case("50 MB", "returns 50 MB", "cut and marked", "def f(): return 'x' * 50_000_000",
         ResultStatus.TRUNCATED, "[cut here: 8000 of 50000000 characters]"),
    case("odd bytes", "half of a surrogate pair, zero bytes", "encodable text",
         r"def f(): return 'a\ud800\x00b'", OK, "a\ufffd\x00b"),
    case("deep", "a list of 5,000 levels", "text or a typed error",
         "def f():\n v = []\n for _ in range(5_000): v = [v]\n return v", EXCEPTION, "Recursion"),
    # Processes.
    case("kill parent", "kill(getppid())", KEPT, """
        import os, signal
        def f():
            for pid in {os.getppid(), 0, -1, 1}:
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            return "here"
        """, OK, "here"),
    case("fork bomb", "forks without end", "refused at a bound; all end with the episode", """
        import os, time
        def f():
            try:
                for made in range(200):
                    if os.fork() == 0: time.sleep(600)
            except OSError as error: return f"refused after {made}: {error}"
        """, OK, "refused after"),
    case("daemon", "double fork and setsid", "ends with the episode", """
        import os, time
        def f():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: time.sleep(600)
                os._exit(0)
            return "left"
        """, OK, "left"),
    case("thread", "leaves a thread", "ends with the episode", """
        import threading, time
        def f():
            threading.Thread(target=time.sleep, args=(600,)).start()
            return "left"
        """, OK, "left"),
    case("atexit", "atexit handler that hangs", KEPT, """
        import atexit, time
        atexit.register(time.sleep, 600)
        def f(): return "left"
        """, OK, "left"),
    case("fork answers", "a fork returns as well", "one result", """
        import os
        def f(): return "child" if os.fork() == 0 else "parent"
        """, OK, "parent"),
    case("Popen", "__subclasses__ to Popen to /bin/sh", DENIED, """
        import subprocess
        def f():
            popen = next(c for c in object.__subclasses__() if c.__name__ == "Popen")
            return popen(["/bin/sh", "-c", "echo got out"], stdout=-1).communicate()
        """, EXCEPTION, "PermissionError"),
    case("ptrace", "attaches to another process", DENIED, """
        import ctypes
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.ptrace(16, {trainer}, 0, 0) == 0, ctypes.get_errno()
        """, EXCEPTION, "AssertionError: 1"),
    case("namespaces", "makes namespaces of its own", DENIED, """
        import ctypes
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x10000000) == 0, ctypes.get_errno()
        """, EXCEPTION, "AssertionError: 1"),
    # Files.
    case("passwd", "reads /etc/passwd", DENIED, "def f(): return open('/etc/passwd').read()",
         EXCEPTION, "PermissionError"),
    case("netrc", "reads a file of the home folder", DENIED,
         "def f(): return open('{secret}').read()", EXCEPTION, "PermissionError"),
    case("environ", "reads the trainer's environment", DENIED,
         "def f(): return open('/proc/{trainer}/environ', 'rb').read()", EXCEPTION, "Error"),
    case("memory of trainer", "reads the trainer's memory", DENIED,
         "def f(): return open('/proc/{trainer}/mem', 'rb').read(1)", EXCEPTION, "Error"),
    case("descriptors", "reopens descriptors through /proc", DENIED, """
        import os
        def f(): return [open(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        """, EXCEPTION, "PermissionError"),
    case("own descriptors", "looks for open descriptors", "its channel alone", """
        import os
        def f():
            def is_open(fd):
                try: return bool(os.fstat(fd))
                except OSError: return False
            return sum(map(is_open, range(3, 256)))
        """, OK, "2"),  # also the null device that takes the place of its output
    *(
        case(f"write {place}", f"writes to {place}", DENIED,
             f"def f(): open('{{{place}}}/written', 'w')", EXCEPTION, "Error")
        for place in ("home", "repository", "temp", "beside")
    ),
    case("chmod", "changes the mode of a file", DENIED,
         "import os\ndef f(): os.chmod('{secret}', 0)", EXCEPTION, "Error"),
    case("sparse", "a sparse file of 8 GiB", "refused at a bound",
         "def f():\n file = open('big', 'wb')\n file.truncate(8 << 30)", EXCEPTION, "OSError"),
    case("disk", "fills its folder", "refused at a bound", """
        def f():
            for number in range(100):
                with open(str(number), "wb") as file: file.write(bytes(8 << 20))
        """, EXCEPTION, "No space left"),
    case("inodes", "a million files", "refused at a bound", """
        def f():
            for number in range(1_000_000): open(str(number), "w").close()
        """, EXCEPTION, "No space left"),
    # Network.
    case("TCP", "connects to a port of this machine", DENIED, """
        import socket
        def f(): socket.create_connection(("127.0.0.1", {tcp}), 1)
        """, EXCEPTION, "Error"),
    case("UDP", "sends a datagram", DENIED, """
        import socket
        def f(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {tcp}))
        """, EXCEPTION, "Error"),
    case("UNIX socket", "connects to a socket by path", DENIED, """
        import socket
        def f(): socket.socket(socket.AF_UNIX).connect("{unix}")
        """, EXCEPTION, "Error"),
    case("socketpair", "sends through a pair to a socket by path", DENIED, """
        import socket
        def f(): socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", "{unix}")
        """, EXCEPTION, "Error"),
    case("abstract socket", "connects to an abstract socket", DENIED, """
        import socket
        def f(): socket.socket(socket.AF_UNIX).connect("\\0{abstract}")
        """, EXCEPTION, "Error"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the tools of the cases reach for, and listeners that must hear nothing."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("password")
    tcp = socket.socket()
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    unix.bind(str(folder / "socket"))
    abstract.bind(f"\0matchtir-{os.getpid()}")
    for listener in (tcp, unix, abstract):
        listener.listen()
        listener.settimeout(0)
    yield {
        "trainer": os.getpid(), "secret": folder / "secret",
        "home": Path.home(), "repository": ROOT,
        "temp": folder.parent, "beside": Path(__file__).parent, "tcp": tcp.getsockname()[1],
        "unix": folder / "socket", "abstract": f"matchtir-{os.getpid()}",
    }  # fmt: skip
    for listener in (tcp, unix, abstract):
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()


@linux
@pytest.mark.parametrize(("source", "status", "words"), CALLS)
def test_a_tool(sandbox, places, source, status, words):
    need_isolation(sandbox)
    for name, value in places.items():
        source = source.replace(f"{{{name}}}", str(value))
    result = run(sandbox, source)
    assert (result.status, words in result.output) == (status, True), result
    assert result.seconds < DEADLINE_S + 1
    assert run(sandbox, "def f(): return 'well'").output == "well"
    assert nothing_left()
    for place in ("home", "repository", "temp", "beside"):
        assert not (places[place] / "written").exists()
    assert places["secret"].read_text() == "password"
