"""Why positions are masked or coarse, as the trainer names it (docs/training.md)."""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.program.mask_reasons import REASON_TEXTS
from teacher_proto.types import MaskReason

# What is not told: of responses that could not be realigned, by a server of an earlier version,
# or a reason of a later one.
OTHER = "OTHER"
# The reasons in the order of MaskReason, and OTHER.
EXPLAINED: Mapping[str, str] = {
    **{reason.name: text for reason, text in REASON_TEXTS.items()},
    OTHER: "not told, or the response could not be realigned",
}


def reason_name(value: int) -> str:
    """The reason's name in ``EXPLAINED``; ``OTHER`` for a value that has none.

    Args:
        value: of ``Realignment.mask_reason``.
    """
    return MaskReason(value).name if value in tuple(MaskReason) else OTHER


def metric_of(reason: str) -> str:
    """The key of metrics.jsonl that holds a reason's share of all positions."""
    return f"realign_reason_{reason.lower()}_share"
