"""No row knows what follows it: rewriting the rest of a rollout leaves it as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
from teacher_proto.types import Int32, PositionClass

from benchmarks.realign_reference import NgramTeacher
from benchmarks.realign_texts import texts
from teacher_server.realign.carry import CarriedRows, Realigner
from teacher_server.realign.layout import Layout
from teacher_server.realign.rows import teacher_rows
from tests.realign.real_tokenizers import pair

PAIRS = [("llama3", "qwen3"), ("qwen3", "llama3"), ("gpt4o", "llama3"), ("mistral_nemo", "qwen3")]
SUPPORT = 128


def rows_of(
    realigner: Realigner, teacher: NgramTeacher, before: list[int], ids: Int32, position: int
) -> tuple[Layout, CarriedRows]:
    layout = realigner.plan(ids)
    tokens = [*before, *layout.teacher_ids.tolist()]
    best = [
        teacher.top(tokens[: at + len(before)], SUPPORT) for at in range(len(layout.teacher_ids))
    ]
    own = []
    for at, token in enumerate(layout.teacher_ids.tolist()):
        place = int(np.searchsorted(teacher.seen, token))
        known = place < len(teacher.seen) and teacher.seen[place] == token
        row = teacher.row(tokens[: at + len(before)])
        own.append(np.log(max(float(row[place]) if known else 0.0, 1e-9)))
    rows = teacher_rows(
        layout.teacher_ids,
        np.stack([top for top, _ in best]),
        np.stack([values for _, values in best]),
        np.array(own),
    )
    return layout, realigner.carry_over(layout, np.array([position]), rows, top_k=64)


def distance(first: CarriedRows, second: CarriedRows) -> float | None:
    """Total variation over the ids both certify; None where one of the rows is masked."""
    if PositionClass.MASKED in (first.position_class[0], second.position_class[0]):
        return None
    masses = []
    for rows in (first.certified, second.certified):
        count = int(rows.counts[0])
        values = np.exp(rows.log_probs[0, :count].astype(np.float64))
        masses.append(dict(zip(rows.ids[0, :count].tolist(), values.tolist(), strict=True)))
    common = masses[0].keys() & masses[1].keys()
    return sum(abs(masses[0][token] - masses[1][token]) for token in common) / 2


@pytest.mark.parametrize(("student_name", "teacher_name"), PAIRS)
def test_rewriting_what_follows_does_not_change_a_row(student_name: str, teacher_name: str) -> None:
    tables = pair(student_name, teacher_name)
    realigner = Realigner(tables)
    draw = random.Random(7)
    apart: list[float] = []
    masked = 0
    for text in texts(1200):
        learnt = tables.teacher.encoder.encode(text.learnt[-40_000:].encode()).ids.tolist()
        teacher = NgramTeacher(learnt)
        ids = tables.student.encoder.encode(text.held_out.encode()).ids
        for _ in range(12):
            position = draw.randrange(4, min(len(ids), 120))
            other = draw.choice(
                ["able to", "'s", " x", "\n\n", "7", "de la", "界", "()", "  y", "é"]
            )
            tail = tables.student.encoder.encode((other + text.held_out[40:60]).encode()).ids
            start = max(0, position - 60)
            kept = ids[start : position + 6]
            rewritten = np.concatenate([ids[start:position], tail])
            at = position - start
            first = rows_of(realigner, teacher, learnt[-3:], kept, at)[1]
            second = rows_of(realigner, teacher, learnt[-3:], rewritten, at)[1]
            found = distance(first, second)
            if found is None:
                masked += 1
            else:
                apart.append(found)
    assert len(apart) >= 16, f"{masked} of the rows are masked"
    assert np.mean(apart) <= 0.002, sorted(apart)[-5:]
