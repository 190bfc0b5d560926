"""Means with confidence intervals, and slopes on logarithmic axes. Pure functions in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values with Student's interval.

    Raises:
        ValueError: there are fewer than two values, or one is not finite.
    """
    array = np.asarray(values, np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"an interval needs two or more finite values, got {list(values)}")
    mean = float(array.mean())
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = student_quantile((1 + level) / 2, len(array) - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y over log x: the exponent b of y = a x^b.

    Raises:
        ValueError: there are fewer than two places, or a value is not positive and finite.
    """
    places, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = np.isfinite(places) & np.isfinite(values) & (places > 0) & (values > 0)
    if len(places) != len(values) or len(set(places.tolist())) < 2 or not good.all():
        raise ValueError("a slope needs two or more places, with positive finite values")
    across, up = np.log(places), np.log(values)
    across = across - across.mean()
    return float((across * (up - up.mean())).sum() / (across**2).sum())


def student_quantile(share: float, freedom: int) -> float:
    """The value below which Student's distribution has this share, by bisection.

    Raises:
        ValueError: the share is outside [0.5, 1), or there is no degree of freedom.
    """
    if not 0.5 <= share < 1 or freedom < 1:
        raise ValueError(f"no quantile of {share} with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_share(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_share(middle, freedom) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_share(value: float, freedom: int) -> float:
    """The distribution function at value >= 0: a finite sum for whole degrees of freedom
    (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    term = total = math.cos(angle) if freedom % 2 else 1.0
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    if freedom == 1:
        return 0.5 + angle / math.pi
    if freedom % 2:
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2
