"""The teacher service and its losses inside TRL's trainers (extra ``trl``).

``LsmDistillationTrainer`` is TRL's DistillationTrainer with the service as its teacher,
``AsyncLsmDistillationTrainer`` its asynchronous trainer (docs/trl.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from teacher_proto.program.distribution import install_command

if TYPE_CHECKING:
    from student_trainer.trl.asynchronous import (
        AsyncLsmDistillationTrainer as AsyncLsmDistillationTrainer,
    )
    from student_trainer.trl.trainer import LsmDistillationTrainer as LsmDistillationTrainer

_HOMES = {"LsmDistillationTrainer": "trainer", "AsyncLsmDistillationTrainer": "asynchronous"}

__all__ = ["AsyncLsmDistillationTrainer", "LsmDistillationTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("trl", "datasets", "accelerate"):
            raise
        raise ImportError(
            f"{name} needs {error.name}, which is not installed: {install_command('trl')}"
        ) from error
    return getattr(module, name)
