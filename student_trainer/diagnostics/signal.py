"""The signal that single sampled tokens give: the log-ratio of teacher to student at each.

    a_t = log q(y_t) - log pi_old(y_t), nats

with q the teacher at the loss's temperature and pi_old the student that drew y_t, at the
rollout's temperature and before top-p. T rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from student_trainer.diagnostics.bins import (
    POSITION_BINS,
    PROBABILITY_BINS,
    Float64,
    Int64,
    means_of_bins,
    position_bins,
    probability_bins,
)

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Signal:
    """What the rows of a step add up to; those of micro-batches, ranks and teachers add up too.

    Attributes:
        unknown: int64 [], rows in the loss whose signal is not known; they are in nothing else.
        of_position, sums_of_position: int64 and float64 [POSITION_BINS], rows and the sum of their
            a_t, by place in the response.
        of_probabilities: int64 [PROBABILITY_BINS, PROBABILITY_BINS], rows by the teacher's and by
            the student's probability of the token.
        sums_of_probability: float64 [PROBABILITY_BINS], sum of a_t by the teacher's probability.
        of_side, sums_of_side, squares_of_side: int64 and float64 [2], rows with a_t above and with
            a_t below 0, the sums of |a_t| and of its square.
    """

    unknown: Int64
    of_position: Int64
    sums_of_position: Float64
    of_probabilities: Int64
    sums_of_probability: Float64
    of_side: Int64
    sums_of_side: Float64
    squares_of_side: Float64

    @property
    def rows(self) -> int:
        """How many rows have a known signal."""
        return int(self.of_position.sum())

    def plus(self, other: Signal) -> Signal:
        """The sums over the rows of both."""
        return Signal(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in FIELDS})

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {f.name: getattr(self, f.name).tolist() for f in FIELDS}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Signal:
        """The inverse of ``plain``."""
        empty = no_signal()
        kinds = {f.name: getattr(empty, f.name).dtype for f in FIELDS}
        return cls(**{name: np.array(values[name], kind) for name, kind in kinds.items()})


FIELDS = fields(Signal)


def no_signal(unknown: int = 0) -> Signal:
    """Of no row, but for ``unknown`` of which nothing is known."""
    none = np.zeros(0)
    return signal_of(none, none, np.zeros(0, np.int64), unknown)


def signal_of(log_q: Float64, log_pi: Float64, positions: Int64, unknown: int = 0) -> Signal:
    """The sums over some rows.

    Args:
        log_q, log_pi: float64 [T], finite: log q(y_t) and log pi_old(y_t), nats.
        positions: int64 [T], each row's place in its response.
        unknown: further rows, whose signal is not known.
    """
    ratio = log_q - log_pi
    places, ours = position_bins(positions), probability_bins(log_pi)
    theirs = probability_bins(log_q)
    both = theirs * PROBABILITY_BINS + ours
    sides = [ratio[ratio > 0], -ratio[ratio < 0]]
    return Signal(
        unknown=np.array(unknown, np.int64),
        of_position=np.bincount(places, minlength=POSITION_BINS),
        sums_of_position=_sums(places, ratio, POSITION_BINS),
        of_probabilities=np.bincount(both, minlength=PROBABILITY_BINS**2).reshape(
            PROBABILITY_BINS, PROBABILITY_BINS
        ),
        sums_of_probability=_sums(theirs, ratio, PROBABILITY_BINS),
        of_side=np.array([len(side) for side in sides], np.int64),
        sums_of_side=np.array([side.sum() for side in sides], np.float64),
        squares_of_side=np.array([(side**2).sum() for side in sides], np.float64),
    )


def _sums(bins: Int64, values: Float64, count: int) -> Float64:
    """float64 [count]; numpy gives integers where there is no value."""
    return np.bincount(bins, values, count).astype(np.float64)


def signal_metrics(signal: Signal) -> dict[str, Any]:
    """The metrics of a step by name; None, and empty lists, where no row has a known signal.
    Counts are 0 there."""
    rows, whole = signal.rows, float(signal.sums_of_side.sum())
    effective = {
        f"{side}_effective_share": effective_share(
            int(signal.of_side[at]),
            float(signal.sums_of_side[at]),
            float(signal.squares_of_side[at]),
        )
        for at, side in enumerate(SIDES)
    }
    return {
        "signal_tokens": rows,
        "signal_unknown_tokens": int(signal.unknown),
        "positive_share": int(signal.of_side[0]) / rows if rows else None,
        "negative_share": int(signal.of_side[1]) / rows if rows else None,
        "positive_signal_share": float(signal.sums_of_side[0]) / whole if whole else None,
        **effective,
        "log_ratio_by_position": means_of_bins(signal.sums_of_position, signal.of_position),
        "signal_tokens_by_position": signal.of_position.tolist(),
        "log_ratio_by_probability": means_of_bins(
            signal.sums_of_probability, signal.of_probabilities.sum(1)
        ),
        "tokens_by_probabilities": signal.of_probabilities.tolist() if rows else [],
    }


def effective_share(count: int, total: float, squares: float) -> float | None:
    """Kish's effective sample size of ``count`` positive values over their number, in (0, 1]: 1
    where all are equal, 1 / count where one has everything; None without a value.

    Args:
        total, squares: the sum of the values, and of their squares.
    """
    return total**2 / (count * squares) if count and squares else None
