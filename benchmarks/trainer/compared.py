"""A step of a run against one of TRL's DistillationTrainer: the same models, prompts, forced
lengths and threads, one update a step.

TRL's teacher is in its trainer's process, ours in a process of its own. Each side is measured
alone, in turns: its memory is what it and its children have together (PSS, the peak of samples).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from benchmarks.trainer.lengths import lognormal_lengths
from benchmarks.trainer.shapes import LARGE, QUICKSTART, shape
from benchmarks.trainer.step_sides import GROUP, LONGEST, PROMPTS

# Of the answers' lengths, when the longest has LONGEST tokens.
MEAN = 25
SAMPLE_SECONDS = 0.1


def measure(quick: bool) -> dict[str, Any]:
    """``step_over_trl_SHAPE`` and ``pss_over_trl_SHAPE``, TRL's over ours."""
    if find_spec("trl") is None:
        return {"figures": {}, "details": {"skipped": "trl is not installed"}}
    figures: dict[str, float] = {}
    details: dict[str, Any] = {"trl": version("trl"), "answers": PROMPTS * GROUP}
    for name in (QUICKSTART, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            found = _compared(name, Path(folder), rounds=1 if quick else 2, steps=1 if quick else 2)
        seconds, pss = found["seconds"], found["pss"]
        figures[f"step_over_trl_{name}"] = statistics.median(seconds["trl"]) / statistics.median(
            seconds["ours"]
        )
        figures[f"pss_over_trl_{name}"] = max(pss["trl"]) / max(pss["ours"])
        details[name] = found
    return {"figures": figures, "details": details}


def _compared(name: str, folder: Path, *, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of every step, and bytes of every run, of both sides."""
    made = shape(name, folder)
    lengths = lognormal_lengths(PROMPTS * GROUP, longest=LONGEST, mean=MEAN)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made.prompts))
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    pss: dict[str, list[int]] = {"ours": [], "trl": []}
    for number in range(rounds):
        for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
            own = folder / f"{side}-{number}"
            own.mkdir()
            job = {
                "folder": str(own),
                "teacher": str(made.teacher),
                "student": str(made.student),
                "prompts": str(folder / "prompts.jsonl"),
                "lengths": lengths,
            }
            (own / "job.json").write_text(json.dumps(job))
            took, peak = _run(side, own / "job.json", steps)
            seconds[side] += took
            pss[side].append(peak)
            print(f"{name} {side}: {', '.join(f'{s:.1f}' for s in took)} s, {peak / 2**30:.2f} GiB")
    return {"seconds": seconds, "pss": pss, "tokens": sum(lengths)}


def _run(side: str, job: Path, steps: int) -> tuple[list[float], int]:
    """Seconds of ``steps`` steps after a first one, and the peak of the side's memory in one more,
    which is not timed: reading the memory takes time of the cores."""
    command = [sys.executable, "-m", "benchmarks.trainer.step_sides", side, str(job)]
    with (job.parent / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    assert process.stdin is not None
    asked = process.stdin

    def step() -> float:
        asked.write("\n")
        asked.flush()
        return _answer(process, job.parent / "log")

    try:
        took = [step() for _ in range(1 + steps)]
        with _peak_pss(process.pid) as peak:
            step()
        return took[1:], peak[0]
    finally:
        asked.close()
        process.wait(60)


def _answer(process: subprocess.Popen[str], log: Path) -> float:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"seconds"'):
            return float(json.loads(line)["seconds"])
    raise SystemExit(f"a side ended:\n{log.read_text()[-3000:]}")


@contextmanager
def _peak_pss(pid: int) -> Iterator[list[int]]:
    """The largest sum of the proportional set sizes of a process and its children, in bytes."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            total = 0
            try:
                parent = psutil.Process(pid)
                for process in (parent, *parent.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue  # one of them has just ended
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
