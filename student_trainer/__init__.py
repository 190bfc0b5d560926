"""The trainer: on-policy distillation by Local Support Matching against a teacher service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teacher_proto.program.lazy import lazy_names

if TYPE_CHECKING:
    from student_trainer.events import Event as Event
    from student_trainer.events import RunResult as RunResult
    from student_trainer.losses import LOSSES as LOSSES
    from student_trainer.losses import Head as Head
    from student_trainer.losses import LossBatch as LossBatch
    from student_trainer.losses import LossResult as LossResult
    from student_trainer.losses import LossSettings as LossSettings
    from student_trainer.losses import lsm as lsm
    from student_trainer.settings.train import TrainConfig as TrainConfig
    from student_trainer.train import Trainer as Trainer

_HOMES = {
    "Event": "events",
    "RunResult": "events",
    "LOSSES": "losses",
    "Head": "losses",
    "LossBatch": "losses",
    "LossResult": "losses",
    "LossSettings": "losses",
    "lsm": "losses",
    "TrainConfig": "settings.train",
    "Trainer": "train",
}

__all__ = [*_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
