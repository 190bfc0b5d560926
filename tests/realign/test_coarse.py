"""Coarse rows: where they stand, and what they tell against enumeration."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.rows import required
from teacher_proto.types import MaskReason, PositionClass

from benchmarks.realign.reference.enumeration import enumerate_paths
from benchmarks.realign.reference.pasts import Window, pasts_of
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from benchmarks.realign.reference.specification import Reference
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import MAX_UNSETTLED, PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import AskedContinuation, RealignRequest
from tests.realign.test_exact import LETTERS, Merges, realigned, toy_merges
from tests.realign.test_requests import TEXTS, with_explicit_ids
from tests.realign.toys import SPACE, MarkovTeacher, bpe_document, toy
from tests.support.realigning import TEACHER, InProcess, converse, result, toy_request

# Coarse rows whose values are the truth but for chance, by the number of the pair of toys.
EXACT_ROWS = {0: 8, 1: 3, 2: 8, 4: 4, 5: 12, 9: 11}
# Texts that are drawn for a row.
DRAWS = 300


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
        reason = required(after.mask_reason, "mask_reason")
        np.testing.assert_array_equal(before.mask_reason, reason)
        changed = before.position_class != after.position_class
        assert (before.position_class[changed] == PositionClass.MASKED).all()
        assert (after.position_class[changed] == PositionClass.COARSE).all()
        assert set(reason[changed].tolist()) <= {
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


@pytest.mark.parametrize("number", EXACT_ROWS)
def test_coarse_rows_against_the_references(number: int, tmp_path: Path) -> None:
    """Their ids and their rest are the truth but for one factor: what is open may yet contradict
    the student's tokens so far, and then everything else weighs more."""
    merges = toy_merges(number + 1, seed=11)[number]
    student, teacher = (toy(LETTERS, some) for some in merges)
    model, layout, got = realigned(student, teacher, seed=number, coarse=True)
    judge = Judge(model, (student, teacher), [raw_toy(tmp_path, some) for some in merges])
    exact = 0
    for position in np.flatnonzero(got.position_class == PositionClass.COARSE).tolist():
        truth, noise = judge.truth(layout, position)
        count = int(got.certified.counts[position])
        ids = got.certified.ids[position, :count].tolist()
        told = np.exp(got.certified.log_probs[position, :count].astype(np.float64))
        wanted = np.array([truth.get(token, 0.0) for token in ids])
        chance = 1 + 4 * noise / wanted.min()
        ratio = wanted / told
        unsettled = (1 + MAX_UNSETTLED) * chance
        most = 1 / (1 - float(got.certified.open_mass[position]))
        assert ratio.min() >= 1 / unsettled
        assert ratio.max() <= ratio.min() * unsettled
        assert ratio.max() <= most * unsettled
        assert told.sum() == pytest.approx(got.certified.coverage[position], abs=1e-6)
        exact += int(np.abs(wanted - told).sum() <= 1e-4 + 2 * noise)
    assert exact >= EXACT_ROWS[number]


def raw_toy(folder: Path, merges: Merges) -> RawTokenizer:
    file = folder / f"{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps(bpe_document(LETTERS, merges)))
    return RawTokenizer(file)


class Judge:
    """Right rows of a toy: by the specification where the text so far may be cut in several
    ways, and to rounding by enumeration, which knows of one, elsewhere."""

    def __init__(
        self,
        model: MarkovTeacher,
        vocabularies: tuple[Vocabulary, Vocabulary],
        tokenizers: list[RawTokenizer],
    ) -> None:
        self._model, self._vocabularies = model, vocabularies
        self._student, self._teacher = tokenizers
        self._reference = Reference(self, self._student, self._teacher)

    def row(self, before: Sequence[int]) -> dict[int, float]:
        return {token: mass for token, mass in enumerate(self._model.row(before)) if mass > 0}

    def draw(self, before: Sequence[int], rng: random.Random) -> int:
        row = self.row(before)
        return rng.choices(list(row), list(row.values()))[0]

    def truth(self, layout: Layout, position: int) -> tuple[dict[int, float], float]:
        """(student token -> probability at the position, noise)."""
        sync = int(layout.sync[position])
        offset = int(layout.teacher_offsets[sync])
        first = int(np.searchsorted(layout.student_offsets, offset))
        window = Window(
            layout.data[offset : layout.student_offsets[position]],
            layout.student_ids[first:position].tolist(),
            tuple(layout.teacher_ids[:sync].tolist()),
        )
        if len(pasts_of(window, self, self._teacher)) > 1:
            drawn = self._reference.truth(window, random.Random(position), draws=DRAWS)
            return (one := required(drawn, "reference")).mass, one.noise
        found = enumerate_paths(
            self._model, window.before, window.said, window.student_ids, *self._vocabularies,
            open_share=1e-6, most=20_000,
        )  # fmt: skip
        return required(found, "enumeration").mass, 0.0
