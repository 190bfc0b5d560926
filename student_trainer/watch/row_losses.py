"""The losses of a step's rows, as its updates compute them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Float32
from torch import Tensor

from student_trainer.diagnostics.bins import POSITION_BINS, means_of_bins, position_bins
from student_trainer.distributed.world import ALONE, World
from student_trainer.update.objective import MicroBatchLosses


class RowLosses:
    """Collects the losses of one step; its ``add`` is what an ``Updater`` tells.

    Attributes:
        first: place in the step's batch of the first response of the update that is made.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        """``lengths``: n of each response of the step, as far as it is scored."""
        self.first = 0
        self._losses = [np.full(n, np.nan, np.float32) for n in lengths]

    def add(self, losses: MicroBatchLosses) -> None:
        """Takes the losses of those rows of a micro-batch that have one by themselves."""
        batch, used = losses.batch, losses.own.used.cpu().numpy()
        values = losses.own.per_row.float().cpu().numpy()
        owners, steps = batch.owners.numpy(), batch.steps.numpy()
        for place, member in enumerate(batch.members):
            rows = used & (owners == place)
            self._losses[self.first + member][steps[rows]] = values[rows]

    def of(self, place: int) -> Float32:
        """float32 [n], nats: the loss of each row of a response of the step, before its weight;
        NaN of a row that has none by itself."""
        return self._losses[place]

    def by_position(self, world: World = ALONE, places: Sequence[int] = ()) -> list[float | None]:
        """Means over rows whose place in their response is in one of ``POSITION_BINS`` bins,
        which double in width; None for one without rows, and none after the last that has any.

        Args:
            world: the ranks that have a share of the step.
            places: of the responses, among all of the step; of one rank they are not read.
        """
        if not world.several:
            return means_by_position(self._losses)
        mine = {str(p): torch.from_numpy(one) for p, one in zip(places, self._losses, strict=True)}
        every: dict[str, Tensor] = {}
        for of_rank in world.gather_tensors(mine):
            every |= of_rank
        return means_by_position([every[str(place)].numpy() for place in range(len(every))])


def means_by_position(losses: Sequence[Float32]) -> list[float | None]:
    """As ``RowLosses.by_position``, of losses by response."""
    sums: NDArray[np.float64] = np.zeros(POSITION_BINS)
    counts: NDArray[np.int64] = np.zeros(POSITION_BINS, np.int64)
    for rows in losses:
        known = np.flatnonzero(~np.isnan(rows))
        bins = position_bins(known)
        np.add.at(sums, bins, rows[known].astype(np.float64))
        np.add.at(counts, bins, 1)
    return means_of_bins(sums, counts)
