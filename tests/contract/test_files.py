"""Files and folders are there whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from teacher_proto.program.files import (
    atomic_file,
    atomic_folder,
    file_sha256,
    remove_folder,
    write_bytes,
    write_text,
)

from tests.support.faults import files_of_at_most


def killed_in(folder: Path, block: str) -> None:
    """Runs ``block`` in a process of its own that kills itself where it says so."""
    program = f"""
        import os, signal
        from pathlib import Path
        from teacher_proto.program.files import *
        folder = Path({str(folder)!r})
        def die(): os.kill(os.getpid(), signal.SIGKILL)
    """
    source = textwrap.dedent(program) + textwrap.dedent(block)
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == -9


def names(folder: Path) -> list[str]:
    """What a reader sees: hidden leftovers are not looked at."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_text(target, "old")
    killed_in(
        tmp_path,
        """
        with atomic_file(folder / "state.json") as file:
            file.write(b"half of the n")
            file.flush()
            die()
        """,
    )
    assert target.read_text() == "old"
    assert names(tmp_path) == ["state.json"]
    write_text(target, "new, ü")
    assert target.read_bytes() == "new, ü".encode()


def test_a_writer_killed_half_way_leaves_no_part_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("x")
    killed_in(
        tmp_path,
        """
        with atomic_folder(folder / "new", prefix=".tmp-") as work:
            (work / "half").write_text("x")
            with atomic_folder(folder / "old", replace=True, prefix=".tmp-") as other:
                (other / "half").write_text("x")
                die()
        """,
    )
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["kept"]
    assert len(list(tmp_path.glob(".tmp-*"))) == 2, "leftovers are found by their prefix"


def test_an_error_in_the_block_leaves_nothing_but_the_old(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(target) as file, atomic_folder(tmp_path / "folder") as work:
            file.write(b"new")
            (work / "half").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_disk_that_takes_no_more_is_an_error_that_names_the_file(
    tmp_path: Path, before: bytes | None
) -> None:
    target = tmp_path / "metrics.jsonl"
    if before is not None:
        target.write_bytes(before)
    with files_of_at_most(1 << 16), pytest.raises(OSError, match=r"large.*metrics\.jsonl'$"):
        write_bytes(target, bytes(1 << 20))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if before else [])


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes(tmp_path / "absent" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "absent" / "file")


def test_an_error_about_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "copy") as file:
        file.write((tmp_path / "source").read_bytes())
    assert caught.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize(
    ("mask", "plain", "private"), [(0o022, 0o644, 0o600), (0o077, 0o600, 0o600)]
)
def test_permissions_follow_the_umask_or_are_the_owners_alone(
    tmp_path: Path, mask: int, plain: int, private: int
) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "plain", b"x")
        write_bytes(tmp_path / "private", b"x", mode=0o600)
        with atomic_folder(tmp_path / "folder") as work:
            (work / "file").touch()
        with atomic_folder(tmp_path / "readable", readable=True) as work:
            (work / "file").touch(0o600)
    finally:
        os.umask(before)

    def mode(name: str) -> int:
        return (tmp_path / name).stat().st_mode & 0o777

    assert (mode("plain"), mode("private")) == (plain, private)
    assert (mode("folder"), mode("folder/file")) == (0o777 & ~mask, plain)
    assert (mode("readable"), mode("readable/file")) == (0o755, 0o644)


def test_a_folder_takes_the_place_of_an_empty_one_and_of_a_full_one_only_when_told(
    tmp_path: Path,
) -> None:
    target = tmp_path / "made" / "here"
    for number, replace in enumerate((False, True)):
        with atomic_folder(target, replace=replace, sync=True) as work:
            (work / "inner").mkdir()
            (work / "inner" / "file").write_text(str(number))
        assert (target / "inner" / "file").read_text() == str(number)
    with pytest.raises(OSError, match="not empty"), atomic_folder(target) as work:
        (work / "file").write_text("2")
    assert (target / "inner" / "file").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["here"]
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as work:
        (work / "file").touch()
    assert names(tmp_path / "empty") == ["file"]


def test_everything_is_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, done = tmp_path / "step", []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append((path.name.partition(".")[0], target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(target, prefix="work-", sync=True) as work:
        (work / "model").mkdir()
        (work / "model" / "weights").touch()
        (work / "manifest").touch()
    assert done[:2] == [("weights", False), ("model", False)]
    assert done[2:4] == [("manifest", False), ("work-step", False)]
    assert done[4:] == [(tmp_path.name, True)]


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "file").write_text("x")
    remove_folder(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    write_bytes(tmp_path / "empty", b"")
    assert file_sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")
