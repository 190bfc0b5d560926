"""Faults that the engines share: what a failure means, and the error of a job that cannot run."""

from __future__ import annotations

import torch
from teacher_proto.errors import TeacherUnavailableError


def unavailable(cause: BaseException | None) -> TeacherUnavailableError:
    """The error of every job that a closed or dead engine cannot score.

    It names the kind of the cause; the text is for the log, where the engine's death is one
    line.

    Args:
        cause: what the engine died of; None for an engine that was closed.
    """
    if cause is None:
        return TeacherUnavailableError("the engine is closed", where="engine")
    return TeacherUnavailableError(
        f"the engine died of {type(cause).__name__}",
        where="engine",
        fix="restart the teacher server; its log says why under 'an engine died'",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "CUDA out of memory" in text
    )


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost: after a CUDA error no later call can be trusted."""
    if is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("CUDA error" in text or "cuBLAS" in text)
