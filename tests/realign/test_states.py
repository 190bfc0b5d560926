"""What is known of states stays known as their table grows."""

from __future__ import annotations

import itertools

import numpy as np

from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.states import EMPTY_STATE, StudentStates
from tests.realign.toys import toy


def test_states_stay_as_they_are_when_their_table_grows() -> None:
    student, teacher = toy("abcd", [("a", "b"), ("ab", "c")]), toy("abcd", [])
    states = StudentStates(PairTables(student, teacher, build_static(student, teacher)))
    letters = np.array([teacher.token_bytes.index(letter) for letter in (b"a", b"b", b"c", b"d")])
    first = states.step(np.full(4, EMPTY_STATE), letters)

    def known() -> list[np.ndarray]:
        columns = states.answer(first), states.answer_covers(first), states.prefix_ranges(first).T
        return [np.vstack(columns), states.may_join(first, np.tile(letters, (4, 1)))]

    before = known()
    texts = np.array(list(itertools.product(letters, repeat=5)))
    reached = np.full(len(texts), EMPTY_STATE)
    for column in texts.T:
        reached = states.step(reached, column)
    assert len(np.unique(reached)) == 4**5
    for one, again in zip(before, known(), strict=True):
        np.testing.assert_array_equal(one, again)
