"""The noise of the gradient, measured during a run on batches that it updates on.

The responses of an update are split into M equal parts. Each has a gradient g_m of its own mean
loss, and

    noise = sum over m of |g_m - g|^2 / |g|^2,   g = mean of the g_m

over all trained parameters, before clipping. Nothing of the run changes by it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from teacher_proto.types import ContinuationScores

from student_trainer.distributed.world import ALONE, World
from student_trainer.rollout.base import Rollout
from student_trainer.run.rng import capture_rng, restore_rng
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.optim import Optimizer
from student_trainer.update.updater import NothingUsableError, ScoreSource, Updater, split


@dataclass(frozen=True)
class Noise:
    """Attributes:
    step: of the update.
    parts: M; fewer than asked for where a part had no row that could be used.
    noise: as above; None where the mean gradient is 0.
    norm: |g|.
    """

    step: int
    parts: int
    noise: float | None
    norm: float


class MeasuredUpdater(Updater):
    """An updater that measures the noise of the gradient in each update of the first step, and of
    every step that is a multiple of ``every``.

    Attributes:
        noise: what was measured, in order.
    """

    def __init__(
        self,
        student: Student,
        config: TrainConfig,
        realigned: Collection[str] = (),
        world: World = ALONE,
        *,
        every: int,
        parts: int,
    ) -> None:
        super().__init__(student, config, realigned, world)
        self.noise: list[Noise] = []
        self._measured_every, self._split_into = every, parts

    def gradients(
        self,
        rollouts: Sequence[Rollout],
        scores: ScoreSource,
        totals: UpdateTotals,
        step: int,
        stale: bool = False,
    ) -> float:
        if step == 1 or step % self._measured_every == 0:
            self.noise.append(self._measured(rollouts, scores, step, stale))
        return super().gradients(rollouts, scores, totals, step, stale)

    def _measured(
        self, rollouts: Sequence[Rollout], scores: ScoreSource, step: int, stale: bool
    ) -> Noise:
        drawn = capture_rng(self.student.device)
        tell, self.tell = self.tell, lambda losses: None
        sums = _Sums()
        try:
            for part in split(len(rollouts), self._split_into):

                def of_part(member: int, first: int = part.start) -> ContinuationScores:
                    return scores(first + member)

                nothing = UpdateTotals.of_teachers(list(self.config.named_teachers))
                try:
                    super().gradients(rollouts[part], of_part, nothing, step, stale)
                except NothingUsableError:
                    continue
                sums.add(self.optimizer)
        finally:
            self.tell = tell
            restore_rng(drawn, self.student.device)
        return sums.noise(step)


class _Sums:
    """The sum of gradients, and of their squared norms, so that one copy is kept and not M."""

    def __init__(self) -> None:
        self.count = 0
        self._squares = 0.0
        self._total: list[torch.Tensor] = []

    @torch.no_grad()
    def add(self, optimizer: Optimizer) -> None:
        own = [m.grad for m in optimizer.masters.values() if m.grad is not None]
        self._squares += _square(own)
        if self._total:
            torch._foreach_add_(self._total, own)
        else:
            self._total = [one.clone() for one in own]
        self.count += 1

    def noise(self, step: int) -> Noise:
        mean = _square(self._total) / max(self.count, 1) ** 2
        deviations = self._squares - self.count * mean
        noise = max(deviations, 0.0) / mean if mean > 0 else None
        return Noise(step, self.count, noise, math.sqrt(mean))


def _square(tensors: Sequence[torch.Tensor]) -> float:
    """The squared 2-norm of all, added up in float64."""
    return math.fsum(
        float(torch.linalg.vector_norm(one, dtype=torch.float64)) ** 2 for one in tensors
    )
