"""How vLLM gets the student's weights: as a file, or by its own transfer between GPUs."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.distributed.environment import ranks_here
from student_trainer.rollout.vllm.core import DIED, Core
from student_trainer.rollout.vllm.student_weights import checkpoint_weights
from student_trainer.rollout.vllm.weights import failed, write_weights
from student_trainer.settings.rollout_vllm import VllmSettings
from student_trainer.student.memory import weight_bytes
from student_trainer.student.model import Student

log = logging.getLogger(__name__)
# The names of the files that hand weights over.
PREFIX, SUFFIX = "lsm-weights-", ".safetensors"
# Hands the student's weights over under a version; raises LsmError.
HandOver = Callable[[int], None]


def transfer_of(settings: VllmSettings, student: Student) -> str | None:
    """The backend of vLLM's weight transfer that is used; None for the file."""
    if settings.hand_over is not None:
        return None if settings.hand_over == "file" else settings.hand_over
    return "nccl" if settings.place == "own" and student.device.type == "cuda" else None


def make_hand_over(student: Student, settings: VllmSettings, core: Core) -> HandOver:
    """The hand-over that the settings ask for.

    Raises:
        ConfigurationError: it is not possible here.
    """
    if transfer_of(settings, student) is None:
        return FileHandOver(student, settings.folder, core)
    if student.device.type != "cuda":
        raise ConfigurationError(
            f"nccl connects GPUs, and the student is on {student.device}",
            where="rollout.vllm.hand_over",
            fix="use file",
        )
    from student_trainer.rollout.vllm.local import NcclHandOver

    return NcclHandOver(student, settings.transfer_address, core)


class FileHandOver:
    """A safetensors file in memory, which every worker reads, checks and takes over.

    Files that trainers have left in the folder because they were killed are removed.

    Raises:
        ConfigurationError: the folder cannot be written, or has no room for the student.
    """

    def __init__(self, student: Student, folder: Path, core: Core) -> None:
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigurationError(
                f"{folder} is no folder that can be written",
                where="rollout.vllm.folder",
                fix="name one that this machine and vLLM's share, best in memory",
            )
        remove_abandoned(folder)
        ranks, free = ranks_here(), shutil.disk_usage(folder).free
        needed = weight_bytes(student) * ranks
        if needed > free:
            raise ConfigurationError(
                f"the student's weights have {needed >> 20} MiB"
                f"{f' (once for each of {ranks} ranks)' if ranks > 1 else ''}, and {folder} has "
                f"{free >> 20} MiB of room for the file that hands them over",
                where="rollout.vllm.folder",
                fix="free some, name another folder, or give it more (a container's /dev/shm has "
                "64 MiB unless --shm-size says more)",
            )
        self._student = student
        self._folder = folder
        self._core = core

    def __call__(self, version: int) -> None:
        path = self._folder / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        try:
            with _held(path):
                write_weights(path, version, checkpoint_weights(self._student))
                self._core.call("rollout_take", str(path), version)
        except OSError as error:
            raise failed(
                f"{path} cannot be written: {error.strerror}", "rollout.vllm.folder"
            ) from error
        except LsmError as error:
            if error.reason == DIED:
                raise
            raise failed(error.what) from error
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """A new file, locked for as long as this process lives: it has its name once it is locked."""
    unnamed = path.with_suffix(".new")
    with unnamed.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(path)
        yield


def remove_abandoned(folder: Path) -> None:
    """Removes the files of hand-overs whose trainer is no more: those that nobody holds."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError), path.open("r+b") as file:  # of another user, held, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            log.info("%s was left by a trainer that was killed, and is removed", path)
