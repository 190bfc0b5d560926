"""The order in which prompts are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from student_trainer.rollout.sampling import stream


@dataclass(frozen=True)
class PromptOrder:
    """The endless order of training: every epoch has a shuffle of its own.

    Position p is place ``p mod count`` of epoch ``p div count``.
    """

    seed: int
    count: int

    def take(self, position: int, count: int) -> list[int]:
        """The indices of ``count`` prompts, from ``position`` on."""
        permutations: dict[int, Any] = {}
        indices = []
        for place in range(position, position + count):
            epoch, offset = divmod(place, self.count)
            if epoch not in permutations:
                permutations[epoch] = stream("order", self.seed, epoch).permutation(self.count)
            indices.append(int(permutations[epoch][offset]))
        return indices
