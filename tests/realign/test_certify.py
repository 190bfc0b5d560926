"""The order in which masses are summed: the same however wide a position is."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_server.realign import certify
from teacher_server.realign.certify import order_within
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.walk.masses import Entries, Settled, WalkResult
from tests.realign.toys import SPACE, toy


@pytest.mark.parametrize("padding", [0, certify.MOST_PADDING])
def test_order_is_stable_by_position_then_value(
    padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "MOST_PADDING", padding)
    draw = np.random.default_rng(1)
    position = draw.integers(0, 50, 3000)
    position[position == 7] = 8  # some have nothing
    value = draw.integers(0, 40, 3000)  # many are equal
    assert (order_within(position, value) == np.lexsort([value, position])).all()
    none = np.zeros(0, np.int64)
    assert len(order_within(none, none)) == 0


def test_tokens_that_others_begin_with() -> None:
    student, teacher = toy("abcd" + SPACE, [("b", "c"), ("a", "b"), ("bc", "d")]), toy("abcd", [])
    tables = PairTables(student, teacher, build_static(student, teacher))
    texts = student.token_bytes
    for token in student.order.tolist():
        longer = [one for one in texts if one.startswith(texts[token]) and one != texts[token]]
        assert tables.student_has_longer[token] == bool(longer), texts[token]


def entries(token: int, mass: float, low: int = 0, high: int = 0) -> Entries:
    """One, of position 0."""
    ints = (np.array([one], np.int64) for one in (0, token, -1, low, high, -1))
    position, tokens, row, lows, highs, first = ints
    return Entries(position, tokens, np.array([mass]), row, lows, highs, first)


@pytest.mark.parametrize(("path", "sure"), [(b"abd", False), (b"ab", False), (b"c", True)])
def test_a_path_that_no_token_begins_with_threatens_what_it_begins_with(
    path: bytes, sure: bool
) -> None:
    """``abd`` stands behind all tokens that begin with ``ab``, and could become ``ab``."""
    student, teacher = toy("abcd", [("a", "b"), ("ab", "c")]), toy("abcd", [])
    tables = PairTables(student, teacher, build_static(student, teacher))
    in_order = [student.token_bytes[token] for token in student.order.tolist()]
    low = sum(one < path for one in in_order)
    high = low + sum(one.startswith(path) for one in in_order)
    own = student.by_bytes[b"ab"]
    one, none = np.ones(1), np.zeros(1)
    walked = WalkResult(
        settled=Settled(np.array([0]), np.array([own]), np.array([0.55]), np.array([1])),
        open=entries(-1, 0.4, low, high),
        lost=none,
        total=one,
        tail=none,
        floor=none,
        listed=np.ones(1, np.int64),
        wide=np.zeros(1, np.bool_),
        behind_space=np.zeros(1, np.bool_),
        wanted=np.zeros(0, np.int64),
    )
    found = certify.certify(walked, np.array([own]), 4, student.size, tables)
    assert (own in found.ids[0].tolist()) == sure
