"""From rollouts and scores to one optimiser update.

The loss of an update is one mean over all its used tokens, or over its responses' own
means. Micro-batches add sums and the gradients are divided once, so it does not matter
how the rollouts are cut into micro-batches. With several teachers it can be the mean of the
teachers' own means: then each teacher's sum of gradients is divided before the next one's is
added up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import Bool, ContinuationScores
from torch import Tensor

from student_trainer.distributed.failure import Failure
from student_trainer.distributed.world import ALONE, World, on_every_rank
from student_trainer.rollout.base import ORIGINS, Origin, Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.head import head_logits
from student_trainer.student.masking import token_mask
from student_trainer.student.model import Student, lay_out, packing_for, read_layout, set_training
from student_trainer.student.sharding import run, updating
from student_trainer.update import metrics
from student_trainer.update.batching import Read, layout_of, micro_batch, micro_batches
from student_trainer.update.embedding import adds_in_place
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.objective import MicroBatchLosses, Objective
from student_trainer.update.optim import Optimizer, learning_rate

# Returns the scores of one response of the update; waits for them when it has to.
ScoreSource = Callable[[int], ContinuationScores]


@dataclass
class Sum:
    """The losses of an update that one teacher gives.

    Attributes:
        total: their sum, before the teacher's weight.
        count: used rows or responses, whichever the mean is over.
    """

    total: float = 0.0
    count: int = 0

    def add(self, losses: MicroBatchLosses, mean: str) -> None:
        self.total += float(losses.own.total.detach()) + float(losses.chunks.total.detach())
        self.count += int(losses.used.sum()) if mean == "token" else losses.used_responses


@dataclass(frozen=True)
class Part:
    """Micro-batches that come one after another.

    Attributes:
        teacher: the one that scored them, where each has a mean of its own; else None.
    """

    teacher: str | None
    micro_batches: Sequence[tuple[int, ...]]

    def members(self, nth: int) -> tuple[int, ...]:
        """Of one of them; empty after the last."""
        return self.micro_batches[nth] if nth < len(self.micro_batches) else ()


class NothingUsableError(LsmError):
    """No row of an update gives a loss."""

    default_reason = "NOTHING_USABLE"


class Updater:
    """Updates a student.

    Attributes:
        objective: the loss of a micro-batch.
        optimizer: holds gradients and moments.
        updates: completed updates; sets the learning rate.
        tell: called with the losses of each micro-batch, by teacher, once they are known.
    """

    def __init__(
        self,
        student: Student,
        config: TrainConfig,
        realigned: Collection[str] = (),
        world: World = ALONE,
    ) -> None:
        """
        Args:
            realigned: names of the teachers that have another tokenizer than the student.
            world: the ranks that make each update together, every one on its own rollouts.
        """
        self.world = world
        self.student = student
        self.config = config
        self.optimizer = Optimizer(student.module, config.optimizer, student.shards)
        self.updates = 0
        self.tell: Callable[[MicroBatchLosses], None] = lambda losses: None
        in_place = self.optimizer.accumulates_in_place and student.head.weight.requires_grad
        token = np.array(student.terminators[:1], np.int32)
        self._shortest = lay_out(student, [token], [1])
        self._mask = token_mask(config.loss.mask, student.tokenizer, student.vocabulary_size)
        removed = torch.from_numpy(self._mask.support_ids.astype(np.int64)).to(student.device)
        if student.undrawn is not None:
            removed = torch.cat([removed, student.undrawn])
        self.objective = Objective(student, config, removed, realigned, in_place=in_place)

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: ScoreSource,
        totals: UpdateTotals,
        step: int,
        stale: bool = False,
    ) -> None:
        """Makes one optimiser update and adds it to ``totals``.

        Args:
            stale: whether the weights of an earlier step wrote the rollouts.

        Raises:
            NothingUsableError: no token can be used.
            LsmError: too many rows are not finite, or the gradient is not finite.
                Parameters and moments are unchanged after either.
        """
        norm = self.gradients(rollouts, scores, totals, step, stale)
        totals.clipped += self.optimizer.clip(norm)
        totals.lr = learning_rate(self.config.optimizer, self.updates, self.config.updates)
        # Counted first: weights of a step that is cut short must not pass for complete.
        self.updates += 1
        self.optimizer.step(totals.lr)
        # What is written next needs their memory, and no value of them.
        self.optimizer.drop_gradients()

    def skip(self, totals: UpdateTotals) -> None:
        """Counts an update that changes nothing; the learning rate goes on with it."""
        totals.lr = learning_rate(self.config.optimizer, self.updates, self.config.updates)
        totals.empty += 1
        self.updates += 1
        self.optimizer.drop_gradients()

    def gradients(
        self,
        rollouts: Sequence[Rollout],
        scores: ScoreSource,
        totals: UpdateTotals,
        step: int,
        stale: bool = False,
    ) -> float:
        """Puts the gradient of the mean loss into the optimiser; returns its 2-norm.

        Raises:
            LsmError: as ``update``.
        """
        keep = [rollout.own_rows & ~self._mask.masked(rollout.token_ids) for rollout in rollouts]
        for rollout, rows in zip(rollouts, keep, strict=True):
            counted = totals.of(rollout.prompt.teacher).of_origin(rollout.origin)
            own = int(rollout.own_rows.sum())
            counted.rows += own
            counted.masked += own - int(rows.sum())
        (unmasked,) = map(int, self.world.sums([sum(int(rows.sum()) for rows in keep)]))
        if unmasked == 0:
            raise NothingUsableError(
                "every token of the update is masked", where="loss.mask", fix="mask less"
            )
        chosen = metrics.choose_rows(
            keep, self.config.report.metric_rows, self.config.run.seed, step, self.world
        )
        found = self._backward(rollouts, keep, scores, chosen, totals, unmasked, stale)
        total, denominator = self._mean(found)
        norm = self.optimizer.scale_gradients(1 / denominator)
        if not math.isfinite(norm):
            self._refuse(f"the gradient's norm is {norm}")
        totals.losses.append(total / denominator)
        totals.grad_norms.append(norm)
        for name in totals.by_teacher:
            if found[name].count:
                totals.of(name).losses.append(found[name].total / found[name].count)
        return norm

    def _backward(
        self,
        rollouts: Sequence[Rollout],
        keep: Sequence[Bool],
        scores: ScoreSource,
        chosen: Sequence[Bool],
        totals: UpdateTotals,
        unmasked: int,
        stale: bool,
    ) -> dict[str, Sum]:
        """Adds up the gradients; returns the sums of the losses by teacher. With
        ``loss.balance = "teachers"`` each teacher's gradients are divided already by what its
        mean is over."""
        self.optimizer.zero_grad()
        set_training(self.student)
        kept = list(keep)
        found = {name: Sum() for name in self.config.named_teachers}
        used = non_finite = 0
        failure = Failure(self.world)
        parts = self._parts(rollouts)
        try:
            with updating(self.student):
                for part, passes in zip(parts, self._passes(parts), strict=True):
                    for nth in range(passes):
                        self._reduces(nth == passes - 1)
                        members = () if failure else part.members(nth)
                        losses = self._pass(members, rollouts, kept, scores, totals, stale, failure)
                        for name, of in losses.items():
                            found[name].add(of, self.config.loss.mean)
                            used += int(of.used.sum())
                            non_finite += of.dropped_non_finite
                            with failure.held():
                                origin = rollouts[members[0]].origin
                                self._count(totals.of(name).of_origin(origin), of, chosen)
                                self.tell(of)
                    if part.teacher is not None:
                        (count,) = self.world.sums([found[part.teacher].count])
                        if count:
                            self.optimizer.set_aside(1 / count)
            failure.agree()
        finally:
            self.optimizer.take_back()
            self.student.module.eval()
        used, non_finite = self._of_all_ranks(found, used, non_finite)
        if non_finite > self.config.loss.max_non_finite_share * unmasked:
            self._refuse(
                f"{non_finite} of {unmasked} rows are not finite",
                ", or raise loss.max_non_finite_share if it is the teacher that has none for them",
            )
        if used == 0:
            self.optimizer.zero_grad()
            raise NothingUsableError(
                f"none of {unmasked} rows can be used",
                where=f"update {self.updates + 1}",
                fix="look at the last metrics: what the teacher refuses or cannot realign, and "
                "what has too small a support",
            )
        return found

    def _pass(
        self,
        members: Sequence[int],
        rollouts: Sequence[Rollout],
        kept: list[Bool],
        scores: ScoreSource,
        totals: UpdateTotals,
        stale: bool,
        failure: Failure,
    ) -> dict[str, MicroBatchLosses]:
        """A forward and a backward pass over one micro-batch; the losses by teacher.

        Of several ranks each makes a pass whenever another one does, so that their gradients meet:
        one without rows over a single token.
        """
        found: dict[str, MicroBatchLosses] = {}
        rows = None
        layout = self._shortest
        if members:
            with failure.held():
                known = {member: scores(member) for member in members}
                layout = layout_of(self.student, members, rollouts)
                chunks = self.objective.leave_out_unusable(
                    members, rollouts, known, kept, layout, totals
                )
                batch = micro_batch(members, rollouts, kept, layout)
                if len(batch.rows) or len(chunks.batch.rows):
                    rows = batch, chunks, known
        if rows is None:
            if not self.world.several:
                return found
            layout = self._shortest

        def compute() -> Tensor:
            hidden = read_layout(self.student, layout)
            with failure.held():
                if rows is not None:
                    batch, chunks, known = rows
                    read = Read(batch.members, layout)
                    losses = self.objective.losses(
                        batch, chunks, rollouts, known, read, hidden, totals, stale
                    )
                    weighed = [
                        self.config.weight_of(name) * of.total + of.reward
                        for name, of in losses.items()
                    ]
                    total = sum(weighed[1:], weighed[0])
                    found.update(losses)
                    return total
            # Reaches every parameter, with a gradient of 0.
            return 0 * head_logits(self.objective.head, hidden[:1]).sum()

        embedding = self.student.causal_model.get_input_embeddings()
        with packing_for(self.student), adds_in_place(embedding):
            run(self.student, compute).backward()  # type: ignore[no-untyped-call]
        return found

    def _passes(self, parts: Sequence[Part]) -> list[int]:
        """How many passes each part takes: as many as the rank with the most micro-batches has."""
        counts = self.world.gather([len(part.micro_batches) for part in parts])
        return [max(of_ranks) for of_ranks in zip(*counts, strict=True)]

    def _reduces(self, now: bool) -> None:
        if self.student.shards is not None:
            self.student.shards.reduces(now)

    def _of_all_ranks(
        self, found: Mapping[str, Sum], used: int, non_finite: int
    ) -> tuple[int, int]:
        """``used`` and ``non_finite`` of all ranks; makes the sums in ``found`` those of all."""
        mine = [value for one in found.values() for value in (one.total, one.count)]
        ours = self.world.sums([used, non_finite, *mine])
        for one, total, count in zip(found.values(), ours[2::2], ours[3::2], strict=True):
            one.total, one.count = total, int(count)
        return int(ours[0]), int(ours[1])

    def _parts(self, rollouts: Sequence[Rollout]) -> list[Part]:
        """The micro-batches of an update. Where each teacher has a mean of its own, those of one
        teacher come after those of another; each holds responses of the student or answers of
        the data."""
        budget = self.config.optimizer.micro_batch_tokens
        groups: dict[tuple[str | None, Origin], list[int]] = {}
        for index, rollout in enumerate(rollouts):
            teacher = rollout.prompt.teacher if self.config.balances_teachers else None
            groups.setdefault((teacher, rollout.origin), []).append(index)
        parts = []
        for teacher in (*self.config.named_teachers, None):
            cut: list[tuple[int, ...]] = []
            for origin in ORIGINS:
                members = groups.get((teacher, origin), [])
                of_them = [rollouts[index] for index in members]
                packed = micro_batches(of_them, budget, packs=self.student.packs)
                cut += [tuple(members[i] for i in one) for one in packed]
            parts.append(Part(teacher, cut))
        return parts

    def _mean(self, found: Mapping[str, Sum]) -> tuple[float, int]:
        """The sum of the losses, at the teachers' weights, and what it is divided by: how many
        rows or responses there are, or how many teachers have any."""
        weighted = {name: self.config.weight_of(name) * one.total for name, one in found.items()}
        if not self.config.balances_teachers:
            return sum(weighted.values()), sum(one.count for one in found.values())
        there = [name for name, one in found.items() if one.count]
        return sum(weighted[name] / found[name].count for name in there), len(there)

    def _count(
        self, totals: UpdateTotals, losses: MicroBatchLosses, chosen: Sequence[Bool]
    ) -> None:
        """Adds one teacher's rows of a micro-batch to its totals."""
        totals.used += int(losses.used.sum())
        totals.dropped_non_finite += losses.dropped_non_finite
        totals.dropped_small_support += losses.dropped_small_support
        metrics.add_chunks(totals, losses.chunks)
        metrics.add_rows(
            totals,
            losses.rows,
            losses.own,
            metrics.micro_batch_rows(losses.batch, chosen),
            self.objective.head,
            self.config.loss,
            self.config.rollout.temperature,
        )

    def _refuse(self, what: str, otherwise: str = "") -> None:
        self.optimizer.zero_grad()
        raise on_every_rank(
            LsmError(
                f"{what}: the update is refused, the student stays as it was",
                where=f"update {self.updates + 1}",
                fix="look at the last metrics, lower optimizer.lr or the teacher's top_k, and "
                f"resume{otherwise}",
                reason="NON_FINITE",
            )
        )


def split(count: int, parts: int) -> list[slice]:
    """Cuts ``count`` responses into ``parts`` equal slices, in order."""
    assert count % parts == 0, "settings make the parts equal"
    bounds = np.linspace(0, count, parts + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]
