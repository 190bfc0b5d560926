"""The result of a realigned request as a message, and what of it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import EXPLICIT, LOG_TAIL, SAMPLED, SUPPORT, Rows
from teacher_proto.types import (
    ContinuationScores,
    MaskReason,
    PositionClass,
    Realignment,
    Status,
)

from teacher_server.frames import Frame, FrameError, texts_array, texts_of
from teacher_server.realign.requests.messages import (
    AskedContinuation,
    Plan,
    Realigned,
    RealignRequest,
)
from teacher_server.realign.requests.request_frames import joined, lengths, split

Array = NDArray[Any]
# Characters of the reason why a continuation is not realigned.
LONGEST_DETAIL = 1024
VALUES = (SAMPLED, LOG_TAIL, EXPLICIT)
DTYPES: dict[str, Any] = {
    **dict(zip(SUPPORT, (np.int32, np.float32, np.int32), strict=True)),
    **{values: np.float32 for values, _ in VALUES},
    **{valid: np.bool_ for _, valid in VALUES},
}
# The arrays of a row's realignment.
BLOCK: dict[str, Any] = {
    "coverage": np.float32,
    "open_mass": np.float32,
    "lost_mass": np.float32,
    "position_class": np.uint8,
    "mask_reason": np.uint8,
    "chunk_index": np.int32,
}


def result_frame(result: Realigned) -> Frame:
    """The rows of all continuations that have some, one after the other."""
    found = [one for one in result.scores if one.realignment is not None]
    parts = [one.rows.arrays() for one in found]
    arrays: dict[str, Array] = {}
    for name in {name for part in parts for name in part}:
        there = [part[name] for part in parts if name in part]
        if name in EXPLICIT:  # of different numbers of ids
            there = [array.reshape(-1) for array in there]
        arrays[name] = joined(there, DTYPES[name])
    for name, dtype in BLOCK.items():
        arrays[name] = joined([getattr(one.realignment, name) for one in found], dtype)
    chunks = [one.realignment.chunk_log_likelihood for one in found if one.realignment]
    return Frame(
        "done",
        {},
        {
            **arrays,
            **texts_array([one.detail for one in result.scores]),
            "status": np.array([one.status for one in result.scores], np.uint8),
            "chunk_log_likelihood": joined(chunks, np.float32),
            "chunks": lengths(chunks),
        },
    )


def result_of(frame: Frame, request: RealignRequest, plan: Plan) -> Realigned:
    """The result in a message.

    Each array has the type and the shape that the request asks for; what the numbers may be
    is left to the check of replies.

    Raises:
        FrameError: it is another one.
    """
    asked = request.continuations
    status = frame.array("status", np.uint8, len(asked))
    details = details_of(frame, len(asked))
    if not np.isin(status, list(Status)).all():
        raise FrameError("done: a status that there is not")
    unreadable = np.array([problem != "" for problem in plan.problems], np.bool_)
    if (status[unreadable] != Status.NOT_REALIGNED).any():
        raise FrameError("done: rows of what the teacher cannot read")
    fine = [one for one, kind in zip(asked, status.tolist(), strict=True) if kind == Status.OK]
    found = zip(_rows(frame, request, fine), _blocks(frame, fine), strict=True)
    scores = []
    for kind, detail in zip(status.tolist(), details, strict=True):
        if kind == Status.OK:
            rows, block = next(found)
            scores.append(ContinuationScores(rows=rows, realignment=block))
        else:
            scores.append(ContinuationScores(Status(kind), detail))
    return Realigned(tuple(scores))


def _rows(
    frame: Frame, request: RealignRequest, continuations: list[AskedContinuation]
) -> Iterator[Rows]:
    """The parts that were asked for, of each continuation."""
    counts = lengths([one.positions for one in continuations])
    rows, width = int(counts.sum()), request.top_k
    shapes: dict[str, tuple[int, ...]] = {}
    if width:
        shapes |= dict(zip(SUPPORT, ((rows, width), (rows, width), (rows,)), strict=True))
    if request.sampled:
        shapes |= dict.fromkeys(SAMPLED, (rows,))
    if request.log_tail:
        shapes |= dict.fromkeys(LOG_TAIL, (rows,))
    parts = {
        name: split(frame.array(name, DTYPES[name], *shape), counts)
        for name, shape in shapes.items()
    }
    explicit = [one.explicit_ids for one in continuations if one.explicit_ids is not None]
    sizes = np.array([ids.size for ids in explicit], np.int64)
    if explicit:
        parts |= {n: split(frame.array(n, DTYPES[n], int(sizes.sum())), sizes) for n in EXPLICIT}
    for one in continuations:
        ids = one.explicit_ids
        own = [name for name in parts if ids is not None or name not in EXPLICIT]
        arrays = {name: next(parts[name]) for name in own}
        if ids is not None:
            arrays |= {name: arrays[name].reshape(ids.shape) for name in EXPLICIT}
        yield Rows.of(arrays)


def _blocks(frame: Frame, continuations: list[AskedContinuation]) -> Iterator[Realignment]:
    """The realignment of each continuation."""
    counts = lengths([one.positions for one in continuations])
    rows = int(counts.sum())
    classes = frame.array("position_class", np.uint8, rows)
    if not np.isin(classes, list(PositionClass)).all():
        raise FrameError("done: a class of positions that there is not")
    reasons = frame.array("mask_reason", np.uint8, rows)
    if not np.isin(reasons, [0, *MaskReason]).all():
        raise FrameError("done: a reason that there is not")
    parts = {name: split(frame.array(name, BLOCK[name], rows), counts) for name in BLOCK}
    sizes = frame.array("chunks", np.int64, len(continuations))
    chunks = split(frame.array("chunk_log_likelihood", np.float32, None), sizes)
    for log_likelihood in chunks:
        block: dict[str, Any] = {name: next(part) for name, part in parts.items()}
        yield Realignment(**block, chunk_log_likelihood=log_likelihood)


def details_of(frame: Frame, count: int) -> tuple[str, ...]:
    """``count`` texts of ``texts_array``, each of at most ``LONGEST_DETAIL`` characters; raises
    FrameError."""
    frame.array("text_bytes", np.int64, count)
    if frame.array("text", np.uint8, None).size > 4 * LONGEST_DETAIL * count:
        raise FrameError(f"{frame.kind}: texts of more than {LONGEST_DETAIL} characters")
    found = texts_of(frame)
    if any(len(one) > LONGEST_DETAIL or (not one.isascii() and _broken(one)) for one in found):
        raise FrameError(f"{frame.kind}: not texts of {LONGEST_DETAIL} characters")
    return tuple(found)


def _broken(text: str) -> bool:
    """Whether it holds what is no character."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)
