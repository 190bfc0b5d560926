"""Why a position is masked or coarse, in words for people (docs/realignment.md)."""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.types import MaskReason

# Reasons that only servers of an earlier release give.
FORMER_REASONS = (MaskReason.MERGED_SPACES,)
# Reasons for which a row is coarse where that was asked for.
COARSE_REASONS = (MaskReason.ONE_CERTIFIED, MaskReason.DOUBTFUL)
REASON_TEXTS: Mapping[MaskReason, str] = {
    MaskReason.NOT_CANONICAL: "the student's tokenizer writes this text with other tokens",
    MaskReason.UNREADABLE: "the teacher reads text of the chunk byte by byte",
    MaskReason.NO_COUNTERPART: "the chunk has a special token that the teacher does not have",
    MaskReason.LONG_CHUNK: "the tokenizers meet only after too many tokens",
    MaskReason.MERGED_SPACES: "inside spaces that the teacher's tokenizer merges (older servers)",
    MaskReason.LITTLE_AGREES: "inside a teacher token, and hardly any of its row agrees",
    MaskReason.NOTHING_CERTIFIED: "no id of the student's is certified",
    MaskReason.LARGE_REST: "the certified ids hold less than a tenth of the row",
    MaskReason.ONE_CERTIFIED: "a single id is certified, and does not hold the row",
    MaskReason.DOUBTFUL: "an id that is not certified could be the most likely one",
}
