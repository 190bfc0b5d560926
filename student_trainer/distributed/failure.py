"""What a rank failed by while it has to keep step with the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from student_trainer.distributed.world import World


class Failure:
    """The first error of a rank in something that all ranks do together.

    A rank that fails goes on without what it failed at, so that no other waits for it in vain,
    until they agree. A run of one process fails at once.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._first: BaseException | None = None

    def __bool__(self) -> bool:
        """Whether this rank has failed."""
        return self._first is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps an error of what is inside for ``agree``; also the one that a signal raises."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if not self._world.several:
                raise
            self._first = self._first or error

    def agree(self) -> None:
        """Meets the other ranks.

        Raises:
            BaseException: this rank's error, or what ``World.agree`` says of another's.
        """
        self._world.agree(self._first)
