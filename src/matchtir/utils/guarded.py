"""Runs a command that never outlives who asked for it: python guarded.py PARENT FOLDER COMMAND ...

Meant to be the first process of a session of its own. When the command ends, when SIGTERM comes, or
when the parent is gone, however it ended, everything in the session's process group is ended: asked
first, killed after `GRACE_S`. It does not matter which thread of the parent started it, as it would
for a parent-death signal. The folder, which the parent would have removed, goes if the parent did.
Imports nothing that is not Python's own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

GRACE_S = 5.0
_LOOK_S = 0.2  # between looks at parent and command
_PR_SET_PDEATHSIG = 1


def main(parent: int, folder: str, command: list[str]) -> None:
    """Run the command, then end the process group, this process included."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    libc = ctypes.CDLL(None)
    child = subprocess.Popen(  # ends also where this process is killed
        command, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    while child.poll() is None and os.getppid() == parent and not asked.wait(_LOOK_S):
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"killed: it ignored SIGTERM for {GRACE_S:g} s", file=sys.stderr)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
