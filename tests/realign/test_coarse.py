"""Coarse rows: where they stand, and what they tell against enumeration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmarks.realign.enumeration import enumerate_paths
from teacher_proto.rows import required
from teacher_proto.types import MaskReason, PositionClass

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import MAX_UNSETTLED, PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import AskedContinuation, RealignRequest
from tests.realign.test_exact import realigned, toy_pairs
from tests.realign.test_requests import TEXTS, with_explicit_ids
from tests.realign.toys import SPACE, MarkovTeacher, toy
from tests.support.realigning import TEACHER, InProcess, converse, result, toy_request

# Coarse rows of each pair of toys whose values are the truth.
EXACT_ROWS = (8, 3, 8, 0, 4, 12)


def doubtful_pair() -> Pair:
    """The toy teacher's tokens often turn out to be only the beginning of a student's token."""
    merges = [(first, second) for first in "ab" for second in "abcd" if first != second]
    student = toy("abcd" + SPACE, [*merges, ("c", "a"), ("d", "a")])
    return Pair(PairTables(student, TEACHER, build_static(student, TEACHER)))


def doubtful_request(pair: Pair, **changes: Any) -> RealignRequest:
    tokens = [pair.tables.student.encoder.encode(text.encode()).ids for text in TEXTS]
    return replace(
        toy_request("a", extra_rounds=0, **changes),
        continuations=tuple(
            AskedContinuation(ids, np.arange(len(ids), dtype=np.int32)) for ids in tokens
        ),
    )


def test_doubtful_rows_are_coarse_where_that_was_asked_for() -> None:
    pair = doubtful_pair()
    plain, coarse = (
        result(converse(doubtful_request(pair, coarse=asked), InProcess(pair))).scores
        for asked in (False, True)
    )
    count = 0
    for without, with_them in zip(plain, coarse, strict=True):
        before, after = (required(s.realignment, "realignment") for s in (without, with_them))
        np.testing.assert_array_equal(before.mask_reason, after.mask_reason)
        changed = before.position_class != after.position_class
        assert (before.position_class[changed] == PositionClass.MASKED).all()
        assert (after.position_class[changed] == PositionClass.COARSE).all()
        assert set(after.mask_reason[changed].tolist()) <= {
            MaskReason.ONE_CERTIFIED,
            MaskReason.DOUBTFUL,
        }
        support, tail = required(with_them.rows.support, "support"), with_them.rows.log_tail
        mass = np.where(support.valid, np.exp(support.log_probs.astype(np.float64)), 0.0).sum(1)
        np.testing.assert_allclose(after.coverage, mass, atol=1e-6)
        assert (support.counts[changed] >= 1).all()
        assert required(tail, "tail").valid[changed].all()
        rest = np.exp(required(tail, "tail").values[changed].astype(np.float64))
        np.testing.assert_allclose(rest, 1 - mass[changed], rtol=1e-6)
        assert (rest <= 0.9).all()
        assert not required(without.rows.support, "support").counts[changed].any()
        count += int(changed.sum())
    assert count >= 4


def test_without_ids_a_row_has_the_class_of_two_and_its_sampled_value() -> None:
    """K of 0, 1 and 2: the same classes and reasons, the same values of the rows' own tokens."""
    pair = doubtful_pair()
    found = []
    for top_k in (0, 1, 2):
        request = doubtful_request(pair, top_k=top_k, log_tail=top_k > 0, coarse=True)
        found.append(result(converse(with_explicit_ids(request), InProcess(pair))).scores)
    classes = set()
    for each in zip(*found, strict=True):
        first, *others = (required(scores.realignment, "realignment") for scores in each)
        classes |= set(first.position_class.tolist())
        for block in others:
            np.testing.assert_array_equal(block.position_class, first.position_class)
            np.testing.assert_array_equal(block.mask_reason, first.mask_reason)
        own, *theirs = (required(scores.rows.sampled, "sampled") for scores in each)
        coarse = first.position_class == PositionClass.COARSE
        assert own.valid[coarse].any() or not coarse.any()
        assert all(one.values.tolist() == own.values.tolist() for one in theirs)
        assert each[0].rows.support is None
        assert not first.coverage.any()
    assert {PositionClass.COARSE, PositionClass.MASKED, PositionClass.ALIGNED} <= classes


@pytest.mark.parametrize("number", range(6))
def test_coarse_rows_against_enumeration(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids and their rest are the truth but for one factor: what is open may yet contradict
    the student's tokens so far, and then everything else weighs more."""
    student, teacher = toy_pairs(6, seed=11)[number]
    # Toys that do would have all rows inside a token masked.
    monkeypatch.setitem(vars(teacher), "merges_spaces", False)
    model, layout, got = realigned(student, teacher, seed=number, coarse=True)
    exact = 0
    for position in np.flatnonzero(got.position_class == PositionClass.COARSE).tolist():
        truth = truth_of(model, layout, position, student, teacher)
        count = int(got.certified.counts[position])
        ids = got.certified.ids[position, :count].tolist()
        told = np.exp(got.certified.log_probs[position, :count].astype(np.float64))
        wanted = np.array([truth.get(token, 0.0) for token in ids])
        ratio = wanted / told
        unsettled = 1 + MAX_UNSETTLED
        most = 1 / (1 - float(got.certified.open_mass[position]))
        assert ratio.min() >= 1 / unsettled
        assert ratio.max() <= ratio.min() * unsettled
        assert ratio.max() <= most * unsettled
        assert told.sum() == pytest.approx(got.certified.coverage[position], abs=1e-6)
        if np.abs(ratio - 1).max() < 1e-4:
            exact += 1
            assert 1 - wanted.sum() == pytest.approx(1 - told.sum(), abs=1e-4)
    assert exact >= EXACT_ROWS[number]


def truth_of(
    model: MarkovTeacher, layout: Layout, position: int, student: Vocabulary, teacher: Vocabulary
) -> dict[int, float]:
    """Student token -> probability at the position, by enumeration."""
    sync = int(layout.sync[position])
    offset = int(layout.teacher_offsets[sync])
    first = int(np.searchsorted(layout.student_offsets, offset))
    found = enumerate_paths(
        model,
        layout.teacher_ids[:sync].tolist(),
        layout.data[offset : layout.student_offsets[position]],
        layout.student_ids[first:position].tolist(),
        student,
        teacher,
        open_share=1e-6,
        most=20_000,
    )
    return required(found, "enumeration").mass
