"""Which rows are asked for of an episode: those of the student's own tokens.

A teacher with another tokenizer is asked for all, because its chunks reach across turns; the
others are then left out by the trainer.
"""

from __future__ import annotations

import numpy as np
from teacher_proto.rows import Rows
from teacher_proto.types import Bool, Continuation, ContinuationScores, Segment, Status

from student_trainer.rollout.base import Rollout

# Arrays of ids, in which -1 stands for none.
IDS = ("top_ids",)


def continuation_of(rollout: Rollout, *, whole: bool) -> Continuation:
    """What is asked of a response.

    Args:
        whole: whether all of its rows are.
    """
    segments, explicit = (Segment(rollout.token_ids),), rollout.support_ids
    if rollout.own is None or whole:
        return Continuation(segments, explicit_ids=explicit)
    return Continuation(
        segments,
        rows=np.flatnonzero(rollout.own).astype(np.int32),
        explicit_ids=None if explicit is None else explicit[rollout.own],
    )


def whole_rows(scores: ContinuationScores, own: Bool | None) -> ContinuationScores:
    """The scores with a row for every token: those that were not asked for hold nothing.

    Args:
        own: bool [n], the rows that were asked for; None where these are all.
    """
    if own is None or scores.status is not Status.OK:
        return scores
    found = {}
    for name, array in scores.rows.arrays().items():
        found[name] = np.full((len(own), *array.shape[1:]), -1 if name in IDS else 0, array.dtype)
        found[name][own] = array
    return ContinuationScores(rows=Rows.of(found))
