"""Why positions are masked or coarse, for people (docs/realignment.md)."""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.types import MaskReason

# The reasons of MaskReason in its order, and what is not told: of responses that could not be
# realigned, by a server of an earlier version, or a reason of a later one.
EXPLAINED: Mapping[str, str] = {
    MaskReason.NOT_CANONICAL.name: "the student's tokenizer writes this text with other tokens",
    MaskReason.UNREADABLE.name: "the teacher reads text of the chunk byte by byte",
    MaskReason.NO_COUNTERPART.name: "the chunk has a special token without a counterpart",
    MaskReason.LONG_CHUNK.name: "the tokenizers meet only after too many tokens",
    MaskReason.MERGED_SPACES.name: "inside spaces that the teacher's tokenizer merges",
    MaskReason.LITTLE_AGREES.name: "inside a teacher token, and hardly any of its row agrees",
    MaskReason.NOTHING_CERTIFIED.name: "no id of the student's is certified",
    MaskReason.LARGE_REST.name: "the certified ids hold less than a tenth of the row",
    MaskReason.ONE_CERTIFIED.name: "a single id is certified, and does not hold the row",
    MaskReason.DOUBTFUL.name: "an id that is not certified could be the most likely one",
    "OTHER": "not told, or the response could not be realigned",
}
OTHER = "OTHER"


def reason_name(value: int) -> str:
    """The reason's name in ``EXPLAINED``; ``OTHER`` for a value that has none.

    Args:
        value: of ``Realignment.mask_reason``.
    """
    return MaskReason(value).name if value in tuple(MaskReason) else OTHER


def metric_of(reason: str) -> str:
    """The key of metrics.jsonl that holds a reason's share of all positions."""
    return f"realign_reason_{reason.lower()}_share"
