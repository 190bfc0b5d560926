"""The folder of the files that hand weights over: room, and what killed trainers left there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.vllm import hand_over
from student_trainer.rollout.vllm.hand_over import FileHandOver, remove_abandoned
from student_trainer.rollout.vllm.weights import FAILED, read_weights
from student_trainer.student.memory import weight_bytes
from student_trainer.student.model import Student


class Workers:
    """Takes files over as vLLM's workers do, and looks at the folder meanwhile."""

    workers = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seen: list[int] = []

    def call(self, method: str, path: str, version: int) -> list[Any]:
        assert method == "rollout_take"
        remove_abandoned(self._folder)  # another trainer begins: this file is held
        self.seen.append(len(read_weights(Path(path), version)))
        return [{"version": version}]


HOLDS = """
import sys
from pathlib import Path
from student_trainer.rollout.vllm.hand_over import _held
with _held(Path(sys.argv[1])):
    Path(sys.argv[1]).write_bytes(b"weights")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_trainer_left_is_removed_and_what_is_held_is_not(
    wide_student: Student, tmp_path: Path
) -> None:
    other = tmp_path / "lsm-weights.txt"
    other.write_text("of somebody else")
    paths = [tmp_path / f"lsm-weights-{name}.safetensors" for name in ("killed", "living")]
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for path in paths
    ]
    try:
        for trainer in trainers:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"held\n"
        trainers[0].send_signal(signal.SIGKILL)
        trainers[0].wait()
        assert all(path.exists() for path in paths)
        workers = Workers(tmp_path)
        handed = FileHandOver(wide_student, tmp_path, workers)  # type: ignore[arg-type]
        assert sorted(tmp_path.iterdir()) == sorted([other, paths[1]])
        handed(7)
        assert workers.seen[0] > 1
        assert sorted(tmp_path.iterdir()) == sorted([other, paths[1]])
    finally:
        for trainer in trainers:
            trainer.kill()
            trainer.communicate()


class Usage(NamedTuple):
    free: int


def test_a_folder_without_room_for_the_student_is_refused(
    wide_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = weight_bytes(wide_student)
    workers: Any = Workers(tmp_path)
    for free, refused in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr(hand_over.shutil, "disk_usage", lambda _, free=free: Usage(free))
        if not refused:
            FileHandOver(wide_student, tmp_path, workers)
            continue
        with pytest.raises(ConfigurationError, match="of room") as error:
            FileHandOver(wide_student, tmp_path, workers)
        assert error.value.where == "rollout.vllm.folder"


def test_a_file_that_cannot_be_written_fails_the_hand_over_and_is_gone(
    wide_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    workers: Any = Workers(tmp_path)
    handed = FileHandOver(wide_student, tmp_path, workers)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LsmError, match="No space left") as failed:
        handed(1)
    assert failed.value.reason == FAILED
    assert not list(tmp_path.iterdir())
    assert not workers.seen
