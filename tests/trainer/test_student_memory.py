"""What memory is left, by the files of a kernel."""

from __future__ import annotations

from pathlib import Path

from student_trainer.student.memory import free_memory

GIB = 2**30


def kernel(folder: Path, available: int, groups: dict[str, tuple[str, int, int]]) -> list[Path]:
    """The files of a process in the group ``/a/b``. groups: bound, used and cached by path."""
    proc, cgroups = folder / "proc", folder / "cgroups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {available >> 10} kB\n")
    (proc / "self" / "cgroup").write_text("1:memory:/old\n0::/a/b\n")
    for path, (bound, used, cached) in groups.items():
        group = cgroups / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{bound}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return [proc, cgroups]


def test_the_machine_bounds_what_no_group_does(tmp_path: Path) -> None:
    found = kernel(tmp_path, 8 * GIB, {"a": ("max", GIB, 0), "a/b": (str(64 * GIB), GIB, 0)})
    assert free_memory(*found) == 8 * GIB


def test_a_containers_bound_counts_without_what_it_can_free(tmp_path: Path) -> None:
    groups = {"a": (str(6 * GIB), 4 * GIB, GIB), "a/b": (str(5 * GIB), GIB, 0)}
    assert free_memory(*kernel(tmp_path, 8 * GIB, groups)) == 3 * GIB


def test_a_group_above_its_bound_leaves_nothing(tmp_path: Path) -> None:
    assert free_memory(*kernel(tmp_path, 8 * GIB, {"": (str(GIB), 2 * GIB, 0)})) == 0


def test_this_machine_has_some() -> None:
    assert free_memory() > 2**20
