"""Scores of some responses as arrays over all their rows, one response after the other.

R rows of one response, T of all, K ids of a support, E explicit ids. What was not asked for
is missing; what was asked for and has no value is masked, or NaN, which every loss drops and
counts. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from teacher_proto.errors import LsmError
from teacher_proto.rows import Rows, Values
from teacher_proto.types import ContinuationScores, PositionClass, Status
from torch import Tensor

Array = NDArray[Any]
# Slots of a support that nobody has: two, so that a row of NaN counts as one that is not finite
# and not as one with too small a support.
UNKNOWN_SLOTS = 2


class LossBatchError(LsmError, ValueError):
    """What is given to ``LossBatch.from_scores`` does not fit together."""

    default_reason = "LOSS_BATCH"


def loss_arrays(
    sampled_ids: Sequence[Any],
    scores: Sequence[ContinuationScores],
    *,
    rows: Sequence[Any] | None = None,
    explicit_ids: Sequence[Any] | None = None,
    old_log_probs: Sequence[Any] | None = None,
    weights: Any = None,
) -> dict[str, Array]:
    """The arrays of a ``LossBatch`` by its attributes' names; arguments as those of
    ``LossBatch.from_scores``.

    Raises:
        LossBatchError: lengths, dtypes or parts do not fit together.
    """
    if isinstance(scores, ContinuationScores) or not scores:
        what = "there are no scores" if isinstance(scores, Sequence) else "they are of one response"
        raise LossBatchError(what, where="scores", fix="give a list of the scores of responses")
    for name, given in (
        ("sampled_ids", sampled_ids),
        ("rows", rows),
        ("explicit_ids", explicit_ids),
        ("old_log_probs", old_log_probs),
    ):
        if name == "sampled_ids" or given is not None:
            count = 0 if given is None else len(given)
            if count == len(scores):
                continue
            raise LossBatchError(
                f"{count} arrays for {len(scores)} scores",
                where=name,
                fix="give one for each response, in the order of the scores",
            )
    sampled = [_ids(ids, f"sampled_ids[{i}]", 1) for i, ids in enumerate(sampled_ids)]
    for i, ids in enumerate(sampled):
        if len(ids) and ids.min() < 0:
            raise LossBatchError(
                f"it is {described(ids)} and holds {ids.min()}",
                where=f"sampled_ids[{i}]",
                fix="give the ids of tokens, which are at least 0",
            )
    chosen = [
        _chosen(scored, ids, None if rows is None else rows[i], i)
        for i, (scored, ids) in enumerate(zip(scores, sampled, strict=True))
    ]
    places = [
        np.arange(len(ids)) if rows is None else _ids(rows[i], f"rows[{i}]", 1)
        for i, ids in enumerate(sampled)
    ]
    counts = [len(ids) for ids in sampled]
    found = {
        "sampled_ids": np.concatenate(sampled),
        "weights": _weights(weights, scores, places),
        "responses": np.repeat(np.arange(len(scores)), counts),
        "steps": np.concatenate(places),
        **_supports(chosen, counts),
        **_values(chosen, counts, "log_tail", "teacher_log_tail", "teacher_tail_valid"),
        **_explicit(chosen, counts, explicit_ids),
    }
    own = _values(chosen, counts, "sampled", "teacher_sampled", "valid")
    if own:
        valid = own["valid"]
        found["teacher_sampled"] = np.where(valid, own["teacher_sampled"], np.float32(np.nan))
    if old_log_probs is not None:
        found["old_log_probs"] = np.concatenate(list(_old(old_log_probs, counts)))
    coarse = np.concatenate(
        [_of_class(s, p, PositionClass.COARSE) for s, p in zip(scores, places, strict=True)]
    )
    return found | ({"coarse": coarse} if coarse.any() else {})


def described(array: Any) -> str:
    """dtype and shape, such as ``float32 [3, 8]``."""
    return f"{array.dtype} {list(array.shape)}"


def _chosen(scored: ContinuationScores, sampled: Array, rows: Any, index: int) -> Rows | None:
    """The rows that are asked for; None where the response has none."""
    if scored.status is not Status.OK:
        return None
    held = scored.rows.arrays()
    if not held:
        raise LossBatchError(
            "there are no rows in it", where=f"scores[{index}]", fix="ask the service for top_k ids"
        )
    count = len(next(iter(held.values())))
    found = scored.rows
    if rows is not None:
        at = _ids(rows, f"rows[{index}]", 1)
        if len(at) and (at.min() < 0 or at.max() >= count):
            raise LossBatchError(
                f"they reach from {at.min()} to {at.max()}, and scores[{index}] has {count} rows",
                where=f"rows[{index}]",
                fix="give places from 0 to the number of rows, exclusive",
            )
        found, count = scored.rows.at(at), len(at)
    if len(sampled) != count:
        raise LossBatchError(
            f"it is {described(sampled)} and there are {count} rows",
            where=f"sampled_ids[{index}]",
            fix=f"give the token of each row of scores[{index}], int [{count}]",
        )
    return found


def _ids(given: Any, where: str, dimensions: int) -> Array:
    """int64 of the wanted number of dimensions."""
    array = as_array(given, where)
    if not array.size and array.ndim == dimensions:
        return array.astype(np.int64)  # a list of nothing has no dtype of its own
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        shape = ", ".join(["n", "E"][:dimensions])
        raise LossBatchError(
            f"it is {described(array)}", where=where, fix=f"give integers of shape [{shape}]"
        )
    return array.astype(np.int64)


def as_array(given: ArrayLike | Any, where: str) -> Array:
    """A numpy array of an array, a list or a tensor.

    Raises:
        LossBatchError: it is none of these, or its rows have unequal lengths.
    """
    try:
        if not isinstance(given, Tensor):
            return np.asarray(given)
        whole = given.detach().cpu()
        # numpy has no bfloat16; float32 holds all of its values.
        return (whole.float() if whole.dtype == torch.bfloat16 else whole).numpy()
    except (TypeError, ValueError) as error:
        raise LossBatchError(
            f"it is no array: {error}", where=where, fix="give an array, a list or a tensor"
        ) from error


def _weights(given: Any, scores: Sequence[ContinuationScores], places: list[Array]) -> Array:
    """float32 [T]: as they are given, or 1 where the teacher gives the row and 0 elsewhere."""
    if given is None:
        return np.concatenate(
            [
                np.zeros(len(place), np.float32)
                if scored.status is Status.NOT_REALIGNED
                else 1 - _of_class(scored, place, PositionClass.MASKED).astype(np.float32)
                for scored, place in zip(scores, places, strict=True)
            ]
        )
    weights, total = as_array(given, "weights"), sum(map(len, places))
    if weights.shape != (total,) or weights.dtype.kind != "f":
        raise LossBatchError(
            f"they are {described(weights)}",
            where="weights",
            fix=f"give one weight for each row, float [{total}]",
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise LossBatchError(
            f"they are {described(weights)}, and that of row {wrong[0]} is {weights[wrong[0]]}",
            where="weights",
            fix="give finite weights of at least 0; 0 leaves a row out",
        )
    return weights.astype(np.float32)


def _of_class(scored: ContinuationScores, places: Array, kind: PositionClass) -> Array:
    """bool [n]: which of the rows at these places are of the class."""
    if scored.realignment is None:
        return np.zeros(len(places), np.bool_)
    of_class: Array = scored.realignment.position_class[places] == kind
    return of_class


def _supports(chosen: Sequence[Rows | None], counts: Sequence[int]) -> dict[str, Array]:
    """The supports, as wide as the widest; slots without an id are not valid. A response that
    has no rows gets NaN."""
    held = [None if rows is None else rows.support for rows in chosen]
    if all(support is None for support in held) and any(rows is not None for rows in chosen):
        return {}
    widths = [support.ids.shape[1] for support in held if support is not None]
    width = max(widths, default=UNKNOWN_SLOTS)
    ids, log_probs, valid = [], [], []
    for support, count in zip(held, counts, strict=True):
        if support is None:
            ids.append(np.zeros((count, width), np.int64))
            log_probs.append(np.full((count, width), np.nan, np.float32))
            valid.append(np.ones((count, width), np.bool_))
            continue
        missing = ((0, 0), (0, width - support.ids.shape[1]))
        holds = np.pad(support.valid, missing)
        ids.append(np.where(holds, np.pad(support.ids, missing), 0).astype(np.int64))
        log_probs.append(np.pad(support.log_probs, missing))
        valid.append(holds)
    return {
        "support_ids": np.concatenate(ids),
        "support_log_probs": np.concatenate(log_probs),
        "support_valid": np.concatenate(valid),
    }


def _values(
    chosen: Sequence[Rows | None], counts: Sequence[int], part: str, values: str, valid: str
) -> dict[str, Array]:
    """A part of the rows under the names ``values`` and ``valid``, NaN where a response has not
    got it; nothing where it is of none that has rows."""
    held: list[Values | None] = [None if r is None else getattr(r, part) for r in chosen]
    if all(one is None for one in held) and any(rows is not None for rows in chosen):
        return {}
    known = [_unknown(n) if one is None else one for one, n in zip(held, counts, strict=True)]
    return {
        values: np.concatenate([one.values for one in known]),
        valid: np.concatenate([one.valid for one in known]),
    }


def _explicit(
    chosen: Sequence[Rows | None], counts: Sequence[int], given: Sequence[Any] | None
) -> dict[str, Array]:
    held = [None if rows is None else rows.explicit for rows in chosen]
    if given is None:
        for index, explicit in enumerate(held):
            if explicit is not None:
                raise LossBatchError(
                    f"scores[{index}] has values {described(explicit.values)} at explicit ids, "
                    "and the ids are not given",
                    where="explicit_ids",
                    fix="give the ids that were asked for, an int [n, E] for each response",
                )
        return {}
    ids = [_ids(one, f"explicit_ids[{i}]", 2) for i, one in enumerate(given)]
    width = max(one.shape[1] for one in ids)
    known = []
    for index, (explicit, own, count) in enumerate(zip(held, ids, counts, strict=True)):
        if chosen[index] is not None and explicit is None:
            raise LossBatchError(
                f"ids are given, and scores[{index}] has no values at explicit ids",
                where=f"explicit_ids[{index}]",
                fix="ask the service for them (Continuation.explicit_ids), or leave them out",
            )
        expected = (count, own.shape[1]) if explicit is None else explicit.values.shape
        if own.shape != expected:
            raise LossBatchError(
                f"it is {described(own)}, and scores[{index}] has values at {list(expected)} ids",
                where=f"explicit_ids[{index}]",
                fix="give the ids that were asked for, of the same rows",
            )
        known.append(_unknown(*own.shape) if explicit is None else explicit)

    def wide(parts: Sequence[Array]) -> Array:
        return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in parts])

    # A slot that asked for nothing holds id -1 in the request and is not valid in the reply.
    return {
        "explicit_ids": wide([np.maximum(one, 0) for one in ids]),
        "explicit_log_probs": wide([one.values for one in known]),
        "explicit_valid": wide([one.valid for one in known]),
    }


def _old(given: Sequence[Any], counts: Sequence[int]) -> Iterator[Array]:
    for index, (one, count) in enumerate(zip(given, counts, strict=True)):
        array = as_array(one, f"old_log_probs[{index}]")
        if array.shape != (count,) or array.dtype.kind != "f":
            raise LossBatchError(
                f"it is {described(array)}",
                where=f"old_log_probs[{index}]",
                fix=f"give the log-probability of each sampled token, float [{count}]",
            )
        yield array.astype(np.float32)


def _unknown(*shape: int) -> Values:
    return Values(np.full(shape, np.nan, np.float32), np.ones(shape, np.bool_))
