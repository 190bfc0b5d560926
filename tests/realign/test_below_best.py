"""What lies below the best ids of a teacher's row, where many of these are ruled out."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_server.realign.realigner import Realigner
from teacher_server.realign.walk.rows import teacher_rows
from tests.realign.real_tokenizers import pair

BEST = 64


@pytest.mark.parametrize("ruled_out", [False, True])
def test_what_is_below_the_best_is_ruled_out_as_they_are(ruled_out: bool) -> None:
    """Half of a row are numbers, too many to be listed. Between two tabs and a number the student
    would have cut the tabs apart, so none of them counts; after a letter all do."""
    tables = pair("llama3", "deepseek_v3")
    student, teacher = tables.student, tables.teacher
    said, tab_and_t = (b"x\r\n\t\t" if ruled_out else b"x"), b"\tt"
    layout = Realigner(tables).lay_out(student.encoder.encode(said + tab_and_t).ids)
    numbers = [token for token, data in enumerate(teacher.token_bytes) if _is_number(data)][:200]
    assert len(numbers) == 200
    token = teacher.token_bytes.index(tab_and_t)
    at = len(teacher.encoder.encode(said).ids)
    assert layout.teacher_ids[at] == token
    count = len(layout.teacher_ids)
    # Elsewhere the teacher is sure of its text.
    ids = np.full((count, BEST), -1, np.int32)
    ids[:, 0] = layout.teacher_ids
    log_probs = np.zeros((count, BEST))
    ids[at, 1:] = numbers[: BEST - 1]
    log_probs[at] = np.log([0.5, *[0.5 / len(numbers)] * (BEST - 1)])
    rows = teacher_rows(layout.teacher_ids, ids, log_probs, log_probs[:, 0])
    position = int(np.searchsorted(layout.student_offsets, len(said)))
    assert layout.student_offsets[position] == len(said)
    realigner = Realigner(tables)
    got = realigner.realign(layout, np.array([position]), rows, top_k=8)
    # By what agrees with the student's tokens so far all masses are divided.
    assert got.walked.total[0] == pytest.approx(0.5 if ruled_out else 1.0, abs=1e-6)


def _is_number(data: bytes) -> bool:
    return len(data) == 3 and data.isdigit()
