"""How vLLM gets the student's weights: as a file, or by its own transfer between GPUs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.vllm.core import DIED, Core
from student_trainer.rollout.vllm.student_weights import checkpoint_weights
from student_trainer.rollout.vllm.weights import failed, write_weights
from student_trainer.settings.rollout_vllm import VllmSettings
from student_trainer.student.model import Student

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
    """A safetensors file in memory, which every worker reads, checks and takes over."""

    def __init__(self, student: Student, folder: Path, core: Core) -> None:
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigurationError(
                f"{folder} is no folder that can be written",
                where="rollout.vllm.folder",
                fix="name one that this machine and vLLM's share, best in memory",
            )
        self._student = student
        self._folder = folder
        self._core = core

    def __call__(self, version: int) -> None:
        path = self._folder / f"lsm-weights-{os.getpid()}-{uuid.uuid4().hex[:8]}.safetensors"
        try:
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
