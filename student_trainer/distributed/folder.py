"""A folder in which all ranks of a run write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from teacher_proto.program.files import atomic_folder

from student_trainer.distributed.world import World


@contextmanager
def folder_of_ranks(path: Path, world: World, **how: Any) -> Iterator[Path]:
    """Gives every rank the same empty folder, which becomes ``path`` once the block ends on all
    of them; an error in the block removes it.

    Args:
        path: on a file system that all ranks see.
        how: as for ``atomic_folder``, which rank 0 calls.

    Raises:
        OSError: as ``atomic_folder``, on rank 0; the others raise RankError.
    """
    with ExitStack() as stack:
        made = world.on_first(lambda: stack.enter_context(atomic_folder(path, **how)))
        yield Path(world.from_first(str(made)))
        world.on_first(stack.close)
