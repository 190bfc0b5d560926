"""The student's own top-K along its rollouts, at which the teacher is then scored.

The ids are those of the student that drew the rollout. They come from one pass over the
finished group before it is sent, so that the teacher scores the group while the rest of
the batch is drawn. Without staleness and with one update per batch, this is the student
that is updated; otherwise the support is as old as the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from student_trainer.losses.parts.normaliser import top_ids
from student_trainer.rollout.base import Rollout
from student_trainer.student.model import Student, read_layout
from student_trainer.update.batching import layout_of, micro_batch, micro_batches

# Asks for nothing, in the place of an id.
NOTHING = -1


@torch.no_grad()
def with_student_support(
    student: Student,
    rollouts: Sequence[Rollout],
    count: int,
    *,
    limit: int,
    micro_batch_tokens: int,
    chunk_rows: int,
) -> list[Rollout]:
    """The rollouts with their ``support_ids``; unchanged when ``count`` is 0.

    Args:
        student: in evaluation mode.
        count: K.
        limit: only ids below it are in the support (``TeacherLink.id_limit``).
        micro_batch_tokens: ``optimizer.micro_batch_tokens``.
        chunk_rows: rows of logits [rows, V] computed at a time.
    """
    if not count or not rollouts:
        return list(rollouts)
    found = list(rollouts)
    every = [rollout.own_rows for rollout in rollouts]
    for members in micro_batches(rollouts, micro_batch_tokens, packs=student.packs):
        layout = layout_of(student, members, rollouts)
        batch = micro_batch(members, rollouts, every, layout)
        hidden = read_layout(student, layout)
        rows = hidden.index_select(0, batch.rows.to(hidden.device))
        ids = top_ids(rows, student.head, count, chunk_rows, limit).cpu().numpy().astype(np.int32)
        for place, member in enumerate(members):
            own = np.full((len(every[member]), count), NOTHING, np.int32)
            own[every[member]] = ids[(batch.owners == place).numpy()]
            found[member] = replace(rollouts[member], support_ids=own)
    return found
