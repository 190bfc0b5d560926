"""From rollouts and scores to one optimiser update.

The loss of an update is one mean over all its used tokens (or over its
responses' own means): micro-batches add sums, and gradients are divided once,
so the cut into micro-batches does not matter.

Across tokenizers a row the teacher has no verdict on gives no loss, or, with
``loss.masked_chunks``, that of its chunk (losses/chunk.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import Bool, ContinuationScores, Float32
from torch import Tensor

from student_trainer.losses import LOSSES, choose_support, chunk_policy
from student_trainer.losses.base import LossBatch, LossResult, LossSettings
from student_trainer.rollout.base import Rollout
from student_trainer.settings.loss import (
    SampledTokenLoss,
    SupportLoss,
    TopkJsdLoss,
    UnnormalisedReverseKlLoss,
)
from student_trainer.settings.train import TrainConfig
from student_trainer.student.masking import token_mask
from student_trainer.student.model import Student, hidden_states
from student_trainer.update import metrics, realigned
from student_trainer.update.batching import (
    MicroBatch,
    loss_batch,
    micro_batch,
    plan,
    sequence,
    sequence_weights,
)
from student_trainer.update.importance import log_ratios, truncated_weights
from student_trainer.update.metrics import UpdateFigures
from student_trainer.update.optim import Optimizer, learning_rate

# Gives the scores of one response of the update, waiting for them when needed.
ScoreSource = Callable[[int], ContinuationScores]


@dataclass(frozen=True)
class ChunkRows:
    """Rows that learn from their chunk, and its advantage at each, float32 [T] nats."""

    batch: MicroBatch
    advantages: Float32


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

    def __init__(self, student: Student, config: TrainConfig, realigned: bool = False) -> None:
        """Args: realigned: the teacher has another tokenizer than the student."""
        self.student = student
        self.config = config
        self.optimizer = Optimizer(student.module, config.optimizer)
        self.updates = 0
        in_place = self.optimizer.accumulates_in_place and student.head.weight.requires_grad
        self._head = replace(student.head, accumulate_in_place=in_place)
        self._loss = LOSSES[config.loss.kind]
        self._settings = loss_settings(config)
        self._mask = token_mask(config.loss.mask, student.tokenizer, student.vocabulary_size)
        self._realigned = realigned
        removed = torch.from_numpy(self._mask.support_ids.astype(np.int64)).to(student.device)
        undrawn = student.head.undrawn
        self._removed = removed if undrawn is None else torch.cat([removed, undrawn])
        self._special = np.array(sorted(student.tokenizer.added_tokens_decoder), np.int32)

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
        kept = list(keep)
        total, used_rows, used_responses, non_finite = 0.0, 0, 0, 0
        try:
            for members in plan(lengths, self.config.optimizer.micro_batch_tokens):
                known = {member: scores(member) for member in members}
                chunks = self._leave_out(members, rollouts, known, kept, figures)
                batch = micro_batch(members, rollouts, kept)
                if not len(batch.rows) and not len(chunks.batch.rows):
                    continue
                rows, results, first = self._loss_of(batch, chunks, rollouts, known, figures, stale)
                sum(result.total for result in results).backward()  # type: ignore[union-attr]
                total += sum(float(result.total.detach()) for result in results)
                used = torch.cat([result.used for result in results])
                owners = torch.cat([batch.owners, chunks.batch.owners])
                used_rows += int(used.sum())
                used_responses += len(torch.unique(owners[used.cpu()]))
                non_finite += sum(result.dropped_non_finite for result in first)
                figures.dropped_small_support += first[0].dropped_small_support
                metrics.add_chunks(figures, results[1])
                metrics.add_rows(
                    figures,
                    rows,
                    results[0],
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

    def _leave_out(
        self,
        members: Sequence[int],
        rollouts: Sequence[Rollout],
        known: dict[int, ContinuationScores],
        kept: list[Bool],
        figures: UpdateFigures,
    ) -> ChunkRows:
        """Takes rows without a verdict of the teacher out of ``kept``; those that learn
        from their chunk instead."""
        loss = self.config.loss
        by_token = isinstance(loss, SampledTokenLoss)
        chunked = [np.zeros(len(rows), np.bool_) for rows in kept]
        advantages: list[Float32] = []
        for member in members:
            if not self._realigned:
                realigned.refuse_not_realigned(known[member])
                continue
            rollout, before = rollouts[member], kept[member]
            realigned.add_figures(figures.means, known[member], len(before))
            judged = realigned.judged(known[member], len(before), sampled=by_token)
            kept[member] = before & judged
            figures.not_judged += int((before & ~judged).sum())
            if loss.masked_chunks:
                excluded = ~before | np.isin(rollout.token_ids, self._special)
                found, has = realigned.chunk_advantages(known[member], rollout, excluded)
                chunked[member] = before & ~judged & has
                advantages.append(found[chunked[member]])
        values = np.concatenate(advantages) if advantages else np.zeros(0, np.float32)
        return ChunkRows(micro_batch(members, rollouts, chunked), values)

    def _loss_of(
        self,
        batch: MicroBatch,
        chunks: ChunkRows,
        rollouts: Sequence[Rollout],
        known: dict[int, ContinuationScores],
        figures: UpdateFigures,
        stale: bool,
    ) -> tuple[LossBatch, list[LossResult], list[LossResult]]:
        """The judged rows, the losses of these and of the chunks' rows with their final
        weights, and the first evaluation's, which counts."""
        hidden = hidden_states(
            self.student, [sequence(rollouts[member]) for member in batch.members]
        )
        loss = self.config.loss
        rows = loss_batch(batch, hidden, rollouts, known, loss.teacher_top_k)
        removed = self._removed.to(hidden.device)
        if isinstance(loss, SupportLoss):
            rows = choose_support(rows, loss.support, mass=loss.support_mass, removed=removed)
        elif loss.teacher_top_k:
            rows = choose_support(rows, "teacher", removed=removed)
        chunk_rows = loss_batch(chunks.batch, hidden, rollouts, known, 0)
        advantages = torch.from_numpy(chunks.advantages).to(hidden.device)
        importance = self._importance(rows, figures) if stale else rows.weights
        importance = torch.cat([importance, chunk_rows.weights])

        def losses(weights: Tensor) -> list[LossResult]:
            judged, of_chunks = weights[: len(rows.weights)], weights[len(rows.weights) :]
            result = self._loss(replace(rows, weights=judged), self._head, self._settings)
            if not len(of_chunks):
                none = judged.new_zeros(0)
                return [result, LossResult(judged.new_zeros(()), none, none.bool())]
            own = replace(chunk_rows, weights=of_chunks)
            clamp = loss.chunk_clamp
            return [result, chunk_policy(own, advantages, self._head, self._settings, clamp)]

        if loss.mean == "token":
            results = losses(importance)
            return rows, results, results
        # A response's weight is 1 / (its used rows); which rows are used is the
        # loss's to say, so it is asked again where it drops any.
        owners = torch.cat([batch.owners, chunks.batch.owners]).to(hidden.device)
        members = len(batch.members)
        first = losses(sequence_weights(importance > 0, owners, members) * importance)
        used = torch.cat([result.used for result in first])
        if bool(used.all()):
            return rows, first, first
        return rows, losses(sequence_weights(used, owners, members) * importance), first

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


def split(count: int, parts: int) -> list[slice]:
    """``count`` responses in ``parts`` equal runs, in order."""
    assert count % parts == 0, "settings make the parts equal"
    bounds = np.linspace(0, count, parts + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
