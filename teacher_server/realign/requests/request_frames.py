"""What the service sends of a realigned request as messages: the request, then rows.

``go`` says that nothing stands against what was said; ``rows`` answers what was asked;
``enough`` says that there is no time for it, and for nothing that would be asked after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import Rows, WideRows

from teacher_server.frames import Frame, FrameError
from teacher_server.realign.requests.messages import Answer, AskedContinuation, RealignRequest

Array = NDArray[Any]
# Of a continuation that has no explicit ids.
NO_WIDTH = -1
NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)
GO = Frame("go")
ENOUGH = Frame("enough")
# Arrays of an answer that are not of its rows one by one.
_NOT_OF_ROWS = {"finite", "wide", "wide_log_probs", "wide_counts"}
_PLAIN = [one.name for one in fields(RealignRequest) if one.name != "continuations"]


def start_frame(request: RealignRequest) -> Frame:
    """The request as a message."""
    asked = request.continuations
    explicit = [one.explicit_ids for one in asked]
    widths = [NO_WIDTH if ids is None else ids.shape[1] for ids in explicit]
    return Frame(
        "start",
        {name: getattr(request, name) for name in _PLAIN},
        {
            "token_ids": joined([one.token_ids for one in asked], np.int32),
            "lengths": lengths([one.token_ids for one in asked]),
            "positions": joined([one.positions for one in asked], np.int32),
            "counts": lengths([one.positions for one in asked]),
            "explicit_ids": joined([x.reshape(-1) for x in explicit if x is not None], np.int32),
            "explicit_widths": np.array(widths, np.int64),
        },
    )


def request_of(frame: Frame) -> RealignRequest:
    """The request in a message; raises FrameError."""
    if frame.kind != "start":
        raise FrameError(f"a message {frame.kind!r} where a request begins")
    sizes = frame.array("lengths", np.int64, None)
    counts = frame.array("counts", np.int64, len(sizes))
    widths = frame.array("explicit_widths", np.int64, len(sizes))
    ids = frame.array("token_ids", np.int32, None)
    positions = frame.array("positions", np.int32, None)
    explicit = frame.array("explicit_ids", np.int32, None)
    explicit_sizes = np.maximum(widths, 0) * counts
    each = zip(
        split(ids, sizes),
        split(positions, counts),
        split(explicit, explicit_sizes),
        counts.tolist(),
        widths.tolist(),
        strict=True,
    )
    continuations = tuple(
        AskedContinuation(
            token_ids,
            selected,
            None if width == NO_WIDTH else asked.reshape(count, width),
        )
        for token_ids, selected, asked, count, width in each
    )
    try:
        plain = {name: frame.header[name] for name in _PLAIN}
    except KeyError as error:
        raise FrameError(f"start: {error} is missing") from None
    return RealignRequest(continuations=continuations, **plain)


def rows_frame(answer: Answer) -> Frame:
    """The rows of the spans that were asked, as a message."""
    finite = np.array([rows is not None for rows in answer], np.bool_)
    found = [rows for rows in answer if rows is not None]
    arrays: dict[str, Array] = dict(Rows.concatenate(found).arrays()) if found else {}
    wide = [rows for rows in found if isinstance(rows, WideRows)]
    if wide:
        places = [rows.wide if isinstance(rows, WideRows) else NO_ROWS for rows in found]
        arrays["wide"], arrays["wide_counts"] = joined(places, np.int64), lengths(places)
        arrays["wide_log_probs"] = np.concatenate([rows.wide_log_probs for rows in wide])
    return Frame("rows", {}, {"finite": finite, **arrays})


def answer_of(frame: Frame, counts: Sequence[int]) -> Answer:
    """The rows of spans of which ``counts`` rows were asked; raises FrameError."""
    if frame.kind != "rows":
        raise FrameError(f"a message {frame.kind!r} where rows were asked")
    finite = frame.array("finite", np.bool_, len(counts)).tolist()
    if not any(finite):
        return (None,) * len(counts)
    found = [count for count, there in zip(counts, finite, strict=True) if there]
    arrays = {name: array for name, array in frame.arrays.items() if name not in _NOT_OF_ROWS}
    parts = {name: split(array, np.array(found)) for name, array in arrays.items()}
    rows = [Rows.of({name: next(part) for name, part in parts.items()}) for _ in found]
    if "wide" in frame.arrays:
        rows = _wide_rows(frame, rows)
    left = iter(rows)
    return tuple(next(left) if there else None for there in finite)


def _wide_rows(frame: Frame, rows: Sequence[Rows]) -> list[Rows]:
    """The same, with what the frame says of those that are wide."""
    sizes = frame.array("wide_counts", np.int64, len(rows))
    wide = split(frame.array("wide", np.int64, None), sizes)
    values = split(frame.arrays["wide_log_probs"], sizes)
    return [
        WideRows(one.support, one.sampled, one.log_tail, one.explicit, *more)
        for one, *more in zip(rows, wide, values, strict=True)
    ]


def joined(arrays: Sequence[Array], dtype: Any) -> Array:
    """The arrays one after the other, along their first axis; [0] where there is none."""
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def lengths(arrays: Sequence[Array]) -> NDArray[np.int64]:
    return np.array([len(array) for array in arrays], np.int64)


def split(array: Array, sizes: NDArray[np.int64]) -> Iterator[Array]:
    """``array`` in parts of these sizes, without copies; raises FrameError where they do not
    add up to it."""
    if (sizes < 0).any() or (sizes > len(array)).any() or int(sizes.sum()) != len(array):
        raise FrameError(f"{len(array)} entries are not what their sizes add up to")
    ends = np.cumsum(sizes).tolist()
    return (array[end - size : end] for end, size in zip(ends, sizes.tolist(), strict=True))
