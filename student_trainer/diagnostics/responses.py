"""What is told of the responses of a step: how long they are, how they end, what they repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from teacher_proto.types import Int32

from student_trainer.diagnostics.bins import LENGTH_BINS, length_bins
from student_trainer.diagnostics.repetition import Loops, loops_of
from student_trainer.rollout.base import Origin, Rollout

# Shares of the responses that are at most as long as response_length_pNN.
QUANTILES = (10, 50, 90)


@dataclass(frozen=True)
class Response:
    """What metrics say of a response of a step.

    Attributes:
        teacher: name of the one that scores it.
        tokens: that the student wrote in all of it.
        scored: how many of them, the first ones, the teacher is asked for.
        loop_tokens: of all of it that lie in a loop (``repetition``).
        longest_loop: tokens of its longest loop; 0 without one.
    """

    teacher: str
    origin: Origin
    tokens: int
    scored: int
    finished: bool
    loop_tokens: int
    longest_loop: int


def responses_of(
    rollouts: Sequence[Rollout], parts: Sequence[Rollout] | None = None
) -> list[Response]:
    """What metrics say of rollouts.

    Args:
        parts: what is scored of each; None where it is all.
    """
    loops = _loops(rollouts)
    return [
        Response(
            r.prompt.teacher, r.origin, r.own_length, part.own_length, r.finished,
            found.tokens, found.longest,
        )
        for r, part, found in zip(rollouts, parts or rollouts, loops, strict=True)
    ]  # fmt: skip


def _loops(rollouts: Sequence[Rollout]) -> list[Loops]:
    """The loops of each response; of an episode, those within its turns."""
    turns = [_turns(rollout) for rollout in rollouts]
    found = iter(loops_of([ids for of_response in turns for ids in of_response]))
    by_response = [[next(found) for _ in of_response] for of_response in turns]
    return [
        Loops(sum(one.tokens for one in some), max(one.longest for one in some))
        for some in by_response
    ]


def _turns(rollout: Rollout) -> list[Int32]:
    """The stretches of a response that the student wrote."""
    if rollout.own is None:
        return [rollout.token_ids]
    edges = np.flatnonzero(np.diff(rollout.own, prepend=False, append=False))
    return [rollout.token_ids[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def length_metrics(responses: Sequence[Response]) -> dict[str, Any]:
    """Lengths in tokens, and the share of the responses cut at the length limit; None where there
    are no responses. Quantiles lie between neighbouring lengths where none is exact.
    ``responses_by_length`` always has ``LENGTH_BINS`` counts, so that a tracker is told of those
    that are 0."""
    names = [f"response_length_p{q}" for q in QUANTILES]
    if not responses:
        missing = ("response_length_mean", *names, "response_length_max", "truncated_share")
        return {**dict.fromkeys(missing), "responses_by_length": [0] * LENGTH_BINS}
    lengths = np.array([one.tokens for one in responses])
    counts = np.bincount(length_bins(lengths), minlength=LENGTH_BINS)
    return {
        "response_length_mean": float(lengths.mean()),
        **dict(zip(names, np.percentile(lengths, QUANTILES).tolist(), strict=True)),
        "response_length_max": int(lengths.max()),
        "truncated_share": float(np.mean([not one.finished for one in responses])),
        "responses_by_length": counts.tolist(),
    }


def loop_metrics(responses: Sequence[Response]) -> dict[str, float | None]:
    """How much of the responses lies in loops; None where there are no responses."""
    if not responses:
        return dict.fromkeys(("loop_tokens_share", "looping_share", "longest_loop"))
    looping = [one for one in responses if one.longest_loop]
    return {
        "loop_tokens_share": sum(one.loop_tokens for one in responses)
        / sum(one.tokens for one in responses),
        "looping_share": len(looping) / len(responses),
        "longest_loop": max(one.longest_loop for one in responses),
    }
