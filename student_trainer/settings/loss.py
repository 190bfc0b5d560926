"""The section ``loss``: its key ``kind`` names a loss of ``student_trainer.losses.LOSSES``, or a
class of a user's own, ``package.module:Name``."""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny
from teacher_proto.program.settings_types import Kinds

from student_trainer.losses import LOSSES, Loss
from student_trainer.settings.dotted import load_dotted

DEFAULT_LOSS = "lsm"


def _of_ones_own(kind: str) -> type[Loss]:
    return load_dotted(kind, Loss, "loss.kind")


LossConfig = Annotated[
    SerializeAsAny[Loss], Kinds("loss", named=LOSSES, load=_of_ones_own, default=DEFAULT_LOSS)
]
