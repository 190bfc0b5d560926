"""Why rows are masked or coarse: each reason, their order, and the classes that follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from teacher_proto.program.mask_reasons import REASON_TEXTS
from teacher_proto.types import Int32, MaskReason, PositionClass

from teacher_server.realign.certify import Certified
from teacher_server.realign.pair.layout import Layout, lay_out
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.reasons import row_classes, row_reasons, static_reasons
from teacher_server.realign.walk.masses import WalkResult
from teacher_server.telemetry.realignment_totals import RealignmentMetrics, RealignmentTotals
from tests.realign.real_tokenizers import pair
from tests.realign.toys import toy

NONE = 0


def reasons_of(ids: Int32, tables: PairTables) -> list[int]:
    layout = lay_out(ids, tables)
    return static_reasons(layout, np.arange(len(ids))).tolist()


def test_reasons_that_need_no_row() -> None:
    tables = pair("llama3", "qwen3")
    student = tables.student
    table = student.token_bytes
    begin = next(t for t, text in student.specials.items() if text == "<|begin_of_text|>")
    written = student.encoder.encode(b"unable").ids.tolist()
    pieces = [table.index(b"un"), table.index(b"able")]
    assert written != pieces
    found = reasons_of(np.array([begin, *pieces], np.int32), tables)
    assert found == [MaskReason.NO_COUNTERPART, *[MaskReason.NOT_CANONICAL] * 2]
    assert reasons_of(np.array([begin, *written], np.int32), tables)[1:] == [NONE] * len(written)


def test_text_that_is_read_byte_by_byte() -> None:
    tables = pair("qwen3", "llama3")
    encode = tables.student.encoder.encode
    broken = tables.student.token_bytes.index(b"\x80")
    ids = np.concatenate([encode(b"so").ids, [broken], encode(b" it").ids]).astype(np.int32)
    assert reasons_of(ids, tables) == [NONE, MaskReason.UNREADABLE, NONE]


def test_long_chunks() -> None:
    student, teacher = toy("ab", [("a", "b")]), toy("ab", [("b", "a")])
    tables = PairTables(student, teacher, build_static(student, teacher))
    for pairs, reason in ((5, NONE), (6, MaskReason.LONG_CHUNK)):
        # ab ab ... | a ba ... b: one chunk.
        ids = student.encoder.encode(b"ab" * pairs).ids
        assert len(ids) == pairs
        assert reasons_of(ids, tables) == [reason] * pairs


# One row of masses, and why it is not a full one.
ROWS = {
    "full": ([0.6, 0.2], False, NONE),
    "a lone id that holds the row": ([0.96], False, NONE),
    "nothing": ([], True, MaskReason.NOTHING_CERTIFIED),
    "a lone id": ([0.94], False, MaskReason.ONE_CERTIFIED),
    "a lone id, doubtful": ([0.3], True, MaskReason.ONE_CERTIFIED),
    "doubtful": ([0.2, 0.1], True, MaskReason.DOUBTFUL),
    "doubtful, a small part": ([0.05, 0.04], True, MaskReason.LARGE_REST),
    "doubtful, a tenth": ([0.07, 0.04], True, MaskReason.DOUBTFUL),
    "lone, a small part": ([0.08], False, MaskReason.LARGE_REST),
    "a small part of a certain row": ([0.05, 0.04], False, NONE),
    "beyond K": ([0.05, 0.04, 0.03, 0.02], True, MaskReason.LARGE_REST),
}


def certified(masses: list[float], doubtful: bool) -> Certified:
    width = max(len(masses), 2)
    log_probs = np.zeros((1, width), np.float32)
    log_probs[0, : len(masses)] = np.log(masses)
    ids = np.full((1, width), -1, np.int32)
    ids[0, : len(masses)] = np.arange(len(masses))
    return Certified(
        ids=ids,
        log_probs=log_probs,
        counts=np.array([len(masses)], np.int32),
        sampled=np.zeros(1),
        doubtful=np.array([doubtful]),
        coverage=np.array([sum(masses)]),
        open_mass=np.zeros(1),
        lost_mass=np.zeros(1),
    )


def toy_layout() -> Layout:
    """ "ab" "ab" "ab" against "a" "ba" "ba" "b": all but the first are inside a token."""
    student, teacher = toy("ab", [("a", "b")]), toy("ab", [("b", "a")])
    tables = PairTables(student, teacher, build_static(student, teacher))
    return lay_out(student.encoder.encode(b"ababab").ids, tables)


def walked(total: float) -> WalkResult:
    layout_only = dict.fromkeys(
        ("settled", "open", "lost", "tail", "floor", "listed", "wide", "behind_space", "wanted")
    )
    return WalkResult(total=np.array([total]), **layout_only)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("coarse", [False, True])
def test_reasons_of_a_row(case: tuple[list[float], bool, int], coarse: bool) -> None:
    masses, doubtful, reason = case
    layout = toy_layout()
    first = np.array([0])
    found = row_reasons(layout, first, walked(1.0), certified(masses, doubtful), 2)
    assert found.tolist() == [reason]
    kind = PositionClass.MASKED if reason else PositionClass.ALIGNED
    if coarse and reason in (MaskReason.ONE_CERTIFIED, MaskReason.DOUBTFUL):
        kind = PositionClass.COARSE
    assert row_classes(layout, first, found, coarse).tolist() == [kind]


@pytest.mark.parametrize(
    ("top_k", "reason"),
    [(0, MaskReason.DOUBTFUL), (1, MaskReason.LARGE_REST), (2, MaskReason.DOUBTFUL)],
)
def test_the_rest_is_what_the_ids_that_are_told_leave(top_k: int, reason: int) -> None:
    """Of .07 and .04 a request for one id is told .07 alone, and the rest is .93."""
    layout = toy_layout()
    row = certified([0.07, 0.04], True)
    found = row_reasons(layout, np.array([0]), walked(1.0), row, top_k)
    assert found.tolist() == [reason]


@pytest.mark.parametrize("top_k", [0, 1, 2, 8])
def test_a_lone_id_that_does_not_hold_the_row_is_none_however_many_are_asked_for(
    top_k: int,
) -> None:
    layout = toy_layout()
    for mass, reason in ((0.94, MaskReason.ONE_CERTIFIED), (0.96, NONE)):
        row = certified([mass], False)
        found = row_reasons(layout, np.array([0]), walked(1.0), row, top_k)
        assert found.tolist() == [reason]


def test_what_needs_no_row_comes_first_and_little_agreement_before_doubt() -> None:
    layout = toy_layout()
    at = np.array([1])
    few = certified([], True)
    for total, reason in ((1e-4, MaskReason.LITTLE_AGREES), (0.1, MaskReason.NOTHING_CERTIFIED)):
        assert row_reasons(layout, at, walked(total), few, 2).tolist() == [reason]
    static = {
        "canonical": (MaskReason.NOT_CANONICAL, np.zeros(3, np.bool_)),
        "unreadable": (MaskReason.UNREADABLE, np.ones(3, np.bool_)),
        "without_counterpart": (MaskReason.NO_COUNTERPART, np.ones(3, np.bool_)),
        "chunk_tokens": (MaskReason.LONG_CHUNK, np.full(len(layout.chunk_tokens), 7)),
    }
    held = layout
    for name, (reason, value) in reversed(static.items()):
        held = replace(held, **{name: value})
        found = row_reasons(held, at, walked(1e-4), few, 2)
        assert found.tolist() == [reason]
        assert row_classes(held, at, found, True).tolist() == [PositionClass.MASKED]
    assert [reason for reason, _ in static.values()] == sorted(r for r, _ in static.values())


def test_only_classes_and_reasons_that_can_occur_are_counted() -> None:
    registry = CollectorRegistry()
    totals = RealignmentTotals({}, {}, 0.0, 0.0, 0.0, 0, None, 0, 0, 0.0)
    RealignmentMetrics(registry).add("teacher", "tokenizer", totals)
    found = [
        (one.labels["position_class"], one.labels["mask_reason"])
        for family in registry.collect()
        for one in family.samples
        if one.name == "lsm_teacher_realigned_mask_reasons_total"
    ]
    coarse = [("COARSE", "ONE_CERTIFIED"), ("COARSE", "DOUBTFUL")]
    assert sorted(found) == sorted([*(("MASKED", r.name) for r in MaskReason), *coarse])
    assert list(REASON_TEXTS) == list(MaskReason)
