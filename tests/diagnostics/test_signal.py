"""The signal of single tokens against its definition, row by row in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from student_trainer.diagnostics.signal import (
    Signal,
    effective_share,
    no_signal,
    signal_metrics,
    signal_of,
)

T = 400


def rows(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log q, log pi and places of some rows, of which a few have ratio 0 and a few are certain."""
    rng = np.random.default_rng(seed)
    log_q, log_pi = -rng.exponential(2.0, (2, T))
    log_q[:5] = log_pi[:5]
    log_q[5], log_pi[5], log_q[6], log_pi[7] = 0.0, 0.0, -40.0, -40.0
    log_q[8] = math.log(0.5)  # at an edge: not above 1/2
    return log_q, log_pi, rng.integers(0, 90, T)


def bin_of_place(place: int) -> int:
    """0, 1, 2 to 3, 4 to 7, ... by counting."""
    found, first = 0, 0
    while place > first:
        found += 1
        first = 2 * first + 1
    return found


def bin_of_probability(log_p: float) -> int:
    """Above 1/2, above 1/4, ... by counting."""
    return next((k for k in range(16) if math.exp(log_p) > 0.5 ** (k + 1)), 16)


def test_equals_the_definition() -> None:
    log_q, log_pi, places = rows()
    found = signal_metrics(signal_of(log_q, log_pi, places, unknown=7))
    ratio = [float(q) - float(p) for q, p in zip(log_q, log_pi, strict=True)]
    above, below = [a for a in ratio if a > 0], [-a for a in ratio if a < 0]
    assert 0 < len(ratio) - len(above) - len(below) < 10, "some are neither"
    assert (found["signal_tokens"], found["signal_unknown_tokens"]) == (T, 7)
    assert found["positive_share"] == pytest.approx(len(above) / T, rel=1e-12)
    assert found["negative_share"] == pytest.approx(len(below) / T, rel=1e-12)
    whole = math.fsum(above) + math.fsum(below)
    assert found["positive_signal_share"] == pytest.approx(math.fsum(above) / whole, rel=1e-12)
    for side, values in (("positive", above), ("negative", below)):
        shares = [value / math.fsum(values) for value in values]
        effective = 1 / math.fsum(share**2 for share in shares)
        wanted = pytest.approx(effective / len(values), rel=1e-12)
        assert found[f"{side}_effective_share"] == wanted
    for key, bins in (
        ("log_ratio_by_position", [bin_of_place(int(t)) for t in places]),
        ("log_ratio_by_probability", [bin_of_probability(float(q)) for q in log_q]),
    ):
        for number, mean in enumerate(found[key]):
            of_bin = [a for a, b in zip(ratio, bins, strict=True) if b == number]
            wanted = math.fsum(of_bin) / len(of_bin) if of_bin else None
            assert mean == (wanted if wanted is None else pytest.approx(wanted, abs=1e-12))
        assert len(found[key]) == max(bins) + 1
    counts = [sum(bin_of_place(int(t)) == number for t in places) for number in range(17)]
    assert found["signal_tokens_by_position"] == counts
    table = [[0] * 17 for _ in range(17)]
    for q, p in zip(log_q, log_pi, strict=True):
        table[bin_of_probability(float(q))][bin_of_probability(float(p))] += 1
    assert found["tokens_by_probabilities"] == table


def test_parts_add_up_in_any_order_and_through_json() -> None:
    log_q, log_pi, places = rows()
    whole = signal_of(log_q, log_pi, places, unknown=5)
    cuts = [slice(0, 1), slice(1, 250), slice(250, 250), slice(250, T)]
    parts = [
        signal_of(log_q[c], log_pi[c], places[c], unknown=n)
        for c, n in zip(cuts, (0, 2, 0, 3), strict=True)
    ]
    for order in (parts, parts[::-1]):
        added = no_signal()
        for part in order:
            added = added.plus(Signal.of_plain(json.loads(json.dumps(part.plain()))))
        assert close(signal_metrics(added), signal_metrics(whole))


def close(one: Any, other: Any) -> bool:
    """Whether nested values are the same but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other or math.isclose(one, other, rel_tol=1e-12)


def test_nothing_known_is_none_and_not_zero() -> None:
    found = signal_metrics(no_signal(unknown=4))
    assert found.pop("signal_tokens") == 0
    assert found.pop("signal_unknown_tokens") == 4
    assert found.pop("signal_tokens_by_position") == [0] * 17
    assert set(map(str, found.values())) == {"None", "[]"}


def test_a_student_that_is_its_teacher_has_no_signal_on_either_side() -> None:
    log_p, _, places = rows()
    found = signal_metrics(signal_of(log_p, log_p, places))
    assert (found["positive_share"], found["negative_share"]) == (0.0, 0.0)
    assert found["positive_signal_share"] is None
    assert found["positive_effective_share"] is None
    assert {value for value in found["log_ratio_by_position"] if value is not None} == {0.0}


def test_few_tokens_with_all_of_the_signal_have_a_small_effective_share() -> None:
    assert effective_share(4, 4 * 0.5, 4 * 0.25) == 1.0
    assert effective_share(100, 1.0, 1.0) == 0.01
    assert effective_share(0, 0.0, 0.0) is None


def test_probabilities_that_rounding_puts_above_1_are_in_the_first_bin() -> None:
    found = signal_of(np.array([1e-7]), np.array([1e-7]), np.array([0]))
    assert found.of_probabilities[0, 0] == 1
