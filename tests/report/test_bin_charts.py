"""Charts of lists over bins join the steps of a part of the run."""

from __future__ import annotations

from typing import Any

import pytest

from student_trainer.report.page.bin_charts import charts_of_bins


def drawn(lines: list[dict[str, Any]]) -> dict[str, list[list[float | None]]]:
    """The values of each chart's curves, by its title."""
    return {
        chart.title: [list(curve.y) for panel in chart.panels for curve in panel.curves]
        for chart in charts_of_bins(lines)
    }


def test_means_are_over_tokens_and_not_over_steps() -> None:
    few = {"log_ratio_by_position": [-1.0, None, -8.0], "signal_tokens_by_position": [5, 0, 1]}
    many = {"log_ratio_by_position": [-2.0, None, -1.0], "signal_tokens_by_position": [5, 0, 999]}
    by_probability = [
        {"log_ratio_by_probability": [1.0], "tokens_by_probabilities": [[30, 10], [0, 0]]},
        {"log_ratio_by_probability": [2.0, -4.0], "tokens_by_probabilities": [[5, 5], [1, 1]]},
    ]
    steps = [{**one, **other} for one, other in zip((few, many), by_probability, strict=True)]
    # A part is a third of the steps: two of these six.
    first, _ = drawn([*steps, *steps, *steps])["Log-ratio by position"]
    assert first == [-1.5, None, pytest.approx((-8 - 999) / 1000)]
    first, _ = drawn([*steps, *steps, *steps])["Log-ratio by the teacher's probability"]
    assert first == [pytest.approx((40 + 20) / 50), -4.0]


def test_lengths_that_no_response_has_are_not_drawn() -> None:
    lines = [{"responses_by_length": [1, 0, 3, *[0] * 14]}] * 3
    assert drawn(lines)["Lengths of answers"] == [[0.25, 0, 0.75]] * 2
    nothing = [{"responses_by_length": [0] * 17}] * 3
    assert drawn(nothing)["Lengths of answers"] == [[], []]
