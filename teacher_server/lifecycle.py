"""What the server is doing: its phase, what it serves, and the work in progress."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from teacher_proto.errors import LsmError, TeacherUnavailableError

from teacher_server.access.rules import Principal
from teacher_server.teachers.teacher import Teachers
from teacher_server.tokenizers.pairs import StudentTokenizers

# Seconds after which a client may try again: long enough for another replica
# or a restart to be found.
RETRY_HINT = 1.0


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True)
class Served:
    """The teachers of a server and the students' tokenizers that they can score for."""

    teachers: Teachers
    students: StudentTokenizers

    def usable_by(self, principal: Principal | None) -> Served:
        """With the teachers that a principal may ask; raises ForbiddenError when none is left."""
        return replace(self, teachers=self.teachers.usable_by(principal))


class Lifecycle:
    """The phase, and the refusal that goes with it. Phases only move forward.

    Attributes:
        active: requests that are in progress.
    """

    def __init__(self, failure: Callable[[], LsmError | None] = lambda: None) -> None:
        """``failure`` says why no call can succeed although everything is there."""
        self.phase = Phase.STARTING
        self._failure = failure
        self.active = 0
        self._served: Served | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY and self._failure() is None

    @property
    def served(self) -> Served:
        """What was loaded; raises TeacherUnavailableError while models are loading."""
        if self._served is None:
            raise self.refusal()
        return self._served

    def become_ready(self, served: Served) -> None:
        assert self.phase is Phase.STARTING
        self._served = served
        self.phase = Phase.READY

    def drain(self) -> None:
        if self.phase is not Phase.DEAD:
            self.phase = Phase.DRAINING

    def die(self) -> None:
        self.phase = Phase.DEAD

    def check_takes_work(self) -> None:
        """Raises TeacherUnavailableError before everything is loaded, and from the end on."""
        if self.phase is not Phase.READY:
            raise self.refusal()

    @contextlib.contextmanager
    def working(self) -> Iterator[Served]:
        """Counts the body as work in progress; raises TeacherUnavailableError unless ready."""
        self.check_takes_work()
        self.active += 1
        self._idle.clear()
        try:
            yield self.served
        finally:
            self.active -= 1
            if self.active == 0:
                self._idle.set()

    async def drained(self, seconds: float) -> bool:
        """Waits until no work is in progress; False when ``seconds`` were not enough."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def refusal(self) -> LsmError:
        """Why the server is not ready, or takes no work."""
        failure = self._failure()
        if self.phase is Phase.READY and failure is not None:
            return failure
        what, reason = {
            Phase.STARTING: ("the server is loading its models", "STARTING"),
            Phase.READY: ("the server is ready", "READY"),
            Phase.DRAINING: ("the server is shutting down and takes no new work", "DRAINING"),
            Phase.DEAD: ("an engine of the server died", "ENGINE_DEAD"),
        }[self.phase]
        return TeacherUnavailableError(
            what,
            fix="try again: the server may come back, or another replica may answer",
            reason=reason,
            retry_after=RETRY_HINT,
        )
