"""Losses: plain functions of (LossBatch, Head, LossSettings), one row each in LOSSES."""

from student_trainer.losses.base import Head, LossBatch, LossFunction, LossResult, LossSettings
from student_trainer.losses.sampled_token import sampled_token
from student_trainer.losses.support import lsm, topk_forward_kl, topk_jsd

LOSSES: dict[str, LossFunction] = {
    "lsm": lsm,
    "topk_forward_kl": topk_forward_kl,
    "topk_jsd": topk_jsd,
    "sampled_token": sampled_token,
}

__all__ = [
    "LOSSES",
    "Head",
    "LossBatch",
    "LossFunction",
    "LossResult",
    "LossSettings",
    "lsm",
    "sampled_token",
    "topk_forward_kl",
    "topk_jsd",
]
