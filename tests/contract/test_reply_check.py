"""Poisoned replies are refused, each by the field and row that is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from teacher_proto import codec, rows
from teacher_proto.client.reply_check import check_reply
from teacher_proto.errors import ContractMismatchError, PoisonedReplyError
from teacher_proto.rows import Rows, required
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    MaskReason,
    PositionClass,
    Realignment,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    Status,
)
from teacher_proto.v1 import score_pb2

from tests.support.replies import (
    IDENTITY,
    TEACHER,
    VOCABULARY,
    ids,
    make_reply,
    make_request,
    with_arrays,
)

EXPLICIT = Continuation(
    (Segment(ids(4, 5, 6)),),
    rows=ids(0, 2),
    explicit_ids=np.array([[5, -1, 7], [8, 9, -1]], np.int32),
)
FULL = make_request(
    continuations=(*make_request().continuations, EXPLICIT),
    returns=Returns(sampled=True, log_tail=True),
)


@pytest.mark.parametrize("top_k", [0, 1, 4, VOCABULARY])
@pytest.mark.parametrize("limit", [None, 3, VOCABULARY, VOCABULARY + 9])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_replies_that_keep_the_contract_pass(
    top_k: int, limit: int | None, temperature: float
) -> None:
    request = dataclasses.replace(
        FULL,
        top_k=top_k,
        temperature=temperature,
        student_vocabulary_size=limit,
        returns=Returns(sampled=True, log_tail=top_k > 0),
    )
    check_reply(request, make_reply(request))
    check_reply(request, make_reply(request), TEACHER)


def test_empty_selections_and_results_without_rows_pass() -> None:
    request = make_request(
        continuations=(Continuation((Segment(ids(1, 2)),), rows=ids()),),
        returns=Returns(sampled=True, log_tail=True),
    )
    check_reply(request, make_reply(request))
    reply = make_reply(FULL)
    failed = ContinuationScores(Status.NON_FINITE, "why")
    check_reply(FULL, dataclasses.replace(reply, results=(reply.results[0], failed, failed)))


Edit = Callable[[Any], None]


def edited(name: str, edit: Edit, *, result: int = 1, request: ScoreRequest = FULL) -> ScoreReply:
    """A valid reply but for one part of one continuation."""
    reply = make_reply(request)
    array = reply.results[result].rows.arrays()[name].copy()
    edit(array)
    return with_result(reply, with_arrays(reply.results[result], **{name: array}), result)


def with_result(reply: ScoreReply, scores: ContinuationScores, result: int) -> ScoreReply:
    results = list(reply.results)
    results[result] = scores
    return dataclasses.replace(reply, results=tuple(results))


def with_realignment(reply: ScoreReply, block: Realignment | None) -> ScoreReply:
    return with_result(reply, dataclasses.replace(reply.results[0], realignment=block), 0)


def put(where: Any, value: Any) -> Edit:
    def edit(part: Any) -> None:
        part[where] = value

    return edit


def swap(row: int) -> Edit:
    def edit(part: Any) -> None:
        part[row, [1, 2]] = part[row, [2, 1]]

    return edit


NAN, INF = float("nan"), float("inf")
POISON: dict[str, tuple[str, Edit, str]] = {
    "NaN": ("top_log_probs", put((2, 1), NAN), "[2, 1]"),
    "NaN first": ("top_log_probs", put((0, 0), NAN), "[0, 0]"),
    "NaN last": ("top_log_probs", put((4, 3), NAN), "[4, 3]"),
    "+inf": ("top_log_probs", put((1, 0), INF), "[1, 0]"),
    "-inf": ("top_log_probs", put((3, 3), -INF), "[3, 3]"),
    "above 0": ("top_log_probs", put((3, 0), 2e-4), "[3, 0]"),
    "not descending": ("top_log_probs", swap(2), "[2, 2]"),
    "mass": ("top_log_probs", put(0, np.log(0.3)), "[0]"),
    "duplicate": ("top_ids", lambda part: put((2, 3), part[2, 0])(part), "[2]"),
    "beyond the vocabulary": ("top_ids", put((4, 2), VOCABULARY), "[4, 2]"),
    "negative id": ("top_ids", put((1, 1), -1), "[1, 1]"),
    "very negative id": ("top_ids", put((1, 1), -(2**31)), "[1, 1]"),
    "count beyond K": ("valid_counts", put(1, 5), "[1]"),
    "negative count": ("valid_counts", put(1, -1), "[1]"),
    "sampled NaN": ("sampled_log_probs", put(0, NAN), "[0]"),
    "sampled -inf": ("sampled_log_probs", put(4, -INF), "[4]"),
    "sampled above 0": ("sampled_log_probs", put(4, 0.5), "[4]"),
    "sampled not valid and not 0": ("sampled_valid", put(2, False), "[2]"),
    "tail NaN": ("log_tail", put(3, NAN), "[3]"),
    "tail of another row": ("log_tail", put(3, -0.01), "[3]"),
}


@pytest.mark.parametrize("name", POISON)
def test_poison(name: str) -> None:
    part, edit, place = POISON[name]
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(FULL, edited(part, edit), TEACHER)
    field = part if part != "sampled_valid" else "sampled_log_probs"
    assert caught.value.where == f"results[1].{field}{place}"
    assert caught.value.fix


def test_rows_shifted_by_one_are_noticed() -> None:
    request = make_request(top_k=VOCABULARY)
    reply = make_reply(request)
    scores = reply.results[1]
    assert scores.rows.support is not None
    shifted = with_arrays(
        scores,
        top_ids=np.roll(scores.rows.support.ids, 1, axis=0),
        top_log_probs=np.roll(scores.rows.support.log_probs, 1, axis=0),
    )
    poisoned = dataclasses.replace(reply, results=(reply.results[0], shifted))
    with pytest.raises(PoisonedReplyError, match="same token") as caught:
        check_reply(request, poisoned)
    assert caught.value.where.startswith("results[1].sampled_log_probs[")


@pytest.mark.parametrize(
    ("part", "edit", "place"),
    [
        ("top_ids", put((0, 3), 5), "top_ids[0, 3]"),
        ("top_log_probs", put((0, 3), -1.0), "top_log_probs[0, 3]"),
        ("top_log_probs", put((0, 3), NAN), "top_log_probs[0, 3]"),
        ("top_log_probs", put((0, 1), NAN), "top_log_probs[0, 1]"),
        ("top_log_probs", swap(1), "top_log_probs[1, 2]"),
        ("top_ids", put((1, 0), 3), "top_ids[1, 0]"),
        ("valid_counts", put(1, 2), "top_ids[1, 2]"),
        ("valid_counts", put(1, 4), "top_log_probs[1, 3]"),
    ],
)
def test_rows_with_padding(part: str, edit: Edit, place: str) -> None:
    """Three ids exist, K is 4: the last slot of every row is padding."""
    request = dataclasses.replace(FULL, student_vocabulary_size=3, returns=Returns())
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(request, edited(part, edit, request=request))
    assert caught.value.where == f"results[1].{place}"


@pytest.mark.parametrize(
    ("part", "edit", "place"),
    [
        ("explicit_log_probs", put((0, 0), NAN), "[0, 0]"),
        ("explicit_log_probs", put((1, 1), 0.01), "[1, 1]"),
        ("explicit_log_probs", put((0, 1), -1.0), "[0, 1]"),
        ("explicit_valid", put((1, 2), True), "[1, 2]"),
    ],
)
def test_explicit_ids(part: str, edit: Edit, place: str) -> None:
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(FULL, edited(part, edit, result=2))
    assert caught.value.where == f"results[2].explicit_log_probs{place}"


PARTS = [rows.SUPPORT, rows.SAMPLED, rows.LOG_TAIL, rows.EXPLICIT]
EACH = [(part, name) for part in PARTS for name in part]


@pytest.mark.parametrize(("part", "name"), EACH)
def test_parts_that_are_missing_unasked_for_or_of_another_length(
    part: tuple[str, ...], name: str
) -> None:
    reply = make_reply(FULL)
    scores = reply.results[2]
    arrays = scores.rows.arrays()
    bare = make_request(
        top_k=0, returns=Returns(sampled=False), continuations=(Continuation(EXPLICIT.segments),)
    )
    missing = {key: value for key, value in arrays.items() if key not in part}
    unasked = {key: value for key, value in arrays.items() if key in part}
    short, long = arrays[name][:-1], np.concatenate([arrays[name], arrays[name]])
    for request, wrong, field in (
        (FULL, dataclasses.replace(scores, rows=Rows.of(missing)), part[0]),
        (FULL, with_arrays(scores, **{name: short}), name),
        (FULL, with_arrays(scores, **{name: long}), name),
        (bare, ContinuationScores(rows=Rows.of(unasked)), part[0]),
    ):
        last = len(request.continuations) - 1
        with pytest.raises(PoisonedReplyError) as caught:
            check_reply(request, with_result(make_reply(request), wrong, last))
        assert caught.value.where == f"results[{last}].{field}"


@pytest.mark.parametrize(("part", "name"), EACH)
@pytest.mark.parametrize("status", [Status.OK, Status.NON_FINITE])
def test_a_part_that_comes_without_one_of_its_arrays(
    part: tuple[str, ...], name: str, status: Status
) -> None:
    """Asked for or not: a part that is there is there as a whole."""
    message = codec.encode_reply(make_reply(FULL))
    message.results[2].status = score_pb2.ContinuationStatus.ValueType(status)
    message.results[2].ClearField(name)
    with pytest.raises(PoisonedReplyError, match="missing") as caught:
        codec.decode_reply(message)
    assert caught.value.where == f"results[2].{name}"


@pytest.mark.parametrize("part", PARTS)
def test_rows_that_come_with_a_failed_status(part: tuple[str, ...]) -> None:
    arrays = make_reply(FULL).results[2].rows.arrays()
    found = Rows.of({name: arrays[name] for name in part})
    failed = ContinuationScores(Status.NON_FINITE)
    reply = dataclasses.replace(make_reply(FULL), results=(failed, failed, failed))
    wrong = ContinuationScores(Status.NON_FINITE, rows=found)
    with pytest.raises(PoisonedReplyError, match="NON_FINITE"):
        check_reply(FULL, with_result(reply, wrong, 2))


def test_narrower_supports_than_asked_for() -> None:
    reply = make_reply(dataclasses.replace(FULL, top_k=3))
    with pytest.raises(PoisonedReplyError, match=r"must have \(3, 4\)"):
        check_reply(FULL, reply)


def test_other_numbers_of_continuations() -> None:
    reply = make_reply(FULL)
    for results in ((), reply.results[:2], (*reply.results, reply.results[0])):
        with pytest.raises(PoisonedReplyError) as caught:
            check_reply(FULL, dataclasses.replace(reply, results=results))
        assert caught.value.where == "results"


def test_the_answer_to_another_request() -> None:
    reply = dataclasses.replace(make_reply(FULL), request_id="other")
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(FULL, reply)
    assert caught.value.where == "request_id"


def test_another_teacher_than_expected() -> None:
    other = dataclasses.replace(IDENTITY, digest="d2")
    reply = make_reply(FULL, identity=other)
    check_reply(FULL, reply)
    for request, info in (
        (FULL, TEACHER),
        (dataclasses.replace(FULL, expected_identity="d1"), None),
        (dataclasses.replace(FULL, expected_identity="d2"), TEACHER),
    ):
        with pytest.raises(ContractMismatchError, match="d2") as caught:
            check_reply(request, reply, info)
        assert caught.value.reason == "IDENTITY_CHANGED"


def block(rows: int, **changes: Any) -> Realignment:
    half = np.full(rows, 0.5, np.float32)
    chunks = np.zeros(rows, np.int32)
    parts = Realignment(half, half / 2, half / 4, np.ones(rows, np.uint8), chunks, -half[:1])
    return dataclasses.replace(parts, **changes)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"coverage": np.full(2, 0.5, np.float32)}, ".coverage"),
        ({"open_mass": np.array([0, 0, 1.1], np.float32)}, ".open_mass[2]"),
        ({"lost_mass": np.array([0, NAN, 0], np.float32)}, ".lost_mass[1]"),
        ({"chunk_index": ids(0, 0, 1)}, ".chunk_index[2]"),
        ({"chunk_index": ids(-1, 0, 0)}, ".chunk_index[0]"),
        ({"chunk_log_likelihood": np.array([INF], np.float32)}, ".chunk_log_likelihood[0]"),
    ],
)
def test_realignment(changes: dict[str, Any], place: str) -> None:
    request = make_request(returns=Returns(realignment=True), tokenizer_hash="other")
    request = dataclasses.replace(request, continuations=request.continuations[:1])
    good = with_realignment(make_reply(request), block(3))
    check_reply(request, good, TEACHER)
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(request, with_realignment(good, block(3, **changes)))
    assert caught.value.where == f"results[0].realignment{place}"
    with pytest.raises(PoisonedReplyError, match="missing"):
        check_reply(request, with_realignment(good, None), TEACHER)
    unasked = dataclasses.replace(request, returns=Returns())
    with pytest.raises(PoisonedReplyError, match="not asked"):
        check_reply(unasked, good)


def coarse_reply(request: ScoreRequest) -> ScoreReply:
    """Three rows: one as any other, a coarse one and a masked one."""
    classes = np.array([PositionClass.ALIGNED, PositionClass.COARSE, PositionClass.MASKED])
    reasons = np.array([0, MaskReason.DOUBTFUL, MaskReason.LONG_CHUNK], np.uint8)
    return with_realignment(
        make_reply(request), block(3, position_class=classes.astype(np.uint8), mask_reason=reasons)
    )


COARSE = make_request(
    returns=Returns(sampled=True, log_tail=True, realignment=True, coarse=True),
    tokenizer_hash="other",
    continuations=make_request().continuations[:1],
)


def test_coarse_rows_pass_where_they_were_asked_for() -> None:
    check_reply(COARSE, coarse_reply(COARSE), TEACHER)
    without_ids = dataclasses.replace(
        COARSE, top_k=0, returns=dataclasses.replace(COARSE.returns, log_tail=False)
    )
    check_reply(without_ids, coarse_reply(without_ids), TEACHER)
    unasked = dataclasses.replace(COARSE, returns=dataclasses.replace(COARSE.returns, coarse=False))
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(unasked, coarse_reply(unasked), TEACHER)
    assert caught.value.where == "results[0].realignment.position_class[1]"


def test_a_reason_of_a_newer_server_passes() -> None:
    reply = coarse_reply(COARSE)
    found = block(3, position_class=reply.results[0].realignment.position_class)  # type: ignore[union-attr]
    check_reply(COARSE, with_realignment(reply, found), TEACHER)
    newer = np.array([0, 10, 200], np.uint8)
    check_reply(
        COARSE, with_realignment(reply, dataclasses.replace(found, mask_reason=newer)), TEACHER
    )


@pytest.mark.parametrize(
    ("reasons", "place"),
    [((1, 10, 4), "[0]"), ((0, 0, 4), "[1]"), ((0, 10, 0), "[2]"), ((0, 10), "")],
)
def test_reasons_are_those_of_masked_and_coarse_rows(reasons: tuple[int, ...], place: str) -> None:
    reply = coarse_reply(COARSE)
    found = required(reply.results[0].realignment, "realignment")
    other = dataclasses.replace(found, mask_reason=np.array(reasons, np.uint8))
    with pytest.raises(PoisonedReplyError) as caught:
        check_reply(COARSE, with_realignment(reply, other), TEACHER)
    assert caught.value.where == f"results[0].realignment.mask_reason{place}"


def test_a_coarse_row_has_ids_and_a_tail() -> None:
    reply = coarse_reply(COARSE)
    (scores,) = reply.results
    arrays = {name: array.copy() for name, array in scores.rows.arrays().items()}
    width = COARSE.top_k
    nothing = {**arrays, "log_tail": arrays["log_tail"].copy()}
    nothing["log_tail"][1] = 0
    for name, value in (("top_ids", -1), ("top_log_probs", 0), ("valid_counts", 0)):
        nothing[name] = arrays[name].copy()
        nothing[name][1] = value
    everything = {name: array.copy() for name, array in arrays.items()}
    everything["top_log_probs"][1] = np.log(1 / width)
    everything["log_tail"][1], everything["log_tail_valid"][1] = 0, False
    for changed, where in ((nothing, "valid_counts"), (everything, "log_tail")):
        bad = dataclasses.replace(reply, results=(with_arrays(scores, **changed),))
        with pytest.raises(PoisonedReplyError) as caught:
            check_reply(COARSE, bad, TEACHER)
        assert caught.value.where == f"results[0].{where}[1]"
