"""The order of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from student_trainer.rollout.sampling import stream


@dataclass(frozen=True)
class PromptOrder:
    """A shuffle of its own for every epoch.

    Position p is prompt ``p mod count`` of epoch ``p div count``.
    """

    seed: int
    count: int

    def take(self, position: int, count: int) -> list[int]:
        """Indices of the ``count`` prompts from ``position`` on."""
        permutations: dict[int, Any] = {}
        indices = []
        for place in range(position, position + count):
            epoch, offset = divmod(place, self.count)
            if epoch not in permutations:
                permutations[epoch] = stream("order", self.seed, epoch).permutation(self.count)
            indices.append(int(permutations[epoch][offset]))
        return indices
