"""What a child process may do: bounds of memory, files and privileges that it keeps for good."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

# Bytes of a file that it may write: tables of a pair take tens of millions.
MAX_FILE_BYTES = 1 << 28
MAX_DESCRIPTORS = 64
# Where memory runs out, the kernel ends a child before its parent (proc(5), oom_score_adj).
OOM_SCORE = 800
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# Of the program's environment, what a Python program needs; credentials are in others.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
SINGLE_THREADED = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_libc = ctypes.CDLL(None, use_errno=True)


def child_environment() -> dict[str, str]:
    """The environment of a child process in Python, which finds the modules that this one finds
    and computes with one thread."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return {**kept, **SINGLE_THREADED, "PYTHONPATH": path}


def ignore_the_terminal() -> None:
    """Signals that stop a program reach its whole group: a child ends when its parent does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def close_all_but(*kept: int) -> None:
    """Closes every descriptor but these and the standard three."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def leave_the_network() -> bool:
    """Gives the calling process, which must have a single thread, a network of its own, in which
    there is no interface that is up; what it has open stays. False where the system does not
    grant it. Sockets that have a path in a file system are no part of a network."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        # So that the process is still the same user to itself.
        for name, value in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with contextlib.suppress(OSError):
                Path(f"/proc/self/{name}").write_text(value)
        return True
    return bool(_libc.unshare(_CLONE_NEWNET) == 0)


def refuse_sockets() -> None:
    """From here on Python's own sockets raise PermissionError in this process. A library that
    asks the system by itself is not stopped."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith("socket."):
            raise PermissionError(f"{event}: this process has no network")

    sys.addaudithook(refuse)


def confine(
    parent: int,
    memory_bytes: int,
    niceness: int,
    max_file_bytes: int = MAX_FILE_BYTES,
    max_descriptors: int = MAX_DESCRIPTORS,
) -> None:
    """Confines the calling process, which ends with its parent.

    Args:
        parent: the process that started this one.
        memory_bytes: of address space, beside what the process has now.
        niceness: added to its own; what is nicer waits for the others.
        max_file_bytes: of a file that it may write.
        max_descriptors: files and connections that it may have open, or what the system grants
            where that is less.

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
        resource.RLIMIT_FSIZE: max_file_bytes,
        resource.RLIMIT_NOFILE: max_descriptors,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    os.nice(niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
