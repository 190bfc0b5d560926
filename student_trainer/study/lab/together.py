"""The runs of the laboratory side by side, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from student_trainer.quickstart.cache import Note


def make_together(
    names: Sequence[str], arguments: Sequence[str], jobs: int, note: Note
) -> dict[str, str]:
    """Makes each run in a process with one thread, ``jobs`` at a time, in this order.

    Args:
        arguments: of ``student-trainer study lab`` for such a process, without ``--run``.

    Returns:
        Name of each run that failed -> what its process said last.
    """
    running: list[subprocess.Popen[str]] = []

    def one(name: str) -> str:
        command = [sys.executable, "-m", "student_trainer", "study", "lab", *arguments]
        process = subprocess.Popen(
            [*command, "--run", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        running.append(process)
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            if line.strip():
                last = line.strip()
                note(last)
        return "" if process.wait() == 0 else last or f"exit code {process.returncode}"

    pool = ThreadPoolExecutor(jobs)
    try:
        said = list(pool.map(one, names))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise
    pool.shutdown()
    return {name: words for name, words in zip(names, said, strict=True) if words}
