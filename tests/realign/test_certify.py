"""The order in which masses are summed: the same however wide a position is."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_server.realign import certify
from teacher_server.realign.certify import order_within
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
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
