"""Rollouts and the coarse, masked and full rows that a teacher with another tokenizer gives for
them; and their losses by the definitions over full logits, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from teacher_proto.rows import Rows, Support, Values, required
from teacher_proto.types import (
    Bool,
    ContinuationScores,
    MaskReason,
    PositionClass,
    Realignment,
)

from student_trainer.rollout.base import Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.update.updater import Updater
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]
TOP_K = 16
IDS = 4  # of a coarse row, the last of them alone in every other row


def told(teacher: LocalTeacher, rollout: Rollout) -> ContinuationScores:
    """As a teacher with another tokenizer scores it: every fifth row masked, every third of the
    others coarse, with ids that are not the most likely ones."""
    log_q = teacher.log_probs(rollout).double()
    count = len(log_q)
    order = log_q.argsort(-1, descending=True)
    place = np.arange(count)
    masked = place % 5 == 2
    coarse = ~masked & (place % 3 == 1)
    counts = np.where(masked, 0, TOP_K).astype(np.int32)
    counts[coarse] = np.where(place[coarse] % 2 == 0, 1, IDS)
    ids = np.where(coarse[:, None], order[:, 1 : 1 + TOP_K], order[:, :TOP_K])
    valid = np.arange(TOP_K) < counts[:, None]
    at = np.take_along_axis(log_q.numpy(), ids, -1)
    coverage = np.where(valid, np.exp(at), 0).sum(-1)
    sampled = rollout.token_ids.astype(np.int64)
    certified = ~masked & (~coarse | (valid & (ids == sampled[:, None])).any(-1))
    classes = np.full(count, PositionClass.ALIGNED, np.uint8)
    classes[masked], classes[coarse] = PositionClass.MASKED, PositionClass.COARSE
    reasons = np.zeros(count, np.uint8)
    reasons[masked], reasons[coarse] = MaskReason.LONG_CHUNK, MaskReason.DOUBTFUL
    return ContinuationScores(
        rows=Rows(
            support=Support(
                np.where(valid, ids, -1).astype(np.int32),
                np.where(valid, at, 0).astype(np.float32),
                counts,
            ),
            sampled=Values(
                np.where(certified, log_q.numpy()[place, sampled], 0).astype(np.float32), certified
            ),
            log_tail=Values(np.log1p(-coverage).astype(np.float32), np.ones(count, np.bool_)),
        ),
        realignment=Realignment(
            coverage=coverage.astype(np.float32),
            open_mass=np.where(coarse, 0.3, 0.01).astype(np.float32),
            lost_mass=np.zeros(count, np.float32),
            position_class=classes,
            chunk_index=place.astype(np.int32),
            chunk_log_likelihood=np.full(count, -1.0, np.float32),
            mask_reason=reasons,
        ),
    )


class CoarseCase(Case):
    def __init__(self, config: TrainConfig, teacher: LocalTeacher) -> None:
        super().__init__(config, teacher)
        self.updater = Updater(self.student, config, realigned={"default"})
        self.scores = [told(teacher, rollout) for rollout in self.rollouts]

    def of_class(self, kind: PositionClass) -> list[Bool]:
        blocks = [required(score.realignment, "realignment") for score in self.scores]
        return [block.position_class == kind for block in blocks]

    def count(self, kind: PositionClass) -> int:
        return sum(int(rows.sum()) for rows in self.of_class(kind))


def with_single_ids(case: CoarseCase) -> list[Bool]:
    """Every second full row keeps one id; every fourth has no rest beside it. bool [n] for each
    response, the rows that have one."""
    found = []
    for i, (score, full) in enumerate(
        zip(case.scores, case.of_class(PositionClass.ALIGNED), strict=True)
    ):
        support = required(score.rows.support, "support")
        tail = required(score.rows.log_tail, "log_tail")
        single = np.flatnonzero(full)[::2]
        counts, rest, has_rest = support.counts.copy(), tail.values.copy(), tail.valid.copy()
        counts[single] = 1
        mass = np.exp(support.log_probs[single, 0].astype(np.float64))
        rest[single] = np.log1p(-mass)
        has_rest[single[1::2]], rest[single[1::2]] = False, 0
        case.scores[i] = replace(
            score,
            rows=replace(
                score.rows,
                support=replace(support, counts=counts),
                log_tail=Values(rest, has_rest),
            ),
        )
        found.append(np.isin(np.arange(len(full)), single[::2]))
    return found


def row_losses(
    case: CoarseCase,
    kind: str,
    sampled: bool = False,
    with_rest: Sequence[Bool] | None = None,
) -> list[torch.Tensor]:
    """[n] of each response, by the definitions over full float64 logits; 0 for masked rows.

    Args:
        sampled: the sampled token joins the support.
        with_rest: bool [n] of each response, rows that are compared with their rest besides
            those of class COARSE.
    """
    found = []
    for i, (rollout, score) in enumerate(zip(case.rollouts, case.scores, strict=True)):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        log_pi = logits[len(rollout.prompt.token_ids) - 1 : -1].double().log_softmax(-1)
        support, block = required(score.rows.support, "support"), score.realignment
        own, tail = required(score.rows.sampled, "sampled"), required(score.rows.log_tail, "tail")
        assert block is not None
        rows = []
        for t, count in enumerate(support.counts.tolist()):
            if count == 0:
                rows.append(log_pi.new_zeros(()))
                continue
            at = support.ids[t, :count].astype(np.int64).tolist()
            q = np.exp(support.log_probs[t, :count].astype(np.float64)).tolist()
            rest = float(np.exp(tail.values[t].astype(np.float64)))
            if sampled and own.valid[t] and int(rollout.token_ids[t]) not in at:
                at.append(int(rollout.token_ids[t]))
                q.append(float(np.exp(own.values[t].astype(np.float64))))
                rest -= q[-1]
            p = log_pi[t, at].exp()
            more = with_rest is not None and bool(with_rest[i][t])
            if more or block.position_class[t] == PositionClass.COARSE:
                outside = [v for v in range(log_pi.shape[1]) if v not in at]
                p, qs = (
                    torch.cat([p, log_pi[t, outside].exp().sum()[None]]),
                    torch.tensor([*q, rest]),
                )
            else:
                p, qs = p / p.sum(), torch.tensor(q) / sum(q)
            qs = qs.double()
            m = 0.5 * (p + qs)
            rows.append(
                {
                    "lsm": (p * (p / qs).log()).sum(),
                    "topk_forward_kl": (qs * (qs / p).log()).sum(),
                    "topk_jsd": 0.5 * (qs * (qs / m).log() + p * (p / m).log()).sum(),
                }[kind]
            )
        found.append(torch.stack(rows))
    return found
