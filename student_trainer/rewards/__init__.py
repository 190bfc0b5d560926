"""Rewards: the scores of verifiers as a policy gradient beside the loss (docs/rewards.md)."""

from __future__ import annotations

from student_trainer.rewards.advantages import group_advantages
from student_trainer.rewards.settings import RewardSettings
from student_trainer.rewards.term import reward_term

__all__ = ["RewardSettings", "group_advantages", "reward_term"]
