"""A realigned request as messages: what goes in and out, and what of it is not believed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from teacher_proto.rows import WideRows
from teacher_proto.types import ContinuationScores, Status

from teacher_server.frames import Frame, FrameError, pack, texts_array, unpack
from teacher_server.realign.pair.tables import MOST_WIDE
from teacher_server.realign.requests import realigned as realigning
from teacher_server.realign.requests import serve as serving
from teacher_server.realign.requests.messages import (
    BATCH_TOKENS,
    AskedContextFree,
    AskedContinuation,
    AskedPaths,
    AskedRollouts,
    Pause,
    Plan,
    Realigned,
    RealignRequest,
    TextSize,
)
from teacher_server.realign.requests.request import best_of
from teacher_server.realign.requests.request_frames import (
    GO,
    answer_of,
    request_of,
    rows_frame,
    start_frame,
)
from teacher_server.realign.requests.step_frames import StepReader
from teacher_server.refusals.sizes import check_session_bytes, session_memory
from teacher_server.scoring.realigned_path import EXTRA_ROUNDS
from teacher_server.settings.tokenizers import TokenizerSettings
from tests.support.realigning import (
    TEACHER,
    InProcess,
    converse,
    follow,
    result,
    student_ids,
    toy_answer,
    toy_pair,
    toy_request,
    toy_rows,
)

TEXTS = ("ab cd ab abc", "bc acd", " ab")


def same(mine: Realigned, theirs: Realigned) -> None:
    """Equal to the last bit."""
    for one, other in zip(mine.scores, theirs.scores, strict=True):
        assert (one.status, one.detail) == (other.status, other.detail)
        for left, right in zip(arrays_of(one), arrays_of(other), strict=True):
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            assert left.tobytes() == right.tobytes()


def arrays_of(scores: ContinuationScores) -> list[Any]:
    return [*scores.rows.arrays().values(), *vars(scores.realignment or Plain()).values()]


class Plain:
    """Has no arrays."""


def test_a_process_of_a_tokenizer_needs_neither_torch_nor_a_wire() -> None:
    code = (
        "import sys, teacher_server.realign.requests.serve\n"
        "print(sorted({'torch', 'transformers', 'grpc', 'pydantic', 'fastapi'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [None, 7])
def test_a_request_is_read_as_it_was_written(size: int | None) -> None:
    ids = student_ids(TEXTS[0])
    explicit = np.array([[1, -1], [2, 3]], np.int32)
    request = replace(
        toy_request("ab", temperature=0.1, student_vocabulary_size=size),
        continuations=(
            AskedContinuation(ids, np.array([0, 2], np.int32), explicit),
            AskedContinuation(ids, np.array([1], np.int32)),
            AskedContinuation(ids[:1], np.array([0], np.int32), np.zeros((1, 0), np.int32)),
        ),
    )
    read = request_of(unpack(pack(start_frame(request))))
    assert replace(read, continuations=()) == replace(request, continuations=())
    for one, other in zip(read.continuations, request.continuations, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.positions, other.positions)
        assert (one.explicit_ids is None) == (other.explicit_ids is None)
        if one.explicit_ids is not None and other.explicit_ids is not None:
            assert one.explicit_ids.tolist() == other.explicit_ids.tolist()


def test_rows_are_read_as_they_were_written() -> None:
    ids = student_ids("acbda")
    rows = [toy_rows(ids, np.arange(n, dtype=np.int32), 4, sampled=True) for n in (2, 3)]
    answer = rows[0], None, rows[1]
    read = answer_of(unpack(pack(rows_frame(answer))), [2, 1, 3])
    assert read[1] is None
    for one, other in ((read[0], rows[0]), (read[2], rows[1])):
        assert one is not None
        for name, array in other.arrays().items():
            np.testing.assert_array_equal(one.arrays()[name], array)
    assert answer_of(unpack(pack(rows_frame((None, None)))), [1, 1]) == (None, None)
    with pytest.raises(FrameError):
        answer_of(rows_frame(answer), [2, 1, 4])


def test_wide_rows_are_read_as_they_were_written() -> None:
    ids = student_ids("acbda")
    plain = [toy_rows(ids, np.arange(n, dtype=np.int32), 4, sampled=True) for n in (2, 3)]
    places = [np.array([1]), np.zeros(0, np.int64)]
    rows = [
        WideRows(
            one.support,
            one.sampled,
            wide=at,
            wide_log_probs=np.arange(len(at) * 3, dtype=np.float32).reshape(-1, 3),
        )
        for one, at in zip(plain, places, strict=True)
    ]
    frame = rows_frame((rows[0], None, rows[1]))
    read = answer_of(unpack(pack(frame)), [2, 1, 3])
    assert read[1] is None
    for one, other in ((read[0], rows[0]), (read[2], rows[1])):
        assert isinstance(one, WideRows)
        np.testing.assert_array_equal(one.wide, other.wide)
        np.testing.assert_array_equal(one.wide_log_probs, other.wide_log_probs)
        for name, array in other.arrays().items():
            np.testing.assert_array_equal(one.arrays()[name], array)
    with pytest.raises(FrameError):
        answer_of(with_array(frame, "wide_counts", np.array([2, 0], np.int64)), [2, 1, 3])


def test_a_request_says_its_size_and_its_plan_before_it_asks() -> None:
    said = converse(toy_request(*TEXTS), InProcess(toy_pair()))
    steps = [step for step in said if not isinstance(step, Pause)]  # on a slow machine there are
    kinds = [type(step) for step in steps]
    assert kinds[:3] == [TextSize, Plan, AskedRollouts]
    assert {AskedContextFree, AskedPaths} <= set(kinds[3:])
    size, plan = steps[:2]
    assert isinstance(size, TextSize)
    assert isinstance(plan, Plan)
    assert size.text_bytes == sum(map(len, TEXTS))
    assert plan.lengths == tuple(len(TEACHER.encoder.encode(t.encode()).ids) for t in TEXTS)


def test_requests_that_take_turns_have_the_rows_of_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [toy_request(*TEXTS), toy_request(*reversed(TEXTS), top_k=2, temperature=2.0)]
    alone = [result(converse(one, InProcess(toy_pair()))) for one in requests]
    monkeypatch.setattr(serving, "TURN_SECONDS", 0.0)
    pair = toy_pair()
    going = [converse(one, InProcess(pair)) for one in requests]
    found: list[Realigned | None] = [None, None]
    pauses = 0
    while None in found:
        for place, one in enumerate(going):
            try:
                pauses += isinstance(next(one), Pause) if found[place] is None else 0
            except StopIteration as end:
                found[place] = end.value
    assert pauses >= 2 * 2 * len(TEXTS)
    for mine, theirs in zip(found, alone, strict=True):
        assert mine is not None
        same(mine, theirs)


def test_rows_that_are_not_finite_and_ids_without_a_token_leave_the_others_be() -> None:
    request = toy_request(*TEXTS, extra_rounds=0, context_free_rows=False)
    whole = result(converse(request, InProcess(toy_pair())))
    asked = list(request.continuations)
    asked[2] = AskedContinuation(np.array([99], np.int32), np.array([0], np.int32))
    request = replace(request, continuations=tuple(asked))
    session, reader = InProcess(toy_pair()), StepReader(request)
    assert isinstance(reader.read(session.next(start_frame(request))), TextSize)
    plan = reader.read(session.next(GO))
    assert isinstance(plan, Plan)
    assert "id 99 at index 0" in plan.problems[2]
    rollouts = reader.read(session.next(GO))
    assert isinstance(rollouts, AskedRollouts)
    first, second = toy_answer(rollouts, request)
    assert first is not None
    found = reader.read(session.next(rows_frame((None, second))))
    while isinstance(found, Pause):
        found = reader.read(session.next(GO))
    assert isinstance(found, Realigned)
    statuses = [one.status for one in found.scores]
    assert statuses == [Status.NON_FINITE, Status.OK, Status.NOT_REALIGNED]
    same(Realigned(found.scores[1:2]), Realigned(whole.scores[1:2]))


def test_explicit_ids_of_different_numbers_come_back_in_their_places() -> None:
    request = toy_request(*TEXTS, top_k=0, sampled=False, log_tail=False, extra_rounds=0)
    asked = list(request.continuations)
    for place, width in ((0, 3), (2, 1)):
        one = asked[place]
        own = one.token_ids[one.positions][:, None]
        asked[place] = replace(one, explicit_ids=own.repeat(width, axis=1))
    request = replace(request, continuations=tuple(asked))
    found = result(converse(request, InProcess(toy_pair())))
    parts = [one.rows.explicit for one in found.scores]
    shapes = [None if part is None else part.values.shape for part in parts]
    assert shapes == [(len(asked[0].positions), 3), None, (len(asked[2].positions), 1)]
    assert all(one.rows.support is None for one in found.scores)


def with_explicit_ids(request: RealignRequest) -> RealignRequest:
    asked = [
        replace(one, explicit_ids=np.tile(np.arange(6, dtype=np.int32), (len(one.positions), 1)))
        for one in request.continuations
    ]
    return replace(request, continuations=tuple(asked))


@pytest.mark.parametrize("explicit", [False, True])
def test_positions_by_parts_give_the_bytes_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, explicit: bool
) -> None:
    request = toy_request(*TEXTS)
    if explicit:
        request = with_explicit_ids(request)
    whole = result(converse(request, InProcess(toy_pair())))
    monkeypatch.setattr(realigning, "BLOCK_ENTRIES", 1)
    assert len(realigning.position_blocks(5, 3)) == 5
    same(result(converse(request, InProcess(toy_pair()))), whole)


def test_what_a_request_takes_is_known_from_its_plan() -> None:
    """All that is made of its rows counts, and long continuations are walked by parts."""
    request, plan = toy_request("ab"), Plan((8192,), (8192,), ("",), 50_000)

    def session_bytes(explicit: int, best: int) -> int:
        ids, places = np.zeros(8192, np.int32), np.arange(8192, dtype=np.int32)
        asked = AskedContinuation(ids, places, np.zeros((8192, explicit), np.int32))
        return plan.session_bytes(replace(request, continuations=(asked,)), best)

    request = replace(request, memory_bytes=1 << 40)
    assert session_bytes(0, 1024) > 52 * 8192 * 1024
    assert session_bytes(0, 1024) < 3 * 2**29
    assert session_bytes(1024, 1024) >= session_bytes(0, 1024) + 40 * 8192 * 1024
    assert session_bytes(4096, 8192) > 2**32


@pytest.mark.parametrize(("top_k", "count", "length"), [(32, 63, 4096), (128, 28, 4096)])
def test_extra_rows_never_make_a_request_too_large(top_k: int, count: int, length: int) -> None:
    """At the default limits: one that is realigned without them is with them too, and asks for
    none where they do not fit."""
    settings = TokenizerSettings()
    ids, places = np.zeros(length, np.int32), np.arange(length, dtype=np.int32)
    one = AskedContinuation(ids, places)
    request = replace(
        toy_request("ab"),
        top_k=top_k,
        extra_rounds=EXTRA_ROUNDS,
        extra_rows_per_token=settings.extra_rows_per_token,
        extra_rows=settings.extra_rows,
        memory_bytes=session_memory(settings.worker_memory_bytes),
    )
    best = best_of(request, 50_000)
    sizes = []
    for number in (1, count):
        several = replace(request, continuations=(one,) * number)
        plan = Plan((length,) * number, (length,) * number, ("",) * number, 50_000)
        without = plan.session_bytes(replace(several, extra_rounds=0), best)
        check_session_bytes(without, settings.worker_memory_bytes)
        check_session_bytes(plan.session_bytes(several, best), settings.worker_memory_bytes)
        sizes.append(plan.extra_rows(several, best))
    assert sizes[0] > 0
    assert sizes[1] == 0


@pytest.mark.parametrize("extra_rounds", [0, EXTRA_ROUNDS])
@pytest.mark.parametrize(("top_k", "count", "length"), [(32, 60, 4096), (128, 26, 4096)])
def test_wide_rows_never_make_a_request_too_large(
    top_k: int, count: int, length: int, extra_rounds: int
) -> None:
    """At the default limits: one that is realigned without them is with them too, has as many
    extra rows, and has none that is wide where they do not fit."""
    settings = TokenizerSettings()
    ids, places = np.zeros(length, np.int32), np.arange(length, dtype=np.int32)
    request = replace(
        toy_request("ab"),
        top_k=top_k,
        extra_rounds=extra_rounds,
        extra_rows_per_token=settings.extra_rows_per_token,
        extra_rows=settings.extra_rows,
        memory_bytes=session_memory(settings.worker_memory_bytes),
    )
    best, found = best_of(request, 50_000), []
    for number in (1, count):
        several = replace(request, continuations=(AskedContinuation(ids, places),) * number)
        plan = Plan((length,) * number, (length,) * number, ("",) * number, 50_000)
        wide = replace(plan, wide_ids=tuple(range(1110)))
        check_session_bytes(plan.session_bytes(several, best), settings.worker_memory_bytes)
        check_session_bytes(wide.session_bytes(several, best), settings.worker_memory_bytes)
        assert wide.extra_rows(several, best) == plan.extra_rows(several, best)
        assert wide.row_bytes(best) == plan.row_bytes(best)
        assert plan.wide_rows(several, best) == 0
        found.append(wide.wide_rows(several, best))
        more = wide.session_bytes(several, best) - plan.session_bytes(several, best)
        assert more >= found[-1] * 1110 * 12
    assert found == [length // 2, 0]


@pytest.mark.parametrize("more", [0, 1])
def test_a_plan_names_only_so_many_ids_of_wide_rows(more: int) -> None:
    request = toy_request("ab", vocabulary_size=10_000)
    session, reader = InProcess(toy_pair()), StepReader(request)
    reader.read(session.next(start_frame(request)))
    said = with_header(session.next(GO), limit=10_000)
    lied = with_array(said, "wide_ids", np.arange(MOST_WIDE + more, dtype=np.int32))
    if not more:
        plan = reader.read(lied)
        assert isinstance(plan, Plan)
        assert plan.wide_ids == tuple(range(MOST_WIDE))
        return
    with pytest.raises(FrameError, match="too many"):
        reader.read(lied)


def test_rows_that_do_not_fit_are_not_asked_for_and_not_believed() -> None:
    request = toy_request(*TEXTS, extra_rows_per_token=2.0, extra_rows=100)
    assert AskedPaths in map(type, converse(request, InProcess(toy_pair())))
    small = replace(request, memory_bytes=1)
    assert AskedPaths not in map(type, converse(small, InProcess(toy_pair())))
    session, reader = InProcess(toy_pair()), StepReader(small)
    said = session.next(start_frame(request))
    while said.kind != "paths":
        said = session.next(follow(reader.read(said), request))
    with pytest.raises(FrameError, match="more than may be asked for"):
        reader.read(said)


def test_a_round_is_as_large_as_prompts_and_continuations_let_it_be() -> None:
    request = replace(toy_request("ab"), extra_rows=4096, prompt_tokens=30_000)
    assert request.extra_batch([10, 20]) == BATCH_TOKENS // 30_020
    assert request.extra_batch([]) == BATCH_TOKENS // 30_001
    assert replace(request, prompt_tokens=1).extra_batch([10]) == 4096


# What a process may claim instead of the truth, by the kind of the message.
LIES: list[tuple[str, str, Callable[[Frame], Frame]]] = []


def lie(kind: str) -> Callable[[Callable[[Frame], Frame]], Callable[[Frame], Frame]]:
    def known(change: Callable[[Frame], Frame]) -> Callable[[Frame], Frame]:
        LIES.append((kind, change.__name__, change))
        return change

    return known


def with_array(frame: Frame, name: str, array: Any) -> Frame:
    return replace(frame, arrays={**frame.arrays, name: np.asarray(array)})


def with_header(frame: Frame, **values: Any) -> Frame:
    return replace(frame, header={**frame.header, **values})


def set_at(frame: Frame, name: str, place: int, value: Any) -> Frame:
    array = frame.arrays[name].copy()
    array.reshape(-1)[place] = value
    return with_array(frame, name, array)


for _kind, _name, _values in (
    ("size", "text_bytes", (-1, 1.5, None, "3", 1 << 70, True)),
    ("size", "seconds", (-1.0, math.nan, math.inf, 1.7e308, 1000.0, "1", None)),
    ("plan", "limit", (0, TEACHER.size + 1, None)),
):
    for _value in _values:

        def _header(frame: Frame, name: str = _name, value: Any = _value) -> Frame:
            return with_header(frame, **{name: value})

        LIES.append((_kind, f"{_name}={str(_value)[:20]}", _header))

for _kind, _texts in (
    ("plan", ["", ""]),
    ("plan", ["x" * 5000, "", ""]),
    ("plan", ["no", "", ""]),
    ("plan", ["\ud800", "", ""]),
    ("done", []),
    ("done", ["", "", "x" * 5000]),
    ("done", ["", "", "x" * 2**20]),
):

    def _says(frame: Frame, texts: list[str] = _texts) -> Frame:
        return replace(frame, arrays={**frame.arrays, **texts_array(texts)})

    LIES.append((_kind, f"texts={ascii(_texts)[:20]}", _says))

for _kind, _name, _place, _value in (
    ("plan", "text_bytes", 0, -1),
    ("done", "text_bytes", 0, 1 << 62),
    ("plan", "lengths", 0, -1),
    ("plan", "lengths", 0, 1 << 40),
    ("plan", "needed", 0, 1 << 20),
    ("rollouts", "token_ids", 0, -1),
    ("rollouts", "token_ids", 0, TEACHER.size),
    ("rollouts", "positions", 0, 3),
    ("rollouts", "positions", 0, -1),
    ("rollouts", "positions", -1, 1000),
    ("context_free", "tokens", 0, TEACHER.size),
    ("context_free", "tokens", -1, 0),
    ("context_free", "before", 0, -2),
    ("paths", "token_ids", 0, TEACHER.size),
    ("paths", "lengths", 0, 0),
    ("paths", "lengths", 0, 1 << 62),
    ("done", "status", 0, 0),
    ("done", "status", 0, 9),
    ("done", "status", 0, int(Status.NON_FINITE)),
    ("done", "position_class", 0, 0),
    ("done", "position_class", 0, 200),
    ("done", "mask_reason", 0, 11),
    ("done", "chunks", 0, -1),
    ("done", "chunks", 0, 1 << 62),
):

    def _changed(
        frame: Frame, name: str = _name, place: int = _place, value: Any = _value
    ) -> Frame:
        return set_at(frame, name, place, value)

    LIES.append((_kind, f"{_name}[{_place}]={_value}", _changed))


@lie("rollouts")
def asks_before_the_plan(frame: Frame) -> Frame:
    return Frame("size", frame.header | {"text_bytes": 1})


@lie("plan")
def skips_the_plan(frame: Frame) -> Frame:
    return replace(frame, kind="done")


@lie("plan")
def wide_ids_that_do_not_ascend(frame: Frame) -> Frame:
    return with_array(frame, "wide_ids", np.array([2, 2], np.int32))


@lie("plan")
def wide_ids_that_no_row_has(frame: Frame) -> Frame:
    return with_array(frame, "wide_ids", np.array([0, TEACHER.size], np.int32))


@lie("plan")
def wide_ids_below_all(frame: Frame) -> Frame:
    return with_array(frame, "wide_ids", np.array([-1, 2], np.int32))


# Its differences, in 32 bits, are all positive.
ASCENDS_AND_WRAPS = np.array([0, 2**31 - 1, -(2**31), -1, 3], np.int32)


@lie("plan")
def wide_ids_whose_differences_wrap(frame: Frame) -> Frame:
    return with_array(frame, "wide_ids", ASCENDS_AND_WRAPS)


@lie("rollouts")
def rows_whose_differences_wrap(frame: Frame) -> Frame:
    positions = frame.arrays["positions"].copy()
    positions[:5] = ASCENDS_AND_WRAPS
    return with_array(frame, "positions", positions)


@lie("context_free")
def more_tokens_than_there_are(frame: Frame) -> Frame:
    return with_array(frame, "tokens", np.arange(300, dtype=np.int32) % TEACHER.size)


@lie("context_free")
def no_tokens(frame: Frame) -> Frame:
    return with_array(frame, "tokens", np.zeros(0, np.int32))


@lie("paths")
def longer_than_the_teacher_reads(frame: Frame) -> Frame:
    frame = with_array(frame, "token_ids", np.zeros(64, np.int32))
    return with_array(frame, "lengths", np.array([64], np.int64))


@lie("paths")
def more_paths_than_may_be(frame: Frame) -> Frame:
    frame = with_array(frame, "token_ids", np.zeros(18, np.int32))
    return with_array(frame, "lengths", np.full(9, 2, np.int64))


@lie("done")
def an_unknown_kind(frame: Frame) -> Frame:
    return replace(frame, kind="x" * 10_000)


def transcript(request: RealignRequest) -> list[Frame]:
    session = InProcess(toy_pair())
    result(converse(request, session))
    return session.said


def read_with_lie(request: RealignRequest, said: list[Frame], kind: str, lied: Frame) -> None:
    """Reads what was said up to the first message of this kind, and the lie in its place."""
    reader = StepReader(request)
    for frame in said:
        if frame.kind == kind:
            reader.read(lied)
            return
        reader.read(frame)
    raise AssertionError(f"nothing of kind {kind} was said")


@pytest.fixture(scope="module")
def honest() -> tuple[RealignRequest, list[Frame]]:
    request = toy_request(*TEXTS)
    return request, transcript(request)


@pytest.mark.parametrize(("kind", "name", "change"), LIES, ids=[f"{k}-{n}" for k, n, _ in LIES])
def test_a_lie_is_an_error(
    honest: tuple[RealignRequest, list[Frame]],
    kind: str,
    name: str,
    change: Callable[[Frame], Frame],
) -> None:
    request, said = honest
    (first, *_) = [frame for frame in said if frame.kind == kind]
    read_with_lie(request, said, kind, first)
    with pytest.raises(FrameError):
        read_with_lie(request, said, kind, change(first))


def test_what_is_asked_is_bounded_over_the_whole_request(
    honest: tuple[RealignRequest, list[Frame]],
) -> None:
    """Context-free rows, rounds and pauses that never end do end."""
    request, said = honest
    for kind in ("context_free", "paths", "working"):
        reader = StepReader(request)
        for frame in said[:3]:
            reader.read(frame)
        again = next((f for f in said if f.kind == kind), Frame("working", {"seconds": 0.0}))
        with pytest.raises(FrameError):
            list(map(reader.read, [again] * 100))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_arrays_come_only_frame_errors_do(
    honest: tuple[RealignRequest, list[Frame]], seed: int
) -> None:
    """Arrays left out, cut, widened, of other types and with any values."""
    request, said = honest
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(200):
        frame = said[rng.integers(len(said))]
        if not frame.arrays:
            continue
        names = sorted(frame.arrays)
        name = names[rng.integers(len(names))]
        array = frame.arrays[name]
        arrays = dict(frame.arrays)
        match rng.integers(5):
            case 0:
                del arrays[name]
            case 1:
                arrays[name] = array[: len(array) // 2]
            case 2:
                arrays[name] = np.concatenate([array, array])
            case 3:
                arrays[name] = array.astype(np.float64)
            case 4:
                noise = rng.integers(0, 256, array.nbytes, np.uint8)
                if array.dtype == np.bool_:
                    noise %= 2
                arrays[name] = noise.view(array.dtype).reshape(array.shape)
        try:
            read_with_lie(request, said, frame.kind, replace(frame, arrays=arrays))
        except FrameError:
            refused += 1
    assert refused > 80


def test_what_follows_must_be_what_was_asked() -> None:
    pair, request = toy_pair(), toy_request(*TEXTS)
    session = InProcess(pair)
    session.next(start_frame(request))
    with pytest.raises(FrameError):
        session.next(rows_frame((None,)))
    session = InProcess(pair)
    with pytest.raises(FrameError):
        session.next(GO)
    session = InProcess(pair)
    frame = start_frame(request)
    while session.next(frame).kind != "rollouts":
        frame = GO
    with pytest.raises(FrameError):
        session.next(GO)
