"""Wide rows: those before a number list every number of a teacher that writes several digits at
once, for a student that writes them one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from teacher_proto.rows import may_be_wide, most_wide

from teacher_server.realign.certify import _below_best
from teacher_server.realign.pair.tables import TAIL_SKEW, PairTables
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.requests.planned import plan_of
from teacher_server.realign.requests.realigned import NOTHING_SETTLED, _few_open
from teacher_server.realign.walk.at_position import _rule_out_below
from teacher_server.realign.walk.masses import Entries, MassLedger, WalkResult
from teacher_server.realign.walk.rows import (
    NOT_WIDE,
    TeacherRows,
    teacher_rows,
    wide_entries_of,
)
from teacher_server.realign.walk.starts import Starts
from tests.realign.real_tokenizers import pair

BEST = 128
SAID = b"is"
NO_NUMBERS = np.full((1, 2), -np.inf, np.float32)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("qwen3", "llama3"), 1110),
        (("deepseek_v3", "llama3"), 0),
        (("llama3", "qwen3"), 0),
        (("qwen3", "qwen3"), 0),
    ],
)
def test_what_a_wide_row_lists(names: tuple[str, str], count: int) -> None:
    """Every number of the teacher, where the student writes some of them otherwise."""
    tables = pair(*names)
    numbers = {tables.teacher.token_bytes[token] for token in tables.wide_ids.tolist()}
    expected = {b"%0*d" % (width, n) for width in (1, 2, 3) for n in range(10**width)}
    assert numbers == (expected if count else set())
    assert len(tables.wide_ids) == count
    assert (np.diff(tables.wide_ids) > 0).all()


def numbers_row(tables: PairTables, mass: float, rng: np.random.Generator) -> np.ndarray:
    """float64 [V_T]: a row whose numbers have ``mass`` together, each its part of it; a thousand
    words have the rest."""
    row = np.zeros(tables.teacher.size)
    words = [t for t, data in enumerate(tables.teacher.token_bytes) if data[1:].isalpha()][:1000]
    row[words] = rng.dirichlet(np.full(len(words), 0.05)) * (1 - mass)
    row[tables.wide_ids] = rng.dirichlet(np.full(len(tables.wide_ids), 2.0)) * mass
    return row


def realigned(
    tables: PairTables,
    text: bytes,
    row: np.ndarray,
    *,
    wide: bool,
    coarse: bool = False,
    said: bytes = SAID,
) -> tuple[RealignedRows, TeacherRows, list[bytes]]:
    """The rows of ``text``, of which the teacher's after ``said`` is ``row``; of the others it is
    sure."""
    realigner = Realigner(tables)
    layout = realigner.lay_out(tables.student.encoder.encode(text).ids)
    own = layout.teacher_ids.astype(np.int64)
    at = int(np.searchsorted(layout.teacher_offsets, len(said)))
    ids = np.full((len(own), BEST), -1, np.int32)
    ids[:, 0], log_probs = own, np.zeros((len(own), BEST))
    ids[at] = np.argsort(-row, kind="stable")[:BEST]
    with np.errstate(divide="ignore"):
        every = np.log(row)
    log_probs[at] = every[ids[at]]
    sampled = np.zeros(len(own))
    sampled[at] = every[own[at]]
    entries = NOT_WIDE
    if wide:
        listed = np.append(ids[at], own[at])[None].astype(np.int32)
        values = every[None, tables.wide_ids].astype(np.float32)
        entries = wide_entries_of(tables.wide_ids, np.array([at]), values, listed)
    rows = teacher_rows(layout.teacher_ids, ids, log_probs, sampled, entries)
    count = len(layout.student_ids)
    found = realigner.realign(layout, np.arange(count), rows, top_k=64, coarse=coarse)
    return found, rows, [tables.student.token_bytes[t] for t in layout.student_ids.tolist()]


def told(found: RealignedRows, place: int, tables: PairTables) -> dict[bytes, float]:
    certified = found.certified
    some = range(int(certified.counts[place]))
    return {
        tables.student.token_bytes[certified.ids[place, slot]]: float(
            np.exp(certified.log_probs[place, slot])
        )
        for slot in some
    }


def numbers_begin(tables: PairTables, row: np.ndarray, prefix: bytes) -> dict[bytes, float]:
    """Of each digit, what the numbers of ``row`` have that begin with ``prefix`` and it."""
    written = zip(tables.teacher.token_bytes, row.tolist(), strict=True)
    numbers = [one for one in written if one[0].isdigit() and one[0].startswith(prefix)]
    return {
        b"%d" % digit: sum(
            value for data, value in numbers if data.startswith(prefix + b"%d" % digit)
        )
        for digit in range(10)
    }


def test_numbers_count_inside_an_unlikely_one_however_small_they_are() -> None:
    """A tenth of what begins as it does is spread over a hundred numbers."""
    tables, rng = pair("qwen3", "llama3"), np.random.default_rng(3)
    row = numbers_row(tables, 0.0, rng)
    row[tables.wide_ids] = 9.5e-7
    row[tables.teacher.by_bytes[b"810"]] = 0.001
    row /= row.sum()
    found, _, tokens = realigned(tables, SAID + b"8104,", row, wide=True, coarse=True)
    place = tokens.index(b"8") + 1
    answers = told(found, place, tables)
    every = numbers_begin(tables, row, b"8")
    whole = sum(every.values()) + row[tables.teacher.by_bytes[b"8"]]
    assert 0.05 < 1 - every[b"1"] / whole < 0.15
    assert answers[b"1"] == pytest.approx(every[b"1"] / whole, rel=1e-3)


@pytest.mark.parametrize("mass", [0.9, 0.05])
def test_digits_have_what_all_numbers_give_them(mass: float) -> None:
    """Before and inside a number, against sums over the whole row. Without the others the row of
    the first digit tells none, although the row lists 128."""
    tables, rng = pair("qwen3", "llama3"), np.random.default_rng(1)
    row = numbers_row(tables, mass, rng)
    found, _, tokens = realigned(tables, SAID + b"8104,", row, wide=True)
    without, _, _ = realigned(tables, SAID + b"8104,", row, wide=False)
    written = {data: row[token] for token, data in enumerate(tables.teacher.token_bytes)}

    def given(prefix: bytes) -> dict[bytes, float]:
        """Of each digit, what the numbers have that begin with ``prefix`` and it."""
        masses = {
            b"%d" % digit: sum(
                value
                for data, value in written.items()
                if data.isdigit() and data.startswith(prefix + b"%d" % digit)
            )
            for digit in range(10)
        }
        whole = 1.0 if not prefix else sum(masses.values())
        return {digit: value / whole for digit, value in masses.items()}

    first = tokens.index(b"8")
    answers = told(found, first, tables)
    for digit, expected in given(b"").items():
        assert answers[digit] == pytest.approx(expected, rel=1e-3)
        assert digit not in told(without, first, tables)
    # What the rows after "8" and "81" alone would tell is open: they were not asked for.
    for prefix in (b"8", b"81"):
        place = first + len(prefix)
        answers = told(found, place, tables)
        share = written[prefix] / sum(v for d, v in written.items() if d.startswith(prefix))
        assert found.certified.open_mass[place] == pytest.approx(share, rel=0.01)
        for digit, expected in given(prefix).items():
            if digit in answers:
                assert answers[digit] == pytest.approx(expected * (1 - share), rel=1e-3)
        assert without.certified.open_mass[place] > 5 * share


def test_a_wide_row_lists_each_id_once_and_leaves_none_out_that_is_possible() -> None:
    tables, rng = pair("qwen3", "llama3"), np.random.default_rng(2)
    row = numbers_row(tables, 0.4, rng)
    rare = tables.wide_ids[500:600]
    rare = rare[rare != tables.teacher.by_bytes[b"810"]]
    row[rare[::2]], row[rare[1::2]] = 0.0, 1e-12
    rare = rare[::2]
    row /= row.sum()
    _, rows, _ = realigned(tables, SAID + b"8104,", row, wide=True)
    (at,) = rows.wide_entries.rows.tolist()
    token = tables.wide_ids[rows.wide_entries.log_probs[0] > -np.inf]
    assert not np.isin(token, rare).any()
    assert not np.isin(token, rows.ids[at]).any()
    in_best = np.isin(tables.wide_ids, rows.ids[at]).sum()
    assert len(token) == len(np.unique(token)) == len(tables.wide_ids) - in_best - len(rare)
    listed = np.append(rows.ids[at, np.isfinite(rows.log_probs[at])], token)
    assert rows.tail[at] == pytest.approx(1 - row[listed].sum(), abs=1e-6)
    one = int(token[7])
    assert rows.log_prob(at, one) == pytest.approx(np.log(row[one]), abs=1e-5)
    assert rows.log_prob(at, int(rare[0])) == -np.inf
    assert rows.log_prob(at, int(tables.teacher.by_bytes[b"{"])) is None
    assert rows.log_prob(at + 1, one) is None


def test_of_several_rows_each_has_its_own_entries() -> None:
    ids = np.arange(10, 20, dtype=np.int32)
    values = np.log(np.array([[0.02] * 10, [0.03] * 10], np.float32))
    listed = np.array([[10, 5], [11, 12]], np.int32)
    wide = wide_entries_of(ids, np.array([2, 4]), values, listed)
    teacher_ids = np.array([1, 2, 3, 4, 5, 6], np.int32)
    rows = teacher_rows(
        teacher_ids, teacher_ids[:, None], np.full((6, 1), np.log(0.5)), np.log([0.5] * 6), wide
    )
    line, place = rows.wide_lines(np.array([4, 0, 2, 4]))
    assert line.tolist() == [0, 2, 3]
    assert place.tolist() == [1, 0, 1]
    expected = np.full((2, 10), [[0.02], [0.03]])
    expected[0, 0] = expected[1, [1, 2]] = 0.0
    np.testing.assert_allclose(np.exp(wide.log_probs), expected, rtol=1e-6)
    assert rows.most_entries == 2 + 9
    np.testing.assert_allclose(rows.tail[[2, 3, 4]], [0.5 - 0.18, 0.5, 0.5 - 0.24], rtol=1e-6)


def test_small_numbers_that_stay_open_are_kept_together() -> None:
    """By position their sum stays, and no path of the others is lost, nor one that has much of
    what is open at its position, however little that is."""
    position = np.array([0, 0, 0, 1, 1, 1])
    token = np.array([3, 3, 4, 3, 5, -1])
    mass = np.array([0.001, 0.002, 0.003, 0.2, 0.001, 0.004])
    other = np.arange(6)
    left = Entries(position, token, mass, other, other, other, other)
    nothing = np.zeros(0, np.int64)
    walked = WalkResult(
        settled=NOTHING_SETTLED,
        open=left,
        lost=np.zeros(2),
        total=np.array([1.0, 1.0]),
        tail=np.zeros(2),
        floor=np.zeros(2),
        listed=np.ones(2, np.int64),
        wide=np.ones(2, np.bool_),
        behind_space=np.zeros(2, np.bool_),
        wanted=nothing,
    )
    is_wide = np.array([False, False, False, True, False, True])
    few = _few_open(walked, is_wide, 100)
    assert few.position.tolist() == [0, 0, 0, 1, 1, 1]
    assert few.token.tolist() == [3, 3, 4, 3, -1, -1]
    assert few.row.tolist() == [0, 1, 2, 3, 5, -1]
    np.testing.assert_allclose(few.mass, [0.001, 0.002, 0.003, 0.2, 0.004, 0.001])


def test_no_row_that_follows_decides_which_are_wide() -> None:
    """Of digits of which most rows qualify, a prefix has the same wide rows as the whole, and at no
    place more than every second row is wide."""
    draw = np.random.default_rng(5)
    for part in (1.0, 0.8, 0.4):
        qualify = np.flatnonzero(draw.random(200) < part)
        wide = qualify[may_be_wide(qualify)]
        for count in range(201):
            before = qualify[qualify < count]
            np.testing.assert_array_equal(before[may_be_wide(before)], wide[wide < count])
            assert (wide < count).sum() <= most_wide(count)
            rest = qualify[qualify >= count]
            kept = may_be_wide(rest, int((wide < count).sum()))
            np.testing.assert_array_equal(rest[kept], wide[wide >= count])
    assert len(qualify[may_be_wide(qualify)]) > 70, "what was not used before is not lost"


def test_a_row_does_not_know_that_a_number_follows_it() -> None:
    """Where numbers have little below the best, the token after the row makes it wide, for
    positions inside that token alone."""
    tables, rng = pair("qwen3", "llama3"), np.random.default_rng(4)
    row = numbers_row(tables, 0.006, rng)
    own = tables.teacher.by_bytes[b"810"]
    row[own] = 0.003
    row /= row.sum()
    word = tables.teacher.token_bytes[int(row.argmax())]
    found, rows, tokens = realigned(tables, SAID + b"8104,", row, wide=True, coarse=True)
    without = realigned(tables, SAID + b"8104,", row, wide=False, coarse=True)[0]
    other = realigned(tables, SAID + word, row, wide=False, coarse=True)[0]
    (at,) = rows.wide_entries.rows.tolist()
    assert own in rows.ids[at, :-1]
    assert not rows.wide[at]
    assert rows.wide_inside[at]
    first = tokens.index(b"8")
    assert len(told(other, first, tables)) > 20
    assert told(found, first, tables) == told(other, first, tables)
    assert found.certified.open_mass[first] == other.certified.open_mass[first]
    answers, every = told(found, first + 1, tables), numbers_begin(tables, row, b"8")
    whole = sum(every.values()) + row[tables.teacher.by_bytes[b"8"]]
    assert answers[b"1"] == pytest.approx(every[b"1"] / whole, rel=0.01)
    assert b"1" not in told(without, first + 1, tables)


@pytest.mark.parametrize("mass", [0.9, 0.05])
def test_numbers_after_spaces(mass: float) -> None:
    """There digits may join what stands before them, each however little it has; and the row after
    the spaces settles how they are cut, which below its best it would leave open."""
    tables, rng = pair("qwen3", "llama3"), np.random.default_rng(6)
    row, said = numbers_row(tables, mass, rng), SAID + b"   "
    found, _, tokens = realigned(tables, said + b"8104,", row, wide=True, coarse=True, said=said)
    without = realigned(tables, said + b"8104,", row, wide=False, coarse=True, said=said)[0]
    place = tokens.index(b"8")
    assert tokens[1:place] == [b"  ", b" "]
    answers, total = told(found, place, tables), found.walked.total[place]
    for digit, expected in numbers_begin(tables, row, b"").items():
        assert answers[digit] * total == pytest.approx(expected, rel=1e-3)
    spaces = found.walked.settled
    for at in (1, 2):
        mine = tables.student.by_bytes[tokens[at]]
        here = (spaces.position == at) & (spaces.token == mine)
        assert spaces.mass[here].sum() >= 0.99 * mass
        assert found.certified.open_mass[at] < without.certified.open_mass[at]


def test_what_is_below_a_wide_row_is_not_like_its_numbers() -> None:
    """Of what is below the best as much is ruled out as of the less likely half of the words: of
    2, 3, 4 and 5 the last two, of which 5 is ruled out. 0 and 1 are numbers."""
    mass = np.array([0.2, 0.15, 0.1, 0.08, 0.04, 0.02])
    ids, own = np.arange(6, dtype=np.int32)[None], np.array([2], np.int32)
    wide = wide_entries_of(np.arange(2, dtype=np.int32), np.array([0]), NO_NUMBERS, ids)
    rows = teacher_rows(own, ids, np.log(mass)[None], np.log([0.1]), wide)
    ledger, one = MassLedger(1), np.zeros(1, np.int64)
    ledger.agree(one, np.ones(1))
    tables = SimpleNamespace(is_wide=np.arange(6) < 2)
    walk: Any = SimpleNamespace(rows=rows, pair=SimpleNamespace(tables=tables), ledger=ledger)
    at = Starts(one, one, np.zeros(1), one, one, one)
    entries = np.append(mass, 0.0)
    _rule_out_below(walk, at, entries, np.where(np.arange(7) == 5, entries, 0.0))
    assert ledger.total[0] == pytest.approx(1 - 0.41 * 0.02 / 0.06)


def test_no_number_is_below_the_best_of_a_wide_row() -> None:
    """Of 50 teacher tokens that give the student token, 48 are numbers, of which 30 are listed."""
    tables: Any = SimpleNamespace(
        teacher_token_count=np.array([50]),
        not_wide_count=np.array([2]),
        teacher=SimpleNamespace(size=10_000),
    )
    nothing = np.zeros(0, np.int64)
    walked = WalkResult(
        settled=NOTHING_SETTLED,
        open=Entries(nothing, nothing, np.zeros(0), nothing, nothing, nothing, nothing),
        lost=np.zeros(2),
        total=np.ones(2),
        tail=np.full(2, 0.1),
        floor=np.full(2, 0.004),
        listed=np.full(2, 100),
        wide=np.array([True, False]),
        behind_space=np.zeros(2, np.bool_),
        wanted=nothing,
    )
    both = np.array([0, 1])
    below = _below_best(walked, both, both * 0, np.array([30, 30]), tables)
    assert TAIL_SKEW * 0.1 / 10_000 * 20 < 0.004 * 2
    np.testing.assert_allclose(below, [0.004 * 2, 0.1 * 29 / 100])


@pytest.mark.parametrize("limit", [7, 8])
def test_no_row_is_wide_where_the_model_lacks_a_number(limit: int) -> None:
    wide = np.array([3, 7], np.int32)
    assert plan_of([], limit, wide).wide_ids == ((3, 7) if limit == 8 else ())
