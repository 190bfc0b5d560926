"""Bins whose edges are powers of two, the same in every step and run, so that curves compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

# Places of a response 0, 1, 2 to 3, 4 to 7, ... and the last from 32,768 on.
POSITION_BINS = 17
# Lengths 1, 2 to 3, 4 to 7, ... and the last from 65,536 on.
LENGTH_BINS = 17
# Probabilities in (1/2, 1], (1/4, 1/2], ... and the last of at most 2^-16.
PROBABILITY_BINS = 17


def position_bins(positions: NDArray[Any]) -> Int64:
    """int64, the shape of ``positions``: the bin of each place t >= 0 in its response."""
    found = np.ceil(np.log2(np.asarray(positions) + 1.0)).astype(np.int64)
    return np.minimum(found, POSITION_BINS - 1)


def length_bins(lengths: NDArray[Any]) -> Int64:
    """int64, the shape of ``lengths``: the bin of each length n >= 1."""
    found = np.floor(np.log2(np.asarray(lengths, np.float64))).astype(np.int64)
    return np.minimum(found, LENGTH_BINS - 1)


def probability_bins(log_probs: NDArray[Any]) -> Int64:
    """int64, the shape of ``log_probs``: the bin of each log-probability, nats. One that rounding
    has put above 0 is in the first."""
    found = np.floor(-np.asarray(log_probs, np.float64) / math.log(2.0)).astype(np.int64)
    return np.clip(found, 0, PROBABILITY_BINS - 1)


def position_label(place: int) -> str:
    """The places of a bin as text: ``0``, ``1``, ``2-3``, ``4-7``; the last ``32768-``."""
    if place < 2:
        return str(place)
    first = 2 ** (place - 1)
    return f"{first}-" if place == POSITION_BINS - 1 else f"{first}-{2 * first - 1}"


def length_label(place: int) -> str:
    """The lengths of a bin as text: ``1``, ``2-3``, ``4-7``; the last ``65536-``."""
    first = 2**place
    if place == LENGTH_BINS - 1:
        return f"{first}-"
    return f"{first}-{2 * first - 1}" if place else "1"


def probability_label(place: int) -> str:
    """The upper edge of a bin as text: ``1``, ``1/2``, ``1/4``."""
    return f"1/{2**place}" if place else "1"


# Metrics that are lists, one value for each bin, and what calls a bin.
LISTS: Mapping[str, Callable[[int], str]] = {
    "loss_by_position": position_label,
    "log_ratio_by_position": position_label,
    "signal_tokens_by_position": position_label,
    "log_ratio_by_probability": lambda place: f"{2.0**-place:g}",
    "responses_by_length": length_label,
}


def numbers_of_lists(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The values of ``LISTS``, also those of one teacher, each under ``KEY/BIN``: log-ratios of
    places 2 and 3 as ``log_ratio_by_position/2-3``. Bins without a value are left out."""
    return {
        f"{key}/{LISTS[name](place)}": value
        for key, values in metrics.items()
        if (name := key.partition("/")[0]) in LISTS
        for place, value in enumerate(values)
        if value is not None
    }


def means_of_bins(sums: Float64, counts: Int64) -> list[float | None]:
    """The mean of each bin; None for one without values, and none after the last that has any."""
    last = int(np.flatnonzero(counts).max(initial=-1)) + 1
    return [float(sums[b] / counts[b]) if counts[b] else None for b in range(last)]
