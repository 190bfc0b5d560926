"""Bytes that a student takes, and those that its machine has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torch.distributed.tensor import DTensor

from student_trainer.student.model import Student

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def weight_bytes(student: Student) -> int:
    """Of all parameters and buffers, as the model computes with them: gathered, where ranks share
    the parameters."""
    narrowed = student.shards is not None and student.shards.narrows
    whole = [*student.module.parameters(), *student.module.buffers()]
    return sum(
        tensor.numel()
        * (student.dtype.itemsize if narrowed and tensor.requires_grad else tensor.element_size())
        for tensor in whole
    )


def update_bytes(student: Student) -> int:
    """Of gradients, moments and, for bfloat16, masters. Of a parameter that ranks share, this
    rank's part of gradient and moments, and the gradient that it adds up in an update, whole."""
    trained = [p for p in student.module.parameters() if p.requires_grad]
    if student.shards is not None:
        parts = sum(p.to_local().numel() for p in trained if isinstance(p, DTensor))
        return 12 * parts + 4 * sum(p.numel() for p in trained)
    return sum(p.numel() * (12 if p.element_size() == 4 else 16) for p in trained)


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes of memory that this process can still get: what the machine has free or can free at
    once, and not more than each of its control groups (a container's bound) leaves."""
    lines = _table(proc / "meminfo")
    if "MemAvailable:" in lines:
        free = lines["MemAvailable:"] * 1024
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_left_in_groups(proc, cgroups)])


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each of the process's control groups leaves of its bound."""
    own = proc / "self" / "cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        number, _, path = line.split(":", 2)
        if number != "0":  # of the first version
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            folder = cgroups.joinpath(*parts[:depth])
            bound, used = folder / "memory.max", folder / "memory.current"
            if not (bound.exists() and used.exists()) or bound.read_text().strip() == "max":
                continue
            cached = _table(folder / "memory.stat").get("inactive_file", 0)
            yield max(int(bound.read_text()) - int(used.read_text()) + cached, 0)


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel's by the names before them."""
    if not path.exists():
        return {}
    rows = [line.split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
