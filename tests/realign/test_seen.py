"""What a rollout has shown of a token counts from its sync point on, and not before."""

from __future__ import annotations

import numpy as np

from teacher_server.realign.pair.layout import lay_out
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.rows import teacher_rows
from teacher_server.realign.walk.seen import MIN_SIGHTINGS, SeenExtensions
from tests.realign.toys import toy


def test_only_rows_up_to_the_sync_point_count() -> None:
    student, teacher = toy("abc", [("a", "b")]), toy("abc", [])
    tables = PairTables(student, teacher, build_static(student, teacher))
    a, b, c = (teacher.token_bytes.index(letter) for letter in (b"a", b"b", b"c"))
    text = b"acacac"
    layout = lay_out(student.encoder.encode(text).ids, tables)
    np.testing.assert_array_equal(layout.teacher_ids, [a, c] * 3)

    def may_extend(goes_on: float, estimated: bool, fixed: bool, sync: int) -> bool:
        """Of "a", where "b" has the mass ``goes_on`` behind it."""
        rows = teacher_rows(
            layout.teacher_ids,
            np.tile(np.array([b, c], np.int32), (len(text), 1)),
            np.tile(np.log([goes_on, 1 - goes_on]), (len(text), 1)),
            np.full(len(text), np.log(0.5)),
        )
        seen, token = SeenExtensions(layout, rows, PairSegmentation(tables)), np.array([a])
        others = np.array([estimated])
        if not seen.may_correct(others, token)[0]:
            return estimated
        return bool(seen.corrected(others, np.array([fixed]), token, np.array([sync]))[0])

    # The first "a" has been seen once the row behind it, number 1, is settled.
    assert not may_extend(0.9, False, False, sync=0)
    assert may_extend(0.9, False, False, sync=1)
    # An estimate that is too high is set aside when the token was seen MIN_SIGHTINGS enough.
    rows_needed = 2 * MIN_SIGHTINGS - 1
    assert may_extend(0.001, True, False, sync=rows_needed - 1)
    assert not may_extend(0.001, True, False, sync=rows_needed)
    assert may_extend(0.9, True, False, sync=rows_needed)
    assert may_extend(0.001, True, True, sync=rows_needed)
