"""What every benchmark shares: alternating sides, medians, the table, the JSON.

A result file is {"figures": {name: number}, "machine": {...}, "commit": "..."},
with the raw medians under "details".
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def alternate(
    sides: Mapping[str, Callable[[int], None]],
    repetitions: int,
    warmup: int = 1,
    before: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, A B, B A, A B, ..., each called with the repetition's number.

    The order turns with each repetition, so that no side gains by being first.

    The number seeds fresh inputs; warm-up calls get negative numbers. ``before`` is
    called ahead of every side and not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-warmup, repetitions):
        order = sides if repetition % 2 == 0 else reversed(sides)
        for name in order:
            if before is not None:
                before()
            start = time.perf_counter()
            sides[name](repetition)
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios taken pair by pair: holds when the machine drifts."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def peak_extra_bytes(work: Callable[[], None]) -> int:
    """Growth of this process's peak resident memory while ``work`` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def machine() -> dict[str, Any]:
    import torch

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The checked-out commit, with "+changes" when the tree differs from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    sources = ("*.py", "*.proto", "*.toml")
    return git("rev-parse", "HEAD") + (
        "+changes" if git("status", "--porcelain", "-uno", "--", *sources) else ""
    )


def write_result(
    name: str, figures: Mapping[str, float | None], details: Mapping[str, Any]
) -> Path:
    """Prints the figures and writes benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "figures": dict(figures),
        "machine": machine(),
        "commit": commit(),
        "details": dict(details),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    shown = [(k, "null" if v is None else f"{v:.4g}") for k, v in figures.items()]
    print_table(("figure", "value"), shown)
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    for line in (header, ["-" * width for width in widths], *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)))
