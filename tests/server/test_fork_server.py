"""The process that students' processes are forked from, where the system gives it nothing."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from teacher_proto.errors import OverloadedError

from teacher_server.workers.forks import ForkServer


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    server = ForkServer({})
    server.start()
    yield server
    server.close()


def fork(server: ForkServer) -> tuple[int, socket.socket]:
    ours, its = socket.socketpair()
    with its:
        return server.fork(its, memory_bytes=1 << 30, niceness=0), ours


def descriptors(pid: int) -> set[int]:
    return {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_fork_that_fails_ends_no_other_process(forks: ForkServer, left: int) -> None:
    before = forks.pid
    pid, ours = fork(forks)
    opened = descriptors(before)
    free = [number for number in range(len(opened) + 3) if number not in opened]
    bounds = resource.prlimit(before, resource.RLIMIT_NOFILE)
    resource.prlimit(before, resource.RLIMIT_NOFILE, (free[left], bounds[1]))
    for _ in range(3):
        with pytest.raises(OverloadedError, match="no process can be started"):
            fork(forks)
    resource.prlimit(before, resource.RLIMIT_NOFILE, bounds)
    assert descriptors(before) == opened
    other, theirs = fork(forks)
    assert forks.pid == before
    assert psutil.Process(pid).ppid() == before == psutil.Process(other).ppid()
    assert forks.end(pid) != "unknown" != forks.end(other)
    ours.close()
    theirs.close()
