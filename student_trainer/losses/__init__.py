"""Losses, one file each; each has a row in LOSSES. ``parts`` holds what they are made of.

A loss is a class whose fields are its settings and whose call, ``loss(batch, head)``, is the loss
(``parts.loss``). Each is also a plain function of (LossBatch, Head, LossSettings); two of them take
their own class in place of LossSettings. ``full_*`` are functions alone: they need the teacher in
the same process, so no run can have them.
"""

from student_trainer.losses.chunk import chunk_policy
from student_trainer.losses.entropy_switch import EntropySwitchLoss, entropy_switch
from student_trainer.losses.fixed_advantage import FixedAdvantageLoss, fixed_advantage
from student_trainer.losses.full import full_jsd, full_reverse_kl
from student_trainer.losses.generalised_reverse_kl import (
    GeneralisedReverseKlLoss,
    generalised_reverse_kl,
)
from student_trainer.losses.lsm import LsmLoss, lsm
from student_trainer.losses.parts.base import (
    Head,
    LossBatch,
    LossFunction,
    LossResult,
    LossSettings,
    LowRank,
)
from student_trainer.losses.parts.choose_support import choose_support, single_ids_as_coarse
from student_trainer.losses.parts.loss import Loss, RowsAsked
from student_trainer.losses.parts.normaliser import top_ids
from student_trainer.losses.parts.on_support import OnSupport, SupportLoss
from student_trainer.losses.parts.support_rows import support_loss, unnormalised_loss
from student_trainer.losses.sampled_token import SampledTokenLoss, sampled_token
from student_trainer.losses.scored.arrays import LossBatchError
from student_trainer.losses.topk_forward_kl import TopkForwardKlLoss, topk_forward_kl
from student_trainer.losses.topk_jsd import TopkJsdLoss, topk_jsd
from student_trainer.losses.unnormalised_reverse_kl import (
    UnnormalisedReverseKlLoss,
    unnormalised_reverse_kl,
)

LOSSES: dict[str, type[Loss]] = {
    "lsm": LsmLoss,
    "topk_forward_kl": TopkForwardKlLoss,
    "topk_jsd": TopkJsdLoss,
    "generalised_reverse_kl": GeneralisedReverseKlLoss,
    "entropy_switch": EntropySwitchLoss,
    "sampled_token": SampledTokenLoss,
    "unnormalised_reverse_kl": UnnormalisedReverseKlLoss,
    "fixed_advantage": FixedAdvantageLoss,
}

__all__ = [
    "LOSSES",
    "EntropySwitchLoss",
    "FixedAdvantageLoss",
    "GeneralisedReverseKlLoss",
    "Head",
    "Loss",
    "LossBatch",
    "LossBatchError",
    "LossFunction",
    "LossResult",
    "LossSettings",
    "LowRank",
    "LsmLoss",
    "OnSupport",
    "RowsAsked",
    "SampledTokenLoss",
    "SupportLoss",
    "TopkForwardKlLoss",
    "TopkJsdLoss",
    "UnnormalisedReverseKlLoss",
    "choose_support",
    "chunk_policy",
    "entropy_switch",
    "fixed_advantage",
    "full_jsd",
    "full_reverse_kl",
    "generalised_reverse_kl",
    "lsm",
    "sampled_token",
    "single_ids_as_coarse",
    "support_loss",
    "top_ids",
    "topk_forward_kl",
    "topk_jsd",
    "unnormalised_loss",
    "unnormalised_reverse_kl",
]
