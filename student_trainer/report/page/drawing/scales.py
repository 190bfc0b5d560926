"""Axes and curves as numbers: where ticks are, what an axis spans, how a curve is smoothed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# More points than that are no longer seen: they are drawn as means of neighbours.
MOST_POINTS = 500
# A curve of fewer points is drawn as it is.
LEAST_SMOOTHED = 24
# What an axis shows at least; single values beyond it are drawn at its edge.
INSIDE = (1.0, 99.0)


def thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[Values, Values]:
    """float64 [n], twice, n <= ``MOST_POINTS``: means of neighbours where there are more points;
    NaN where there is no value."""
    places = np.array(x, np.float64)
    values = np.array([math.nan if value is None else value for value in y], np.float64)
    if len(places) <= MOST_POINTS:
        return places, values
    cuts = np.linspace(0, len(places), MOST_POINTS + 1).astype(np.int64)
    parts = list(itertools.pairwise(cuts))
    return (
        np.array([places[a:b].mean() for a, b in parts]),
        np.array([_mean(values[a:b]) for a, b in parts]),
    )


def smoothed(values: Values) -> Values | None:
    """float64 [n]: the mean of a window around each value, which single values hardly move; None
    where there are too few. Ends have half a window."""
    if int(np.isfinite(values).sum()) < LEAST_SMOOTHED:
        return None
    half = max(2, len(values) // 24)
    return np.array(
        [_trimmed(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
    )


def span(values: Values, *, zero: bool, share: bool) -> tuple[float, float]:
    """What an axis shows: [0, 1] of shares, otherwise nearly all values and a little more.

    Args:
        values: all of its curves.
        zero: whether 0 is on it.
    """
    if share:
        return 0.0, 1.0
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(known, INSIDE))
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    room = (high - low) * 0.06
    return (low if zero and low == 0 else low - room), high + room


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers in [low, high], about ``count`` of them."""
    width = (high - low) / count
    power = 10.0 ** math.floor(math.log10(width))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= width * 0.99)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def written(value: float, *, share: bool = False) -> str:
    """A tick's label."""
    if share:
        return f"{value:.0%}"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    if size >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _mean(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _trimmed(values: Values) -> float:
    """The mean without the largest and the smallest value."""
    known = np.sort(values[np.isfinite(values)])
    return _mean(known[1:-1] if len(known) > 4 else known)
