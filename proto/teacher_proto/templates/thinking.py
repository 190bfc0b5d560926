"""The marks that begin and end thinking in published models, in one table for both programs."""

from __future__ import annotations

from collections.abc import Mapping

from teacher_proto.types import SpecialRole

# (what opens it, what closes it); the most frequent first.
THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
# The role of a special token that is spelt like one of them.
ROLES: Mapping[str, SpecialRole] = {
    mark: role
    for pair in THINKING
    for mark, role in zip(pair, (SpecialRole.THINK_OPEN, SpecialRole.THINK_CLOSE), strict=True)
}
