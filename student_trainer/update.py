"""From rollouts and scores to one optimiser update.

The loss of an update is one mean over all its used tokens (or over its
responses' own means): micro-batches add sums, and gradients are divided once,
so the cut into micro-batches does not matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from teacher_proto.errors import LsmError, PoisonedReplyError
from teacher_proto.types import Bool, ContinuationScores, Status
from torch import Tensor

from student_trainer import metrics
from student_trainer.batching import (
    MicroBatch,
    loss_batch,
    micro_batch,
    plan,
    sequence,
    sequence_weights,
)
from student_trainer.config import TrainConfig
from student_trainer.importance import log_ratios, truncated_weights
from student_trainer.loss_config import (
    SampledTokenLoss,
    SupportLoss,
    TopkJsdLoss,
    UnnormalisedReverseKlLoss,
)
from student_trainer.losses import LOSSES, choose_support
from student_trainer.losses.base import LossBatch, LossResult, LossSettings
from student_trainer.masking import token_mask
from student_trainer.metrics import UpdateFigures
from student_trainer.model import Student, hidden_states
from student_trainer.optim import Optimizer, learning_rate
from student_trainer.rollout.base import Rollout

# Gives the scores of one response of the update, waiting for them when needed.
ScoreSource = Callable[[int], ContinuationScores]


def loss_settings(config: TrainConfig) -> LossSettings:
    loss = config.loss
    common = LossSettings(temperature=loss.temperature, chunk_rows=loss.chunk_rows)
    if isinstance(loss, SampledTokenLoss):
        return replace(
            common,
            clip=loss.clip,
            dual_clip=loss.dual_clip,
            advantage_clamp=loss.advantage_clamp,
            gamma=loss.gamma,
        )
    common = replace(common, tail=loss.tail, row_clamp=loss.row_clamp)
    if isinstance(loss, UnnormalisedReverseKlLoss):
        return replace(common, study=loss.study)
    return replace(common, beta=loss.beta) if isinstance(loss, TopkJsdLoss) else common


class Updater:
    """Updates a student.

    Attributes:
        optimizer: holds gradients and moments.
        updates: completed updates; sets the learning rate.
    """

    def __init__(self, student: Student, config: TrainConfig) -> None:
        self.student = student
        self.config = config
        self.optimizer = Optimizer(student.module, config.optimizer)
        self.updates = 0
        in_place = self.optimizer.accumulates_in_place and student.head.weight.requires_grad
        self._head = replace(student.head, accumulate_in_place=in_place)
        self._loss = LOSSES[config.loss.kind]
        self._settings = loss_settings(config)
        self._mask = token_mask(config.loss.mask, student.tokenizer, student.vocabulary_size)

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: ScoreSource,
        figures: UpdateFigures,
        step: int,
        stale: bool = False,
    ) -> None:
        """One optimiser update; adds what it saw to ``figures``.

        Args:
            stale: the weights of an earlier step wrote the rollouts.

        Raises:
            LsmError: no token can be used, too many are not finite, or the
                gradient is not finite; parameters and moments are as before.
        """
        norm = self.gradients(rollouts, scores, figures, step, stale)
        figures.clipped |= self.optimizer.clip(norm)
        figures.lr = learning_rate(self.config.optimizer, self.updates, self.config.updates)
        # Counted first: were the step cut short, the weights would be nobody's.
        self.updates += 1
        self.optimizer.step(figures.lr)
        self.optimizer.zero_grad()

    def gradients(
        self,
        rollouts: Sequence[Rollout],
        scores: ScoreSource,
        figures: UpdateFigures,
        step: int,
        stale: bool = False,
    ) -> float:
        """Leaves the gradient of the mean loss in the optimiser; returns its 2-norm.

        Raises:
            LsmError: as ``update``.
        """
        keep = [~self._mask.masked(rollout.token_ids) for rollout in rollouts]
        figures.rows += sum(len(rows) for rows in keep)
        figures.masked += sum(int((~rows).sum()) for rows in keep)
        usable = sum(int(rows.sum()) for rows in keep)
        if usable == 0:
            raise LsmError(
                "every token of the update is masked", where="loss.mask", fix="mask less"
            )
        chosen = metrics.choose_rows(
            keep, self.config.report.metric_rows, self.config.run.seed, step
        )
        total, denominator = self._backward(rollouts, keep, scores, chosen, figures, usable, stale)
        norm = self.optimizer.scale_gradients(1 / denominator)
        if not math.isfinite(norm):
            self._refuse(f"the gradient's norm is {norm}")
        figures.losses.append(total / denominator)
        figures.grad_norms.append(norm)
        return norm

    def _backward(
        self,
        rollouts: Sequence[Rollout],
        keep: Sequence[Bool],
        scores: ScoreSource,
        chosen: Sequence[Bool],
        figures: UpdateFigures,
        usable: int,
        stale: bool,
    ) -> tuple[float, int]:
        """Adds up the gradients; returns the sum of losses and what to divide by."""
        self.optimizer.zero_grad()
        self.student.module.train()
        lengths = [len(sequence(rollout)) for rollout in rollouts]
        total, used_rows, used_responses, non_finite = 0.0, 0, 0, 0
        try:
            for members in plan(lengths, self.config.optimizer.micro_batch_tokens):
                batch = micro_batch(members, rollouts, keep)
                if not len(batch.rows):
                    continue
                known = {member: _rows_of(scores(member)) for member in members}
                rows, result, first = self._loss_of(batch, rollouts, known, figures, stale)
                result.total.backward()  # type: ignore[no-untyped-call]
                total += float(result.total.detach())
                used_rows += int(result.used.sum())
                used_responses += len(torch.unique(batch.owners[result.used.cpu()]))
                non_finite += first.dropped_non_finite
                figures.dropped_small_support += first.dropped_small_support
                metrics.add_rows(
                    figures,
                    rows,
                    result,
                    metrics.micro_batch_rows(batch, chosen),
                    self._head,
                    self._settings.temperature,
                    self._settings.chunk_rows,
                    self._settings.temperature == self.config.rollout.temperature,
                )
        finally:
            self.student.module.eval()
        figures.dropped_non_finite += non_finite
        figures.used += used_rows
        if non_finite > self.config.loss.max_non_finite_share * usable:
            self._refuse(f"{non_finite} of {usable} rows are not finite")
        if used_rows == 0:
            self._refuse(f"none of {usable} rows can be used")
        return total, used_rows if self.config.loss.mean == "token" else used_responses

    def _loss_of(
        self,
        batch: MicroBatch,
        rollouts: Sequence[Rollout],
        known: dict[int, ContinuationScores],
        figures: UpdateFigures,
        stale: bool,
    ) -> tuple[LossBatch, LossResult, LossResult]:
        """The rows, the loss with its final weights, and the first evaluation's counts."""
        hidden = hidden_states(
            self.student, [sequence(rollouts[member]) for member in batch.members]
        )
        loss = self.config.loss
        rows = loss_batch(batch, hidden, rollouts, known, loss.teacher_top_k)
        removed = torch.from_numpy(self._mask.support_ids.astype(np.int64)).to(hidden.device)
        if isinstance(loss, SupportLoss):
            rows = choose_support(rows, loss.support, mass=loss.support_mass, removed=removed)
        elif loss.teacher_top_k:
            rows = choose_support(rows, "teacher", removed=removed)
        importance = self._importance(rows, figures) if stale else rows.weights
        if self.config.loss.mean == "token":
            rows = replace(rows, weights=importance)
            result = self._loss(rows, self._head, self._settings)
            return rows, result, result
        # A response's weight is 1 / (its used rows); which rows are used is the
        # loss's to say, so it is asked again where it drops any.
        owners, members = batch.owners.to(hidden.device), len(batch.members)
        every = rows.weights > 0
        shares = sequence_weights(every, owners, members)
        rows = replace(rows, weights=shares * importance)
        first = self._loss(rows, self._head, self._settings)
        if bool(first.used.all()):
            return rows, first, first
        shares = sequence_weights(first.used, owners, members)
        rows = replace(rows, weights=shares * importance)
        return rows, self._loss(rows, self._head, self._settings), first

    def _importance(self, rows: LossBatch, figures: UpdateFigures) -> Tensor:
        """float32 [T]: what each row of a stale batch weighs.

        ``sampled_token`` has the ratio in its own definition.
        """
        cap = self.config.pipeline.importance_cap
        if cap is None or isinstance(self.config.loss, SampledTokenLoss):
            return rows.weights
        temperature = self.config.rollout.temperature
        ratio = log_ratios(rows, self._head, temperature, self._settings.chunk_rows)
        weights = truncated_weights(ratio, cap)
        figures.means.add_values("importance_log_ratio", ratio)
        figures.means.add_values("importance_weight", weights)
        figures.means.add_values("importance_truncated", (ratio > math.log(cap)).float())
        return weights

    def _refuse(self, what: str) -> None:
        self.optimizer.zero_grad()
        raise LsmError(
            f"{what}: the update is refused, the student stays as it was",
            where=f"update {self.updates + 1}",
            fix="look at the last metrics, lower optimizer.lr or the teacher's top_k, and resume",
            reason="NON_FINITE",
        )


def _rows_of(scores: ContinuationScores) -> ContinuationScores:
    if scores.status is Status.NOT_REALIGNED:
        raise PoisonedReplyError(
            f"the teacher shares the tokenizer and could not realign: {scores.detail}"
        )
    return scores


def split(count: int, parts: int) -> list[slice]:
    """``count`` responses in ``parts`` equal runs, in order."""
    assert count % parts == 0, "settings make the parts equal"
    bounds = np.linspace(0, count, parts + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
