"""What a rollout has shown of a token counts from its sync point on, and not before."""

from __future__ import annotations

import numpy as np

from teacher_server.realign.pair.layout import lay_out
from teacher_server.realign.pair.tables import PairTables, build_static
from teacher_server.realign.segmentation.pair_segmentation import LearntPair
from teacher_server.realign.walk.rows import teacher_rows
from teacher_server.realign.walk.seen import OFTEN, SeenLeaks
from tests.realign.toys import toy


def test_only_rows_up_to_the_sync_point_count() -> None:
    student, teacher = toy("abc", [("a", "b")]), toy("abc", [])
    tables = PairTables(student, teacher, build_static(student, teacher))
    a, b, c = (teacher.token_bytes.index(letter) for letter in (b"a", b"b", b"c"))
    text = b"acacac"
    layout = lay_out(student.encoder.encode(text).ids, tables)
    np.testing.assert_array_equal(layout.teacher_ids, [a, c] * 3)

    def leaky(goes_on: float, estimated: bool, fixed: bool, sync: int) -> bool:
        """Of "a", where "b" has the mass ``goes_on`` behind it."""
        rows = teacher_rows(
            layout.teacher_ids,
            np.tile(np.array([b, c], np.int32), (len(text), 1)),
            np.tile(np.log([goes_on, 1 - goes_on]), (len(text), 1)),
            np.full(len(text), np.log(0.5)),
        )
        cell = np.array([[True]])
        found = SeenLeaks(layout, rows, LearntPair(tables)).leaky(
            cell & estimated, cell & fixed, np.array([[a]]), np.array([sync]), cell
        )
        return bool(found[0, 0])

    # The first "a" has been seen once the row behind it, number 1, is settled.
    assert not leaky(0.9, False, False, sync=0)
    assert leaky(0.9, False, False, sync=1)
    # An estimate that is too high is set aside when the token was seen OFTEN enough.
    rows_needed = 2 * OFTEN - 1
    assert leaky(0.001, True, False, sync=rows_needed - 1)
    assert not leaky(0.001, True, False, sync=rows_needed)
    assert leaky(0.9, True, False, sync=rows_needed)
    assert leaky(0.001, True, True, sync=rows_needed)
