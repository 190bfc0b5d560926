"""Rounds of extra rows that do not all come: rows that are not finite, paths that are too long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from teacher_proto.rows import required
from teacher_proto.types import Status

from teacher_server.realign.requests.messages import AskedPaths, Plan, Realigned
from teacher_server.realign.requests.request_frames import rows_frame, start_frame
from teacher_server.realign.requests.step_frames import StepReader
from tests.support.realigning import (
    TEACHER,
    InProcess,
    converse,
    follow,
    result,
    toy_answer,
    toy_pair,
    toy_request,
)

TEXTS = ("abcd abca", "a a cd bc ab", "dabc abcc abd")


def test_a_row_after_a_path_that_is_not_finite_leaves_the_path_open() -> None:
    """The continuation keeps its scores and its other paths; the row is not asked for again."""
    request = toy_request(*TEXTS, extra_rounds=3, extra_rows_per_token=1.0)
    session, reader = InProcess(toy_pair()), StepReader(request)
    without = result(converse(replace(request, extra_rounds=0), InProcess(toy_pair())))
    frame, refused, given = start_frame(request), dict[bytes, int](), 0
    while not isinstance(step := reader.read(session.next(frame)), Realigned):
        frame = follow(step, request)
        if isinstance(step, AskedPaths):
            answer = list(toy_answer(step, request))
            # Of each round the first, and of the second all.
            for place in range(len(answer) if refused else 1):
                answer[place] = None
                asked = step.sequences[place].tobytes()
                assert asked not in refused
                refused[asked] = place
            given += len([one for one in answer if one is not None])
            frame = rows_frame(tuple(answer))
    assert len(refused) >= 2
    assert given
    assert [one.status for one in step.scores] == [Status.OK] * len(TEXTS)
    opened = [
        sum(float(required(one.realignment, "realignment").open_mass.sum()) for one in of.scores)
        for of in (step, without)
    ]
    assert opened[0] < opened[1]


@pytest.mark.parametrize("room", [0, 1, 4])
def test_paths_that_are_too_long_for_the_teacher_cost_nothing(room: int) -> None:
    """All of the budget goes to those that fit; a continuation whose paths do not fit leaves
    it to the others."""
    texts = ("ab cd abc a", "abcd abca " * 4)
    lengths = [len(TEACHER.encoder.encode(text.encode()).ids) for text in texts]
    longest = max(lengths) if room else min(lengths)
    request = toy_request(
        *texts, extra_rounds=1, extra_rows_per_token=0.12, max_length=1 + longest + room
    )
    steps = list(converse(request, InProcess(toy_pair())))
    (plan,) = [step for step in steps if isinstance(step, Plan)]
    (asked,) = [step for step in steps if isinstance(step, AskedPaths)]
    assert max(map(len, asked.sequences)) <= longest + room
    assert len(asked.sequences) == request.extra_budget(plan.needed)
    free = toy_request(*texts, extra_rounds=1, extra_rows_per_token=0.12, max_length=99)
    (wanted,) = [
        step for step in converse(free, InProcess(toy_pair())) if isinstance(step, AskedPaths)
    ]
    # With all the room there is, some of the best are longer.
    assert (max(map(len, wanted.sequences)) > longest + room) == (room == 0)
