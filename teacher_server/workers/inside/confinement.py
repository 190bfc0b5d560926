"""What a child process may do: bounds of memory, files and privileges that it keeps for good."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

# Bytes of a file that it may write: tables of a pair take tens of millions.
MAX_FILE_BYTES = 1 << 28
MAX_DESCRIPTORS = 64
# Where memory runs out, the kernel ends a child before the server (proc(5), oom_score_adj).
OOM_SCORE = 800
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_libc = ctypes.CDLL(None, use_errno=True)


def ignore_the_terminal() -> None:
    """Signals that stop a server reach its whole group: a child ends when the server does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def close_all_but(*kept: int) -> None:
    """Closes every descriptor but these and the standard three."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def confine(parent: int, memory_bytes: int, niceness: int) -> None:
    """Confines the calling process, which ends with its parent.

    Args:
        parent: the process that forked this one.
        memory_bytes: of address space, beside what the process has at the fork.
        niceness: added to its own; what is nicer waits for the others.

    Raises:
        OSError: the system does not grant it.
    """
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if _libc.prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        raise OSError("the parent has ended already")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    os.nice(niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
