"""The loss of a micro-batch: which rows have one, on which support, with which weight.

A row that the teacher, with another tokenizer, gives no usable values for has no loss,
or, with ``loss.masked_chunks``, that of its chunk (losses/chunk.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from teacher_proto.rows import required
from teacher_proto.types import Bool, ContinuationScores, Float32
from torch import Tensor

from student_trainer.losses import chunk_policy
from student_trainer.losses.parts.base import Head, LossBatch, LossResult, select_rows
from student_trainer.losses.parts.loss import checked
from student_trainer.losses.parts.normaliser import token_log_probs
from student_trainer.rewards.term import TermSettings, reward_term
from student_trainer.rollout.base import Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.student.packing.layout import Layout
from student_trainer.teacher.left_out import is_left_out
from student_trainer.update.batching import (
    MicroBatch,
    Read,
    loss_batch,
    micro_batch,
    sequence_weights,
)
from student_trainer.update.importance import (
    LEAST,
    chunk_nucleus_weights,
    log_ratios,
    nucleus_weights,
    truncated_weights,
)
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.realigned import (
    add_realignment,
    chunk_advantages,
    refuse_not_realigned,
    usable_rows,
)
from student_trainer.update.row_weights import Known, RowWeights


@dataclass(frozen=True)
class RowsByChunk:
    """Rows that learn from their chunk.

    Attributes:
        advantages: float32 [C], nats, of each row's chunk.
        weights: float32 [C], of each row, for the nuclei that its chunk was drawn from.
    """

    batch: MicroBatch
    advantages: Float32
    weights: Float32

    def of(self, places: Sequence[int]) -> RowsByChunk:
        """The rows of the members at these places of the micro-batch."""
        kept = self.batch.rows_of(places).numpy()
        return RowsByChunk(self.batch.of(places), self.advantages[kept], self.weights[kept])


@dataclass(frozen=True)
class MicroBatchLosses:
    """The losses of those rows of one micro-batch that one teacher scored: of R rows by
    themselves and of C rows by their chunk.

    Attributes:
        batch: the R rows in the micro-batch.
        rows: the R rows, as the loss gets them.
        owners: int64 [R + C], which member of ``batch`` each row belongs to.
        own, chunks: results of the R and of the C rows, at their final weights. Of answers of
            the data ``own.total`` holds their negative log-likelihood at its weight, and
            ``own.per_row`` does not.
        reward: scalar with gradient: the sum of the policy gradients of the responses' advantages
            over the rows that count; 0 where there are none.
        dropped_non_finite, dropped_small_support: rows that the losses left out.
    """

    batch: MicroBatch
    rows: LossBatch
    owners: Tensor
    own: LossResult
    chunks: LossResult
    reward: Tensor
    dropped_non_finite: int
    dropped_small_support: int

    @property
    def used(self) -> Tensor:
        """bool [R + C]: rows that count."""
        return torch.cat([self.own.used, self.chunks.used])

    @property
    def total(self) -> Tensor:
        """Scalar with gradient: the sum of the losses of all rows."""
        return self.own.total + self.chunks.total

    @property
    def used_responses(self) -> int:
        """How many responses have a row that counts."""
        return len(torch.unique(self.owners[self.used.cpu()]))


class Objective:
    """The loss that the updates of a run lower.

    Args:
        removed: int64 [M], ids that are removed from every support.
        realigned: names of the teachers that have another tokenizer than the student.
        in_place: whether the gradient of the head's weight is added to ``weight.grad`` directly
            (``Head.accumulate_in_place``).
    """

    def __init__(
        self,
        student: Student,
        config: TrainConfig,
        removed: Tensor,
        realigned: Collection[str],
        *,
        in_place: bool,
    ) -> None:
        self._student = student
        self.config = config
        self._in_place = in_place
        self._removed = removed
        self._realigned = frozenset(realigned)
        self._asked = {
            name: config.rows_asked(name, realigned=name in self._realigned)
            for name in config.named_teachers
        }
        self._weights: RowWeights | None = None
        if config.weights:
            self._weights = RowWeights(
                config.weights,
                temperature=config.loss.temperature,
                drawn_at=config.rollout.temperature,
                chunk_rows=config.loss.chunk_rows,
            )
        self._nuclei = config.loss.nucleus_weights and config.learns_from_nuclei
        self._special = np.array(sorted(student.tokenizer.added_tokens_decoder), np.int32)

    @property
    def head(self) -> Head:
        """The student's, as the losses add up its gradient."""
        return replace(self._student.head, accumulate_in_place=self._in_place)

    def leave_out_unusable(
        self,
        members: Sequence[int],
        rollouts: Sequence[Rollout],
        scores: Mapping[int, ContinuationScores],
        kept: list[Bool],
        layout: Layout,
        totals: UpdateTotals,
    ) -> RowsByChunk:
        """Removes from ``kept`` the rows without usable values of the teacher.

        Args:
            members: indices of the micro-batch's rollouts.
            kept: bool [n] for each rollout, changed in place.
            layout: of the micro-batch.

        Returns:
            Those of the removed rows that learn from their chunk instead.

        Raises:
            PoisonedReplyError: a teacher that shares the tokenizer could not realign.
        """
        loss = self.config.loss
        chunked = [np.zeros(len(rows), np.bool_) for rows in kept]
        none = np.zeros(0, np.float32)
        advantages, weights = [none], [none]
        for member in members:
            rollout, before = rollouts[member], kept[member]
            whole_teacher = totals.of(rollout.prompt.teacher)
            of_teacher = whole_teacher.of_origin(rollout.origin)
            refused = is_left_out(scores[member])
            if refused:
                of_teacher.refused += 1
                whole_teacher.refusal = whole_teacher.refusal or scores[member].detail
            if rollout.prompt.teacher not in self._realigned:
                if refused:
                    kept[member] = np.zeros_like(before)
                    of_teacher.unusable += int(before.sum())
                else:
                    refuse_not_realigned(scores[member])
                continue
            add_realignment(of_teacher.means, scores[member], rollout.own_rows)
            usable = usable_rows(scores[member], len(before), sampled=loss.at_sampled_token)
            kept[member] = before & usable
            of_teacher.unusable += int((before & ~usable).sum())
            if loss.masked_chunks and rollout.origin == "student":
                excluded = ~before | np.isin(rollout.token_ids, self._special)
                found, known = chunk_advantages(
                    scores[member], rollout, excluded, self._student.terminators
                )
                chunked[member] = before & ~usable & known
                advantages.append(found[chunked[member]])
                weights.append(self._chunk_weights(rollout, scores[member])[chunked[member]])
        batch = micro_batch(members, rollouts, chunked, layout)
        return RowsByChunk(batch, np.concatenate(advantages), np.concatenate(weights))

    def _chunk_weights(self, rollout: Rollout, scores: ContinuationScores) -> Float32:
        """float32 [n]: the weight of each row for the nuclei of its chunk."""
        block = scores.realignment
        if block is None or not self._nuclei:
            return np.ones(len(rollout.token_ids), np.float32)
        return chunk_nucleus_weights(rollout, block.chunk_index)

    def losses(
        self,
        batch: MicroBatch,
        chunks: RowsByChunk,
        rollouts: Sequence[Rollout],
        scores: Mapping[int, ContinuationScores],
        read: Read,
        hidden: Tensor,
        totals: UpdateTotals,
        stale: bool,
    ) -> dict[str, MicroBatchLosses]:
        """The losses of a micro-batch by teacher, with gradients. Each teacher's rows have a loss
        by themselves, with its own K and with coarse rows where it has them.

        Args:
            batch: the rows that have a loss by themselves.
            chunks: the rows that learn from their chunk.
            read, hidden: the micro-batch, and its [N, H] of the student.
            stale: whether the weights of an earlier step wrote the rollouts.

        The responses of a micro-batch are all of the student, or all answers of the data.
        """
        scoring = [rollouts[member].prompt.teacher for member in batch.members]
        found = {}
        for name in self._asked:
            places = [place for place, other in enumerate(scoring) if other == name]
            own, by_chunk = batch.of(places), chunks.of(places)
            if len(own.rows) or len(by_chunk.batch.rows):
                found[name] = self._of_teacher(
                    name, own, by_chunk, read, hidden, rollouts, scores, totals, stale
                )
        return found

    def _of_teacher(
        self,
        name: str,
        batch: MicroBatch,
        chunks: RowsByChunk,
        read: Read,
        hidden: Tensor,
        rollouts: Sequence[Rollout],
        scores: Mapping[int, ContinuationScores],
        totals: UpdateTotals,
        stale: bool,
    ) -> MicroBatchLosses:
        """The losses of one teacher's rows.

        Args:
            batch, chunks: its rows alone.
            read, hidden: the whole micro-batch, and its [N, H].
        """
        loss = self.config.loss
        rows = loss_batch(batch, hidden, rollouts, scores, self._asked[name].top_k)
        removed = self._removed.to(hidden.device)
        rows = loss.rows(rows, removed=removed, realigned=name in self._realigned)
        of_data = rollouts[batch.members[0]].origin == "data"
        if of_data:
            rows = replace(rows, old_log_probs=None)  # nobody drew them
        by_chunk = loss_batch(chunks.batch, hidden, rollouts, scores, 0)
        advantages = torch.from_numpy(chunks.advantages).to(hidden.device)
        of_nuclei = torch.from_numpy(chunks.weights).to(hidden.device)
        counted = totals.of(name).of_origin("data" if of_data else "student")
        importance = self._importance(rows, batch, rollouts, counted, stale)
        importance = torch.cat([importance, by_chunk.weights * of_nuclei])
        owners = torch.cat([batch.owners, chunks.batch.owners])
        if self._weights is not None:
            known = Known(batch, rows, chunks.batch, read, hidden, rollouts, scores, self.head)
            factors = self._weights.of(known, sampled=loss.at_sampled_token)
            counted.means.add_values("row_weight", factors)
            counted.means.add_values("row_weight_zero_share", (factors == 0).float())
            importance = torch.where(factors > 0, (importance * factors).clamp_min(LEAST), 0.0)

        def at(weights: Tensor) -> tuple[LossResult, LossResult]:
            first, later = weights[: len(rows.weights)], weights[len(rows.weights) :]
            own = checked(loss(replace(rows, weights=first), self.head), rows, loss.kind)
            if of_data and self.config.mixing.nll_weight:
                own = self._with_likelihood(own, replace(rows, weights=first))
            if not len(later):
                none = first.new_zeros(0)
                return own, LossResult(first.new_zeros(()), none, none.bool())
            chosen, clamp = replace(by_chunk, weights=later), loss.chunk_clamp
            return own, chunk_policy(chosen, advantages, self.head, loss.for_chunks(), clamp)

        by_response = loss.mean == "sequence"
        members, of_rows = len(batch.members), owners.to(hidden.device)
        weights = importance
        if by_response:
            weights = sequence_weights(importance > 0, of_rows, members) * importance
        own, of_chunks = at(weights)
        dropped = own.dropped_non_finite + of_chunks.dropped_non_finite
        small = own.dropped_small_support
        used = torch.cat([own.used, of_chunks.used])
        if by_response and not bool(used.all()):
            # A response's weight is 1 / (its used rows), and only the loss knows which
            # rows it uses: where it drops some, it is computed again.
            own, of_chunks = at(sequence_weights(used, of_rows, members) * importance)
        reward, lost = hidden.new_zeros(()), 0
        if self.config.reward.learns:
            shares = used.float()
            if by_response:
                shares = sequence_weights(used, of_rows, members)
            reward, lost = self._reward(rows, by_chunk, shares, batch, owners, rollouts, counted)
        if self.config.mixing.mixes:
            counted.means.add_values("loss" if of_data else "student_loss", own.per_row[own.used])
        return MicroBatchLosses(batch, rows, owners, own, of_chunks, reward, dropped + lost, small)

    def _reward(
        self,
        rows: LossBatch,
        chunks: LossBatch,
        shares: Tensor,
        batch: MicroBatch,
        owners: Tensor,
        rollouts: Sequence[Rollout],
        totals: UpdateTotals,
    ) -> tuple[Tensor, int]:
        """The policy gradient of the responses' advantages, as a sum, and how many rows it leaves
        out because they are not finite.

        Args:
            rows, chunks: the R and the C rows.
            shares: float32 [R + C], what each row counts in the mean; 0 of one that is not in the
                loss.
            owners: int64 [R + C], which member of ``batch`` each row belongs to.
        """

        def both(name: str) -> Tensor:
            return torch.cat([required(getattr(one, name), name) for one in (rows, chunks)])

        every = LossBatch(
            hidden=both("hidden"),
            sampled_ids=both("sampled_ids"),
            weights=shares,
            old_log_probs=both("old_log_probs"),
        )
        of_members = torch.tensor([rollouts[member].advantage for member in batch.members])
        settings = TermSettings(
            self.config.rollout.temperature,
            self.config.loss.chunk_rows,
            self.config.reward.clip,
            self.config.reward.dual_clip,
        )
        advantages = of_members[owners].to(shares.device)
        term = reward_term(every, advantages, self.head, settings)
        count = int(term.used.sum())
        totals.means.add("reward_loss", float(term.per_row.sum()), int((shares > 0).sum()))
        totals.means.add("reward_ratio_clipped", term.metrics["ratio_clipped"], count)
        return term.total, term.dropped_non_finite

    def _with_likelihood(self, own: LossResult, rows: LossBatch) -> LossResult:
        """The result with the negative log-likelihood of the answers' tokens, at temperature 1,
        at the rows that the loss uses and with their weights."""
        used = select_rows(own.used)
        likelihood = token_log_probs(
            rows.hidden.index_select(0, used),
            self.head,
            rows.sampled_ids[used],
            1.0,
            self.config.loss.chunk_rows,
        )
        term = -self.config.mixing.nll_weight * (rows.weights[used] * likelihood).sum()
        coarse, nll = rows.coarse_rows[used], -likelihood.detach().double()
        metrics = {**own.metrics, "nll": float(nll[~coarse].sum())}
        of_coarse = own.coarse_metrics
        if rows.coarse is not None:
            of_coarse = {**of_coarse, "nll": float(nll[coarse].sum())}
        return replace(own, total=own.total + term, metrics=metrics, coarse_metrics=of_coarse)

    def _importance(
        self,
        rows: LossBatch,
        batch: MicroBatch,
        rollouts: Sequence[Rollout],
        totals: UpdateTotals,
        stale: bool,
    ) -> Tensor:
        """float32 [R]: the weight of each row: for the nucleus that its token was drawn from,
        where the loss learns at that token; and for an older student that drew it, where the
        batch is stale and the loss has no such ratio in its definition."""
        loss, pipeline = self.config.loss, self.config.pipeline
        cap = pipeline.importance_cap if pipeline.importance_weights else None
        given = rows.weights
        if self._nuclei and loss.at_sampled_token:
            of_rows = [
                nucleus_weights(rollouts[member])[batch.steps[batch.owners == place].numpy()]
                for place, member in enumerate(batch.members)
            ]
            given = torch.from_numpy(np.concatenate(of_rows)).to(given.device)
        of_data = rollouts[batch.members[0]].origin == "data"
        if of_data or loss.own_ratio or cap is None or not stale:
            return given
        temperature = self.config.rollout.temperature
        ratio = log_ratios(rows, self.head, temperature, loss.chunk_rows)
        weights = truncated_weights(ratio, cap)
        totals.means.add_values("importance_log_ratio", ratio)
        totals.means.add_values("importance_weight", weights)
        totals.means.add_values("importance_truncated", (ratio > math.log(cap)).float())
        return given * weights
