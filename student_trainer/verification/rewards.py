"""What a step learns from the scores of its responses, and what its metrics say of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from student_trainer.rewards.advantages import group_advantages
from student_trainer.rewards.settings import RewardSettings
from student_trainer.rollout.base import Rollout
from student_trainer.tasks.judgement import Judgement


def with_advantages(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement | None],
    settings: RewardSettings,
    *,
    weight: float,
    size: int,
) -> list[Rollout]:
    """The rollouts, each with what its tokens' policy gradient is weighed with.

    Args:
        rollouts: of whole groups, one group of ``size`` after the other.
        judgements: of each; None of a task that does not judge.
        weight: of the policy gradient in this step.
    """
    found = [
        float(weight * advantage)
        for group in _groups(judgements, size)
        for advantage in group_advantages(
            [_score(one, settings) for one in group], settings.normalise
        )
    ]
    return [replace(one, advantage=a) for one, a in zip(rollouts, found, strict=True)]


def reward_metrics(
    judgements: Sequence[Judgement | None],
    settings: RewardSettings,
    *,
    weight: float,
    size: int,
) -> dict[str, Any]:
    """What the metrics of a step say of its rewards; None for what there is none of.

    Args:
        judgements: of all responses of the step, by group.
    """
    scores: list[float] = []
    advantages: list[float] = []
    judged = silent = 0
    for group in _groups(judgements, size):
        if all(one is None for one in group):
            continue  # of a task that does not judge
        judged += 1
        of_group = [_score(one, settings) for one in group]
        apart = group_advantages(of_group, settings.normalise)
        silent += not apart.any()
        scores += [score for score in of_group if score is not None]
        advantages += [float(a) for a in apart]
    asked = sum(one is not None for one in judgements)
    return {
        "reward_weight": weight,
        "reward_mean": float(np.mean(scores)) if scores else None,
        "reward_advantage_deviation": float(np.std(advantages)) if advantages else None,
        "reward_groups_without_signal_share": silent / judged if judged else None,
        "reward_unscored_responses": asked - len(scores),
    }


def _groups(
    judgements: Sequence[Judgement | None], size: int
) -> Iterator[Sequence[Judgement | None]]:
    assert len(judgements) % size == 0, "the groups of a step are whole"
    for first in range(0, len(judgements), size):
        yield judgements[first : first + size]


def _score(judgement: Judgement | None, settings: RewardSettings) -> float | None:
    if judgement is None or judgement.score is not None or not judgement.begun:
        return None if judgement is None else judgement.score
    return settings.failed_score
