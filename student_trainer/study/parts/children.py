"""Jobs in processes of their own, some of them at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path


def in_children(
    jobs: Sequence[tuple[Callable[[], None], Path]], at_once: int
) -> Generator[tuple[int, int], None, None]:
    """Calls each job in a child process, ``at_once`` of them at a time; yields the place and the
    exit code of each that has ended. Closed, it ends those that are running.

    Each is a new program: gRPC, which a run talks to its teacher with, may not work in the fork of
    a process that has used it.

    Args:
        jobs: what is called, which can be pickled, and the file for its output.
    """
    context, waiting = multiprocessing.get_context("spawn"), list(range(len(jobs)))
    running: dict[int, tuple[int, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                place = waiting.pop(0)
                job, log = jobs[place]
                log.write_bytes(b"")  # what an earlier attempt said is not this one's
                process = context.Process(target=partial(_logged, job, log))
                process.start()
                running[process.sentinel] = place, process
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                place, process = running.pop(sentinel)
                process.join()
                assert process.exitcode is not None
                yield place, process.exitcode
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _logged(job: Callable[[], None], log: Path) -> None:
    descriptor = os.open(log, os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    job()
