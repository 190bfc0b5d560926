"""What lies below the best ids of a teacher's row, where many of these are ruled out."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_server.realign.realigner import RealignedRows, Realigner
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


def before_a_number(listed: int, tail: float) -> tuple[Realigner, RealignedRows, list[bytes]]:
    """The rows of "is 8104," for a student that writes digits one by one; the row before it lists
    ``listed`` of the teacher's numbers of three digits, and ``tail`` lies below them."""
    tables = pair("qwen3", "llama3")
    student, teacher = tables.student, tables.teacher
    realigner = Realigner(tables)
    layout = realigner.lay_out(student.encoder.encode(b"is 8104,").ids)
    own = teacher.by_bytes[b"810"]
    numbers = [token for token, data in enumerate(teacher.token_bytes) if _is_number(data)]
    chosen = [own, *(token for token in numbers if token != own)][:listed]
    count = len(layout.teacher_ids)
    ids = np.full((count, listed), -1, np.int32)
    ids[:, 0] = layout.teacher_ids
    log_probs = np.zeros((count, listed))
    at = layout.teacher_ids.tolist().index(own)
    ids[at], log_probs[at] = chosen, np.log((1 - tail) / listed)
    rows = teacher_rows(layout.teacher_ids, ids, log_probs, log_probs[:, 0])
    got = realigner.realign(layout, np.arange(len(layout.student_ids)), rows, top_k=10)
    return realigner, got, [student.token_bytes[token] for token in layout.student_ids.tolist()]


@pytest.mark.parametrize(("tail", "known"), [(1e-4, True), (0.4, False)])
def test_numbers_below_the_best_share_digits_with_those_that_are_listed(
    tail: float, known: bool
) -> None:
    """A first digit stands for as many of those below as of those above, and inside a number
    what is below may go on as well."""
    _, got, tokens = before_a_number(300, tail)
    first = tokens.index(b"8")
    assert bool(got.certified.sampled[first] > -np.inf) == known
    assert bool(got.certified.sampled[first + 1] > -np.inf) == known
    assert bool(got.certified.open_mass[first + 1] < 0.01) == known


def test_a_way_whose_token_is_not_listed_is_open() -> None:
    """ "81" is a token too. It may have what a listed one has at least, or nothing, so that a row
    after it would not tell."""
    realigner, got, tokens = before_a_number(20, 0.4)
    inside = tokens.index(b"8") + 2
    missing = got.walked.open
    there = missing.position == inside
    teacher = realigner.tables.teacher
    unlisted = there & (missing.token == teacher.by_bytes[b"81"])
    assert unlisted.any()
    assert (missing.row[unlisted] < 0).all()


def test_an_unlikely_word_is_not_taken_for_the_beginning_of_one_that_is_not_listed() -> None:
    """None of the words that begin with it is listed, and these are not alike."""
    tables = pair("llama3", "qwen3")
    realigner = Realigner(tables)
    layout = realigner.lay_out(tables.student.encoder.encode(b"we are un x").ids)
    teacher = tables.teacher.by_bytes
    at = layout.teacher_ids.tolist().index(teacher[b" un"])
    count = len(layout.teacher_ids)
    ids = np.column_stack([layout.teacher_ids, np.full(count, teacher[b" the"])])
    log_probs = np.tile(np.log([0.99, 0.01]), (count, 1))
    ids[at], log_probs[at] = [teacher[b" the"], teacher[b" a"]], np.log([0.85, 0.05])
    own = log_probs[:, 0].copy()
    own[at] = np.log(1e-6)
    rows = teacher_rows(layout.teacher_ids, ids.astype(np.int32), log_probs, own)
    position = int(np.searchsorted(layout.student_offsets, len(b"we are un")))
    got = realigner.realign(layout, np.array([position]), rows, top_k=4)
    assert got.certified.open_mass[0] < 0.01
