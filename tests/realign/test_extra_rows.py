"""Extra rows: which are chosen, how many, and when a request stops asking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from teacher_proto.types import MaskReason, PositionClass, Realignment

from teacher_server.frames import FrameError
from teacher_server.realign.requests.extra_rows import (
    FIRST_SHARE,
    LEAST_GAIN,
    MASKED_POWER,
    ExtraBudget,
    OpenPaths,
    needs_of,
    paths_of,
)
from teacher_server.realign.requests.messages import AskedPaths, Plan, RealignRequest
from teacher_server.realign.requests.realigned import NOTHING_SETTLED
from teacher_server.realign.requests.step_frames import StepReader
from teacher_server.realign.walk.masses import Entries, WalkResult
from tests.support.realigning import InProcess, converse, result, toy_pair, toy_request

TEXTS = ("abcd abca", "a a cd bc ab", "dabc abcc abd")


def left_open(count: int, entries: list[tuple[int, int, int, float]], total: Any) -> WalkResult:
    """A walk of ``count`` rows that left (position, row, token, mass) open."""
    position, row, token, mass = (np.array(part) for part in zip(*entries, strict=True))
    none = np.full(len(position), -1)
    opened = Entries(position, token, mass.astype(np.float64), row, none, none, none)
    zeros = np.zeros(count)
    return WalkResult(
        NOTHING_SETTLED,
        opened,
        zeros,
        np.asarray(total, np.float64),
        zeros,
        zeros,
        np.zeros(count, int),
        np.zeros(count, bool),
        np.zeros(count, bool),
        np.zeros(0, int),
    )


def block(
    classes: list[PositionClass], coverage: list[float], open_mass: float = 1.0
) -> Realignment:
    """Masked rows are doubtful ones."""
    doubtful = [MaskReason.DOUBTFUL * (one is PositionClass.MASKED) for one in classes]
    nothing: NDArray[Any] = np.zeros(len(classes), np.float32)
    return Realignment(
        coverage=np.array(coverage, np.float32),
        open_mass=nothing + np.float32(open_mass),
        mask_reason=np.array(doubtful, np.uint8),
        lost_mass=nothing,
        position_class=np.array(classes, np.uint8),
        chunk_index=np.zeros(len(classes), np.int32),
        chunk_log_likelihood=nothing,
    )


def test_the_gain_of_a_path_is_the_need_of_every_row_that_it_is_open_at() -> None:
    draw = np.random.default_rng(5)
    entries = [
        (int(draw.integers(12)), int(draw.integers(-1, 30)), int(draw.integers(3)), draw.random())
        for _ in range(200)
    ]
    total = draw.random(12) * 40
    walked = left_open(12, entries, total)
    classes = [PositionClass.MASKED] * 4 + [PositionClass.ALIGNED] * 8
    rows = block(classes, [0.0] * 4 + draw.random(8).tolist())
    needs = needs_of(rows)
    assert needs[:4].tolist() == [1.0] * 4
    least_open = 0.3
    wanted: dict[tuple[int, int], float] = {}
    for place in range(12):
        here = [one for one in entries if one[0] == place]
        mass = sum(one[3] for one in here)
        if mass / total[place] < least_open:
            continue
        for step in {(row, token) for _, row, token, _ in here if row >= 0}:
            share = sum(part for _, *its, part in here if tuple(its) == step) / mass
            gain = needs[place] * (share**MASKED_POWER if place < 4 else share)
            wanted[step] = wanted.get(step, 0.0) + gain
    assert any(mass < LEAST_GAIN for mass in wanted.values())
    known = {max(wanted, key=lambda step: wanted[step])}
    wanted = {
        step: gain
        for step, gain in sorted(wanted.items())
        if gain >= LEAST_GAIN and step not in known
    }
    found = paths_of(walked, rows, least_open, known)
    steps = list(zip(found.row.tolist(), found.token.tolist(), strict=True))
    assert steps == list(wanted)
    np.testing.assert_allclose(found.gain, list(wanted.values()), atol=1e-3)


def test_rows_that_no_further_row_settles_need_none() -> None:
    reasons = [MaskReason.LONG_CHUNK, MaskReason.DOUBTFUL, MaskReason.NOT_CANONICAL, 0]
    classes = [PositionClass.MASKED] * 3 + [PositionClass.ALIGNED]
    rows = replace(block(classes, [0.0, 0.0, 0.0, 0.25]), mask_reason=np.array(reasons, np.uint8))
    assert needs_of(rows).tolist() == [0.0, 1.0, 0.0, 0.75]
    little = needs_of(replace(rows, open_mass=np.full(4, 0.125, np.float32)))
    assert little.tolist() == [0.0, 1.0, 0.0, 0.25]
    walked = left_open(4, [(place, place, 2, 0.9) for place in range(4)], np.ones(4))
    assert paths_of(walked, rows, 0.05, {}).row.tolist() == [1, 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("total", [0.0, 1.0])
def test_a_row_without_open_mass_takes_no_path_from_the_others(total: float) -> None:
    """A path that is open with no mass at the first row, and open at the second."""
    walked = left_open(2, [(0, 4, 2, 0.0), (1, 4, 2, 0.5)], [total, 1.0])
    rows = block([PositionClass.MASKED] * 2, [0.0, 0.0])
    found = paths_of(walked, rows, 0.0, {})
    assert list(zip(found.row.tolist(), found.token.tolist(), strict=True)) == [(4, 2)]
    assert found.gain.tolist() == [1.0]


def offer(gains: list[float]) -> dict[int, OpenPaths]:
    """Paths of two continuations, half of them each."""
    half = len(gains) // 2
    return {
        index: OpenPaths(np.arange(len(some)), np.full(len(some), 7), np.array(some))
        for index, some in ((3, gains[:half]), (5, gains[half:]))
    }


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_the_budget_holds_to_the_row(more: int, rounds: int) -> None:
    """One path too few for it, as many as it has rows, one too many."""
    budget = ExtraBudget(rows=30, rounds=rounds, most=1000)
    gains = [1.0] * (30 + more)
    sizes: list[int] = []
    needed = 1000.0
    while budget.rounds:
        chosen = budget.choose(needed, offer(gains[sum(sizes) :]))
        if not chosen:
            break
        sizes.append(len(chosen))
        needed -= len(chosen)  # each gains what it promised
    assert sum(sizes) == min(30, 30 + more)
    assert budget.rows == 30 - sum(sizes)
    if rounds > 1:
        assert sizes[0] == int(30 * FIRST_SHARE)
    assert len(sizes) <= rounds


@pytest.mark.parametrize("most", [1, 4])
def test_no_round_is_larger_than_a_batch_may_be(most: int) -> None:
    budget = ExtraBudget(rows=30, rounds=3, most=most)
    for needed in (100.0, 100.0 - 2 * most, 100.0 - 4 * most):
        assert len(budget.choose(needed, offer([2.0] * 40))) == most
    assert budget.rows == 30 - 3 * most


def test_the_rows_that_gain_most_are_chosen_and_none_below_the_least() -> None:
    gains = [0.2, LEAST_GAIN, 0.9, LEAST_GAIN - 0.001, 0.3, 0.2]
    chosen = ExtraBudget(rows=4, rounds=1, most=10).choose(5.0, offer(gains))
    # Of equal gains the first continuation's, then the first row's.
    assert chosen == [(3, (0, 7)), (3, (2, 7)), (5, (1, 7)), (5, (2, 7))]
    everything = ExtraBudget(rows=40, rounds=1, most=10).choose(5.0, offer(gains))
    assert len(everything) == 5


def test_a_request_that_gains_nothing_stops_asking() -> None:
    budget = ExtraBudget(rows=300, rounds=8, most=1000)
    gains = [0.9] * 400
    assert len(budget.choose(200.0, offer(gains))) == FIRST_SHARE * 300
    assert budget.choose(200.0, offer(gains)) == []  # nothing has changed
    worse = ExtraBudget(rows=300, rounds=8, most=1000)
    worse.choose(200.0, offer(gains))
    assert worse.choose(201.0, offer(gains)) == []


def test_later_rounds_promise_what_the_last_one_kept() -> None:
    """A fifth of it came: only rows that promise 0.5 and more are asked for still."""
    budget = ExtraBudget(rows=300, rounds=2, most=1000)
    trial = len(budget.choose(200.0, offer([1.0] * 400)))
    assert trial == FIRST_SHARE * 300
    chosen = budget.choose(200.0 - trial / 5, offer([0.49] * 20 + [0.5] * 20))
    assert budget.yielded == pytest.approx(0.2)
    assert {index for index, _ in chosen} == {5}
    assert len(chosen) == 20


def test_what_an_engine_rounds_apart_changes_no_choice() -> None:
    """Masses of a batch differ in their last digits from those of another batch."""
    draw = np.random.default_rng(2)
    entries = [(place, place % 7, place % 5, 0.5) for place in range(60)]
    rows = block([PositionClass.MASKED] * 60, [0.0] * 60)
    found = []
    for _ in range(5):
        noise = 1 + draw.normal(0, 1e-6, len(entries))
        moved = [(p, r, t, m * x) for (p, r, t, m), x in zip(entries, noise, strict=True)]
        walked = left_open(60, moved, np.ones(60))
        paths = paths_of(walked, rows, 0.05, {})
        found.append(ExtraBudget(rows=4, rounds=1, most=9).choose(60.0, {0: paths}))
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("apart", [-1e-7, 1e-7])
def test_what_came_of_a_round_is_compared_to_three_digits(apart: float) -> None:
    """The rows that promise just enough are asked for, however the last digits fall."""
    budget = ExtraBudget(rows=300, rounds=2, most=1000)
    trial = len(budget.choose(200.0, offer([1.0] * 400)))
    chosen = budget.choose(200.0 - trial / 5 + apart, offer([0.49] * 20 + [0.5] * 20))
    assert budget.yielded == 0.2
    assert {index for index, _ in chosen} == {5}
    assert len(chosen) == 20


def test_only_what_lies_at_a_border_of_rounding_may_fall_to_either_side() -> None:
    """The least gain to three digits: .0995 is the border, and .0995 moved by 1e-6 is not sure."""
    rows = block([PositionClass.ALIGNED] * 2, [0.0, 0.0], open_mass=1.0)
    sides = []
    for gain in (0.0994, 0.0995 - 1e-7, 0.0995 + 1e-7, 0.0996):
        # The second path has the rest of the open mass and is always worth its row.
        walked = left_open(2, [(0, 1, 2, gain), (0, 0, 3, 1 - gain)], [1.0, 1.0])
        found = paths_of(walked, rows, 0.05, {})
        sides.append(2 in found.token.tolist())
    assert sides == [False, False, True, True]


def asked_paths(request: RealignRequest) -> tuple[Plan, list[AskedPaths]]:
    steps = list(converse(request, InProcess(toy_pair())))
    (plan,) = [step for step in steps if isinstance(step, Plan)]
    return plan, [step for step in steps if isinstance(step, AskedPaths)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2])
def test_a_request_asks_for_its_share_of_the_teacher_s_tokens(share: float) -> None:
    request = toy_request(*TEXTS, extra_rows_per_token=share, extra_rounds=2)
    plan, rounds = asked_paths(request)
    rows = [len(one.sequences) for one in rounds]
    budget = int(share * sum(plan.needed) + 1e-9)
    assert request.extra_budget(plan.needed) == budget
    assert sum(rows) <= budget
    assert bool(rows) == (budget > 0)
    if rows:
        assert rows[0] == max(1, int(budget * FIRST_SHARE))


def test_one_row_beyond_the_budget_is_not_believed() -> None:
    request = toy_request(*TEXTS, extra_rows_per_token=0.1, extra_rounds=1)
    session = InProcess(toy_pair())
    result(converse(request, session))
    place = [frame.kind for frame in session.said].index("paths")
    rows = len(session.said[place].arrays["lengths"])
    for budget, fine in ((rows, True), (rows - 1, False)):
        tokens = sum(asked_paths(request)[0].needed)
        reader = StepReader(
            toy_request(*TEXTS, extra_rows_per_token=budget / tokens, extra_rounds=1)
        )
        for frame in session.said[:place]:
            reader.read(frame)
        if fine:
            assert isinstance(reader.read(session.said[place]), AskedPaths)
        else:
            with pytest.raises(FrameError, match="more than may be asked for"):
                reader.read(session.said[place])


def test_a_reply_depends_on_its_request_alone() -> None:
    """In any order, after any others, and twice."""
    requests = [
        toy_request(*TEXTS, extra_rounds=3, extra_rows_per_token=0.3),
        toy_request("ab cd", "dcba a", extra_rounds=3, extra_rows_per_token=0.3, temperature=2.0),
        toy_request(TEXTS[1], extra_rounds=2, extra_rows_per_token=0.5),
    ]
    alone = [said_of(request, InProcess(toy_pair())) for request in requests]
    for order in ([0, 1, 2], [2, 1, 0], [1, 1, 0, 2, 0]):
        pair = toy_pair()
        for index in order:
            assert said_of(requests[index], InProcess(pair)) == alone[index]


def said_of(request: RealignRequest, session: InProcess) -> list[bytes]:
    """The rows after paths that were asked for and the result, as bytes."""
    result(converse(request, session))
    return [
        name.encode() + array.tobytes()
        for frame in session.said
        if frame.kind in ("paths", "done")
        for name, array in sorted(frame.arrays.items())
    ]
