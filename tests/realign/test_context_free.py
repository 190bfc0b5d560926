"""What the row behind a token alone decides: which mass is open, and which is ruled out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import teacher_rows
from tests.realign.real_tokenizers import pair
from tests.realign.toys import SPACE, toy

LETTERS = "abcd" + SPACE
ROW = {"b": 0.6, "c": 0.3, "d": 0.1}
# A "b" behind "a" would be "ab" by itself, and "bc" with a "c" behind it.
BC_FIRST = toy(LETTERS, [("b", "c"), ("a", "b")])


def row_of(
    student: Vocabulary,
    teacher: Vocabulary,
    text: str,
    position: int,
    row: Mapping[str, float],
    context_free: Mapping[str, Mapping[str, float]],
) -> RealignedRows:
    """One row of ``text``, where every row of the teacher is ``row``; ``context_free``: its rows
    after single tokens."""
    tables = PairTables(student, teacher, build_static(student, teacher))
    return row_in(tables, text, position, row, context_free)


def row_in(
    tables: PairTables,
    text: str,
    position: int,
    row: Mapping[str, float],
    context_free: Mapping[str, Mapping[str, float]],
) -> RealignedRows:
    student, teacher, realigner = tables.student, tables.teacher, Realigner(tables)
    layout = realigner.lay_out(student.encoder.encode(text.encode()).ids)

    def best(mass: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        ids = [teacher.token_bytes.index(token.encode()) for token in mass]
        return np.array([ids], np.int32), np.log([list(mass.values())])

    ids, values = (np.tile(part, (len(layout.teacher_ids), 1)) for part in best(row))
    listed = ids == layout.teacher_ids[:, None]
    own = np.where(listed.any(1), np.where(listed, values, 0.0).sum(1), np.log(1e-9))
    known = ContextFreeRows(realigner.tables)
    for token, after in context_free.items():
        realigner.learn(known, np.array([teacher.token_bytes.index(token.encode())]), *best(after))
    rows = teacher_rows(layout.teacher_ids, ids, values, own)
    return realigner.realign(layout, np.array([position]), rows, top_k=6, context_free=known)


def settled(got: RealignedRows, student: Vocabulary) -> dict[str, float]:
    masses: dict[str, float] = {}
    entries = got.walked.settled
    for token, mass in zip(entries.token.tolist(), entries.mass.tolist(), strict=True):
        name = student.token_bytes[token].decode()
        masses[name] = masses.get(name, 0.0) + mass
    return masses


def certified(got: RealignedRows, student: Vocabulary) -> set[str]:
    ids = got.certified.ids[0, : int(got.certified.counts[0])].tolist()
    return {student.token_bytes[token].decode() for token in ids}


def test_what_follows_may_rescue_a_contradiction() -> None:
    """The rollout goes on with "b", "c": the row behind "b" is there and decides."""
    got = row_of(BC_FIRST, toy(LETTERS, []), "abcd", 1, ROW, {"b": {"d": 1.0}})
    assert got.walked.total[0] == pytest.approx(1 - 0.6 * 0.7)  # "ab": the student's would differ
    assert settled(got, BC_FIRST)["bc"] == pytest.approx(0.6 * 0.3)


@pytest.mark.parametrize(("goes_on", "open_mass", "total"), [("c", 0.6, 1.0), ("d", 0.0, 0.4)])
def test_a_contradiction_that_may_be_rescued_is_open(
    goes_on: str, open_mass: float, total: float
) -> None:
    """The rollout goes on otherwise: only the context-free row of "b" tells."""
    got = row_of(BC_FIRST, toy(LETTERS, []), "ad", 1, ROW, {"b": {goes_on: 1.0}})
    assert got.walked.total[0] == pytest.approx(total)
    assert got.walked.open.mass.sum() == pytest.approx(open_mass, abs=1e-9)
    assert settled(got, BC_FIRST) == pytest.approx({"c": 0.3, "d": 0.1})


def test_of_a_contradiction_only_what_may_rescue_it_is_open() -> None:
    got = row_of(BC_FIRST, toy(LETTERS, []), "ad", 1, ROW, {"b": {"c": 0.5, "d": 0.5}})
    assert got.walked.total[0] == pytest.approx(1 - 0.6 * 0.5)
    assert got.walked.open.mass.sum() == pytest.approx(0.6 * 0.5, abs=1e-9)


def test_what_follows_a_token_may_contradict_the_text_before_it() -> None:
    """ "abb" is "a", "bb", and "abbc" would be "ab", "bc": that part of "bb" cannot be."""
    student = toy(LETTERS, [("b", "c"), ("b", "b"), ("a", "b")])
    row = {"bb": 0.6, "d": 0.4}
    context_free = {"bb": {"c": 0.5, "d": 0.5}, "d": {"a": 1.0}}
    got = row_of(student, toy(LETTERS, [("b", "b")]), "ad", 1, row, context_free)
    assert got.walked.total[0] == pytest.approx(1 - 0.6 * 0.5)
    assert got.walked.open.mass.sum() == pytest.approx(0.6 * 0.5, abs=1e-9)


@pytest.mark.parametrize(("goes_on", "open_mass"), [("bc", 0.5 / 0.2 * 0.6), ("c", 0.0)])
def test_the_text_before_may_have_been_cut_for_what_reaches_across(
    goes_on: str, open_mass: float
) -> None:
    """The teacher writes "ab", but "a", "bc" where a "c" follows: then its row after "a" is
    missing, and what goes on with "bc" there is open."""
    teacher = toy(LETTERS, [("b", "c"), ("a", "b")])
    row = {"a": 0.5, "ab": 0.2, "d": 0.3}
    context_free = {"a": {goes_on: 0.6, "d": 0.4}, "ab": {"d": 1.0}, "d": {"a": 1.0}}
    got = row_of(toy(LETTERS, []), teacher, "abd", 2, row, context_free)
    assert got.walked.open.mass.sum() == pytest.approx(open_mass)
    assert got.walked.total[0] == pytest.approx(1 + open_mass)


@pytest.mark.parametrize(("goes_on", "open_"), [("c", True), ("d", False)])
def test_the_rest_of_a_token_goes_on_as_the_whole_token_does(goes_on: str, open_: bool) -> None:
    """The teacher has "db" as one token: behind "d", its rest is "b" or the beginning of "bc"."""
    student, teacher = toy(LETTERS, [("b", "c")]), toy(LETTERS, [("d", "b")])
    got = row_of(student, teacher, "dd", 1, {"db": 0.5, "d": 0.5}, {"db": {goes_on: 1.0}})
    assert (got.walked.open.token == teacher.token_bytes.index(b"db")).any() == open_
    assert ("b" in settled(got, student)) != open_


def test_rows_are_followed_until_nothing_moves_the_token() -> None:
    """ "bc" is one token, and "bcd" is "b", "cd": the row behind "c" is there and decides."""
    student = toy(LETTERS, [("c", "d"), ("b", "c")])
    got = row_of(student, toy(LETTERS, []), "bcd", 0, ROW, {})
    assert settled(got, student)["bc"] == pytest.approx(0.6 * 0.3 * 0.9)


def test_an_open_token_threatens_what_the_teacher_begins_otherwise() -> None:
    """ "bc" is one token of the teacher's, and in "bcd" its "b" is one: the student's "bc"."""
    student, teacher = toy(LETTERS, [("b", "c")]), toy(LETTERS, [("c", "d"), ("b", "c")])
    row = {"b": 0.3, "bc": 0.6, "a": 0.1}
    open_ = row_of(student, teacher, "d", 0, row, {"b": {"cd": 1.0}, "bc": {"a": 1.0}})
    assert "bc" not in certified(open_, student)
    closed = row_of(student, teacher, "d", 0, row, {"b": {"a": 1.0}, "bc": {"a": 1.0}})
    assert "bc" in certified(closed, student)


def test_an_open_token_threatens_what_begins_with_it_in_the_teacher_s_encoding() -> None:
    """Some of "a" is settled by the teacher's "ac"; the rest of it may be "ab"."""
    student, teacher = toy(LETTERS, [("a", "b")]), toy(LETTERS, [("a", "c")])
    ends = {token: {"d": 1.0} for token in ("ac", "b", "d")}
    row = {"d": 0.4, "b": 0.3, "ac": 0.2, "a": 0.1}
    got = row_of(student, teacher, "d", 0, row, {"a": {"b": 0.5, "d": 0.5}, **ends})
    assert settled(got, student) == pytest.approx({"d": 0.4, "b": 0.3, "a": 0.2})
    assert certified(got, student) == {"d", "b"}


def test_a_path_that_may_still_become_a_longer_token_stays_open() -> None:
    """The row behind "a" is there, the one behind "ab" is not: it may be "abc"."""
    student, teacher = toy(LETTERS, [("a", "b"), ("ab", "c")]), toy(LETTERS, [])
    got = row_of(student, teacher, "ad", 0, {"a": 0.5, "b": 0.3, "d": 0.2}, {})
    assert got.walked.open.mass.sum() == pytest.approx(0.5 * 0.3)
    assert "ab" not in settled(got, student)


def test_an_open_token_threatens_what_it_is_by_itself() -> None:
    """The teacher's "bc" is the student's "b", "c", or the beginning of "bcd"."""
    student = toy(LETTERS, [("c", "d"), ("b", "cd")])
    teacher = toy(LETTERS, [("b", "c")])
    row = {"b": 0.3, "bc": 0.1, "a": 0.6}
    open_ = row_of(student, teacher, "d", 0, row, {"bc": {"d": 1.0}, "b": {"a": 1.0}})
    assert "b" not in certified(open_, student)
    closed = row_of(student, teacher, "d", 0, row, {"bc": {"a": 1.0}, "b": {"a": 1.0}})
    assert "b" in certified(closed, student)


@pytest.mark.parametrize(("goes_on", "open_mass"), [("d", 0.6), ("a", 0.0)])
def test_a_token_that_nothing_longer_begins_with_may_still_be_cut(
    goes_on: str, open_mass: float
) -> None:
    """ "bc" is one token on both sides, and "bcd" is the student's "b", "cd"."""
    student, teacher = toy(LETTERS, [("c", "d"), ("b", "c")]), toy(LETTERS, [("b", "c")])
    row = {"bc": 0.6, "a": 0.4}
    got = row_of(student, teacher, "a", 0, row, {"bc": {goes_on: 1.0}, "a": {"a": 1.0}})
    assert got.walked.open.mass.sum() == pytest.approx(open_mass)
    assert ("bc" in settled(got, student)) == (not open_mass)


def test_a_space_by_itself_is_open_whatever_its_context_free_row_shows() -> None:
    """What it is for depends on the place: stars, digits, another space."""
    student, teacher = toy(LETTERS, [(SPACE, "b")]), toy(LETTERS, [])
    context_free = {" ": {"a": 1.0}, "a": {"a": 1.0}, "c": {"a": 1.0}}
    got = row_of(student, teacher, "c", 0, {" ": 0.3, "c": 0.7}, context_free)
    assert got.walked.open.mass.sum() == pytest.approx(0.3)
    assert settled(got, student) == pytest.approx({"c": 0.7})
    # Unless no token of the student's begins with one.
    got = row_of(toy(LETTERS, []), teacher, "c", 0, {" ": 0.3, "c": 0.7}, context_free)
    assert settled(got, student) == pytest.approx({" ": 0.3, "c": 0.7})


@pytest.mark.parametrize(("text", "open_mass"), [("a c", 0.3), ("a a a c", 0.3), ("a a a a c", 0)])
def test_two_spaces_that_the_rollout_has_shown_close_one(text: str, open_mass: float) -> None:
    """Behind none of them do the rows go on with a "b"; the position's sync point is two
    words before it, so that the last two spaces do not count."""
    student, teacher = toy(LETTERS, [(SPACE, "b")]), toy(LETTERS, [])
    context_free = {" ": {"a": 1.0}, "a": {"a": 1.0}, "c": {"a": 1.0}}
    got = row_of(student, teacher, text, len(text) - 1, {" ": 0.3, "c": 0.7}, context_free)
    assert got.walked.open.mass.sum() == pytest.approx(open_mass)


def test_a_cut_that_the_rollout_shows_is_followed() -> None:
    student, teacher = toy(LETTERS, [("c", "d"), ("b", "c")]), toy(LETTERS, [("b", "c")])
    row = {"bc": 0.6, "a": 0.3, "d": 0.1}
    context_free = {"bc": {"d": 1.0}, "a": {"a": 1.0}, "d": {"a": 1.0}}
    got = settled(row_of(student, teacher, "bcd", 0, row, context_free), student)
    assert got == pytest.approx({"b": 0.6 * 0.1, "bc": 0.6 * 0.9, "a": 0.3, "d": 0.1})


def test_small_parts_of_a_small_mass_count() -> None:
    """Inside the teacher's "ab", 0.2% of the row agrees; a fortieth of that is "ac"."""
    student, teacher = toy(LETTERS, []), toy(LETTERS, [("a", "b"), ("a", "c")])
    got = row_of(student, teacher, "ab", 1, {"d": 0.998, "ab": 1.95e-3, "ac": 5e-5}, {})
    assert settled(got, student) == pytest.approx({"b": 1.95e-3, "c": 5e-5})
    # And behind a path that settles nothing by itself.
    student, teacher = toy(LETTERS, [("b", "c")]), toy(LETTERS, [])
    got = row_of(student, teacher, "bc", 0, {"a": 0.985, "b": 0.01, "c": 0.005}, {})
    assert settled(got, student)["bc"] == pytest.approx(0.01 * 0.005)


@pytest.mark.parametrize(("share", "kept"), [(0.01, 0.01), (0.0, 2e-3), (None, 1.0)])
def test_of_another_cut_of_spaces_only_what_goes_on_so_counts(
    share: float | None, kept: float
) -> None:
    """Before a digit, eleven spaces would be the teacher's ten and one, and the student's
    eleven as before a word: the row behind the ten alone tells how likely the one is, or
    that it is not among the likely ones."""
    tables = pair("deepseek_v3", "gpt4o")
    ten, eleven = " " * 10, " " * 11
    row = {eleven: 0.004, ten: 0.002, " try": 0.994}
    context_free = (
        {} if share is None else {ten: {" try": 1 - share} | ({" ": share} if share else {})}
    )
    got = row_in(tables, f"()):\n{eleven} try", 3, row, context_free)
    assert got.walked.total[0] == pytest.approx(1 + 0.5 * kept, abs=1e-6)
    asked = tables.teacher.token_bytes.index(ten.encode()) in got.walked.wanted
    assert asked == (share is None)
