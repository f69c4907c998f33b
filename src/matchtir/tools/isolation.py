"""What tool code can reach: namespaces, Landlock, seccomp and limits of Linux, by ctypes alone.

A worker moves into namespaces once (`Isolation`), mounts a scratch folder for each process that
runs tool code, and that process gives up the rest before it does (`confine`). What each is for:

* namespaces: user (no right outside), net (not even a loopback), ipc, pid (what a tool starts ends
  with it, and sees no other process), mount (everything is read-only but the scratch folder, which
  has a size);
* Landlock: reads of Python, the system's libraries and the tool's own folder, writes to the
  scratch folder; no TCP (ABI 4), no signals nor abstract sockets beyond itself (ABI 6);
* seccomp: what neither covers: UNIX sockets by path, ptrace, mounts, namespaces of its own;
* limits: memory, size of a file, processes, CPU time. The superuser's tools run as nobody.

Where the kernel or a container refuses a part, the others stand, and it is named. (Of packages,
sandlock confines commands rather than forks, and pyseccomp needs the system's libseccomp.)
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import platform
import resource
import shutil
import signal
import struct
import sys
import sysconfig

NOBODY = 65534
NEW_USER, NEW_PID = 0x10000000, 0x20000000
NAMESPACES = {"net": 0x40000000, "ipc": 0x08000000, "pid": NEW_PID, "mount": 0x00020000}
SYSTEM_READS = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
    "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
NETWORK_READS = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/gai.conf",
    "/etc/ssl", "/usr/share/ca-certificates",
)  # fmt: skip
ADVICE = {
    "user": "; needs sysctl user.max_user_namespaces > 0, "
    "kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container, unshare allowed by its seccomp profile",
    "landlock": "; needs a kernel of 5.13 or later, started with landlock among lsm=",
    "seccomp": "; needs a kernel with CONFIG_SECCOMP_FILTER",
}

libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What one worker may do; `isolation` is "require", "best" or "none"."""

    folder: str  # of its own; it holds the scratch folder
    isolation: str = "best"
    network: bool = False
    memory_mb: int = 1_024  # address space of one process; 0: no limit
    scratch_mb: int = 64
    processes: int = 32
    cpu_s: int = 600  # of one process; 0: no limit

    @property
    def scratch(self):
        """The only folder that may be written to, empty for each child."""
        return os.path.join(self.folder, "scratch")


class Isolation:
    """That of this process, and of those that it forks to run tool code.

    With a PID namespace the constructor returns in a child, the first process of the namespace,
    with which all others end; the parent waits for the child and ends like it.
    """

    def __init__(self, rules):
        self.rules = rules
        self.entered: list = []
        self.missing: dict = {}
        if rules.isolation != "none":
            self._enter()
        self.has_pids, self._mounts = "pid" in self.entered, "mount" in self.entered
        if self.has_pids:
            self._own_pids = os.open("/proc/thread-self/ns/pid", os.O_RDONLY)
        else:
            prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: parent of what a child leaves behind
        self._limit()
        self._ruleset: tuple = None, None  # folders, descriptor
        wanted = _STEPS if rules.isolation != "none" else {}
        self._steps = {name: step for name, step in wanted.items() if self._works(name)}

    def report(self):
        """What is in force, in words, and for each part that is missing why."""
        found = [f"{'+'.join(self.entered)} namespaces"] if self.entered else []
        found += [f"landlock {landlock_abi()}"] if "landlock" in self._steps else []
        found += ["seccomp"] if "seccomp" in self._steps else []
        missing = {n: why + ADVICE.get(n.split()[0], "") for n, why in self.missing.items()}
        return {"in_force": ", ".join(found), "missing": missing}

    def fork(self, folders):
        """Fork a child that may read these folders, with an empty scratch folder; 0 in the child.

        The child has to call `confine`, the parent `clear` after its end.
        """
        self._prepare(folders)
        if not self.has_pids:
            return os.fork()
        check(libc.unshare(NEW_PID), "unshare")
        child = os.fork()
        if child:
            check(libc.setns(self._own_pids, NEW_PID), "setns")
        return child

    def confine(self):
        """Give up what tool code must not have; OSError where something fails."""
        os.chdir(self.rules.scratch)
        for step in self._steps.values():
            step(self)
        if self.rules.cpu_s:
            resource.setrlimit(resource.RLIMIT_CPU, (self.rules.cpu_s, self.rules.cpu_s))
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with its parent

    def clear(self):
        """Forget what the last child wrote."""
        if self._mounts:
            check(libc.umount2(self.rules.scratch.encode(), 2), "umount")  # MNT_DETACH
        else:
            shutil.rmtree(self.rules.scratch, ignore_errors=True)

    def _prepare(self, folders):
        # Landlock's rule is of the folder around what is mounted each time, and so stays the same.
        if "landlock" in self._steps and self._ruleset[0] != folders:
            if self._ruleset[1] is not None:
                os.close(self._ruleset[1])
            self._ruleset = folders, make_ruleset(self.rules, folders)
        os.makedirs(self.rules.scratch, exist_ok=True)
        if self._mounts:
            size, no_suid_no_devices = self.rules.scratch_mb, 2 | 4
            options = f"size={size}m,nr_inodes={size * 64},mode=777".encode()
            place = self.rules.scratch.encode()
            check(libc.mount(b"scratch", place, b"tmpfs", no_suid_no_devices, options), "mount")
        else:
            os.chmod(self.rules.scratch, 0o777)

    def _enter(self):
        for name, flag in {"user": NEW_USER, **NAMESPACES}.items():
            if name == "net" and self.rules.network:
                continue
            try:
                _enter_user() if name == "user" else check(libc.unshare(flag), "unshare")
                if name == "mount":
                    _mount_read_only()
                self.entered.append(name)
            except (OSError, AttributeError) as error:  # AttributeError: no Linux
                self.missing[f"{name} namespace"] = str(error)
        if "pid" in self.entered:
            _become_init()

    def _limit(self):
        """Limits that children inherit; that of processes holds for a user of this namespace."""
        limits = {"FSIZE": self.rules.scratch_mb << 20, "AS": self.rules.memory_mb << 20}
        limits["NPROC"] = self.rules.processes if "user" in self.entered else 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name in filter(limits.get, limits):
            with contextlib.suppress(AttributeError, ValueError, OSError):  # not on this system
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limits[name],) * 2)

    def _works(self, name):
        """Whether a step of `confine` works here, as tried by a child."""
        python_paths()  # found once, for all children; so is the filter
        with contextlib.suppress(OSError):
            seccomp_filter(platform.machine(), self.rules.network)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if name == "landlock":
                    self._ruleset = [], make_ruleset(self.rules, [])
                _STEPS[name](self)
            except Exception as caught:
                os.write(writing, str(caught).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with open(reading, "rb") as file:
            error = file.read().decode()
        self.missing |= {name: error} if error else {}
        return not error


def run(rules, command, reads, environment, granted):
    """Become a program that is confined, below this process; for servers of tools."""
    isolation = Isolation(Rules(**rules))
    if isolation.missing and isolation.rules.isolation == "require":
        sys.exit(f"isolation=require, but missing are: {isolation.report()['missing']}")
    place = os.getcwd()
    isolation._prepare(reads)
    isolation.confine()
    os.chdir(place)
    # Values that it is granted are not among the arguments: anybody may read a command line.
    os.execvpe(command[0], command, environment | {name: os.environ[name] for name in granted})


def check(result, step):
    """The result of a C function; raises OSError where it says that it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{step}: {os.strerror(code)}")
    return result


def prctl(option, *arguments):
    """The system call, where there is one."""
    if hasattr(libc, "prctl"):
        check(libc.prctl(option, *arguments, *[0] * (4 - len(arguments))), "prctl")


def _enter_user():
    """A user namespace where this user is itself; where root may become nobody, too."""
    process, user, group = os.getpid(), os.getuid(), os.getgid()
    ready, go = os.pipe()
    helper = os.fork()  # stands outside, where two users may be mapped
    if helper == 0:
        os.close(go)  # so that it reads an end where there is no namespace
        with contextlib.suppress(OSError):
            if os.read(ready, 1) == b"+":
                _map_ids(process, user, group)
                os._exit(0)
        os._exit(1)
    try:
        check(libc.unshare(NEW_USER), "unshare")
        os.write(go, b"+")
    finally:
        os.close(go)
        os.close(ready)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("its users cannot be mapped")


def _map_ids(process, user, group):
    if user:
        with open(f"/proc/{process}/setgroups", "w") as file:
            file.write("deny")
    for kind, own in (("gid", group), ("uid", user)):
        ids = [own] if user else [own, NOBODY]
        with open(f"/proc/{process}/{kind}_map", "w") as file:
            file.write("".join(f"{each} {each} 1\n" for each in ids))


def _become_init():
    child = os.fork()
    if child:
        os.closerange(3, 1 << 16)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _mount_read_only():
    private, recursive, read_only = 1 << 18, 1 << 14, 1
    check(libc.mount(None, b"/", None, private | recursive, None), "mount")
    attributes = struct.pack("=4Q", read_only, 0, 0, 0)
    mount_setattr, everything_below = 442, 0x8000
    arguments = -100, b"/", everything_below, attributes, len(attributes)
    check(libc.syscall(mount_setattr, *arguments), "mount_setattr")


def _drop_user(_):
    """No capability; root becomes nobody, who may still read Python wherever it is installed."""
    read_all, keep_capabilities, ambient, ambient_raise = 2, 8, 47, 2
    kept = 0
    if os.geteuid() == 0:
        kept = 1 << read_all
        prctl(keep_capabilities, 1)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, sets = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", kept, kept, kept, 0, 0, 0)
    check(libc.capset(header, sets), "capset")
    if kept:
        prctl(ambient, ambient_raise, read_all)


# Landlock

_EXECUTE, _WRITE, _READ, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2 | 1 << 3, 1 << 14
_OF_FILES = _EXECUTE | _WRITE | 1 << 2 | _TRUNCATE
_DEVICES = 1 << 6 | 1 << 11
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_abi():
    """The version of Landlock that the kernel has; raises OSError for none."""
    return check(libc.syscall(_CREATE_RULESET, None, 0, 1), "landlock")


def make_ruleset(rules, folders):
    """A descriptor of Landlock's rules: what may be read, and that the scratch may be written."""
    abi = landlock_abi()
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network, scopes = (0 if rules.network or abi < 4 else 3), (3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=3Q", handled, network, scopes)[:size]
    ruleset = check(libc.syscall(_CREATE_RULESET, attributes, size, 0), "landlock")
    rights = dict.fromkeys([*python_paths(), *folders], _READ | _EXECUTE)
    rights |= dict.fromkeys(NETWORK_READS if rules.network else (), _READ)
    rights |= {rules.folder: handled & ~(_EXECUTE | _DEVICES)}
    rights |= {os.devnull: _READ | _WRITE | _TRUNCATE}
    for path, allowed in rights.items():
        if os.path.exists(path):
            allowed &= handled if os.path.isdir(path) else handled & _OF_FILES
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", allowed, descriptor)
            check(libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), "landlock")
            os.close(descriptor)
    return ruleset


def _landlock(isolation):
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    check(libc.syscall(_RESTRICT_SELF, isolation._ruleset[1], 0), "landlock")


@functools.cache
def python_paths():
    """What Python needs to read to run and to import installed packages."""
    paths = {os.path.realpath(sys.executable), *filter(None, sys.path), *SYSTEM_READS}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for prefix in {sys.prefix, sys.base_prefix}:  # an installation of its own is read as a whole
        paths |= {prefix} if prefix not in ("/", "/usr", "/usr/local") else set()
    found = {os.path.realpath(path) for path in paths if os.path.exists(path)}
    return sorted(p for p in found if not any(p.startswith(f"{other}/") for other in found))


# seccomp

_DENIED = {  # by machine: number of the system call; those from 424 on are the same everywhere
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "mount": 165,
        "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "bpf": 321,
        "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250,
        "userfaultfd": 323, "open_by_handle_at": 304,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "mount": 40,
        "umount2": 39, "pivot_root": 41, "unshare": 97, "setns": 268, "bpf": 280,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219,
        "userfaultfd": 282, "open_by_handle_at": 265,
    },
}  # fmt: skip
_DENIED_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
_JUDGED = {"x86_64": (0xC000003E, 41, 53, 56), "aarch64": (0xC00000B7, 198, 199, 220)}
_CLONE3, _NEW_NAMESPACES = 435, 0x7E020000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _DENY, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # EPERM, ENOSYS


def _seccomp(isolation):
    program = seccomp_filter(platform.machine(), isolation.rules.network)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    check(libc.prctl(22, 2, header, 0, 0), "seccomp")  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@functools.cache
def seccomp_filter(machine, network):
    """The program, in the kernel's instructions: (code, jump if true, jump if false, value)."""
    if machine not in _DENIED:
        raise OSError(f"no filter for {machine}")
    architecture, socket, socketpair, clone = _JUDGED[machine]
    number, machine_field, first, second = 0, 4, 16, 24  # offsets in seccomp_data
    inet = [(_EQUAL, 2, 0, 2), (_EQUAL, 1, 0, 10)] if network else []
    program = [
        (_LOAD, 0, 0, machine_field), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, number), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL),
        # UNIX and other sockets; with a network, those of the internet are allowed.
        (_EQUAL, 0, 3 + len(inet), socket), (_LOAD, 0, 0, first), *inet,
        (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW),
        # Pairs are sockets that can reach nobody else, if they are streams.
        (_EQUAL, 0, 5, socketpair), (_LOAD, 0, 0, second), (_AND, 0, 0, 15), (_EQUAL, 1, 0, 1),
        (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, clone), (_LOAD, 0, 0, first), (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _UNKNOWN),  # its flags cannot be read here
    ]  # fmt: skip
    for denied in (*_DENIED[machine].values(), *_DENIED_EVERYWHERE.values()):
        program += [(_EQUAL, 0, 1, denied), (_RETURN, 0, 0, _DENY)]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


_STEPS = {"user": _drop_user, "landlock": _landlock, "seccomp": _seccomp}
