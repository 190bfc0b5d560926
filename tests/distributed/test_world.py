"""What ranks tell each other."""

from __future__ import annotations

import torch
from torch import Tensor

from student_trainer.distributed.world import World
from tests.distributed.threads import on_ranks


def test_tensors_that_share_memory_are_gathered() -> None:
    """An answer of the data is the same array wherever it is taken."""
    answer, matrix = torch.arange(4), torch.arange(6.0).view(2, 3)

    def gather(world: World) -> list[dict[str, Tensor]]:
        mine = {"one": answer, "again": answer, "part": answer[1:], "turned": matrix.T}
        return world.gather_tensors({} if world.rank else mine)

    for first, second in on_ranks(gather):
        assert second == {}
        assert first["one"].tolist() == first["again"].tolist() == [0, 1, 2, 3]
        assert first["part"].tolist() == [1, 2, 3]
        assert torch.equal(first["turned"], matrix.T)
