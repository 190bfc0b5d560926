"""The parts of rows: each whole or absent, taken and joined together."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_proto.rows import Rows, Support, Values, required

from tests.support.replies import make_reply, make_request

ROWS = make_reply(make_request()).results[1].rows


def same(left: Rows, right: Rows) -> bool:
    ours, theirs = left.arrays(), right.arrays()
    return list(ours) == list(theirs) and all(np.array_equal(ours[n], theirs[n]) for n in ours)


def test_arrays_make_the_same_rows_again() -> None:
    assert same(Rows.of(ROWS.arrays()), ROWS)
    assert Rows.of({}) == Rows()
    assert Rows().arrays() == {}


@pytest.mark.parametrize("name", ROWS.arrays())
def test_a_part_is_whole(name: str) -> None:
    arrays = ROWS.arrays()
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        Rows.of(arrays)


def test_some_of_the_rows() -> None:
    support, sampled = required(ROWS.support, "support"), required(ROWS.sampled, "sampled")
    for chosen in (slice(1, 4), np.array([4, 0]), np.array([True, False, False, True, True])):
        found = ROWS.at(chosen)
        np.testing.assert_array_equal(required(found.support, "").ids, support.ids[chosen])
        np.testing.assert_array_equal(required(found.sampled, "").values, sampled.values[chosen])
        assert found.log_tail is found.explicit is None


def test_rows_after_one_another() -> None:
    assert same(Rows.concatenate([ROWS.at(slice(2)), ROWS.at(slice(2, None))]), ROWS)
    narrower = Rows.of({**ROWS.arrays(), "top_ids": np.zeros((5, 3), np.int32)})
    for parts in ([], [ROWS, Rows(ROWS.support)], [ROWS, narrower]):
        with pytest.raises(ValueError, match=r"unequal parts|dimensions"):
            Rows.concatenate(parts)


def test_the_slots_that_hold_an_id() -> None:
    counts = np.array([2, 0, 1], np.int32)
    support = Support(np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32), counts)
    assert support.valid.tolist() == [[True, True], [False, False], [True, False]]


def test_a_part_that_was_asked_for_and_is_not_there() -> None:
    part = Values(np.zeros(1, np.float32), np.ones(1, np.bool_))
    assert required(part, "log_tail") is part
    with pytest.raises(LookupError, match="log_tail"):
        required(Rows().log_tail, "log_tail")
