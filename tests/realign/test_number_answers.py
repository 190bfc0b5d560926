"""The numbers of wide rows, summed by what they give: as if each were a path of its own."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from teacher_server.realign.certify import sum_by_token
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.segmentation import number_answers
from teacher_server.realign.segmentation.extension_shares import LEAST_ASKED
from teacher_server.realign.segmentation.number_answers import ALONE, LOST, RULED_OUT, NumberAnswers
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.masses import WalkResult
from teacher_server.realign.walk.rows import (
    TeacherRows,
    teacher_rows,
    wide_entries_of,
    with_extra_rows,
)
from tests.realign.real_tokenizers import pair
from tests.realign.test_wide_rows import numbers_row

# Ids that a row lists besides its numbers: so few that likely numbers are among these.
BEST = 8
SURE = -1e-3
# What a row gives the rollout's own token besides.
OWN = 0.05


def tables_of() -> PairTables:
    return pair("qwen3", "llama3")


@cache
def realigner() -> Realigner:
    return Realigner(tables_of())


def number(digits: bytes) -> int:
    return tables_of().teacher.by_bytes[digits]


def wide_rows(layout: Layout, tables: PairTables, rows: dict[int, np.ndarray]) -> TeacherRows:
    """The rows of a rollout's teacher tokens: ``rows`` [V_T] each, all wide, and nearly sure ones
    of the rollout's own tokens."""
    own = layout.teacher_ids.astype(np.int64)
    ids = np.full((len(own), BEST), -1, np.int32)
    ids[:, 0], log_probs = own, np.full((len(own), BEST), SURE)
    sampled = np.full(len(own), SURE)
    wide = sorted(rows)
    mixed = np.array([rows[at] for at in wide]) * (1 - OWN)
    mixed[np.arange(len(wide)), own[wide]] += OWN
    with np.errstate(divide="ignore"):
        every = np.log(mixed)
    for at, values in zip(wide, every, strict=True):
        ids[at] = np.argsort(-values, kind="stable")[:BEST]
        log_probs[at], sampled[at] = values[ids[at]], values[own[at]]
    listed = np.column_stack([ids[wide], own[wide]]).astype(np.int32)
    numbers = every[:, tables.wide_ids].astype(np.float32)
    entries = wide_entries_of(tables.wide_ids, np.array(wide), numbers, listed)
    return teacher_rows(layout.teacher_ids, ids, log_probs, sampled, entries)


def walked(
    text: bytes,
    rows: dict[int, np.ndarray],
    *,
    only: int | None = None,
    known: ContextFreeRows | None = None,
    after: tuple[bytes, bytes] | None = None,
) -> WalkResult:
    """The walk of all positions of ``text``, or ``only`` of one; ``after``: (number, text), there
    is a row after the number behind each of ``rows``, which is sure of the text's first token."""
    tables = tables_of()
    layout = realigner().lay_out(tables.student.encoder.encode(text).ids)
    read = wide_rows(layout, tables, rows)
    if after is not None:
        ids = np.full((len(rows), BEST), -1, np.int32)
        ids[:, 0] = tables.teacher.encoder.encode(after[1]).ids[0]
        paths = [(row, number(after[0])) for row in rows]
        read = with_extra_rows(read, paths, ids, np.full(ids.shape, SURE))
    positions = np.arange(len(layout.student_ids)) if only is None else np.array([only])
    return realigner().realign(layout, positions, read, top_k=64, context_free=known).walked


def summed(found: WalkResult) -> dict[tuple[int, int], tuple[float, int]]:
    """(mass, parts) by position and student token."""
    parts = sum_by_token(found.settled, tables_of().student.size)
    position, token, mass, count = (part.tolist() for part in parts)
    keys = zip(position, token, strict=True)
    return dict(zip(keys, zip(mass, count, strict=True), strict=True))


def open_of(found: WalkResult, token: int) -> float:
    """Open mass of paths that end with a teacher token."""
    return float(found.open.mass[found.open.token == token].sum())


def assert_same(one: WalkResult, other: WalkResult) -> None:
    assert summed(one).keys() == summed(other).keys()
    for key, (mass, count) in summed(one).items():
        assert summed(other)[key][0] == pytest.approx(mass, abs=1e-13), key
        assert summed(other)[key][1] == count, key
    assert np.isfinite(one.total).all()
    for name in ("lost", "total"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-13)
    order = [np.lexsort([w.open.token, w.open.row, w.open.position]) for w in (one, other)]
    for name in ("position", "token", "row", "low", "high", "first", "mass"):
        mine, theirs = (
            getattr(w.open, name)[by] for w, by in zip((one, other), order, strict=True)
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-13)


# The text, and its teacher tokens before which numbers are about as likely.
PLACES = [
    (b"is8104,", [1, 2]),  # numbers cannot join a word, and go on a number
    (b"is   8104,", [1, 2, 3, 4]),  # after spaces they join, and contradict some cuts of them
    (b"x\t\t\t8104 99", [1, 2, 3]),
    (b"a = 810 + 12", [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(("text", "at"), PLACES)
def test_the_sums_are_what_each_number_gives_by_itself(
    text: bytes, at: list[int], extra: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little a number has, walked as a path of its own it gives the same; with a row after
    one of them too."""
    tables, draw = tables_of(), np.random.default_rng(8)
    rows = {row: numbers_row(tables, 0.8, draw) for row in at}
    after = (b"811", b"5") if extra else None
    one = walked(text, rows, after=after)
    monkeypatch.setattr(number_answers, "LEAST_ASKED", 0.0)
    other = walked(text, rows, after=after)
    assert len(other.settled.mass) > 2 * len(one.settled.mass)
    assert_same(one, other)


def test_numbers_that_cannot_join_a_path_end_the_students_token() -> None:
    """Each of them, whatever it has; no context-free row of theirs would tell more."""
    tables = tables_of()
    row = np.zeros(tables.teacher.size)
    row[tables.wide_ids] = 0.4 / len(tables.wide_ids)
    row[number(b"811")] = 0.02
    words = [t for t, data in enumerate(tables.teacher.token_bytes) if data[:1] == b" "]
    row[[t for t in words if tables.teacher.token_bytes[t][1:].isalpha()][:BEST]] = 0.4 / BEST
    row[row > 0] /= row.sum()
    likely = number(b"811")
    assert row.max() > row[likely] > 2 * LEAST_ASKED, "not among the best"
    known = ContextFreeRows(tables)
    found = walked(b"is8104,", {1: row}, only=0, known=known)
    mine = tables.student.by_bytes[b"is"]
    assert tables.has_extension[tables.teacher.by_bytes[b"is"]]
    assert summed(found)[0, mine][0] == pytest.approx(np.exp(SURE), abs=1e-6)
    assert found.open.mass.sum() < 1e-6
    assert likely not in found.wanted


@pytest.mark.parametrize("usable", [False, True])
def test_after_a_path_likely_numbers_ask_context_free_rows(usable: bool) -> None:
    """Of two numbers after spaces the one with 0.005 or more is looked at by itself: its
    context-free row is asked for, and where that cannot be used its mass is open."""
    tables = tables_of()
    row = np.zeros(tables.teacher.size)
    row[tables.wide_ids] = 0.3 / len(tables.wide_ids)
    words = [t for t, data in enumerate(tables.teacher.token_bytes) if data.isalpha()]
    row[words[:BEST]] = (1 - 0.3 - 0.0105) / BEST
    likely, unlikely = number(b"811"), number(b"812")
    row[likely], row[unlikely] = 0.006, 0.0045
    row /= row.sum()
    has = row * (1 - OWN) * np.exp(SURE)
    assert has[likely] > 1.1 * LEAST_ASKED > LEAST_ASKED > has[unlikely]
    known = ContextFreeRows(tables)
    if not usable:
        known.leave_open(np.array([likely, unlikely]))
    found = walked(b"is   8104,", {2: row}, only=1, known=known)
    assert (likely in found.wanted) == usable
    assert unlikely not in found.wanted
    assert open_of(found, likely) == pytest.approx(0.0 if usable else has[likely], rel=1e-4)
    assert open_of(found, unlikely) == 0.0


def test_places_keep_more_kinds_of_answers_than_the_first_had() -> None:
    tables = tables_of()
    numbers, draw = NumberAnswers(tables), np.random.default_rng(9)
    count = len(numbers.ids)
    asked = [draw.choice([5, ALONE, RULED_OUT], count)]
    asked += [draw.integers(0, kinds, count) for kinds in (3, 40, 7)] + [np.full(count, LOST)]
    asked *= 30  # more places than there is room for at first
    calls: list[int] = []

    def ask(index: int) -> np.ndarray:
        calls.append(index)
        return asked[index]

    keys = list(range(len(asked)))
    places = numbers.places([*keys, *keys[::-1]], ask)
    assert calls == keys
    assert places.tolist() == [*keys, *keys[::-1]]
    mass = draw.random((len(keys), count)) * 1e-4
    sums, alone = numbers.sums(places[: len(keys)], mass.copy(), np.zeros(0, np.int64))
    for line in keys:
        for answer in np.unique(asked[line]).tolist():
            here = asked[line] == answer
            if answer == ALONE:
                assert alone.token[alone.line == line].tolist() == numbers.ids[here].tolist()
                continue
            (one,) = np.flatnonzero((sums.line == line) & (sums.answer == answer))
            assert sums.mass[one] == pytest.approx(mass[line, here].sum())
            assert sums.parts[one] == here.sum()


def test_a_number_with_a_row_after_it_is_a_path_of_its_own() -> None:
    """However little it has; of words after which there are rows no number is taken for one."""
    tables = tables_of()
    layout = realigner().lay_out(tables.student.encoder.encode(b"is   8104,").ids)
    row = numbers_row(tables, 0.8, np.random.default_rng(10))
    word = tables.teacher.by_bytes[b"is"]
    paths = [(2, number(b"811")), (2, word), (3, number(b"812")), (4, number(b"813"))]
    none = np.full((len(paths), BEST), -1, np.int32)
    rows = with_extra_rows(
        wide_rows(layout, tables, {2: row, 3: row}), paths, none, np.zeros(none.shape)
    )
    line, token = rows.children_of(np.array([3, 1, 2, 3]))
    assert sorted(zip(line.tolist(), token.tolist(), strict=True)) == sorted(
        [(0, number(b"812")), (2, number(b"811")), (2, word), (3, number(b"812"))]
    )
    numbers = NumberAnswers(tables)
    places = numbers.places(["one"], lambda _: np.full(len(numbers.ids), 5))
    mass = np.full((4, len(numbers.ids)), 1e-4)
    sums, alone = numbers.sums(places.repeat(4), mass, numbers.cells_of(line, token))
    assert alone.line.tolist() == [0, 2, 3]
    assert alone.token.tolist() == [number(b"812"), number(b"811"), number(b"812")]
    assert sums.parts.tolist() == [len(numbers.ids) - one for one in (1, 0, 1, 1)]
