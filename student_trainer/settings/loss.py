"""The section ``loss`` and the list ``weights``: the key ``kind`` names a loss of
``student_trainer.losses.LOSSES`` or a row weight of ``student_trainer.weights.WEIGHTS``, or a class
of a user's own, ``package.module:Name``."""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny
from teacher_proto.program.settings_types import Kinds

from student_trainer.losses import LOSSES, Loss
from student_trainer.settings.dotted import load_dotted
from student_trainer.weights import WEIGHTS, RowWeight

DEFAULT_LOSS = "lsm"


def _own_loss(kind: str) -> type[Loss]:
    return load_dotted(kind, Loss, "loss.kind")


def _own_weight(kind: str) -> type[RowWeight]:
    return load_dotted(kind, RowWeight, "weights.kind")


LossConfig = Annotated[
    SerializeAsAny[Loss], Kinds("loss", named=LOSSES, load=_own_loss, default=DEFAULT_LOSS)
]
WeightConfigs = tuple[
    Annotated[SerializeAsAny[RowWeight], Kinds("weights", named=WEIGHTS, load=_own_weight)], ...
]
