"""The threads of gRPC's core come after the event loop."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from teacher_server.grpc.server import CORE_THREADS
from tests.server.processes import serving
from tests.server.running import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities")


def niceness(pid: int, *, of_core: bool) -> set[int]:
    """Of the process's threads: those of gRPC's core, or the others."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if ((thread / "comm").read_text().strip() in CORE_THREADS) is of_core:
                found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    return found


async def test_the_event_loop_comes_before_the_cores_threads(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with serving(tmp_path, "--model", str(tiny_model_dir)) as program:
        pid = program.process.pid
        assert niceness(pid, of_core=True), "gRPC's core has no threads of these names"
        await eventually(lambda: min(niceness(pid, of_core=True)) > own)
        assert niceness(pid, of_core=False) == {own}
