"""Losses: plain functions of (LossBatch, Head, LossSettings), each with a row in LOSSES."""

from student_trainer.losses.base import (
    Head,
    LossBatch,
    LossFunction,
    LossResult,
    LossSettings,
    LowRank,
)
from student_trainer.losses.choose_support import choose_support
from student_trainer.losses.chunk import chunk_policy
from student_trainer.losses.full import full_jsd, full_reverse_kl
from student_trainer.losses.normaliser import top_ids
from student_trainer.losses.sampled_token import sampled_token
from student_trainer.losses.support import (
    lsm,
    topk_forward_kl,
    topk_jsd,
    unnormalised_reverse_kl,
)

LOSSES: dict[str, LossFunction] = {
    "lsm": lsm,
    "topk_forward_kl": topk_forward_kl,
    "topk_jsd": topk_jsd,
    "sampled_token": sampled_token,
    "unnormalised_reverse_kl": unnormalised_reverse_kl,
    "full_reverse_kl": full_reverse_kl,
    "full_jsd": full_jsd,
}

__all__ = [
    "LOSSES",
    "Head",
    "LossBatch",
    "LossFunction",
    "LossResult",
    "LossSettings",
    "LowRank",
    "choose_support",
    "chunk_policy",
    "full_jsd",
    "full_reverse_kl",
    "lsm",
    "sampled_token",
    "top_ids",
    "topk_forward_kl",
    "topk_jsd",
    "unnormalised_reverse_kl",
]
