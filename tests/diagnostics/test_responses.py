"""Lengths and loops of a step's responses."""

from __future__ import annotations

import numpy as np
import pytest
from teacher_proto.types import TextPrompt

from student_trainer.diagnostics.bins import (
    length_label,
    numbers_of_lists,
    position_label,
    probability_label,
)
from student_trainer.diagnostics.responses import length_metrics, loop_metrics, responses_of
from student_trainer.rollout.base import PromptItem, Rollout


def rollout(ids: list[int], *, finished: bool = True) -> Rollout:
    item = PromptItem("p", np.array([1], np.int32), TextPrompt("a"))
    return Rollout(item, 0, np.array(ids, np.int32), np.zeros(len(ids), np.float32), finished)


def test_lengths_and_loops() -> None:
    rollouts = [
        rollout(list(range(1, 11))),
        rollout([1, 2] * 10, finished=False),
        rollout([5]),
        rollout([5, 6, 7]),
    ]
    whole = responses_of(rollouts)
    parts = responses_of(rollouts, [one.first(2) for one in rollouts])
    assert [one.scored for one in parts] == [2, 2, 1, 2]
    assert length_metrics(parts) == length_metrics(whole), "of whole responses"
    assert loop_metrics(parts) == loop_metrics(whole), "of whole responses"
    found = length_metrics(whole)
    # Sorted 1, 3, 10, 20: the quantiles lie at places .3, 1.5 and 2.7 of them.
    assert found == {
        "response_length_mean": 8.5,
        "response_length_p10": pytest.approx(1 + 0.3 * 2),
        "response_length_p50": pytest.approx(6.5),
        "response_length_p90": pytest.approx(10 + 0.7 * 10),
        "response_length_max": 20,
        "truncated_share": 0.25,
        "responses_by_length": [1, 1, 0, 1, 1, *[0] * 12],
    }
    assert loop_metrics(whole) == {
        "loop_tokens_share": pytest.approx(20 / 34),
        "looping_share": 0.25,
        "longest_loop": 20,
    }


def test_no_response_says_nothing() -> None:
    found = {**length_metrics([]), **loop_metrics([])}
    assert found.pop("responses_by_length") == [0] * 17, "there are none of any length"
    assert set(found.values()) == {None}


def test_a_tracker_is_told_of_lengths_that_no_longer_occur() -> None:
    before, after = (
        numbers_of_lists(length_metrics(responses_of([rollout([1] * count)]))) for count in (5, 2)
    )
    assert (before["responses_by_length/4-7"], after["responses_by_length/4-7"]) == (1, 0)


def test_labels_of_bins() -> None:
    assert [position_label(n) for n in (0, 1, 2, 3, 16)] == ["0", "1", "2-3", "4-7", "32768-"]
    assert [length_label(n) for n in (0, 1, 2, 16)] == ["1", "2-3", "4-7", "65536-"]
    assert [probability_label(n) for n in (0, 1, 2)] == ["1", "1/2", "1/4"]


def test_trackers_get_a_number_for_each_bin() -> None:
    line = {
        "loss": 0.5,
        "log_ratio_by_position": [-1.0, None, -2.0],
        "log_ratio_by_probability/a": [0.25, None, -0.5],
        "responses_by_length": [0, 3],
        "tokens_by_probabilities": [[1]],
    }
    assert numbers_of_lists(line) == {
        "log_ratio_by_position/0": -1.0,
        "log_ratio_by_position/2-3": -2.0,
        "log_ratio_by_probability/a/1": 0.25,
        "log_ratio_by_probability/a/0.25": -0.5,
        "responses_by_length/1": 0,
        "responses_by_length/2-3": 3,
    }
