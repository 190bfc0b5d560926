"""Pairs that share their ordinary ids: rows are gathered, specials by text or role."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_proto.types import Level, PositionClass

from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.walk.rows import TeacherRows, teacher_rows
from tests.realign.real_tokenizers import pair, vocabulary
from tests.realign.toys import toy


def special(of: Vocabulary, text: str) -> int:
    return next(token for token, spelt in of.specials.items() if spelt == text)


def rows_over(ids: np.ndarray, top: list[int], values: list[float]) -> TeacherRows:
    """The same row at every position."""
    count = len(ids)
    known = dict(zip(top, values, strict=True))
    own = [np.log(known.get(token, 1e-6)) for token in ids.tolist()]
    return teacher_rows(
        ids,
        np.tile(np.array(top, np.int32), (count, 1)),
        np.tile(np.log(values), (count, 1)),
        np.array(own),
    )


def test_ids_stay_and_specials_are_renamed() -> None:
    """Llama 3 and 3.2 differ in added tokens only."""
    realigner = Realigner(pair("llama3_2", "llama3"))
    student, teacher = realigner.tables.student, realigner.tables.teacher
    assert realigner.level is Level.REMAP
    end = special(student, "<|eot_id|>")
    # "un" + "able", as a tokenizer would not write it: ids are read as they are.
    pieces = [student.token_bytes.index(b"un"), student.token_bytes.index(b"able")]
    ids = np.array([*pieces, end], np.int32)
    layout = realigner.lay_out(ids)
    np.testing.assert_array_equal(layout.teacher_ids, [*pieces, special(teacher, "<|eot_id|>")])
    # One that the student lacks is what the student begins its text with.
    without = min(teacher.spelt)
    begins = int(student.encoder.encode(teacher.token_bytes[without]).ids[0])
    top = [pieces[1], special(teacher, "<|eot_id|>"), without, pieces[0]]
    rows = rows_over(layout.teacher_ids, top, [0.5, 0.3, 0.15, 0.05])
    got = realigner.realign(layout, np.arange(3), rows, top_k=8)
    assert (got.position_class == PositionClass.REMAP).all()
    expected = [pieces[1], end, begins, pieces[0], -1]
    np.testing.assert_array_equal(got.certified.ids[1, :5], expected)
    masses = np.exp(got.certified.log_probs[1, :4])
    np.testing.assert_allclose(masses, [0.5, 0.3, 0.15, 0.05], rtol=1e-6)
    np.testing.assert_allclose(got.certified.lost_mass, 0.0, atol=1e-6)
    np.testing.assert_allclose(np.exp(got.certified.sampled), [0.05, 0.5, 0.3], rtol=1e-6)


def test_a_token_that_only_the_student_has_goes_the_long_way() -> None:
    """Qwen 3 added <think>; Qwen 2.5 spells it."""
    realigner = Realigner(pair("qwen3", "qwen2_5"))
    student = realigner.tables.student
    assert realigner.level is Level.REMAP
    ordinary = student.encoder.encode(b"one two").ids
    assert realigner.lay_out(ordinary).level is Level.REMAP
    think = np.array([student.by_bytes[b"<think>"]], np.int32)
    layout = realigner.lay_out(np.concatenate([ordinary, think, ordinary]))
    assert layout.level is Level.CROSS
    spelt = realigner.tables.teacher.encoder.encode(b"one two<think>one two").ids
    np.testing.assert_array_equal(layout.teacher_ids, spelt)
    assert not (layout.unreadable | layout.without_counterpart).any()


@pytest.mark.parametrize(
    ("name", "merges"),
    [("gemma3", True), ("gemma2", True), ("qwen3", False), ("gpt4o", False), ("llama3", False)],
)
def test_teachers_that_merge_spaces_are_told_by_what_they_write(name: str, merges: bool) -> None:
    assert vocabulary(name).merges_spaces is merges


@pytest.mark.parametrize(("mass", "kept"), [(0.9, False), (0.97, True)])
def test_a_lone_certain_id_is_a_row_when_it_holds_the_row(mass: float, kept: bool) -> None:
    teacher = toy("abc\u0120", [("a", "b")])
    student = toy("abc\u0120", [("b", "c")])
    realigner = Realigner(PairTables(student, teacher, build_static(student, teacher)))
    layout = realigner.lay_out(student.encoder.encode(b"a a").ids)
    (end,), (limit,) = teacher.specials, student.specials
    # The rest of the row is on the end, which is beyond the ids that are asked for.
    top = [int(layout.teacher_ids[1]), end]
    rows = rows_over(layout.teacher_ids, top, [mass, 1 - mass])
    got = realigner.realign(layout, np.array([1]), rows, top_k=4, limit=limit)
    assert got.certified.counts[0] == int(kept)
    assert (got.position_class[0] != PositionClass.MASKED) == kept


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "llama3", "mistral_nemo", "gpt4o", "gemma3", "deepseek_v3"]
)
def test_every_named_tokenizer_can_be_the_student(name: str) -> None:
    """Of a Llama 3 teacher (Qwen 3 of Llama 3): bytes and chunks fit together."""
    other = "qwen3" if name == "llama3" else "llama3"
    realigner = Realigner(pair(name, other))
    text = "Now 12345 + 6 = 12351; naïve 你好 🙂\n\tdef f(x):\n        return x\n".encode()
    ids = realigner.tables.student.encoder.encode(text).ids
    layout = realigner.lay_out(ids)
    assert layout.data == text
    assert realigner.tables.teacher.encoder.decode(layout.teacher_ids.tolist()) == text
    assert layout.canonical.all()
    assert not (layout.unreadable | layout.without_counterpart).any()
    np.testing.assert_array_equal(
        layout.teacher_offsets[layout.chunk_teacher],
        np.intersect1d(layout.student_offsets, layout.teacher_offsets),
    )
