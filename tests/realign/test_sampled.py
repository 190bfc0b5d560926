"""A rollout that a real model sampled, for real students of another tokenizer each.

SmolLM2 wrote it and is its teacher. Students hold it as they would have sampled it: some
of their tokens are split in two, as no tokenizer splits them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from teacher_proto.errors import LsmError
from teacher_proto.types import Int32, Level, PositionClass
from tokenizers import Tokenizer

from benchmarks.realign.compared import contradiction, rows_apart
from benchmarks.realign.real_model import PROMPT, TAILS, SmolLM2, split_some
from student_trainer.quickstart.cache import cache_dir
from student_trainer.quickstart.prepare import smollm2_dir
from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.rows import TeacherRows
from tests.realign.real_tokenizers import vocabulary

STUDENTS = ("qwen2_5", "qwen3", "llama3", "mistral_nemo", "gpt4o", "gemma3", "deepseek_v3")
WRITTEN = 96
SPLIT = 9
CUTS = 12
WORDS = 10
SUFFIXES = tuple(b"s es ed ing er ers ly able ness ment al ity ion ive ous ful ist ian".split())
TOP_K = 64


class Teacher:
    """SmolLM2, its text, and the rows of every rollout it has read."""

    def __init__(self) -> None:
        self._model = SmolLM2()
        self.vocabulary = self._model.vocabulary
        written = self._model.write(self.vocabulary.encoder.encode(PROMPT).ids, WRITTEN)
        self.text = self.vocabulary.encoder.decode(written)
        self._rows: dict[bytes, TeacherRows] = {}

    def rows(self, ids: Int32) -> TeacherRows:
        known = self._rows.get(ids.tobytes())
        if known is None:
            known = self._rows[ids.tobytes()] = self._model.rows(ids)
        return known


@dataclass(frozen=True)
class Case:
    """One student's rollout of the text, realigned whole."""

    teacher: Teacher
    realigner: Realigner
    ids: Int32
    layout: Layout
    got: RealignedRows

    def both(self, at: int, tail: bytes, row: int) -> tuple[RealignedRows, RealignedRows]:
        """A row before the text's own rest, and before ``tail`` from position ``at`` on."""
        student = self.realigner.tables.student
        rewritten = np.concatenate([self.ids[:at], student.encoder.encode(tail).ids])
        return self.row(self.ids, row), self.row(rewritten, row)

    def row(self, ids: Int32, at: int) -> RealignedRows:
        layout = self.realigner.lay_out(ids)
        rows = self.teacher.rows(layout.teacher_ids)
        return self.realigner.realign(layout, np.array([at]), rows, top_k=TOP_K)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    try:
        smollm2_dir()
    except LsmError as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")
    return Teacher()


@pytest.fixture(scope="module", params=STUDENTS)
def case(request: pytest.FixtureRequest, teacher: Teacher) -> Case:
    student = vocabulary(request.param)
    tables = TableCache(cache_dir() / "realign-tables").get(student, teacher.vocabulary)
    assert tables.level is Level.CROSS
    realigner = Realigner(tables)
    ids = split_some(student.encoder.encode(teacher.text).ids, student, SPLIT)
    layout = realigner.lay_out(ids)
    rows = teacher.rows(layout.teacher_ids)
    got = realigner.realign(layout, np.arange(len(ids)), rows, top_k=TOP_K)
    return Case(teacher, realigner, ids, layout, got)


def test_the_teacher_s_ids_are_the_text(case: Case) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2_dir() / "tokenizer.json"))
    assert tokenizer.decode(case.layout.teacher_ids.tolist()).encode() == case.teacher.text
    own = [case.realigner.tables.student.token_bytes[token] for token in case.ids.tolist()]
    assert case.layout.data == b"".join(own) == case.teacher.text


def test_what_the_tokenizer_would_not_write_is_masked(case: Case) -> None:
    student = case.realigner.tables.student
    canonical = student.encoder.encode(case.teacher.text).ids
    there = {
        (int(offset), int(token))
        for offset, token in zip(
            np.cumsum(student.lengths[canonical]) - student.lengths[canonical],
            canonical,
            strict=True,
        )
    }
    begin = np.cumsum(student.lengths[case.ids]) - student.lengths[case.ids]
    split = np.array(
        [(int(at), int(t)) not in there for at, t in zip(begin, case.ids, strict=True)]
    )
    assert split.sum() >= 6
    masked = case.got.position_class == PositionClass.MASKED
    assert masked[split].all()
    assert not case.got.certified.counts[masked].any()
    assert np.isneginf(case.got.certified.sampled[masked]).all()
    assert (case.got.certified.counts[~masked] > 0).all()
    assert (~masked).sum() > len(case.ids) / 2


def test_each_chunk_has_the_likelihood_of_the_teacher_s_tokens(case: Case) -> None:
    """The chain rule over the tokens between two places where both begin one."""
    teacher = case.teacher.vocabulary
    ids = teacher.encoder.encode(case.teacher.text).ids
    rows = case.teacher.rows(ids)
    ends = np.cumsum(teacher.lengths[ids])
    begin = np.concatenate([[0], np.cumsum(case.realigner.tables.student.lengths[case.ids])])
    common = sorted({0, *ends.tolist()} & set(begin.tolist()))
    got = case.got
    assert len(got.chunk_log_likelihood) == len(common) - 1
    for chunk, (low, high) in enumerate(itertools.pairwise(common)):
        wanted = rows.token_log_probs[(ends > low) & (ends <= high)].sum()
        assert got.chunk_log_likelihood[chunk] == pytest.approx(wanted, abs=1e-4)
        inside = (begin[:-1] >= low) & (begin[:-1] < high)
        assert (got.chunk_index[inside] == chunk).all()
    assert got.chunk_log_likelihood.sum() == pytest.approx(rows.token_log_probs.sum(), abs=1e-3)


def test_no_row_knows_what_follows_it(case: Case) -> None:
    """Everything from a place on is rewritten; the places are the same for all students.
    The row there, and the one before it."""
    draw = random.Random(5)
    places = draw.sample(range(24, len(case.teacher.text) - 24), CUTS)
    begin = case.layout.student_offsets
    apart: tuple[list[float], list[float]] = ([], [])
    for place in places:
        at = int(np.searchsorted(begin, place, "right")) - 1
        tail = draw.choice(TAILS)
        for before, found in enumerate(apart):
            between = rows_apart(*case.both(at, tail, at - before))
            if between is not None:
                found.append(between)
    assert len(apart[0]) + len(apart[1]) >= 8
    assert min(map(len, apart)) >= 2
    for found in apart:
        assert np.mean(found) <= 0.002, sorted(found)[-5:]


def longer_words(case: Case) -> Iterator[tuple[int, bytes]]:
    """(position, letters): a word of the text goes on with letters that are a token of their
    own for the student and are not for the teacher."""
    student, teacher = case.realigner.tables.student, case.teacher.vocabulary
    begin = case.layout.student_offsets
    for at in range(2, len(case.ids)):
        place = int(begin[at])
        start = max(case.teacher.text.rfind(b" ", 0, place), 0)
        word = case.teacher.text[start:place]
        kept = case.ids[np.searchsorted(begin, start) : at].tolist()
        for letters in SUFFIXES if word.strip().isalpha() else ():
            own = student.encoder.encode(word + letters).ids.tolist()
            its = teacher.encoder.encode(word + letters).ids
            if own[: len(kept)] == kept and len(word) not in np.cumsum(teacher.lengths[its]):
                yield at, letters


def test_a_row_does_not_know_that_its_word_goes_on(case: Case) -> None:
    """Neither version settles what the other rules out, masks or no masks."""
    beyond = [
        contradiction(*case.both(at, letters, at))
        for at, letters in itertools.islice(longer_words(case), WORDS)
    ]
    assert len(beyond) == WORDS
    assert np.mean(beyond) <= 0.002, sorted(beyond)[-5:]
