"""What the server is doing: starting, ready, draining or dead."""

from __future__ import annotations

import enum

from teacher_proto.errors import LsmError, TeacherUnavailableError

# Seconds after which a client may try again: long enough for another replica
# or a restart to be found.
RETRY_HINT = 1.0


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Lifecycle:
    """The phase, and the refusal that goes with it. Phases only move forward."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY

    def become_ready(self) -> None:
        assert self.phase is Phase.STARTING
        self.phase = Phase.READY

    def drain(self) -> None:
        if self.phase is not Phase.DEAD:
            self.phase = Phase.DRAINING

    def die(self) -> None:
        self.phase = Phase.DEAD

    def check_takes_work(self) -> None:
        """Raises TeacherUnavailableError unless the server is ready."""
        if not self.ready:
            raise self.refusal()

    def refusal(self) -> LsmError:
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
